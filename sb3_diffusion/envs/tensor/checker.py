"""Whether an environment keeps the contract: what to run before a training on a new one."""

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffusion.envs.tensor.contract import TensorVecEnv
from sb3_diffusion.envs.tensor.observations import Observation, each
from sb3_diffusion.envs.tensor.step import TensorStep
from sb3_diffusion.numeric import integer


def check_tensor_env(env: TensorVecEnv, n_steps: int = 200) -> None:
    """
    Act at random for a while and compare everything that comes back with the contract. Waits for the device a lot.

    Among the mistakes that this finds is the most common one of simulators that begin episodes anew by themselves: the first
    observation of the next episode in the place of the last one.

    :param env: Environment; it is reset, and its episodes are in random phases afterwards
    :param n_steps: Number of steps
    :raises ValueError: Naming what is wrong
    """
    n_steps = integer("n_steps", n_steps, low=1)
    generator = th.Generator().manual_seed(0)
    low, high = (th.as_tensor(bound) for bound in (env.action_space.low, env.action_space.high))  # type: ignore[attr-defined]
    _check_observation(env, env.reset_tensor(random_phases=True), "reset_tensor()")
    ends = _Ends()
    kept: TensorStep | None = None
    copy: TensorStep | None = None
    for _ in range(n_steps):
        actions = low + (high - low) * th.rand(env.num_envs, *low.shape, generator=generator)
        step = env.step_tensor(actions.to(env.device))
        if kept is not None and copy is not None:
            _check_kept(kept, copy)
        _check_step(env, step)
        ends.look_at(step)
        kept, copy = step, _copied(step)
    ends.judge(n_steps)


class _Ends:
    """Ends of episodes that were seen."""

    def __init__(self) -> None:
        self.n_ended = self.n_known = self.n_first_of_next = 0

    def look_at(self, step: TensorStep) -> None:
        rows = step.final_valid
        self.n_ended += int(step.done.sum())
        if step.final_observation is None or not rows.any():
            return
        differs = th.zeros_like(rows)
        finals, seen = step.final_observation, step.observation
        for final, first in zip(_parts(finals).values(), _parts(seen).values(), strict=True):
            differs |= (final != first).reshape(len(rows), -1).any(dim=1)
        self.n_known += int(rows.sum())
        self.n_first_of_next += int((rows & ~differs).sum())

    def judge(self, n_steps: int) -> None:
        if self.n_ended == 0:
            warnings.warn(
                f"No episode ended within n_steps={n_steps}, so that ends were not checked; pass more steps.", stacklevel=3
            )
        elif self.n_known > 0 and self.n_first_of_next == self.n_known:
            raise ValueError(
                f"final_observation equals observation in all {self.n_known} environments whose episode ended: it is the "
                "first observation of the next episode. Take it before the reset, or set final_valid to false."
            )


def _parts(observation: Observation) -> dict[Any, th.Tensor]:
    return observation if isinstance(observation, dict) else {None: observation}


def _copied(step: TensorStep) -> TensorStep:
    final = None if step.final_observation is None else each(th.clone, step.final_observation)
    return step._replace(observation=each(th.clone, step.observation), reward=step.reward.clone(), final_observation=final)


def _check_kept(kept: TensorStep, copy: TensorStep) -> None:
    for name in ("observation", "reward", "final_observation"):
        one, other = getattr(kept, name), getattr(copy, name)
        if one is None:
            continue
        for key, tensor in _parts(one).items():
            if not th.equal(tensor.nan_to_num(), _parts(other)[key].nan_to_num()):
                raise ValueError(
                    f"{name} of a step was overwritten by the next one; return a clone() of the simulator's tensor."
                )


def _check_step(env: TensorVecEnv, step: TensorStep) -> None:
    _check_observation(env, step.observation, "observation")
    if step.final_observation is not None:
        _check_observation(env, step.final_observation, "final_observation", bounds=False)
    _check_tensor(env, step.reward, "reward", (env.num_envs,), th.float32)
    for name in ("terminated", "truncated", "final_valid"):
        _check_tensor(env, getattr(step, name), name, (env.num_envs,), th.bool)
    if not step.reward.isfinite().all():
        raise ValueError("reward is not finite; NaN or infinity spreads to every weight.")
    if (step.terminated & step.truncated).any():
        raise ValueError("terminated and truncated are both true in an environment; what has no future is not truncated.")
    if (step.final_valid & ~step.done).any():
        raise ValueError("final_valid is true in an environment whose episode goes on; set it where an episode ended.")
    if step.final_observation is None and step.final_valid.any():
        raise ValueError("final_valid is true although final_observation is None; return the observation or set it to false.")


def _check_observation(env: TensorVecEnv, observation: Observation, name: str, bounds: bool = True) -> None:
    space = env.observation_space
    expected: dict[Any, spaces.Space] = dict(space.spaces) if isinstance(space, spaces.Dict) else {None: space}
    found = _parts(observation)
    if found.keys() != expected.keys():
        raise ValueError(f"{name} has the entries {list(found)}, and the observation space has {list(expected)}.")
    for key, part in expected.items():
        label = name if key is None else f"{name}[{key!r}]"
        assert part.shape is not None
        dtype = th.from_numpy(np.empty(0, part.dtype)).dtype
        _check_tensor(env, found[key], label, (env.num_envs, *part.shape), th.float32 if dtype == th.float64 else dtype)
        if bounds and isinstance(part, spaces.Box):
            low, high = (th.as_tensor(bound, device=env.device) for bound in (part.low, part.high))
            if not ((found[key] >= low) & (found[key] <= high)).all():
                raise ValueError(f"{label} leaves its space {part}, or is NaN; widen the space or correct the observation.")


def _check_tensor(env: TensorVecEnv, tensor: th.Tensor, name: str, shape: tuple[int, ...], dtype: th.dtype) -> None:
    if not isinstance(tensor, th.Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__} and should be a tensor.")
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} has the shape {tuple(tensor.shape)} and type {tensor.dtype}, and should have {shape} and {dtype}."
        )
    if tensor.device.type != env.device.type:
        raise ValueError(f"{name} is on {tensor.device} and should be on {env.device}.")
