"""Replay buffers that keep a transition in one row of memory and sample it with one gather."""

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, DictReplayBuffer, NStepReplayBuffer, ReplayBuffer, psutil
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.data.device_copy import STORAGES, DeviceCopy
from sb3_diffusion.data.normalization import normalize_observations, normalize_rewards
from sb3_diffusion.data.rows import as_stored, columns_of, shaped, storage_type
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real

SCALARS = ("rewards", "dones", "timeouts")


def _stored(name: str) -> property:
    def get(buffer: "TensorReplayBuffer") -> Any:
        return buffer._expose(name)

    def put(buffer: "TensorReplayBuffer", value: Any) -> None:
        arrays = buffer._expose(name)
        for key, array in arrays.items() if isinstance(arrays, dict) else [(None, arrays)]:
            array[...] = value if key is None else value[key]

    return property(get, put)


class TensorReplayBuffer(ReplayBuffer):
    """
    Stable-Baselines3's replay buffer with another memory layout: the same arguments, arrays, random numbers and samples.

    All fields of a transition lie side by side in one row. Sampling gathers rows, one memory access per transition, and hands
    out views of the result. Memory is committed as the buffer fills, and only the filled part is pickled.

    ``observations``, ``next_observations``, ``actions``, ``rewards``, ``dones`` and ``timeouts`` are NumPy arrays of shape
    ``(buffer_size, n_envs, ...)`` (dictionaries of them for Dict observations) that share the memory of the rows: writing to
    them changes what is sampled. On an accelerator the rows have a copy there, which receives the new rows when sampling, and
    all rows again after one of the arrays has been asked for.

    Differences: float64 observations are kept as float32, as which the networks see them anyway (with ``VecNormalize``, the
    rounding comes before the normalisation); n-step returns work with Dict observations, too.

    :param buffer_size: Number of transitions, over all environments
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: Device of the samples
    :param n_envs: Number of environments
    :param optimize_memory_usage: Keep each observation once; not with ``handle_timeout_termination``, Dict observations or
        n-step returns
    :param handle_timeout_termination: Bootstrap where an episode ended by a time limit
    :param n_steps: Number of steps of the return; an algorithm that has the buffer sets its own
    :param gamma: Discount factor within n-step returns; an algorithm that has the buffer sets its own
    :param storage: ``"device"`` keeps a copy on the device, ``"host"`` gathers on the host and moves the batch,
        ``"auto"`` decides by size: a copy if the full buffer takes at most a quarter of the free memory of a CUDA device
    """

    observations = _stored("observations")
    next_observations = _stored("next_observations")
    actions = _stored("actions")
    rewards = _stored("rewards")
    dones = _stored("dones")
    timeouts = _stored("timeouts")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_steps: int = 1,
        gamma: float = 0.99,
        storage: str = "auto",
    ):
        buffer_size, n_envs = integer("buffer_size", buffer_size, low=1), integer("n_envs", n_envs, low=1)
        n_steps, gamma = integer("n_steps", n_steps, low=1), real("gamma", gamma, 0, 1)
        if optimize_memory_usage:
            check_memory_optimization(handle_timeout_termination, observation_space, n_steps)
        # not ReplayBuffer's constructor, which allocates one array per field
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps = n_steps
        self.gamma = gamma
        self.storage = choice("storage", storage, STORAGES)
        self._row = self._row_dtype()
        self._next_name = "observations" if optimize_memory_usage else "next_observations"
        self._samples_type: Any = DictReplayBufferSamples if isinstance(self.obs_shape, dict) else ReplayBufferSamples
        self._warn_if_too_large()
        self._allocate()

    # -- memory -----------------------------------------------------------------------------------------------------

    def _row_dtype(self) -> np.dtype:
        """Fields of a row, large types first; Dict observations have one field per key."""
        fields: list[tuple[str, np.dtype, tuple[int, ...]]] = []
        for name in ("observations",) if self.optimize_memory_usage else ("observations", "next_observations"):
            if isinstance(self.observation_space, spaces.Dict):
                fields += [
                    (f"{name}/{key}", storage_type(space), self.obs_shape[key])  # type: ignore[call-overload]
                    for key, space in self.observation_space.spaces.items()
                ]
            else:
                fields.append((name, storage_type(self.observation_space), self.obs_shape))
        fields.append(("actions", np.dtype(self._maybe_cast_dtype(self.action_space.dtype)), (self.action_dim,)))
        fields += [(name, np.dtype(np.float32), (1,)) for name in SCALARS]
        fields.sort(key=lambda field: (-field[1].itemsize, field[1].str))
        return np.dtype(fields, align=True)

    def _allocate(self) -> None:
        # zeros from the operating system: a page takes memory when it is written to
        self._rows = np.zeros((self.buffer_size, self.n_envs), dtype=self._row)
        self._bytes = th.from_numpy(self._rows.view(np.uint8).reshape(self.buffer_size * self.n_envs, -1))
        self._columns = columns_of(self._row)
        self._flat_scalars = {name: self._rows.reshape(-1)[name][:, 0] for name in SCALARS}
        self._arrays: dict[str, Any] = {}
        for field in self._row.names or ():
            name, _, key = field.partition("/")
            if isinstance(self.obs_shape, dict) and name.endswith("observations"):
                self._arrays.setdefault(name, {})[key] = self._rows[field]
            else:
                self._arrays[name] = self._rows[field][..., 0] if name in SCALARS else self._rows[field]
        self._copy = DeviceCopy(self._bytes, self.n_envs, self.storage)

    def _warn_if_too_large(self) -> None:
        if psutil is None:  # an extra of Stable-Baselines3
            return
        needed, available = self.buffer_size * self.n_envs * self._row.itemsize, psutil.virtual_memory().available
        if needed > available:
            warnings.warn(
                f"The full replay buffer will take {needed / 1e9:.2f} GB of memory, but only {available / 1e9:.2f} GB are "
                "available; choose a smaller buffer_size or optimize_memory_usage=True.",
                stacklevel=2,
            )

    def _expose(self, name: str) -> Any:
        if name not in self._arrays:
            raise AttributeError(f"{type(self).__name__} with optimize_memory_usage=True has no {name!r}.")
        self._copy.n_new = self.buffer_size  # whoever holds the array may write to it
        return self._arrays[name]

    @property
    def raw_rows(self) -> np.ndarray:
        """The rows as bytes, ``(buffer_size, n_envs, size of a row)``: writing to them changes what is sampled."""
        self._copy.n_new = self.buffer_size
        return self._bytes.numpy().reshape(self.buffer_size, self.n_envs, -1)

    def _n_used(self) -> int:
        """Positions with contents; with ``optimize_memory_usage`` the newest next observation lies behind the last one."""
        return self.buffer_size if self.full else min(self.pos + 1, self.buffer_size)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        for name in ("_bytes", "_columns", "_flat_scalars", "_arrays", "_copy"):
            del state[name]
        state["_rows"] = self._rows[: self._n_used()]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows = state.pop("_rows")
        vars(self).update(state)
        self._allocate()
        self._rows[: len(rows)] = rows

    # -- adding -----------------------------------------------------------------------------------------------------

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],  # type: ignore[override]
        next_obs: np.ndarray | dict[str, np.ndarray],  # type: ignore[override]
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition per environment. Whatever NumPy makes an array of is taken: lists, numbers, tensors of the CPU.

        :param obs: Observations
        :param next_obs: Observations after the action
        :param action: Normalised actions
        :param reward: Rewards
        :param done: Whether an episode ended
        :param infos: Information about the transitions; ``TimeLimit.truncated`` tells ends by a time limit
        """
        arrays, pos = self._arrays, self.pos
        self._write(arrays["observations"], pos, obs)
        if self.optimize_memory_usage:
            self._write(arrays["observations"], (pos + 1) % self.buffer_size, next_obs)
        else:
            self._write(arrays["next_observations"], pos, next_obs)
        arrays["actions"][pos] = np.asarray(action).reshape(self.n_envs, self.action_dim)
        # an array even where it is a list: NumPy spreads (1, 1) over (1,), but no list that holds arrays
        arrays["rewards"][pos] = np.asarray(reward)
        arrays["dones"][pos] = np.asarray(done)
        if self.handle_timeout_termination:
            arrays["timeouts"][pos] = np.asarray([info.get("TimeLimit.truncated", False) for info in infos])
        self._copy.n_new += 1
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def _write(self, target: Any, pos: int, value: Any) -> None:
        if isinstance(target, dict):
            for key, array in target.items():
                array[pos] = as_stored(value[key], self.observation_space[key], array)  # type: ignore[index]
        else:
            target[pos] = as_stored(value, self.observation_space, target)

    # -- sampling ---------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        Draw transitions with replacement.

        :param batch_size: Number of transitions
        :param env: Normalises observations and rewards
        :return: The transitions, as Stable-Baselines3's buffers return them
        """
        if self.optimize_memory_usage and self.full:
            # the position that is written next has lost its next observation
            batch_inds = (np.random.randint(1, self.buffer_size, size=batch_size) + self.pos) % self.buffer_size
        else:
            batch_inds = np.random.randint(0, self.buffer_size if self.full else self.pos, size=batch_size)
        return self._get_samples(batch_inds, env=env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        # the same draws in the same order as in Stable-Baselines3: a seed gives the same training with either buffer
        env_inds = np.random.randint(0, self.n_envs, size=len(batch_inds)) if self.n_envs > 1 else 0
        fields = self._gather(batch_inds * self.n_envs + env_inds)
        next_fields, discounts = fields, None
        if self.n_steps > 1:
            last, summary = self._n_step_returns(batch_inds, env_inds, env)
            next_fields = self._gather(last)
            rewards, dones, discounts = th.from_numpy(summary).to(self.device, non_blocking=True).unsqueeze(-1).unbind(0)
        else:
            rewards, dones = normalize_rewards(fields["rewards"], env), fields["dones"]
            dones = th.addcmul(dones, dones, fields["timeouts"], value=-1.0)  # ended, and not by a time limit
        if self.optimize_memory_usage:
            next_fields = self._gather((batch_inds + 1) % self.buffer_size * self.n_envs + env_inds)
        return self._samples_type(  # type: ignore[no-any-return]
            observations=self._observations(fields, "observations", env),
            actions=fields["actions"],
            next_observations=self._observations(next_fields, self._next_name, env),
            dones=dones,
            rewards=rewards,
            discounts=discounts,
        )

    def _n_step_returns(
        self, batch_inds: np.ndarray, env_inds: np.ndarray | int, env: VecNormalize | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rows with the last steps, and ``(3, batch)``: returns, terminations and discounts."""
        steps = np.arange(self.n_steps)[:, None]
        path = (batch_inds + steps) % self.buffer_size
        flat = path * self.n_envs + env_inds
        rewards, dones, timeouts = (self._flat_scalars[name][flat] for name in SCALARS)
        # behind the newest transition come old ones of another episode
        ends = (dones + timeouts != 0.0) | (path == (self.pos - 1) % self.buffer_size)
        ends[-1] = True
        last = ends.argmax(0)
        discounts = self.gamma ** np.arange(self.n_steps + 1, dtype=np.float32)
        returns = (self._normalize_reward(rewards, env) * discounts[:-1, None] * (steps <= last)).sum(0)
        last_step = last, np.arange(len(last))
        terminated = dones[last_step] * (1.0 - timeouts[last_step])
        return flat[last_step], np.stack((returns, terminated, discounts[last + 1]))

    def _gather(self, indices: np.ndarray) -> dict[str, th.Tensor]:
        """Fields of the rows with these numbers, on the device."""
        rows = self._gather_bytes(th.from_numpy(indices))
        fields: dict[str, th.Tensor] = {}
        for dtype, names, sizes in self._columns:
            fields.update(zip(names, rows.view(dtype).split_with_sizes(sizes, 1), strict=True))
        return fields

    def _gather_bytes(self, indices: th.Tensor) -> th.Tensor:
        copied = self._copy.synchronized(self.device, self._n_used(), self.pos, int(self.optimize_memory_usage))
        if copied is not None:
            return copied.index_select(0, indices.to(copied.device, non_blocking=True))
        if self.device.type != "cuda":
            return self._bytes.index_select(0, indices).to(self.device)
        # page-locked memory is copied without waiting; its allocator knows when it is free again
        batch = th.empty(len(indices), self._bytes.shape[1], dtype=th.uint8, pin_memory=True)
        th.index_select(self._bytes, 0, indices, out=batch)
        return batch.to(self.device, non_blocking=True)

    def _observations(self, fields: dict[str, th.Tensor], name: str, env: VecNormalize | None) -> Any:
        if isinstance(self.obs_shape, dict):
            parts = {key: shaped(fields[f"{name}/{key}"], shape) for key, shape in self.obs_shape.items()}
            return parts if env is None else normalize_observations(parts, env)
        observations = shaped(fields[name], self.obs_shape)
        return observations if env is None else normalize_observations(observations, env)


class TensorNStepReplayBuffer(TensorReplayBuffer, NStepReplayBuffer):
    """
    :class:`TensorReplayBuffer` where Stable-Baselines3 has its buffer for n-step returns; ``n_steps`` is 3 unless given.

    :param args: See :class:`TensorReplayBuffer`
    :param kwargs: See :class:`TensorReplayBuffer`
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"n_steps": 3, **kwargs})


