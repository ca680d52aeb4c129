"""The files in ``hyperparams/``: complete, documented, and accepted by the algorithms they are for."""

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rl_zoo3.utils import ALGOS

from sb3_diffusion.envs import DMC_TASKS
from sb3_diffusion.envs.tensor import tensor_env_ids
from sb3_diffusion.taxonomy import available_methods, get_method
from tests.cases import case
from zoo.training.manager import Manager
from zoo.training.options.registry import register_algorithms
from zoo.training.options.search_space import SEARCH
from zoo.training.options.settings import PRESET, TENSOR_FAMILY, hyperparameter_file

register_algorithms()

OURS = [method.zoo_name for method in available_methods()]
ON_POLICY = [method.zoo_name for method in available_methods() if method.setting == "on-policy"]
NAMES = [*OURS, "sac", "td3", "ppo"]
GYM_TASKS = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "Swimmer", "Walker2d")
ENVIRONMENTS = [
    "Pendulum-v1",
    "InvertedPendulum-v5",
    "Reacher-v5",
    *(f"{task}-v5" for task in GYM_TASKS),
    *(f"dm_control/{task}-v0" for task in DMC_TASKS),
]
ISAAC = [f"Isaac-{task}-v0" for task in ("Ant", "Humanoid", "Lift-Cube-Franka", "Velocity-Flat-Anymal-D")]
"""The tasks of the paper's last row."""
TENSORS = [*tensor_env_ids(), *ISAAC, TENSOR_FAMILY]
"""Further entries of on-policy methods."""
# Read by the zoo itself; every other key goes to the constructor.
ZOO_KEYS = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "env_kwargs", "noise_type", "noise_std"}
SOURCES = re.compile(r"(Table [34]|A\.3|Gym|DMC|Isaac Lab|SB3|authors|RL Zoo, \S|ours: \S)")
STRUCTURE = re.compile(r"\s*\S+:( [&*]\w+)?")  # opens a mapping, or refers to one


def text_of(name: str) -> str:
    """The file of an algorithm; a test fails with a sentence where there is none."""
    if not hyperparameter_file(name).is_file():
        pytest.fail(f"write hyperparams/{name}.yml (docs: contributing)", pytrace=False)
    return hyperparameter_file(name).read_text(encoding="utf-8")


def load(name: str) -> dict[str, dict[str, Any]]:
    """Environment -> its settings."""
    entries = yaml.safe_load(text_of(name))
    return {env_id: entry for env_id, entry in entries.items() if env_id != SEARCH}


def constructor_arguments(algorithm: type) -> set[str]:
    """All named arguments of a constructor, including those that it hands on to its base classes."""
    return {name for cls in algorithm.__mro__ for name in inspect.signature(cls).parameters if "__init__" in vars(cls)}


