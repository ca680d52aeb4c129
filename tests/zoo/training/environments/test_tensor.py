"""Trainings in environments that speak tensors: how they are made, what is refused, and that every command knows them."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import zoo.enjoy
from sb3_diffusion.envs.tensor import IsaacLabVecEnv, TorchVecEnv
from sb3_diffusion.envs.tensor.tasks.pendulum import Pendulum
from sb3_diffusion.tensor_names import TASKS
from tests.envs.tensor.fake_isaac import FakeIsaacEnv
from tests.zoo.in_process import train
from zoo import record
from zoo.hub.publication import write_repository
from zoo.hub.published import PublishedAgent
from zoo.training.environments import tensor
from zoo.training.manager import Manager
from zoo.training.options.registry import register_algorithms
from zoo.training.runs.saved_agents import SavedAgent, find_run
from zoo.training.runs.text_files import read_yaml

register_algorithms()

ENV = "torch/Pendulum-v0"
SMALL = ["n_steps:10", "policy_kwargs:dict(net_arch=[8])"]
OPTIONS = ["--device", "cpu", "--seed", "1", "--verbose", "0", "--eval-episodes", "3", "--env-kwargs", "max_episode_length:15"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which ``logs`` has a finished run of 20 copies."""
    folder = tmp_path_factory.mktemp("tensors")
    words = ["--algo", "tensor_ppo", "--env", ENV, "--n-envs", "20", "-n", "800", "--eval-freq", "400", "--save-freq", "400"]
    assert train(folder, *words, *OPTIONS, "-params", *SMALL) == 0
    return folder


@pytest.fixture
def agent(trained: Path) -> SavedAgent:
    return find_run(trained / "logs", "tensor_ppo", ENV)


def built(manager: Manager) -> tuple[Any, dict[str, Any]]:
    """The agent and its settings; the attributes of the agent are those of its class."""
    experiment = manager.setup_experiment()
    assert experiment is not None
    return experiment


def manager(tmp_path: Path, algo: str, env_id: str = ENV, **options: Any) -> Manager:
    small = {"n_steps": 4, "batch_size": 10, "policy_kwargs": {"net_arch": [8]}, **options.pop("hyperparams", {})}
    settings = {
        "n_timesteps": 80,
        "eval_freq": 40,
        "n_eval_episodes": 3,
        "verbose": 0,
        "log_interval": -1,
        "seed": 1,
        **options,
    }
    args = argparse.Namespace(n_envs=5, vec_env="dummy")
    return Manager(args, algo, env_id, str(tmp_path / "logs"), hyperparams=small, **settings)


def test_a_run_has_its_files(trained: Path) -> None:
    run = trained / "logs" / "tensor_ppo" / "torch-Pendulum-v0_1"
    assert np.load(run / "evaluations.npz")["results"].shape == (2, 3)
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [400, 800]
    for name in ("best_model.zip", "torch-Pendulum-v0.zip", "rl_model_400_steps.zip", "rl_model_800_steps.zip"):
        assert (run / name).is_file()
    assert read_yaml(run / "torch-Pendulum-v0" / "config.yml")["n_envs"] == 20
    effective = read_yaml(run / "torch-Pendulum-v0" / "effective.yml")
    assert effective["zoo"]["n_envs"] == {"value": 20, "from": "--n-envs"}
    assert not list(run.glob("*.monitor.csv")), "thousands of copies would write little else"


@pytest.mark.parametrize("algo", ["tensor_ppo", "ppo"])
def test_all_copies_are_one_object(algo: str, tmp_path: Path) -> None:
    made = manager(tmp_path, algo)
    model, _ = built(made)
    env = model.get_env()
    if algo == "ppo":  # which normalises with what Stable-Baselines3 has
        assert isinstance(env, VecNormalize)
    assert isinstance(env.unwrapped, Pendulum) and env.num_envs == model.n_envs == 5
    evaluated = made.callbacks[-1].eval_env  # type: ignore[attr-defined]
    assert evaluated.unwrapped is not env.unwrapped and evaluated.num_envs == 3
    made.learn(model)
    made.save_trained_model(model)
    assert model.num_timesteps == 80


@pytest.mark.parametrize(("asked", "episodes", "copies"), [(1, 10, 10), (1, 500, 16), (1, 0, 1), (4, 10, 4)])
def test_copies_of_an_evaluation(asked: int, episodes: int, copies: int) -> None:
    assert tensor.copies_of_evaluation(asked, episodes) == copies


