"""A point that has to pass an obstacle, above or below: two ways, equally good."""

from collections.abc import Sequence

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.observations import box
from sb3_diffusion.envs.tensor.tasks.canvas import BLUE, GREEN, GREY, Canvas
from sb3_diffusion.envs.tensor.torch_env import TorchVecEnv

START, GOAL = (-1.2, 0.0), (1.2, 0.0)
GOAL_RADIUS = 0.15
WALLS = (1.5, 1.0)
"""Half the sides of the field."""
OBSTACLES = ((0.0, 0.0, 0.45), (0.0, 1.0, 0.25), (0.0, -1.0, 0.25))
"""Discs, as x, y and radius; the one in the middle stands on the straight way."""
FORCE, DAMPING, TIME_STEP = 4.0, 2.0, 0.05
ARRIVAL, CRASH = 10.0, -5.0
"""Rewards for the end of an episode."""


class PointMass(TorchVecEnv):
    """
    Push a point from the left to the right of a field, past discs that must not be touched.

    The field is a mirror image of itself: what leads past the middle disc above, mirrored, leads past it below, and pays the
    same. The mean of both ways hits the disc. A step pays how much nearer the goal is, in units of a tenth; reaching it pays
    10, touching a disc -5, and both end the episode. Walls stop the point. The state, all of which is seen, is position and
    velocity.

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
        max_episode_length: int = 150,
        render_mode: str | None = None,
    ):
        action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        super().__init__(num_envs, box((4,)), action_space, max_episode_length, device, render_mode)
        self._start = self._constant((*START, 0.0, 0.0))
        self._goal = self._constant(GOAL)
        self._walls = self._constant(WALLS)
        self._centres = self._constant([(x, y) for x, y, _ in OBSTACLES])
        self._radii = self._constant([radius for *_, radius in OBSTACLES])

    def initial_state(self, n: int) -> th.Tensor:
        """
        :param n: Number of episodes that begin
        :return: Points at rest, close to the start
        """
        return self._start + self.uniform(n, 0.05, 0.05, 0.0, 0.0)

    def transition(self, state: th.Tensor, action: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param state: Positions and velocities ``(n, 4)``
        :param action: Forces ``(n, 2)``
        :return: What follows; the goal and the discs are terminal
        """
        before, velocity = state.chunk(2, dim=-1)
        velocity = velocity + TIME_STEP * (FORCE * action - DAMPING * velocity)
        free = before + TIME_STEP * velocity
        position = free.clamp(-self._walls, self._walls)
        velocity = velocity.masked_fill(position != free, 0.0)
        remaining = self._distance(position)
        arrived = remaining < GOAL_RADIUS
        gaps = th.linalg.vector_norm(position.unsqueeze(1) - self._centres, dim=-1) - self._radii
        crashed = (gaps < 0.0).any(dim=-1)
        reward = 10.0 * (self._distance(before) - remaining) + ARRIVAL * arrived + CRASH * crashed
        return th.cat((position, velocity), dim=-1), reward, arrived | crashed

    def draw(self, state: Sequence[float]) -> np.ndarray:
        """
        :param state: Position and velocity
        :return: Discs, goal and point
        """
        canvas = Canvas(*WALLS)
        for x, y, radius in OBSTACLES:
            canvas.disc((x, y), radius, GREY)
        canvas.disc(GOAL, GOAL_RADIUS, GREEN)
        canvas.disc((state[0], state[1]), 0.05, BLUE)
        return canvas.image()

    def _distance(self, position: th.Tensor) -> th.Tensor:
        return th.linalg.vector_norm(position - self._goal, dim=-1)

    def _constant(self, numbers: object) -> th.Tensor:
        return th.tensor(numbers, dtype=th.float32, device=self.device)