def distinct_entries() -> Iterator[tuple[str, str]]:
    """The first environment of every group that shares its settings."""
    for name in NAMES:
        entries = load(name) if hyperparameter_file(name).is_file() else {}  # a missing file is another test's to report
        seen: list[tuple[dict[str, Any], bool]] = []
        for env_id in filter(entries.__contains__, [*ENVIRONMENTS, *tensor_env_ids()]):
            key = (entries[env_id], env_id.startswith("dm_control/"))
            if key not in seen:
                seen.append(key)
                yield name, env_id


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_complete(name: str) -> None:
    entries = {"default", "dm_control", *ENVIRONMENTS, *(TENSORS if name in ON_POLICY else [])}
    learns_from_data = name in OURS and get_method(name).setting == "offline"  # then names of data sets follow
    assert entries <= set(load(name)) if learns_from_data else entries == set(load(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_where_it_comes_from(name: str) -> None:
    for number, line in enumerate(text_of(name).splitlines(), start=1):
        value, _, comment = line.partition(" # ")
        if not value.strip() or value.startswith("#") or STRUCTURE.fullmatch(value.rstrip()):
            continue
        assert SOURCES.match(comment), f"{name}.yml:{number} needs a comment that starts with its source: {line}"


GYM_NETWORKS = {"pi": [256, 256, 256], "qf": [256, 256]}
PAPER: dict[str, dict[str, list[Any]]] = {
    "": {  # all off-policy methods
        "tau": [0.005],
        "learning_rate": [3e-4],
        "net_arch": [GYM_NETWORKS, {"pi": [512] * 3, "qf": [512] * 3}],
        "activation_fn": [{"pi": "mish", "qf": "relu"}, {"pi": "mish", "qf": "elu"}],
        "diffusion_steps": [20],
        "noise_schedule": ["cosine"],
    },
    "sac": {"ent_coef": ["auto"]},
    "qsm": {"temperature": [0.1]},
    "dacer": {
        "learning_rate": [1e-4],
        "policy_delay": [2],
        "n_entropy_samples": [200],
        "noise_scale": [0.1, 0.15],
        "reward_scale": [0.2, 1.0],
        "alpha_update_interval": [10_000],
        "alpha_learning_rate": [0.03],
    },
    "dpmd": {"actor_learning_rate": [1e-4], "refresh_interval": [1000], "n_particles": [64], "particle_noise": [0.2]},
    "sdac": {"n_particles": [500], "temperature": [0.05, 0.01]},
    "qvpo": {
        "n_particles": [64],
        "ent_coef": [0.01],
        "n_target_candidates": [2, 4, 1],
        "net_arch": [{"pi": [256, 256], "qf": [256, 256]}],
    },
}
"""What appendix A.3 of the FlowRL paper says, by method."""


@pytest.mark.parametrize("name", NAMES)
def test_appendix_a3_is_cited_for_what_it_has(name: str) -> None:
    for line in text_of(name).splitlines():
        if cited := re.fullmatch(r"\s*(\w+): (.*\S)\s+# A\.3(?:, (\w+))?\b.*", line):
            key, value, relative = cited.groups()
            has = {**PAPER[""], **PAPER.get((relative or name).lower(), {})}
            assert yaml.safe_load(value) in has.get(key, []), f"{name}.yml: A.3 has no such value: {line}"


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_known(name: str) -> None:
    known = constructor_arguments(ALGOS[name]) | ZOO_KEYS | ({PRESET} if name in ON_POLICY else set())
    aliases = ALGOS[name].policy_aliases
    known_policy = constructor_arguments(next(iter(aliases.values())) if name in OURS else aliases["MlpPolicy"])
    for env_id, entry in load(name).items():
        assert set(entry) <= known, env_id
        assert set(entry.get("policy_kwargs", {})) <= known_policy, env_id


@pytest.mark.parametrize("name", NAMES)
def test_nothing_needs_eval(name: str) -> None:
    for env_id, entry in load(name).items():
        for key in ("policy_kwargs", "normalize", "replay_buffer_kwargs", "env_wrapper"):
            assert not isinstance(entry.get(key), str), (env_id, key)
        # YAML reads 3e-4 (no dot) as text
        numbers = {key: value for key, value in entry.items() if "rate" in key or key in ("n_timesteps", "gamma", "tau")}
        assert all(isinstance(value, (int, float)) for value in numbers.values()), (env_id, numbers)


@pytest.mark.parametrize("name", OURS)
def test_budget_is_the_benchmarks(name: str) -> None:
    entries = load(name)
    assert entries["Hopper-v5"]["n_timesteps"] == 1_000_000
    assert entries["dm_control/dog-run-v0"]["n_timesteps"] == 500_000
    assert name in ON_POLICY or entries["dm_control/dog-run-v0"]["batch_size"] == 512


@pytest.mark.parametrize(("name", "env_id"), list(distinct_entries()), ids=lambda value: value)
def test_every_entry_trains(name: str, env_id: str, tmp_path: Path) -> None:
    if env_id.startswith("dm_control/"):
        pytest.importorskip("dm_control")
        from sb3_diffusion.envs import register_dmc

        register_dmc()
    small: dict[str, float] = {"buffer_size": 100, "learning_starts": 2, "batch_size": 4}
    if name == "ppo" or name in ON_POLICY:
        small = {"n_steps": 4, "batch_size": 4, "n_epochs": 1, "n_envs": 1}
    elif name in OURS:
        small |= {key: value for key, value in case(get_method(name)).tiny.items() if value is not None}
    options: dict[str, Any] = {"n_timesteps": 4, "eval_freq": -1, "log_interval": -1, "hyperparams": small}
    manager = Manager(argparse.Namespace(), name, env_id, str(tmp_path), **options)
    result = manager.setup_experiment()
    assert result is not None
    model, saved = result
    assert saved["n_timesteps"] == load(name)[env_id]["n_timesteps"]
    manager.learn(model)
    assert model.num_timesteps == 4
