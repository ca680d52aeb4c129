"""Everything that a training consists of at the start of a rollout, as parts that can be stored and put back."""

import inspect
import io
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_diffusion.checkpoints.tagged_json import decode, encode
from sb3_diffusion.checkpoints.trainings.changes import SCHEDULES, describe_changes, restore_changes
from sb3_diffusion.checkpoints.trainings.format_1 import from_format_1
from sb3_diffusion.checkpoints.trainings.logger import describe_logger, restore_logger
from sb3_diffusion.checkpoints.trainings.replay import ReplayPieces, buffer_attributes, end_episodes
from sb3_diffusion.checkpoints.trainings.restoration import Restoration
from sb3_diffusion.checkpoints.trainings.snapshot import Node, Snapshot
from sb3_diffusion.checkpoints.trainings.store import Checkpoint, Entry
from sb3_diffusion.clock import environment_steps, logged_time
from sb3_diffusion.files import write_atomically
from sb3_diffusion.processes import n_processes

STATE, ARRAYS, PARAMETERS = "state.json", "arrays.bin", "parameters.pt"
_STORED_ELSEWHERE = (
    *("env", "_tensor_env", "_vec_normalize_env", "replay_buffer", "rollout_buffer"),
    *("_logger", "_run_update", *SCHEDULES),
)
_OF_THE_DATA = ("dataset", "_sampler", "_transform", "_metric_log", "bar", "_shows_updates", "state_tables", "_support")
_OF_THE_CALL = ("_total_timesteps", "start_time", "_custom_logger", "verbose")
"""What a new call of ``learn()`` decides itself."""


def why_not(model: BaseAlgorithm) -> str | None:
    """
    Whether the state of an algorithm can be described completely.

    :param model: An algorithm with its environment
    :return: ``None`` if it can, else the reason why not
    """
    if n_processes() > 1:
        return "several processes train together; save the agent, and let each of them load it to go on, in any number"
    if not isinstance(model, OffPolicyAlgorithm | OnPolicyAlgorithm):
        return f"{type(model).__name__} has a training loop of its own"
    if hasattr(model, "_last_lstm_states"):
        return f"{type(model).__name__} carries hidden states of a recurrent network"
    if isinstance(model, OffPolicyAlgorithm):
        buffer = model.replay_buffer
        if isinstance(buffer, HerReplayBuffer) and buffer.copy_info_dict:
            return "HerReplayBuffer with copy_info_dict=True stores Python objects"
        if unknown := buffer_attributes(buffer).unknown:
            return f"{type(buffer).__name__} holds {', '.join(unknown)}"
    return None


def constructor_arguments(model: BaseAlgorithm) -> dict[str, Any]:
    """
    :param model: An algorithm
    :return: Arguments of its constructor that it keeps as plain values under their own names
    """
    names = inspect.signature(type(model)).parameters.keys() - set(_OF_THE_CALL) - {"seed"}
    return {name: value for name in names if isinstance(value := getattr(model, name, None), bool | int | float)}


