"""The pendulum of Gymnasium, many times."""

import math
from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.tasks.canvas import BLACK, RED, Canvas
from sb3_diffusion.envs.tensor.torch_env import TorchVecEnv

MAX_SPEED, MAX_TORQUE = 8.0, 2.0
TIME_STEP, GRAVITY = 0.05, 10.0


class Pendulum(TorchVecEnv):
    """
    A pendulum whose motor is too weak to lift it at once; dynamics, reward and starts of ``Pendulum-v1``.

    The state is angle (0 is upright) and speed. Observations are cosine and sine of the angle, and the speed.

    :param num_envs: Number of environments
    :param device: Device
    :param max_episode_length: Steps after which an episode is truncated
    :param render_mode: ``"rgb_array"`` to draw
    """

    render_fps = 20

    def __init__(
        self,
        num_envs: int = 1024,
        device: th.device | str = "auto",
        max_episode_length: int = 200,
        render_mode: str | None = None,
    ):
        limit = np.array([1.0, 1.0, MAX_SPEED], np.float32)
        super().__init__(
            num_envs=num_envs,
            observation_space=spaces.Box(-limit, limit, dtype=np.float32),
            action_space=spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32),
            max_episode_length=max_episode_length,
            device=device,
            render_mode=render_mode,
        )

    def initial_state(self, n: int) -> th.Tensor:
        """
        :param n: Number of episodes that begin
        :return: Any angle, speeds between -1 and 1
        """
        return self.uniform(n, math.pi, 1.0)

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param state: Angles and speeds ``(n, 2)``
        :param action: Torques ``(n, 1)``
        :return: What follows; no state is terminal
        """
        angle, speed = state.unbind(-1)
        torque = action.squeeze(-1)
        tilt = th.remainder(angle + math.pi, 2.0 * math.pi) - math.pi
        reward = -(tilt**2 + 0.1 * speed**2 + 0.001 * torque**2)
        speed = speed + (1.5 * GRAVITY * angle.sin() + 3.0 * torque) * TIME_STEP
        speed = speed.clamp(-MAX_SPEED, MAX_SPEED)
        angle = angle + speed * TIME_STEP
        return th.stack((angle, speed), dim=-1), reward, th.zeros_like(reward, dtype=th.bool)

    def observe(self, state: th.Tensor) -> th.Tensor:
        """
        :param state: Angles and speeds ``(n, 2)``
        :return: ``(n, 3)``
        """
        angle, speed = state.unbind(-1)
        return th.stack((angle.cos(), angle.sin(), speed), dim=-1)

    def draw(self, state: Sequence[float]) -> np.ndarray:
        """
        :param state: Angle and speed
        :return: The rod and its pivot
        """
        angle, _ = state
        canvas = Canvas(1.3, 1.3)
        canvas.line((0.0, 0.0), (-math.sin(angle), math.cos(angle)), 0.2, RED)
        canvas.disc((0.0, 0.0), 0.05, BLACK)
        return canvas.image()
