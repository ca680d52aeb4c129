"""Videos of runs: which agents, in which order, with whose statistics, and what is said when it does not work."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import QSM
from tests.zoo.hub.test_video import pictures
from zoo import record
from zoo.hub import video
from zoo.training.options.registry import register_algorithms
from zoo.training.runs.saved_agents import SavedAgent

register_algorithms()

ENV = "Pendulum-v1"
TINY: dict[str, Any] = {"buffer_size": 10, "policy_kwargs": {"net_arch": [8], "diffusion_steps": 2}}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, and a later one without an agent."""
    logs = tmp_path_factory.mktemp("record") / "logs"
    run = logs / "qsm" / f"{ENV}_1"
    (run / ENV).mkdir(parents=True)
    (run / ENV / "config.yml").write_text("policy: DiffusionPolicy\n", encoding="utf-8")
    model = QSM("DiffusionPolicy", ENV, **TINY)
    for name in (ENV, "best_model", "rl_model_1000_steps", "rl_model_200_steps"):
        model.save(run / name)
    (logs / "qsm" / f"{ENV}_2" / ENV).mkdir(parents=True)
    return logs


def run_script(monkeypatch: pytest.MonkeyPatch, logs: Path, *arguments: str) -> None:
    words = ["--algo", "qsm", "--env", ENV, "-f", str(logs), *arguments, record.HERE]
    monkeypatch.setattr(sys, "argv", ["record.py", *words])
    record.main()


def frames(path: Path) -> list[np.ndarray]:
    imageio = pytest.importorskip("imageio.v3")
    return list(imageio.imiter(path))


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ([], "final-model-qsm-Pendulum-v1.mp4"),
        (["--load-best"], "best-model-qsm-Pendulum-v1.mp4"),
        (["--load-checkpoint", "1000"], "checkpoint-1000-qsm-Pendulum-v1.mp4"),
        (["--load-last-checkpoint"], "checkpoint-1000-qsm-Pendulum-v1.mp4"),
    ],
)
def test_one_agent(
    which: list[str],
    name: str,
    logs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pygame")
    pytest.importorskip("imageio_ffmpeg")
    run_script(monkeypatch, logs, "--exp-id", "1", "-n", "12", "-o", str(tmp_path / "videos"), *which)
    assert capsys.readouterr().out.splitlines()[-1] == f"Saved as {tmp_path / 'videos' / name}"
    assert [path.name for path in (tmp_path / "videos").iterdir()] == [name]
    assert len(frames(tmp_path / "videos" / name)) == 12


def test_a_whole_training(logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pygame")
    pytest.importorskip("imageio_ffmpeg")
    run_script(monkeypatch, logs, "--exp-id", "1", "--training", "--gif", "-n", "6")
    output = capsys.readouterr().out
    recorded = [line.rpartition("/")[2] for line in output.splitlines() if line.startswith("Recording")]
    assert recorded == ["rl_model_200_steps.zip", "rl_model_1000_steps.zip", f"{ENV}.zip", "best_model.zip"]
    folder = logs / "qsm" / f"{ENV}_1" / "videos"
    assert sorted(path.name for path in folder.iterdir()) == ["training.gif", "training.mp4"]
    shown = frames(folder / "training.mp4")
    assert len(shown) == 4 * 6
    # the same agent and seed four times: only the titles differ
    difference = np.abs(shown[0].astype(int) - shown[6].astype(int))
    assert difference[:60].max() > 100 and difference[80:].mean() < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--exp-id", "3"],
            "Pendulum-v1_3; --exp-id may be 2, 1.",
        ),
        (["--exp-id", "1", "--load-checkpoint", "7"], "no rl_model_7_steps.zip (it has Pendulum-v1.zip, best_model.zip"),
        (["--exp-id", "2", "--training"], "has an agent; train an agent first with"),
        (["--exp-id", "1", "-n", "0"], "-n/--n-timesteps: 0 is too small; give at least 1"),
        (["--exp-id", "1", "--video-kb", "-5"], "--video-kb: -5 is too small; give at least 10"),
        (["--env", "Pendulum-v"], "unknown environment 'Pendulum-v'; did you mean Pendulum-v1?"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str],
    message: str,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_script(monkeypatch, logs, *arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("record.py: error: ") and message in line


def test_training_without_checkpoints_says_how_to_get_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "best_model.zip").touch()
    archives = record.archives_of_training(tmp_path, ENV)
    assert [record.title_of(archive) for archive in archives] == ["best model"]
    assert "--save-freq" in capsys.readouterr().out


def test_each_agent_acts_with_its_own_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with those of the end of the run, which lie beside it."""
    run = tmp_path / "qsm" / f"{ENV}_1"
    (run / ENV).mkdir(parents=True)
    settings = "policy: DiffusionPolicy\nnormalize: true\nenv_kwargs: {g: 5.0}\n"
    (run / ENV / "config.yml").write_text(settings, encoding="utf-8")
    env = VecNormalize(make_vec_env(ENV))
    model = QSM("DiffusionPolicy", env, **TINY)
    for name, mean in (("best_model", 3.0), (ENV, 7.0)):
        assert isinstance(env.obs_rms, RunningMeanStd)
        env.obs_rms.mean[:] = mean
        model.save(run / name)
    env.save(str(run / ENV / "vecnormalize.pkl"))
    monkeypatch.setattr(sys, "argv", ["record.py", "--algo", "qsm", "--env", ENV])
    args = record.parse_arguments()
    for name, mean in (("best_model", 3.0), (ENV, 7.0)):
        agent = SavedAgent("qsm", ENV, run, run / f"{name}.zip", {"render_mode": "rgb_array"})
        opened = record.open_agent(args, agent)[1]
        assert isinstance(opened, VecNormalize) and isinstance(opened.obs_rms, RunningMeanStd)
        np.testing.assert_array_equal(opened.obs_rms.mean, mean)
        assert not opened.training and not opened.norm_reward
        assert opened.get_attr("g") == [5.0] and opened.render_mode == "rgb_array"


def test_wrong_arguments_are_not_tried_with_every_renderer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child, calls = tmp_path / "child", tmp_path / "calls"
    child.write_text(
        f"#!/bin/sh\necho call >> {calls}\necho 'record.py: error: no such agent' >&2\nexit 2\n", encoding="utf-8"
    )
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    monkeypatch.setattr(sys, "argv", ["record.py", "--algo", "qsm", "--env", ENV])
    monkeypatch.setattr(video, "backends", lambda: video.OFF_SCREEN)
    with pytest.raises(SystemExit) as stopped:
        record.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "record.py: error: no such agent\n"
    assert calls.read_text(encoding="utf-8") == "call\n"
    child.write_text(f"#!/bin/sh\necho call >> {calls}\nkill -SEGV $$\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        record.main()
    assert calls.read_text(encoding="utf-8") == "call\n" * (1 + len(video.OFF_SCREEN))


def test_a_video_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    target = tmp_path / "replay.mp4"
    target.write_bytes(b"old")

    def broken() -> Any:
        yield from pictures(3)
        raise ValueError("the simulator gave up")

    with pytest.raises(ValueError, match="gave up"):
        video.encode(25.0, 10, broken(), target, 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["replay.mp4"]
    assert target.read_bytes() == b"old"


def test_environment_that_draws_nothing_is_named() -> None:
    env = make_vec_env("toy/rings-v0")
    with pytest.raises(ValueError, match="draws no pictures"):
        next(video.pictures(None, env, 1))
