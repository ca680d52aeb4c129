"""What is learned from without an environment: transitions, and all the ways to get them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion.data.stored.readers.d4rl import open_d4rl
from sb3_diffusion.data.stored.readers.minari import open_minari
from sb3_diffusion.data.stored.readers.npz import open_npz
from sb3_diffusion.data.stored.readers.ogbench import open_ogbench
from sb3_diffusion.data.stored.readers.replay_buffer import read_replay_buffer
from sb3_diffusion.data.stored.readers.rollouts import roll_out
from sb3_diffusion.data.stored.source import DataSource, ReferenceScores
from sb3_diffusion.data.stored.tables.assembly import assemble
from sb3_diffusion.data.stored.tables.columns import ArrayColumn, Column, by_key, check_lengths, flag, flat, whole
from sb3_diffusion.data.stored.tables.contents import check_contents
from sb3_diffusion.data.stored.tables.entries import entries, inferred_space, stored_space
from sb3_diffusion.data.stored.tables.recording import Recording, numbered, record, recorded_episodes
from sb3_diffusion.data.stored.transitions import Transitions


class OfflineDataset(Transitions):
    """
    Stored transitions, and the ways to get them. Made by one of its class methods or by
    :func:`~sb3_diffusion.data.stored.loading.load_dataset`, never directly.

    See :class:`~sb3_diffusion.data.stored.transitions.Transitions` for what is in it.
    """

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminated: Any,
        truncated: Any = None,
        next_observations: Any = None,
        episode_ids: Any = None,
        *,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Box | None = None,
        clip_actions: bool = False,
        name: str = "arrays",
        env_id: str | None = None,
        reference: ReferenceScores | None = None,
    ) -> "OfflineDataset":
        """
        Steps in the order in which they were taken, one row each. The numbers are copied.

        Without ``next_observations``, the observation after a step is that of the next row. The last row of an episode then
        is a transition only if the task ended there, which needs none.

        :param observations: Observations before the steps, ``(n, ...)``, or a dictionary of such
        :param actions: Actions in the units of the environment, ``(n, action_dim)``
        :param rewards: ``(n,)`` or ``(n, 1)``
        :param terminated: Whether the task ended with the step
        :param truncated: Whether the episode was cut after the step, for instance by a time limit
        :param next_observations: Observations after the steps
        :param episode_ids: Which episode a step belongs to; by default, episodes end where they terminated or were cut
        :param observation_space: Observation space; by default an unbounded one, for uint8 that of images
        :param action_space: Action space; by default from -1 to 1
        :param clip_actions: Clip actions to the space instead of refusing those outside
        :param name: What the data are called
        :param env_id: Environment that they come from
        :param reference: Scale of their scores
        :return: The data
        :raises TypeError: If something holds no numbers
        :raises ValueError: If shapes or numbers are not what they should be
        """
        before, after = _columns("observations", observations), _columns("next_observations", next_observations)
        actions, rewards = ArrayColumn("actions", actions), ArrayColumn("rewards", rewards)
        ended, cut = ArrayColumn("terminated", terminated), _column("truncated", truncated)
        ids = _column("episode_ids", episode_ids)
        optional = [column for column in (cut, ids, *([] if after is None else by_key(after).values())) if column is not None]
        n = check_lengths([*by_key(before).values(), actions, rewards, ended, *optional])
        recording = record(
            before,
            actions,
            flat(rewards),
            flag(ended),
            np.zeros(n, dtype=bool) if cut is None else flag(cut),
            first=None if ids is None else numbered(whole(flat(ids)).reshape(-1)),
            successors=after,
        )
        source = DataSource("arrays", name, env_id=env_id, reference=reference)
        return cls.from_recording(recording, source, observation_space, action_space, clip_actions=clip_actions)

    @classmethod
    def from_d4rl_hdf5(
        cls,
        path: str | Path,
        *,
        keep_timeouts: bool = False,
        max_episode_steps: int | None = None,
        action_space: spaces.Box | None = None,
        clip_actions: bool = False,
        name: str | None = None,
    ) -> "OfflineDataset":
        """
        An HDF5 file in D4RL's layout; h5py reads it (extra ``offline``).

        :param path: The file
        :param keep_timeouts: Keep the steps at which a time limit ended an episode, for which the file has to hold
            ``next_observations``; by default they are left out, as in published results
        :param max_episode_steps: Time limit of the task, for files without ``timeouts``; the names of D4RL's files say it
        :param action_space: Bounds of the actions; by default those that the file says, as :meth:`save` writes them, else from
            -1 to 1
        :param clip_actions: Clip actions to the space instead of refusing those outside
        :param name: What the data are called; by default the known data set of this file, or the file itself
        :return: The data
        :raises ValueError: If the file is not what it should be
        """
        with open_d4rl(path, keep_timeouts=keep_timeouts, max_episode_steps=max_episode_steps, name=name) as recorded:
            return cls.from_recording(*recorded.within(action_space), clip_actions=clip_actions)

    @classmethod
    def from_minari(
        cls,
        id_or_path: str | Path,
        *,
        observation_keys: Sequence[str] | None = None,
        concatenate: bool = False,
        clip_actions: bool = False,
        name: str | None = None,
    ) -> "OfflineDataset":
        """
        A data set of Minari's. HDF5 is read with h5py (extra ``offline``), Arrow and images with Minari (extra ``minari``).

        :param id_or_path: Id such as ``"mujoco/hopper/medium-v0"``, or the folder
        :param observation_keys: Keys of Dict observations that are read, in this order; by default all
        :param concatenate: Join the keys to one vector instead of keeping a Dict
        :param clip_actions: Clip actions to the space instead of refusing those outside
        :param name: What the data are called; by default their id
        :return: The data
        :raises FileNotFoundError: If they are not on this machine, saying how to get them
        :raises ValueError: If they are not what they should be
        """
        with open_minari(id_or_path, observation_keys=observation_keys, concatenate=concatenate, name=name) as recorded:
            return cls.from_recording(*recorded, clip_actions=clip_actions)

    @classmethod
    def from_npz(
        cls,
        path: str | Path,
        *,
        action_space: spaces.Box | None = None,
        clip_actions: bool = False,
        name: str | None = None,
    ) -> "OfflineDataset":
        """
        An ``.npz`` file with the arguments of :meth:`from_arrays` as keys, such as :meth:`save` writes.

        :param path: The file
        :param action_space: Bounds of the actions; by default those that the file says, as :meth:`save` writes them, else from
            -1 to 1
        :param clip_actions: Clip actions to the space instead of refusing those outside
        :param name: What the data are called
        :return: The data
        :raises ValueError: If the file is not what it should be
        """
        with open_npz(path, name=name) as recorded:
            return cls.from_recording(*recorded.within(action_space), clip_actions=clip_actions)

    @classmethod
    def from_ogbench(
        cls, path: str | Path, *, task: int | None = None, clip_actions: bool = False, name: str | None = None
    ) -> "OfflineDataset":
        """
        An ``.npz`` file in OGBench's layout. Where it does not hold the rewards of the task, OGBench computes them (extra
        ``ogbench``).

        :param path: The file
        :param task: Number of the task, from 1 on; by default OGBench's own choice
        :param clip_actions: Clip actions to the space instead of refusing those outside
        :param name: Name of the data set, if it is not that of the file
        :return: The data
        :raises ValueError: If the file is not what it should be
        """
        with open_ogbench(path, task=task, name=name) as recorded:
            return cls.from_recording(*recorded, clip_actions=clip_actions)

    @classmethod
    def from_replay_buffer(cls, buffer: Any, *, name: str | None = None, env_id: str | None = None) -> "OfflineDataset":
        """
        What a replay buffer holds, of Stable-Baselines3 or of this library. A buffer that was saved is a pickle, which is not
        opened here: ``model.load_replay_buffer(path)``, then pass ``model.replay_buffer``.

        A buffer with ``handle_timeout_termination=False`` does not know time limits: all its ends count as ends of the task.

        :param buffer: The buffer
        :param name: What the data are called
        :param env_id: Environment that they come from
        :return: The data
        :raises TypeError: If it is no buffer
        :raises ValueError: If it is empty
        """
        return cls.from_recording(*read_replay_buffer(buffer, name=name, env_id=env_id))

    @classmethod
    def collect(
        cls,
        env: str | gym.Env | VecEnv,
        policy: Any,
        n: int,
        *,
        deterministic: bool = False,
        seed: int | None = None,
        progress_bar: bool = False,
        name: str | None = None,
    ) -> "OfflineDataset":
        """
        Roll a policy out.

        :param env: Environment, several of them, or the id of one; what ``VecNormalize`` normalises is stored as it was before
        :param policy: A model or whatever has ``predict``, a function from an observation to an action (from observations of
            all environments to their actions, if ``env`` is a ``VecEnv``), or ``None`` for random actions
        :param n: Number of steps; with several environments, it is rounded up to a multiple of their number
        :param deterministic: Whether the model acts deterministically
        :param seed: Seed of the environment, and of NumPy's and PyTorch's global generators
        :param progress_bar: Show a bar
        :param name: What the data are called
        :return: The data
        """
        recorded = roll_out(env, policy, n, deterministic=deterministic, seed=seed, progress_bar=progress_bar, name=name)
        return cls.from_recording(*recorded)

    @classmethod
    def from_recording(
        cls,
        recording: Recording,
        source: DataSource,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Box | None = None,
        *,
        clip_actions: bool = False,
    ) -> "OfflineDataset":
        """
        What every reader ends with.

        :param recording: What was recorded
        :param source: Where it comes from
        :param observation_space: Observation space; by default an unbounded one, for uint8 that of images
        :param action_space: Action space; by default from -1 to 1
        :param clip_actions: Clip actions to the space instead of refusing those outside
        :return: The data
        :raises ValueError: If shapes or numbers are not what they should be
        """
        if not recording.keep.any():
            raise ValueError(
                f"{source.name} holds no transitions: of {len(recording.keep):,} recorded steps, none has an observation "
                "after it and none ended the task; record whole episodes, or pass next_observations."
            )
        space = inferred_space(recording.observations) if observation_space is None else observation_space
        action_space = _action_space(recording.actions, action_space)
        transitions = assemble(recording, entries(recording.observations, space))
        check_contents(transitions, recording, action_space, clip_actions)
        returns, lengths = recorded_episodes(recording)
        return cls(stored_space(space), action_space, *transitions, source, returns, lengths)


def _column(name: str, values: Any) -> ArrayColumn | None:
    return None if values is None else ArrayColumn(name, values)


def _columns(name: str, values: Any) -> Any:
    if isinstance(values, dict):
        return {key: ArrayColumn(f"{name}[{key!r}]", value) for key, value in values.items()}
    return _column(name, values)


def _action_space(actions: Column, space: spaces.Box | None) -> spaces.Box:
    shape = actions.shape[1:] or (1,)
    if space is None:
        if actions.dtype.kind != "f":
            raise TypeError(
                f"{actions.name} has type {actions.dtype}; these methods choose real numbers. Pass the action_space, a Box, "
                "if that is what the integers are."
            )
        return spaces.Box(-1.0, 1.0, shape, np.float32)
    if not isinstance(space, spaces.Box):
        raise TypeError(f"action_space={space} is no Box; these methods choose real numbers.")
    if space.shape != shape:
        raise ValueError(
            f"{actions.name} has shape {actions.shape}, of which {space.shape} should follow the first, as in {space}."
        )
    return space
