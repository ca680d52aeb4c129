"""A pole on a cart that is pushed by any force up to ten newtons: keep it up, or swing it up first."""

import math
from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.observations import box
from sb3_diffusion.envs.tensor.tasks.canvas import BLACK, GREY, RED, Canvas
from sb3_diffusion.envs.tensor.torch_env import TorchVecEnv

GRAVITY, TIME_STEP = 9.8, 0.02
CART, POLE, HALF_LENGTH = 1.0, 0.1, 0.5
"""Masses, and half the length of the pole."""
MAX_FORCE = 10.0
RAIL = 2.4
"""Largest distance of the cart from the middle."""
MAX_TILT = 12.0 * math.pi / 180.0


def accelerations(state: th.Tensor, force: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    :param state: Position, velocity, angle (0 is upright) and angular velocity ``(n, 4)``
    :param force: Force on the cart ``(n,)``
    :return: Acceleration of the cart, and of the angle ``(n,)``
    """
    _, _, angle, spin = state.unbind(-1)
    sine, cosine = angle.sin(), angle.cos()
    push = (force + POLE * HALF_LENGTH * spin**2 * sine) / (CART + POLE)
    turn = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE * cosine**2 / (CART + POLE)))
    return push - POLE * HALF_LENGTH * turn * cosine / (CART + POLE), turn


def draw_cart_pole(state: Sequence[float]) -> np.ndarray:
    """
    :param state: Position, velocity, angle and angular velocity
    :return: Rail, cart and pole
    """
    position, _, angle, _ = state
    canvas = Canvas(RAIL + 0.4, 1.4)
    canvas.line((-RAIL, 0.0), (RAIL, 0.0), 0.03, GREY)
    canvas.line((position - 0.15, 0.0), (position + 0.15, 0.0), 0.25, BLACK)
    tip = (position + 2.0 * HALF_LENGTH * math.sin(angle), 2.0 * HALF_LENGTH * math.cos(angle))
    canvas.line((position, 0.0), tip, 0.08, RED)
    return canvas.image()


class CartPoleBalance(TorchVecEnv):
    """
    Gymnasium's ``CartPole-v1`` with a continuous force: dynamics, starts, limits, and a reward of 1 per step.

    An action of 1 pushes with ten newtons.

    :param num_envs: Number of environments
    :param device: Device
    :param max_episode_length: Steps after which an episode is truncated
    :param render_mode: ``"rgb_array"`` to draw
    """

    render_fps = 50

    def __init__(
        self,
        num_envs: int = 1024,
        device: th.device | str = "auto",
        max_episode_length: int = 500,
        render_mode: str | None = None,
    ):
        action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        super().__init__(num_envs, box((4,)), action_space, max_episode_length, device, render_mode)

    def initial_state(self, n: int) -> th.Tensor:
        """
        :param n: Number of episodes that begin
        :return: States near the upright rest
        """
        return self.uniform(n, 0.05, 0.05, 0.05, 0.05)

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param state: Position, velocity, angle and angular velocity ``(n, 4)``
        :param action: Forces in units of ten newtons ``(n, 1)``
        :return: What follows; the end of the rail and a tilt of twelve degrees are terminal
        """
        position, velocity, angle, spin = state.unbind(-1)
        push, turn = accelerations(state, MAX_FORCE * action.squeeze(-1))
        after = th.stack(
            (
                position + TIME_STEP * velocity,
                velocity + TIME_STEP * push,
                angle + TIME_STEP * spin,
                spin + TIME_STEP * turn,
            ),
            dim=-1,
        )
        fallen = (after[:, 0].abs() > RAIL) | (after[:, 2].abs() > MAX_TILT)
        return after, th.ones_like(position), fallen

    def draw(self, state: Sequence[float]) -> np.ndarray:
        """
        :param state: Position, velocity, angle and angular velocity
        :return: Rail, cart and pole
        """
        return draw_cart_pole(state)


class CartPoleSwingUp(TorchVecEnv):
    """
    The same cart, whose pole hangs down at first.

    The reward of a step is between 0 and 1: the height of the pole's tip times how near the cart is to the middle of its rail.
    Leaving the rail ends the episode. Observations are position, velocity, cosine and sine of the angle, and angular velocity.

    :param num_envs: Number of environments
    :param device: Device
    :param max_episode_length: Steps after which an episode is truncated
    :param render_mode: ``"rgb_array"`` to draw
    """

    render_fps = 50

    def __init__(
        self,
        num_envs: int = 1024,
        device: th.device | str = "auto",
        max_episode_length: int = 500,
        render_mode: str | None = None,
    ):
        action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        super().__init__(num_envs, box((5,)), action_space, max_episode_length, device, render_mode)

    def initial_state(self, n: int) -> th.Tensor:
        """
        :param n: Number of episodes that begin
        :return: States near the hanging rest
        """
        state = self.uniform(n, 0.1, 0.05, 0.1, 0.05)
        state[:, 2] += math.pi
        return state

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param state: Position, velocity, angle and angular velocity ``(n, 4)``
        :param action: Forces in units of ten newtons ``(n, 1)``
        :return: What follows; the end of the rail is terminal
        """
        position, velocity, angle, spin = state.unbind(-1)
        push, turn = accelerations(state, MAX_FORCE * action.squeeze(-1))
        # velocities first: over a whole swing the other order would add energy of its own
        velocity, spin = velocity + TIME_STEP * push, spin + TIME_STEP * turn
        position, angle = position + TIME_STEP * velocity, angle + TIME_STEP * spin
        off = position.abs() > RAIL
        height = 0.5 * (1.0 + angle.cos())
        centred = (1.0 - (position / RAIL) ** 2).clamp(min=0.0)
        return th.stack((position, velocity, angle, spin), dim=-1), height * centred, off

    def observe(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: Position, velocity, angle and angular velocity ``(n, 4)``
        :return: ``(n, 5)``
        """
        position, velocity, angle, spin = state.unbind(-1)
        return th.stack((position, velocity, angle.cos(), angle.sin(), spin), dim=-1)

    def draw(self, state: Sequence[float]) -> np.ndarray:
        """
        :param state: Position, velocity, angle and angular velocity
        :return: Rail, cart and pole
        """
        return draw_cart_pole(state)
