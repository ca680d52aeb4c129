"""Every setting has an origin, is shown by ``--dry-run`` and kept with the run; wrong ones do not begin."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import rl_zoo3
import yaml
from gymnasium import spaces
from rl_zoo3.utils import ALGOS
from stable_baselines3 import PPO, SAC

from sb3_diffusion import DACER
from zoo import train
from zoo.training.environments import fit
from zoo.training.manager import Manager
from zoo.training.options import hyperparameters
from zoo.training.options.registry import register_algorithms
from zoo.training.options.settings import overwrite, values, with_origin

register_algorithms()

TINY = {"policy_kwargs": {"net_arch": [8], "diffusion_steps": 2}, "buffer_size": 100, "learning_rate": "lin_3e-4"}


def setup(folder: Path, algo: str, hyperparams: dict[str, Any], **kwargs: Any) -> dict[str, dict[str, Any]]:
    """Start a run in this process, and read what it keeps."""
    options = {"n_timesteps": 10, "eval_freq": -1, "verbose": 0, **kwargs}
    manager = Manager(argparse.Namespace(), algo, "Pendulum-v1", str(folder), hyperparams=hyperparams, **options)
    assert manager.setup_experiment() is not None
    content: dict[str, dict[str, Any]] = yaml.safe_load(Path(manager.params_path, "effective.yml").read_text("utf-8"))
    return content


def test_every_setting_of_a_run_has_an_origin(tmp_path: Path) -> None:
    content = setup(tmp_path, "dacer", TINY)
    entry = "hyperparams/dacer.yml, entry Pendulum-v1"
    assert content["zoo"]["n_timesteps"] == {"value": 10, "from": "-n"}
    assert content["zoo"]["n_envs"] == {"value": 1, "from": "default of the zoo"}
    algorithm, policy = content["DACER"], content["DiffusionPolicy"]
    assert algorithm["buffer_size"] == {"value": 100, "from": "-params"}
    assert algorithm["learning_rate"] == {"value": "lin_3e-4", "from": "-params"}
    assert algorithm["reward_scale"] == {"value": 0.2, "from": entry}
    assert algorithm["half_squared_error"] == {"value": False, "from": "default of DACER"}
    assert algorithm["n_steps"] == {"value": 1, "from": "default of OffPolicyDiffusion"}
    assert policy["net_arch"] == {"value": [8], "from": "-params"}
    assert policy["critic_head"] == {"value": "gaussian", "from": "set by DACER"}
    assert policy["n_critics"] == {"value": 2, "from": "default of ActorCritic"}


def test_one_member_of_a_dictionary_leaves_the_others(tmp_path: Path) -> None:
    content = setup(
        tmp_path, "dacer", {"policy_kwargs.clip_target": "none", "policy_kwargs.net_arch": [8], "buffer_size": 100}
    )
    policy = content["DiffusionPolicy"]
    origin = "hyperparams/dacer.yml, entry Pendulum-v1; -params"
    assert policy["clip_target"] == {"value": "none", "from": origin}
    assert policy["net_arch"] == {"value": [8], "from": origin}
    assert policy["state_arch"] == {"value": [64], "from": origin}


def test_members_come_after_their_dictionary_and_after_a_preset() -> None:
    entry = with_origin({"policy_kwargs": "dict(n_critics=3, net_arch=[4])", "tau": 0.1}, "entry")
    own = with_origin({"policy_kwargs.n_critics": 5, "policy_kwargs": {"n_critics": 4, "dropout": 0.1}}, "-params")
    assert values(overwrite(entry, own)) == {"policy_kwargs": {"n_critics": 5, "dropout": 0.1}, "tau": 0.1}
    assert values(overwrite(entry, with_origin({"policy_kwargs.n_critics": 5}, "")))["policy_kwargs"] == {
        "n_critics": 5,
        "net_arch": [4],
    }
    assert values(overwrite({}, with_origin({"env_kwargs.g": 9.0}, ""))) == {"env_kwargs": {"g": 9.0}}
    with pytest.raises(ValueError, match=r"tau\.x=1 \(-params\): tau has no members; only policy_kwargs"):
        overwrite(entry, with_origin({"tau.x": 1}, "-params"))


def test_settings_of_stable_baselines3_and_of_the_zoo(tmp_path: Path) -> None:
    own = {"normalize": {"norm_obs": False}, "noise_std": 0.3, "buffer_size": 100}
    content = setup(tmp_path, "td3", own, env_kwargs={"g": 9.0})
    entry = "hyperparams/td3.yml, entry Pendulum-v1"
    assert content["zoo"]["env_kwargs"] == {"value": {"g": 9.0}, "from": "--env-kwargs"}
    assert content["zoo"]["noise_type"] == {"value": "normal", "from": entry}
    assert content["zoo"]["noise_std"] == {"value": 0.3, "from": "-params"}
    assert content["zoo"]["normalize"]["from"] == "-params"
    assert "0.3" in content["TD3"]["action_noise"]["value"]
    assert content["TD3"]["n_steps"] == {"value": 1, "from": "default of TD3 (Stable-Baselines3)"}
    assert content["TD3Policy"]["activation_fn"] == {"value": "relu", "from": entry}


def test_env_kwargs_of_the_settings_hold_for_evaluations_too(tmp_path: Path) -> None:
    settings = {"env_kwargs": {"g": 1.0}, "buffer_size": 100}
    manager = Manager(argparse.Namespace(), "sac", "Pendulum-v1", str(tmp_path), hyperparams=settings, verbose=0)
    manager.setup_experiment()
    assert manager.eval_env_kwargs == manager.env_kwargs == {"g": 1.0}


def test_dry_run_shows_the_settings_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "--algo sac --env Pendulum-v1 --seed 3 -params learning_rate:lin_3e-4 buffer_size:100 --dry-run"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(command)])
    train.main()
    rows = [tuple(line.split(None, 2)) for line in capsys.readouterr().out.splitlines()]
    assert ("learning_rate", "lin_3e-4", "-params") in rows
    assert ("seed", "3", "--seed") in rows
    assert ("eval_freq", "25000", "default of train.py") in rows
    assert ("tau", "0.005", "hyperparams/sac.yml, entry Pendulum-v1") in rows
    assert ("n_critics", "2", "default of SACPolicy (Stable-Baselines3)") in rows
    assert not list(tmp_path.iterdir())


def test_the_stored_command_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["python", "zoo/train.py", "-params", "policy_kwargs:dict(net_arch=[8])", "-f", "my logs"]
    monkeypatch.setattr(sys, "orig_argv", words)
    setup(tmp_path, "sac", {"buffer_size": 100})
    (path,) = tmp_path.rglob("command.txt")
    assert shlex.split(path.read_text("utf-8")) == words


def entries_of_the_rl_zoo() -> list[tuple[str, str, dict[str, Any]]]:
    folder = Path(rl_zoo3.__file__).parent / "hyperparams"
    files = {name: folder / f"{name}.yml" for name in ALGOS}
    return [
        (name, env, entry)
        for name, path in files.items()
        if path.is_file()
        for env, entry in yaml.safe_load(path.read_text("utf-8")).items()
    ]


def test_no_setting_of_the_rl_zoo_is_refused() -> None:
    entries = entries_of_the_rl_zoo()
    assert len(entries) > 200
    for name, env, entry in entries:
        if (name, env) == ("ppo_lstm", "default"):  # has no policy of this algorithm
            continue
        # wrappers are imported, and the packages of some are not here
        known = {key: value for key, value in entry.items() if key not in ("env_wrapper", "vec_env_wrapper")}
        hyperparameters.check(ALGOS[name], with_origin(known, f"{name}, {env}"))


class Odd(gym.Env[Any, Any]):
    """Only spaces."""

    def __init__(self, observation_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, spaces.Box(-1.0, 1.0, (2,))


VECTOR = spaces.Box(-1.0, 1.0, (3,))
LAST, FIRST = (spaces.Box(0, 255, shape, np.uint8) for shape in ((36, 36, 3), (3, 36, 36)))
BOTH = spaces.Dict(image=LAST, vector=VECTOR)


@pytest.mark.parametrize(
    ("algorithm", "policy", "space", "normalize", "frame_stack", "fits"),
    [
        (SAC, "MlpPolicy", VECTOR, {}, None, True),
        (SAC, "MlpPolicy", VECTOR, {}, 2, False),
        (SAC, "MlpPolicy", VECTOR, {"norm_obs": False}, 2, False),
        (SAC, "MlpPolicy", VECTOR, None, 2, True),
        (PPO, "MlpPolicy", VECTOR, {}, 2, True),
        (DACER, "DiffusionPolicy", VECTOR, {}, 4, False),
        (SAC, "CnnPolicy", LAST, {}, None, False),
        (SAC, "CnnPolicy", LAST, {"norm_obs": False}, None, False),
        (SAC, "CnnPolicy", LAST, None, 2, True),
        (SAC, "CnnPolicy", FIRST, {}, None, False),
        (SAC, "CnnPolicy", FIRST, {"norm_obs": False}, None, True),
        (DACER, "CnnPolicy", LAST, {"norm_obs": False}, None, False),
        (PPO, "CnnPolicy", LAST, {}, None, False),
        (PPO, "CnnPolicy", LAST, {"norm_obs": False}, 2, True),
        (SAC, "MultiInputPolicy", BOTH, {"norm_obs_keys": ["vector"]}, None, False),
        (DACER, "DiffusionPolicy", BOTH, {"norm_obs_keys": ["vector"]}, None, False),
        (PPO, "MultiInputPolicy", BOTH, {"norm_obs_keys": ["vector"]}, None, True),
    ],
)
def test_what_can_be_normalised(
    algorithm: type,
    policy: str,
    space: spaces.Space,
    normalize: dict[str, Any] | None,
    frame_stack: int | None,
    fits: bool,
) -> None:
    """As tried out: what does not fit ends in an error of numpy, or of the policy, in Stable-Baselines3 2.9."""
    if fits:
        fit.check(algorithm, policy, Odd(space), normalize, frame_stack)
    else:
        with pytest.raises(ValueError, match="normalize"):
            fit.check(algorithm, policy, Odd(space), normalize, frame_stack)
