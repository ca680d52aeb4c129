"""Replay buffers as data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_diffusion import OfflineDataset, load_dataset
from sb3_diffusion.data.replay import TensorDictReplayBuffer, TensorReplayBuffer
from tests.environments import PointEnv, vector_env


def filled(buffer_class: type, observation: str, n_steps: int, size: int, n_envs: int = 2, **more: Any) -> tuple[Any, list]:
    """A buffer that has seen a number of steps, and what it was given."""
    env = vector_env(n_envs, observation=observation)
    buffer = buffer_class(size * n_envs, env.observation_space, env.action_space, n_envs=n_envs, **more)
    generator, seen = np.random.default_rng(0), []
    observations: Any = env.reset()
    for _ in range(n_steps):
        actions = generator.uniform(-1, 1, (n_envs, 2)).astype(np.float32)
        after: Any
        after, rewards, dones, infos = env.step(actions)
        true = {key: value.copy() for key, value in after.items()} if isinstance(after, dict) else after.copy()
        for index in np.flatnonzero(dones):
            last = infos[index]["terminal_observation"]
            if isinstance(true, dict):
                for key in true:
                    true[key][index] = last[key]
            else:
                true[index] = last
        buffer.add(observations, true, actions, rewards, dones, infos)
        seen.append((observations, true, actions, rewards, dones, [info.get("TimeLimit.truncated", False) for info in infos]))
        observations = after
    return buffer, seen


@pytest.mark.parametrize("buffer_class", [ReplayBuffer, TensorReplayBuffer])
@pytest.mark.parametrize(("n_steps", "size"), [(23, 50), (23, 23), (40, 25)], ids=["not full", "just full", "overwritten"])
def test_each_stream_in_one_piece(buffer_class: type, n_steps: int, size: int) -> None:
    buffer, seen = filled(buffer_class, "box", n_steps, size)
    data, kept = OfflineDataset.from_replay_buffer(buffer), seen[-size:]
    assert len(data) == 2 * len(kept)
    for name, index in (("observations", 0), ("next_observations", 1), ("actions", 2), ("rewards", 3)):
        expected = np.concatenate([np.stack([step[index][env] for step in kept]) for env in range(2)])
        np.testing.assert_allclose(getattr(data, name), expected, atol=1e-6, err_msg=name)
    cut = np.concatenate([[step[5][env] for step in kept] for env in range(2)])
    ended = np.concatenate([[step[4][env] for step in kept] for env in range(2)])
    assert data.truncated.tolist() == cut.tolist()
    assert data.terminated.tolist() == (ended & ~cut).tolist()
    assert data.episode_ids[len(kept) - 1] != data.episode_ids[len(kept)]
    # of the episodes that have lost their beginning or have no end yet, nobody knows the return
    assert set(data.recorded_lengths) <= {10}


def test_actions_are_in_the_units_of_the_environment() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=1000, device="cpu", seed=0)
    model.learn(220)
    data = OfflineDataset.from_replay_buffer(model.replay_buffer)
    assert data.action_space.high.tolist() == [2.0]
    assert 1.0 < float(data.actions.abs().max()) <= 2.0
    assert data.truncated.sum() == 1 and not data.terminated.any()


@pytest.mark.parametrize("buffer_class", [DictReplayBuffer, TensorDictReplayBuffer])
def test_dict_observations(buffer_class: type) -> None:
    buffer, seen = filled(buffer_class, "dict with image", 12, 30)
    data = OfflineDataset.from_replay_buffer(buffer)
    expected = np.concatenate([np.stack([step[1]["camera"][env] for step in seen]) for env in range(2)])
    assert np.array_equal(data.next_observations["camera"].numpy(), expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("n_steps", [23, 40])
def test_buffers_that_keep_each_observation_once(n_steps: int) -> None:
    unsafe = {"optimize_memory_usage": True, "handle_timeout_termination": False}
    buffer, seen = filled(ReplayBuffer, "box", n_steps, 25, n_envs=1, **unsafe)
    data = OfflineDataset.from_replay_buffer(buffer)
    kept = seen[-24:]
    np.testing.assert_allclose(data.observations, np.stack([step[0][0] for step in kept]), atol=1e-6)
    running = ~data.terminated.numpy()
    following = np.stack([step[1][0] for step in kept])
    np.testing.assert_allclose(data.next_observations.numpy()[running], following[running], atol=1e-6)


def test_a_buffer_that_was_saved(tmp_path: Path) -> None:
    model = SAC("MlpPolicy", PointEnv(), learning_starts=1000, device="cpu", seed=0)
    model.learn(25)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(ValueError, match=r"buffer\.pkl is a pickle.*load_replay_buffer"):
        load_dataset(tmp_path / "buffer.pkl")
    with pytest.raises(TypeError, match=r"buffer\.pkl.*is a pickle.*load_replay_buffer"):
        OfflineDataset.from_replay_buffer(str(tmp_path / "buffer.pkl"))
    other = SAC("MlpPolicy", PointEnv(), device="cpu")
    other.load_replay_buffer(tmp_path / "buffer.pkl")
    one, two = (OfflineDataset.from_replay_buffer(owner.replay_buffer) for owner in (model, other))
    assert one.identity() == two.identity()
    again = load_dataset(one.save(tmp_path / "buffer.npz"))
    assert th.equal(again.next_observations, one.next_observations)


def test_an_empty_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="The replay buffer is empty"):
        OfflineDataset.from_replay_buffer(SAC("MlpPolicy", PointEnv(), device="cpu").replay_buffer)
