"""Names, search spaces and settings that the zoo adds to rl-zoo3."""

import argparse
from pathlib import Path
from typing import Any

import optuna
import pytest
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.utils import LinearSchedule

from sb3_diffusion.taxonomy import available_methods
from zoo.training.manager import Manager
from zoo.training.options.registry import check_algorithm, check_command_line, check_environment, register_algorithms

from .test_hyperparams import constructor_arguments

register_algorithms()


def make_manager(tmp_path: Path, algo: str, env_id: str, **kwargs: Any) -> Manager:
    return Manager(argparse.Namespace(), algo, env_id, str(tmp_path), **kwargs)


def test_algorithms_and_baselines_are_registered() -> None:
    for method in available_methods():
        assert ALGOS[method.zoo_name] is method.load()
    assert (ALGOS["sac"], ALGOS["td3"], ALGOS["ppo"]) == (SAC, TD3, PPO)


@pytest.mark.parametrize("name", [method.zoo_name for method in available_methods()])
def test_search_space_gives_constructor_arguments(name: str) -> None:
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    sampled = HYPERPARAMS_SAMPLER[name](trial, 3, 1, {})
    assert set(sampled) <= constructor_arguments(ALGOS[name])
    assert 0.9 < sampled["gamma"] < 1.0
    assert sampled["batch_size"] in (128, 256, 512, 1024) if "batch_size" in sampled else sampled["n_minibatches"] > 0
    # what --trial-id reads back from a study
    assert HYPERPARAMS_CONVERTER[name](trial.params) == sampled


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dacr", "did you mean dacer?"),
        ("SDAC", "did you mean sdac?"),
        ("zzz", "known are "),
    ],
)
def test_wrong_algorithm_is_explained(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        check_algorithm(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("Hoper-v5", "did you mean Hopper-v5?"), ("pendulum-V1", "did you mean Pendulum-v1?"), ("zzzzz", "pprint_registry")],
)
def test_wrong_environment_is_explained(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match="unknown environment") as error:
        check_environment(env_id)
    assert message in str(error.value)


def test_wrong_dm_control_task_is_explained() -> None:
    pytest.importorskip("dm_control")
    with pytest.raises(ValueError, match=r"did you mean dm_control/cheetah-run-v0\?"):
        check_environment("dm_control/cheeta-run-v0")


def test_command_line_check_exits_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    check_command_line("train.py", ["--algo", "sac", "--env", "Pendulum-v1", "-n", "100"])
    with pytest.raises(SystemExit) as error:
        check_command_line("train.py", ["--algo", "sacc"])
    assert error.value.code == 2
    assert capsys.readouterr().err == "train.py: error: unknown algorithm 'sacc'; did you mean sac?\n"


def test_our_settings_are_the_default_and_others_fall_back_to_the_rl_zoo(tmp_path: Path) -> None:
    ours = make_manager(tmp_path, "dacer", "Hopper-v5")
    assert Path(ours.config).name == "dacer.yml"
    assert "rl_zoo3" not in ours.config
    assert "rl_zoo3" in make_manager(tmp_path, "tqc", "Hopper-v5").config
    assert make_manager(tmp_path, "dacer", "Hopper-v5", config="mine.yml").config == "mine.yml"


def test_linear_schedules_of_all_learning_rates() -> None:
    settings = {"learning_rate": "lin_3e-4", "actor_learning_rate": "lin_1e-3", "critic_learning_rate": 2e-4, "tau": 0.005}
    processed = Manager._preprocess_schedules(settings)
    assert isinstance(processed["learning_rate"], LinearSchedule)  # loads without rl-zoo3
    assert processed["learning_rate"](0.5) == pytest.approx(1.5e-4)
    assert processed["actor_learning_rate"](1.0) == pytest.approx(1e-3)
    assert processed["actor_learning_rate"](0.0) == 0.0
    assert processed["critic_learning_rate"] == 2e-4
    with pytest.raises(ValueError, match="actor_learning_rate='cos_1e-3'"):
        Manager._preprocess_schedules({"actor_learning_rate": "cos_1e-3"})


def test_unlisted_dm_control_task_uses_the_family(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    env_id = "dm_control/walker-walk-v0"
    check_environment(env_id)
    _, saved = make_manager(tmp_path, "sdac", env_id, hyperparams={"temperature": 0.02}).read_hyperparameters()
    assert saved["env_wrapper"] == {"sb3_diffusion.envs.dmc.wrap_dmc": {"action_repeat": 2}}
    assert saved["batch_size"] == 512
    assert saved["temperature"] == 0.02
    # algorithms that only the RL Zoo has settings for still get flat observations
    _, saved = make_manager(tmp_path, "tqc", env_id, config=str(_other_config(tmp_path))).read_hyperparameters()
    assert "env_wrapper" in saved


def _other_config(folder: Path) -> Path:
    path = folder / "tqc.yml"
    path.write_text("default: {policy: MlpPolicy, n_timesteps: 100}\n", encoding="utf-8")
    return path