MISTAKES = [
    ("--env torch/Pendulm-v0", "unknown environment 'torch/Pendulm-v0'; did you mean torch/Pendulum-v0?"),
    (f"--env {ENV} --n-envs 0", "argument --n-envs: 0 is too small; give at least 1"),
    (f"--env {ENV} --vec-env subproc", f"--vec-env subproc: {ENV} steps all of its copies itself; leave the option out."),
    (
        f"--env {ENV} --env-kwargs limit:3",
        "cannot be made with --env-kwargs limit:3: it has no argument 'limit'; known are",
    ),
    (f"--env {ENV} --env-kwargs max_episode_length:0", "max_episode_length=0 must be at least 1"),
    (f"--env {ENV} -params normalize:true", "would go through NumPy; leave it out, normalize_observations does that"),
    (f"--env {ENV} -params frame_stack:2", "frame_stack: the tensors of torch/Pendulum-v0 would go through NumPy"),
    (
        f"--env {ENV} -params env_wrapper:gymnasium.wrappers.ClipAction",
        "is one object of many copies, around which none can be",
    ),
    (
        f"--env {ENV} -params preset:flowrl",
        "preset='flowrl' (-params): Unknown name='flowrl'; known are flowrl_paper, flowrl_code.",
    ),
    ("--env mjlab/Cartpole", "mjlab is not installed; it needs a virtual environment without dm-control"),
    ("--env Isaac-Ant-v0", "Isaac-Ant-v0 needs Isaac Lab, which is not installed: release 3.0 runs on Python 3.12"),
    ("--env CartPole-v1", "environment CartPole-v1 has actions Discrete(2), but PPO acts with continuous ones (Box)"),
]


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes_are_one_line(words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--algo", "tensor_ppo", "--device", "cpu", *words.split(" ")) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("train.py: error: ") and captured.err.count("\n") == 1
    assert expected in captured.err
    assert not (tmp_path / "logs").exists()


def test_a_preset_of_an_algorithm_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--algo", "sac", "--env", "Pendulum-v1", "-params", "preset:flowrl_paper") == 2
    assert "preset='flowrl_paper' (-params): SAC has no presets; leave it out." in capsys.readouterr().err


def test_a_preset_lies_below_what_is_beside_it(tmp_path: Path) -> None:
    made = manager(tmp_path, "tensor_ppo", hyperparams={"preset": "flowrl_paper", "n_epochs": 3}, dry_run=True)
    model, saved = built(made)
    assert (model.squash, model.timeout_bootstrap, model.n_epochs, model.n_steps) == (True, "next_obs", 3, 4)
    assert saved["policy_kwargs"] == {"net_arch": [8], "log_std_bounds": [-5.0, 2.0], "output_gain": 2.0**0.5}
    origin = made.effective_settings(model)["PPO"]
    assert origin["squash"].origin == "preset flowrl_paper of PPO" and origin["n_epochs"].origin == "-params"


@pytest.mark.parametrize(
    ("env_id", "action_bound", "bootstrap"),
    [
        ("Isaac-Ant-v0", 1.0, "next_obs"),
        ("Isaac-Velocity-Flat-AnymalD", 1.0, "next_obs"),
        ("IsaacContrib-Lift-Cube-Franka", 3.0, "off"),
        ("Isaac-Reach-Franka-v0", 1.0, "final_obs"),
    ],
)
def test_one_simulation_serves_both(
    env_id: str, action_bound: float, bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Isaac Lab's tasks, by their old or new names, with settings of their own or those of all that speak tensors."""
    made: list[IsaacLabVecEnv] = []

    def make(name: str, n_envs: int, device: str, seed: int, **settings: Any) -> IsaacLabVecEnv:
        assert (name, device) == (env_id, "cpu")
        made.append(IsaacLabVecEnv(FakeIsaacEnv(n_envs, compute_final_obs=True), **settings))
        return made[-1]

    monkeypatch.setattr(tensor, "make_tensor_env", make)
    experiment = manager(tmp_path, "tensor_ppo", env_id, device="cpu")
    model, _ = built(experiment)
    (env,) = made
    assert model.get_env() is env and env.num_envs == 5
    assert env.action_space.high.max() == action_bound and model.timeout_bootstrap == bootstrap
    experiment.learn(model)
    experiment.save_trained_model(model)
    run = Path(experiment.save_path)
    assert len(made) == 1 and np.load(run / "evaluations.npz")["timesteps"].tolist() == [40]
    assert (run / "final_evaluation.json").is_file()


def test_enjoying(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--algo", "tensor_ppo", "--env", ENV, "-f", str(trained / "logs"), "-n", "20", "--n-envs", "4", "--verbose", "0"]
    outputs = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["enjoy.py", *words, "--device", "cpu", "--reward-log", str(tmp_path)])
        zoo.enjoy.main()
        outputs.append(capsys.readouterr().out.splitlines())
    assert f"{ENV} has no window, zoo/record.py makes a video of it (--no-render hides this message)." in outputs[0]
    assert outputs[0] == outputs[1] and outputs[0][-1] == "Mean episode length: 15.00 +/- 0.00"
    assert len((tmp_path / "monitor.csv").read_text().splitlines()) == 2 + 4


def test_a_video_is_drawn(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imageio_ffmpeg")
    iio = pytest.importorskip("imageio.v3")
    words = ["--algo", "tensor_ppo", "--env", ENV, "-f", str(trained / "logs"), "-n", "4", "-o", str(tmp_path), record.HERE]
    monkeypatch.setattr(sys, "argv", ["record.py", *words])
    record.main()
    pictures = list(iio.imiter(tmp_path / "final-model-tensor_ppo-torch-Pendulum-v0.mp4"))
    assert len(pictures) == 4 and pictures[0].shape == (400, 400, 3)


def test_what_draws_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Pendulum):
        def __init__(self, num_envs: int, device: str):
            super().__init__(num_envs, device)

    monkeypatch.setitem(TASKS, "mine/Plain-v0", Plain)
    for name in ("mine/Plain-v0", "mjlab/Mjlab-Cartpole-Balance"):
        with pytest.raises(ValueError, match=f"^{name} draws no pictures: it takes no render_mode.$"):
            tensor.make(name, 1, {"render_mode": "rgb_array"})


def test_what_a_simulator_raises_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(num_envs: int, device: str, size: int = 1) -> TorchVecEnv:
        raise RuntimeError("no licence")

    monkeypatch.setitem(TASKS, "mine/Broken-v0", broken)
    reason = r"^environment mine/Broken-v0 cannot be made with --env-kwargs size:3: RuntimeError: no licence$"
    with pytest.raises(ValueError, match=reason):
        tensor.make("mine/Broken-v0", 1, {"size": 3})


def test_published_agents_act_the_same(agent: SavedAgent, tmp_path: Path) -> None:
    folder = write_repository(agent, tmp_path, n_eval_episodes=4, n_envs=4, device="cpu", video=False)
    assert folder.name == "tensor_ppo-torch-Pendulum-v0"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "--env torch/Pendulum-v0" in card and "--n-envs 20" in card
    published = PublishedAgent(folder, ENV)
    env = published.make_env(n_envs=4, seed=0)
    assert isinstance(env.unwrapped, Pendulum) and env.unwrapped.max_episode_length == 15
    own_env = agent.make_env(n_envs=4, seed=0)
    model, own = published.load(env, device="cpu", seed=0), agent.load(own_env, device="cpu", seed=0)
    observations = env.reset()
    np.testing.assert_array_equal(observations, own_env.reset())
    actions = [m.predict(observations, deterministic=True)[0] for m in (model, own)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(actions[0], actions[1])


def test_training_goes_on_from_an_agent(trained: Path, agent: SavedAgent, tmp_path: Path) -> None:
    words = ["--algo", "tensor_ppo", "--env", ENV, "--n-envs", "8", "-n", "80", "--eval-freq", "-1", "-i", str(agent.archive)]
    assert train(tmp_path, *words, *OPTIONS, "-params", "n_steps:10") == 0
    run = find_run(tmp_path / "logs", "tensor_ppo", ENV)
    before, after = (loaded.load(loaded.make_env(), device="cpu").policy.state_dict() for loaded in (agent, run))
    assert before.keys() == after.keys()
    assert any(not th.equal(before[name], after[name]) for name in before)


def test_a_wrapper_around_all_copies(agent: SavedAgent, tmp_path: Path) -> None:
    made = manager(
        tmp_path, "ppo", hyperparams={"vec_env_wrapper": "stable_baselines3.common.vec_env.VecMonitor"}, dry_run=True
    )
    model, _ = built(made)
    assert isinstance(model.get_env().venv, VecMonitor)


def test_a_search_makes_its_own(tmp_path: Path) -> None:
    made = manager(
        tmp_path,
        "tensor_ppo",
        optimize_hyperparameters=True,
        n_trials=1,
        n_evaluations=1,
        sampler="random",
        no_optim_plots=True,
    )
    assert made.setup_experiment() is None
    made.hyperparameters_optimization()
    (report,) = (tmp_path / "logs" / "tensor_ppo").glob("report_torch-Pendulum-v0_*.csv")
    assert "COMPLETE" in report.read_text(encoding="utf-8")
