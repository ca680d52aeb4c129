"""RL Zoo's agents: that they act here as Stable-Baselines3 lets them act, and the data that they leave."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("huggingface_hub")
pytest.importorskip("mujoco")
pytest.importorskip("h5py")
from sb3_contrib import ARS, TRPO
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_diffusion import load_dataset
from sb3_diffusion.data.stored.catalogue import find
from zoo.datasets import published, robots

TRPO_KWARGS = {"net_arch": [8, 8]}
MAKERS: dict[str, Callable[[Any], BaseAlgorithm]] = {
    "sac": lambda env: SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8, 8]}, buffer_size=10, device="cpu", seed=0),
    # the published one of this robot has ReLU
    "ppo": lambda env: PPO(
        "MlpPolicy", env, policy_kwargs={"net_arch": [8, 8], "activation_fn": nn.ReLU}, device="cpu", seed=0
    ),
    "trpo": lambda env: TRPO("MlpPolicy", env, policy_kwargs=TRPO_KWARGS, device="cpu", seed=0),
    "a2c": lambda env: A2C("MlpPolicy", env, policy_kwargs=TRPO_KWARGS, device="cpu", seed=0),
    "ars": lambda env: ARS("LinearPolicy", env, device="cpu", seed=0),
}
NORMALIZED = ("ppo", "a2c", "ars")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Untrained agents in the layout of the Hub, and what Stable-Baselines3 makes of observations with each."""
    folder, models = tmp_path_factory.mktemp("agents"), {}
    for algo, make in MAKERS.items():
        env: Any = make_vec_env("Hopper-v5", 1, seed=0)
        place = folder / f"{algo}-Hopper-v3"
        place.mkdir()
        if algo in NORMALIZED:
            env = VecNormalize(env, clip_obs=1.5)
            env.reset()
            for _ in range(50):
                env.step(np.array([env.action_space.sample()]))
            env.save(str(place / "vec_normalize.pkl"))
        model = make(env)
        model.save(place / f"{algo}-Hopper-v3.zip")
        models[algo] = model
    return folder, models


@pytest.mark.parametrize("algo", MAKERS)
def test_agents_act_as_stable_baselines_lets_them(algo: str, agents: tuple[Path, dict[str, Any]]) -> None:
    folder, models = agents
    space = models[algo].action_space
    agent = robots.policy(algo, "Hopper", folder, space)
    for observation in np.random.default_rng(0).standard_normal((5, 11)):
        seen = observation[None]
        if algo in NORMALIZED:
            seen = models[algo].get_vec_normalize_env().normalize_obs(seen)
        expected, _ = models[algo].predict(seen, deterministic=True)
        action = agent.act(observation, 0, np.random.default_rng(0), noise=0.0)
        np.testing.assert_allclose(np.clip(action, space.low, space.high), expected[0], atol=1e-5)


def test_an_agent_that_sees_the_time(tmp_path: Path, agents: tuple[Path, dict[str, Any]]) -> None:
    archive, _ = published.fetch("trpo", "Hopper", agents[0])
    agent = published.Agent("trpo", "Hopper", archive, None)
    early, late = (agent.act(np.zeros(10), step, np.random.default_rng(0)) for step in (0, 900))
    assert not np.allclose(early, late)


def test_nothing_in_a_pickle_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "trap"),)

    path = tmp_path / "vec_normalize.pkl"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"vec_normalize\.pkl holds no statistics"):
        published.read_statistics(path)
    assert not (tmp_path / "trap").exists()


def test_recipes() -> None:
    assert robots.recipe("Hopper", "single", 100) == {"sac": 100}
    assert robots.recipe("Walker2d", "expert-mixed", 100) == {"trpo": 50, "sac": 50}
    assert robots.recipe("HalfCheetah", "switching", 100) == {"switching": 50}
    assert robots.recipe("Hopper", "mixed", 100) == {**dict.fromkeys(["sac", "ppo", "trpo", "a2c", "ars"], 18), "random": 10}


@pytest.mark.parametrize("kind", ["mixed", "switching"])
def test_data_of_several_agents(kind: str, agents: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    known = find(f"rlzoo/hopper/{kind}-v0")
    files = [robots.make(known, tmp_path / str(number) / known.file, n_rows=400, agents=agents[0]) for number in range(2)]
    one, two = map(load_dataset, files)
    assert np.array_equal(one.actions, two.actions)  # the seeds are part of the recipe
    assert one.source.name == known.name and one.source.env_id == "Hopper-v5"
    wanted = 400 if kind == "mixed" else 200
    assert wanted <= one.recorded_lengths.sum() <= wanted + 6 * 200
    assert float(one.actions.abs().max()) <= 1.0

    import h5py

    with h5py.File(files[0]) as file:
        acted = set(file["infos/policy"][:].tolist())
    assert acted == (set(range(6)) if kind == "mixed" else set(range(5)))