class TrainingState:
    """
    Describes a training and puts it back. One object accompanies one training, since only the new rows of the replay buffer
    are stored each time.

    :param model: The algorithm
    :param callback: Its callbacks (the one that ``learn()`` made of them)
    :param files: Files that are stored and put back as they are
    """

    def __init__(self, model: BaseAlgorithm, callback: BaseCallback, files: Sequence[Path] = ()):
        self.model = model
        self.callback = callback
        self.files = files
        self.replay = ReplayPieces(model.replay_buffer) if isinstance(model, OffPolicyAlgorithm) else None

    def parts(self, folder: Path, previous: Checkpoint | None, extra: dict[str, Any]) -> Iterator[tuple[str, bytes | Entry]]:
        """
        :param folder: Folder of the checkpoints
        :param previous: The last checkpoint that was written or restored
        :param extra: Plain data to store with the state
        :return: Names and contents, or the previous checkpoint's entries of what did not change
        """
        model = self.model
        state: dict[str, Node] = {"extra": Snapshot(extra).node}
        if self.replay is not None:
            yield from self.replay.parts(environment_steps(model), previous)
            state["replay"] = self.replay.describe()
        environment = Snapshot(model.env)
        state["env"], state["unknown"] = environment.node, environment.unknown
        state["callback"] = Snapshot(_stateful(self.callback), skip=_skip_of_callback).node
        state["model"] = Snapshot(model, skip=_skip_of_model).node
        state["changes"] = describe_changes(model)
        noises = [(noise.exploration_mat, noise.exploration_matrices) for noise in _rollout_noises(model)]
        state["noises"] = Snapshot(noises).node
        state["elapsed"] = time.time_ns() - int(model.start_time)
        state["logger"] = describe_logger(model.logger, folder, logged_time(model))
        state["random"] = Snapshot(_random_states()).node
        state["files"] = [_part_name(index, path) if path.is_file() else None for index, path in enumerate(self.files)]
        for path, name in zip(self.files, state["files"], strict=True):
            if name is not None:
                yield name, path.read_bytes()
        text, arrays = encode(state)
        yield STATE, text
        yield ARRAYS, arrays
        stream = io.BytesIO()
        th.save(model.get_parameters(), stream)
        yield PARAMETERS, stream.getvalue()

    def written(self) -> None:
        """Tell that the last :meth:`parts` have reached the disk."""
        if self.replay is not None:
            self.replay.written()

    def extra(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """
        :param checkpoint: An intact checkpoint
        :return: The extra data that was stored with it
        """
        return Restoration({}, _decoded(checkpoint)["extra"]).value  # type: ignore[no-any-return]

    def restore(self, checkpoint: Checkpoint, callbacks: bool = True) -> tuple[dict[str, Any], list[str]]:
        """
        Put a stored state back, at the start of a rollout.

        :param checkpoint: An intact checkpoint
        :param callbacks: Whether the callbacks are those of the checkpoint
        :raises ValueError: If algorithm or callbacks are not built like those of the checkpoint
        :return: The extra data, and what of the environments could not be restored: if there is any, new episodes have begun
        """
        state = _decoded(checkpoint)
        for name in SCHEDULES:  # once described with the rest
            state["model"][":state"]["attributes"].pop(name, None)
        model = self.model
        self._restore_parameters(checkpoint)
        n_envs = model.n_envs
        for target, name in ((_stateful(self.callback), "callback"), (model, "model"))[not callbacks :]:
            mismatches = Restoration(target, state[name]).mismatches
            if mismatches:
                raise ValueError(
                    f"The checkpoint is one of another {name}: {'; '.join(mismatches)}. Build the same {name} again."
                )
        if model.n_envs != n_envs:
            raise ValueError(
                f"The checkpoint is one of {model.n_envs} environments, not {n_envs}. Build the same number again."
            )
        if self.replay is not None:
            self.replay.restore(state["replay"], checkpoint, environment_steps(model))
        for noise, matrices in zip(_rollout_noises(model), Restoration([], state["noises"]).value, strict=True):
            noise.exploration_mat, noise.exploration_matrices = (matrix.to(model.device) for matrix in matrices)
        environment = Restoration(model.env, state["env"])
        lost = [*state["unknown"], *environment.mismatches, *environment.lost]
        restore_changes(model, state.get("changes"))
        model.start_time = time.time_ns() - state["elapsed"]
        restore_logger(model.logger, state["logger"], checkpoint.folder, environment_steps(model))
        self._restore_files(state["files"], checkpoint)
        self._restore_progress_bars()
        _restore_random_states(Restoration(_random_states(), state["random"]).value)
        if lost:
            self._begin_new_episodes()
        return Restoration({}, state["extra"]).value, lost

    def _restore_parameters(self, checkpoint: Checkpoint) -> None:
        model = self.model
        parameters = th.load(io.BytesIO(checkpoint.read(PARAMETERS)), map_location=model.device, weights_only=True)
        try:
            model.set_parameters(parameters, exact_match=True, device=model.device)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"The checkpoint is one of other networks: {reason} Build the same networks again.") from error

    def _restore_files(self, names: list[str | None], checkpoint: Checkpoint) -> None:
        for path, name in zip(self.files, names, strict=False):
            if name is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, checkpoint.read(name))

    def _restore_progress_bars(self) -> None:
        for callback in all_callbacks(self.callback):
            if isinstance(callback, ProgressBarCallback):
                callback.pbar.update(self.model.num_timesteps)

    def _begin_new_episodes(self) -> None:
        model: Any = self.model
        if self.replay is not None:
            end_episodes(model.replay_buffer)
        model._last_obs = model.env.reset()
        model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)
        if model._vec_normalize_env is not None:
            model._last_original_obs = model._vec_normalize_env.get_original_obs()


def _decoded(checkpoint: Checkpoint) -> dict[str, Any]:
    old = {"convert": from_format_1} if checkpoint.format == 1 else {}
    return decode(checkpoint.read(STATE), checkpoint.read(ARRAYS), **old)  # type: ignore[no-any-return]


# -- callbacks, algorithm, random numbers ----------------------------------------------------------------------------------


def _skip_of_callback(owner: Any, name: str, value: Any) -> bool:
    if not isinstance(owner, BaseCallback):
        return False
    if name in ("locals", "globals", "parent") or isinstance(value, str):
        return True  # texts are paths: the folder may have been moved
    if hasattr(owner, "training_state"):  # the one that asks
        return True
    plain = (bool, int, float, type(None), np.generic, np.ndarray, list, tuple, dict, set, deque)
    return not isinstance(value, (*plain, BaseCallback, VecEnv, np.random.Generator))


def _skip_of_model(owner: Any, name: str, value: Any) -> bool:
    if not isinstance(owner, BaseAlgorithm):
        return False
    if name in (*_STORED_ELSEWHERE, *_OF_THE_CALL, *_OF_THE_DATA):
        return True
    return isinstance(value, str | th.nn.Module | th.optim.Optimizer)


def _rollout_noises(model: Any) -> list[StateDependentNoiseDistribution]:
    """With ``use_sde=True`` a rollout begins by drawing the matrices of its noise."""
    if not model.use_sde:
        return []
    found = [getattr(module, "action_dist", None) for module in model.policy.modules()]
    return [noise for noise in found if isinstance(noise, StateDependentNoiseDistribution)]


def all_callbacks(callback: Any) -> Iterator[BaseCallback]:
    """
    :param callback: What ``learn()`` takes: a callback, a list of them, a function, ``None``
    :return: All callbacks in it
    """
    if isinstance(callback, BaseCallback):
        yield callback
    for child in callback if isinstance(callback, list) else getattr(callback, "callbacks", ()):
        yield from all_callbacks(child)


def _stateful(callback: BaseCallback) -> list[BaseCallback]:
    """All callbacks but those without a state, whose presence does not matter."""
    stateful = [child for child in all_callbacks(callback) if not isinstance(child, ProgressBarCallback)]
    return [child for child in stateful if type(child) not in (CallbackList, ConvertCallback)]


def _random_states() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
    }


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if th.cuda.is_available() and len(states["cuda"]) == th.cuda.device_count():
        th.cuda.set_rng_state_all(states["cuda"])


def _part_name(index: int, path: Path) -> str:
    return f"file{index}_{path.name}"
