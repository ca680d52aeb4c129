"""An environment with the contract of Isaac Lab's, both generations, without Isaac Lab; and what differs in mjlab."""

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

STEP_SECONDS = 0.02
DIMS = {"policy": 3, "critic": 5}


def unbounded(dim: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (dim,), np.float32)


class FakeIsaacEnv:
    """
    Rows count the steps of their episode: 100 plus the count, in every number of the group ``policy``; 200 plus, in
    ``critic``.

    Row 0 terminates when it has lived for 3 steps, and row 1 terminates in the very step of its time limit.

    :param generation: 3 or 2
    :param compute_final_obs: Flag of generation 3
    :param terms: Whether the groups are dictionaries of terms
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(
        self, num_envs: int = 4, generation: int = 3, compute_final_obs: bool = False, terms: bool = False, limit: int = 5
    ):
        self.num_envs, self.device, self.terms = num_envs, "cpu", terms
        self.cfg = SimpleNamespace(episode_length_s=limit * STEP_SECONDS, is_finite_horizon=False, observations=None)
        if generation == 3:
            self.cfg.compute_final_obs = compute_final_obs
            self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
        groups: dict[str, spaces.Space] = {
            name: spaces.Dict({"position": unbounded(dim - 1), "speed": unbounded(1)}) if terms else unbounded(dim)
            for name, dim in DIMS.items()
        }
        self.single_observation_space = spaces.Dict(groups)
        self.observation_space = self.single_observation_space["policy"]  # the trap of direct tasks
        self.single_action_space = unbounded(2)
        self.episode_length_buf = th.zeros(num_envs, dtype=th.int64)
        self.extras: dict[str, Any] = {"log": {}}
        self.reward_buf = th.zeros(num_envs)
        self.clock = th.zeros(num_envs)
        self.seeds: list[int | None] = []
        self.received: list[th.Tensor] = []
        self.closed = False
        self.observed = {name: th.zeros(num_envs, dim) for name, dim in DIMS.items()}

    @property
    def unwrapped(self) -> "FakeIsaacEnv":
        return self

    @property
    def step_dt(self) -> float:
        return STEP_SECONDS

    @property
    def max_episode_length(self) -> int:
        return int(np.ceil(self.cfg.episode_length_s / self.step_dt))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seeds.append(seed)
        self.begin(th.ones(self.num_envs, dtype=th.bool))
        return self.look(self.observed), self.extras

    def step(self, action: th.Tensor) -> tuple[dict[str, Any], th.Tensor, th.Tensor, th.Tensor, dict[str, Any]]:
        self.received.append(action.clone())
        self.clock += 1
        self.episode_length_buf += 1
        truncated = self.episode_length_buf >= self.max_episode_length
        terminated = th.zeros_like(truncated)
        terminated[0] = self.clock[0] >= 3
        terminated[1] = truncated[1]
        self.reward_buf.copy_(self.clock)  # one buffer for life
        done = terminated | truncated
        if done.any():
            self.end(done)
        return self.look(self.observed), self.reward_buf, terminated, truncated, self.extras

    def end(self, done: th.Tensor) -> None:
        if getattr(self.cfg, "compute_final_obs", False):
            self.extras["final_obs"] = self.look({name: th.zeros_like(tensor) for name, tensor in self.observed.items()})
        self.extras["log"] = {"Episode/length": self.clock[done].mean()}
        self.begin(done)

    def begin(self, rows: th.Tensor) -> None:
        self.clock[rows] = 0.0
        self.episode_length_buf[rows] = 0

    def look(self, buffers: dict[str, th.Tensor]) -> dict[str, Any]:
        """All groups, in buffers that the simulator writes again."""
        for number, buffer in enumerate(buffers.values(), start=1):
            buffer.copy_((self.clock + 100.0 * number).unsqueeze(-1).expand_as(buffer))
        if not self.terms:
            return buffers
        return {name: {"position": buffer[:, :-1], "speed": buffer[:, -1:]} for name, buffer in buffers.items()}

    def close(self) -> None:
        self.closed = True


class FakeMjlabEnv(FakeIsaacEnv):
    """mjlab: another name of the group, spaces of its own, and resets that can be left to the caller."""

    def __init__(self, **settings: Any):
        super().__init__(generation=2, **settings)
        own = {"actor": self.single_observation_space["policy"], "critic": self.single_observation_space["critic"]}
        self.single_observation_space = SimpleNamespace(  # type: ignore[assignment]
            spaces={
                key: SimpleNamespace(shape=space.shape, dtype="float32", low=-np.inf, high=np.inf)
                for key, space in own.items()
            }
        )
        self.single_action_space = SimpleNamespace(shape=(2,), dtype="float32", low=-np.inf, high=np.inf)  # type: ignore[assignment]
        self.cfg.auto_reset = True
        self.pending = th.zeros(self.num_envs, dtype=th.bool)

    def step(self, action: th.Tensor) -> tuple[dict[str, Any], th.Tensor, th.Tensor, th.Tensor, dict[str, Any]]:
        if self.pending.any():
            raise RuntimeError("environments must be reset before step()")
        return super().step(action)

    def end(self, done: th.Tensor) -> None:
        if self.cfg.auto_reset:
            super().end(done)
        else:
            self.pending |= done

    def reset(self, *, env_ids: th.Tensor | None = None, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if env_ids is None:
            return super().reset(**settings)
        rows = th.zeros(self.num_envs, dtype=th.bool)
        rows[env_ids] = True
        self.pending &= ~rows
        self.extras["log"] = {"Episode/length": self.clock[rows].mean()}
        self.begin(rows)
        return self.look(self.observed), self.extras

    def look(self, buffers: dict[str, th.Tensor]) -> dict[str, Any]:
        observed = super().look(buffers)
        return {"actor": observed["policy"], "critic": observed["critic"]}