class TensorDictReplayBuffer(TensorReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """:class:`TensorReplayBuffer` where Stable-Baselines3 has its buffer for Dict observations."""


def default_buffer_class(observation_space: spaces.Space, n_steps: int) -> type[TensorReplayBuffer]:
    """
    The class that plays the role which Stable-Baselines3's own would have.

    :param observation_space: Observation space
    :param n_steps: Number of steps of the return
    :return: A subclass of ``DictReplayBuffer``, ``NStepReplayBuffer`` or ``ReplayBuffer``
    """
    if isinstance(observation_space, spaces.Dict):
        return TensorDictReplayBuffer
    return TensorNStepReplayBuffer if n_steps > 1 else TensorReplayBuffer


def check_memory_optimization(handle_timeout_termination: bool, observation_space: spaces.Space, n_steps: int) -> None:
    """
    :param handle_timeout_termination: Argument of the buffer
    :param observation_space: Observation space
    :param n_steps: Number of steps of the return
    :raises ValueError: If observations cannot be kept once
    """
    remedy = None
    if handle_timeout_termination:
        remedy = "handle_timeout_termination=True; pass replay_buffer_kwargs={'handle_timeout_termination': False}"
    elif isinstance(observation_space, spaces.Dict):
        remedy = "Dict observations; leave it out"
    elif n_steps > 1:
        remedy = f"n_steps={n_steps}; use n_steps=1"
    if remedy is not None:
        raise ValueError(f"optimize_memory_usage=True does not work with {remedy}.")


BUFFERS: dict[str, type[TensorReplayBuffer]] = {
    buffer_class.__name__: buffer_class
    for buffer_class in (TensorReplayBuffer, TensorNStepReplayBuffer, TensorDictReplayBuffer)
}
"""The classes by the names under which saved models know them."""
for _buffer_class in BUFFERS.values():
    _buffer_class.__module__ = "sb3_diffusion"  # pickles name the public place, so that this file may move
