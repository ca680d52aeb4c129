"""Which agent of the user's own is meant, and that it acts as it was trained."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

import zoo.enjoy
from sb3_diffusion.checkpoints.agents import NORMALIZATION
from tests.zoo.in_process import SAC, TINY, train
from zoo.hub.publication import write_repository
from zoo.training.options.which_agent import Which
from zoo.training.runs import trust
from zoo.training.runs.folders import RunFolder
from zoo.training.runs.resume import checkpoint_steps, finished
from zoo.training.runs.saved_agents import NoAgent, SavedAgent, find_run
from zoo.training.runs.text_files import read_yaml

ENV = "Pendulum-v1"
UUID = "_1b4e28ba-2fa1-11d2-883f-0016d3cca427"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a normalisation, which moves during the training."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["-n", "120", "--eval-freq", "60", "--save-freq", "40", "-params", *TINY, "normalize:True"]
    assert train(folder, *SAC, *options) == 0
    return folder / "logs" / "sac" / f"{ENV}_1"


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A log folder of the test's own with that run."""
    shutil.copytree(trained.parents[1], tmp_path / "logs")
    for run in (tmp_path / "logs").glob("*/*"):
        trust.mark(run)
    return tmp_path / "logs"


def statistics(agent: SavedAgent) -> tuple[float, ...]:
    env = agent.make_env()
    assert isinstance(env, VecNormalize) and not env.training and not env.norm_reward
    assert not isinstance(env.obs_rms, dict)
    return (float(env.obs_rms.count), *env.obs_rms.mean)


def without_statistics(archive: Path) -> None:
    with zipfile.ZipFile(archive) as members:
        content = {name: members.read(name) for name in members.namelist() if name != NORMALIZATION}
    with zipfile.ZipFile(archive, "w") as members:
        for name, data in content.items():
            members.writestr(name, data)


def test_every_agent_has_the_statistics_that_it_was_trained_with(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {which: statistics(find_run(logs, "sac", ENV, 0, which))[0] for which in (40, 80, "best", "last")}
    best = find_run(logs, "sac", ENV, 0, "best")
    step = best.load(best.make_env(), device="cpu").num_timesteps
    assert {which: round(count) for which, count in counts.items()} == {40: 41, 80: 81, "best": step + 1, "last": 121}
    last = find_run(logs, "sac", ENV)
    for agent in (find_run(logs, "sac", ENV, 1, 40), last):
        without_statistics(agent.archive)
    capsys.readouterr()
    assert statistics(last)[0] == pytest.approx(
        counts["last"]
    ), "an archive of an earlier version: that of the end belongs to it"
    assert "of its own" not in capsys.readouterr().out
    assert statistics(find_run(logs, "sac", ENV, 1, 40))[0] == pytest.approx(counts["last"])
    assert (
        "rl_model_40_steps.zip holds no statistics of its own: the normalisation is that at the end" in capsys.readouterr().out
    )


def test_what_is_watched_is_what_is_published(logs: Path, tmp_path: Path) -> None:
    """The same raw observation gives the same action through both doors, before and after the settings are edited."""
    agent = find_run(logs, "sac", ENV, 0, 40)
    config = agent.settings / "config.yml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("- 60", "- 61").replace("normalize", "norm"), encoding="utf-8"
    )
    from zoo.hub.published import PublishedAgent

    folder = write_repository(agent, tmp_path / "hub", n_eval_episodes=1, video=False)
    published = PublishedAgent(folder, ENV, "sac")
    raw = np.array([[0.6, -0.8, 5.0]], np.float32)
    actions: list[np.ndarray] = []
    for env in (agent.make_env(), published.make_env()):
        assert isinstance(env, VecNormalize)
        model = agent.load(env, device="cpu") if not actions else published.load(env, device="cpu")
        actions.append(model.predict(env.normalize_obs(raw), deterministic=True)[0])
    np.testing.assert_array_equal(actions[0], actions[1])
    settings = read_yaml(folder / "config.yml")
    assert settings["learning_starts"] == 60 and settings["normalize"] is True


def test_training_on_from_an_agent_takes_its_statistics(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.training.manager import Manager

    seen: list[Any] = []
    normalize = Manager._maybe_normalize

    def spy(self: Manager, env: Any, eval_env: bool) -> Any:
        normalized: Any = normalize(self, env, eval_env)
        seen.append(normalized)
        return normalized

    monkeypatch.setattr(Manager, "_maybe_normalize", spy)
    agent = logs / "sac" / f"{ENV}_1" / "rl_model_40_steps.zip"
    monkeypatch.setattr(Manager, "learn", lambda self, model: sys.exit(7))
    assert train(tmp_path, *SAC, "-i", str(agent), "-n", "20", "-params", *TINY[:3], "normalize:True") == 7
    assert [round(env.obs_rms.count) for env in seen] == [41, 41]
    assert [(env.training, env.norm_reward) for env in seen] == [(False, False), (True, True)]


# -- which run -------------------------------------------------------------------------------------------------------------


def newer(logs: Path, name: str, *files: str) -> Path:
    run = logs / "sac" / name
    for file in (f"{ENV}/args.yml", *files):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("{}", encoding="utf-8")
    return run


def test_the_newest_run_that_has_an_agent(logs: Path) -> None:
    newer(logs, f"{ENV}_2")
    interrupted = newer(logs, f"{ENV}_3", "resume/checkpoint_000000000070.json", "best_model.zip")
    newer(logs, f"{ENV}_4{UUID}", f"{ENV}/finished.json")
    running = RunFolder.claim(logs / "sac", ENV)
    said: list[str] = []
    agent = find_run(logs, "sac", ENV, say=said.append)
    assert agent.folder.name == f"{ENV}_1"
    assert [line.partition(": ")[2] for line in said] == [
        f"no {ENV}.zip, it is still being trained by process {os.getpid()} on {os.uname().nodename}",
        f"no {ENV}.zip",
        f"no {ENV}.zip, it was interrupted after step 70 or later and continues with --resume {interrupted} "
        "(it has best_model.zip)",
        f"no {ENV}.zip, it ended before it saved anything",
    ]
    assert find_run(logs, "sac", ENV, 0, "best", say=said.append).folder == interrupted
    (running.path / f"{ENV}.zip").touch()
    assert find_run(logs, "sac", ENV, say=said.append).folder == running.path
    assert said[-1] == f"{running.path} is still being trained by process {os.getpid()} on {os.uname().nodename}"
    with pytest.raises(
        NoAgent, match=r"Pendulum-v1_2: no Pendulum-v1.zip, it ended before it saved anything; train an agent first"
    ):
        find_run(logs, "sac", ENV, 2)


@pytest.mark.parametrize(
    ("asked", "nearest"), [(200, 100), (90, 100), (2000, 1000), (0, 100), (700, 1000)]
)  # the earlier of two as near
def test_a_checkpoint_that_is_not_there_has_a_neighbour(asked: int, nearest: int, tmp_path: Path) -> None:
    newer(tmp_path, f"{ENV}_1", *(f"rl_model_{steps}_steps.zip" for steps in (100, 300, 1000)))
    with pytest.raises(
        NoAgent, match=rf"no rl_model_{asked}_steps.zip \(it has .*; the nearest is --load-checkpoint {nearest}\)"
    ):
        find_run(tmp_path, "sac", ENV, which=asked)


@pytest.mark.parametrize(
    ("exp_id", "expected"),
    [
        (1, f"{ENV}_1"),
        (2, f"{ENV}_2{UUID}"),
        (f"2{UUID}", f"{ENV}_2{UUID}"),
        (0, f"{ENV}_3{UUID[:-1]}0"),
        (3, "--exp-id 3 may mean several runs in .*; give one of 3_"),
        (7, "there is no .*Pendulum-v1_7; --exp-id may be 3_"),
    ],
)
def test_runs_with_an_identifier(exp_id: int | str, expected: str, tmp_path: Path) -> None:
    for number, name in enumerate((f"{ENV}_1", f"{ENV}_2{UUID}", f"{ENV}_3{UUID}", f"{ENV}_3{UUID[:-1]}0")):
        run = newer(tmp_path, name, f"{ENV}.zip")
        os.utime(run, (number, number))
    if expected.startswith(ENV):
        assert find_run(tmp_path, "sac", ENV, exp_id, say=lambda text: None).folder.name == expected
    else:
        with pytest.raises(NoAgent, match=expected):
            find_run(tmp_path, "sac", ENV, exp_id)


@pytest.mark.parametrize("which", ["last", "best", "last checkpoint", 40])
def test_no_run_folder_and_no_run(which: Which, logs: Path, tmp_path: Path) -> None:
    (logs / "sac" / f"{ENV}_1").rename(tmp_path / "sac")
    assert find_run(tmp_path, "sac", ENV, -1, which).archive.parent == tmp_path / "sac"
    with pytest.raises(NoAgent, match=r"there is no run in .*; train an agent first with: python zoo/train.py --algo sac"):
        find_run(logs, "sac", ENV, 0, which)


def test_a_bundled_agent_is_never_taken_silently(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = find_run(logs, "sac", ENV)
    folder = write_repository(own, tmp_path / "pretrained", n_eval_episodes=1, video=False)
    monkeypatch.setattr(zoo.enjoy, "PRETRAINED", folder.parent)
    failed = newer(tmp_path / "empty", f"{ENV}_1")
    act = ["enjoy.py", "--algo", "sac", "--env", ENV, "--no-render", "-n", "1", "--device", "cpu", "-f"]
    monkeypatch.setattr(sys, "argv", [*act, str(tmp_path / "empty")])
    zoo.enjoy.main()
    assert (
        f"None of your own runs has an agent ({failed}: no {ENV}.zip, it ended before it saved anything): "
        f"using the pretrained agent {folder}" in capsys.readouterr().out
    )
    newer(logs, f"{ENV}_2")
    monkeypatch.setattr(sys, "argv", [*act, str(logs)])
    zoo.enjoy.main()
    out = capsys.readouterr().out
    assert f"Passing over {logs / 'sac' / f'{ENV}_2'}: no {ENV}.zip" in out and f"Loading {own.archive}" in out


# -- settings that were edited, and more steps -----------------------------------------------------------------------------


def edit(run: Path, file: str, old: str, new: str) -> None:
    path = run / ENV / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("config.yml", "- 500\n", "- 400\n", "config.yml: buffer_size 400 (was 500)"),
        ("config.yml", "net_arch:\n      - 8", "net_arch:\n      - 9", "(was {'net_arch': [8], "),
        ("config.yml", "- - - batch_size", "- - - n_envs\n    - 2\n  - - batch_size", "config.yml: n_envs 2 (added)"),
        ("args.yml", "- - n_timesteps\n    - 120", "- - n_timesteps\n    - 200", "args.yml: n_timesteps 200 (was 120)"),
        ("args.yml", "- - device\n    - cpu", "- - device\n    - auto", ""),
    ],
)
def test_edited_settings(
    file: str, old: str, new: str, said: str, logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = logs / "sac" / f"{ENV}_1"
    edit(run, file, old, new)
    status = train(tmp_path, "--resume", str(run), "-n", "120" if said == "" else "130")
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and len(lines) == 1
    assert said in lines[0] and ("they were edited: " in lines[0]) == (said != "")
    assert said == "" or f"Take the files in {run / ENV / 'started_with'} to undo that" in lines[0]


def test_extended(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = logs / "sac" / f"{ENV}_1"
    assert train(tmp_path, "--resume", str(run), "-n", "120") == 2
    assert "is the total number of steps, of which" in capsys.readouterr().err
    assert finished(run)
    assert train(tmp_path, "--resume", str(run), "-n", "200") == 0
    out = capsys.readouterr().out
    assert "Going on from 120 to 200 steps" in out and "Evaluation after 200 steps" in out
    assert json.loads((run / "final_evaluation.json").read_text(encoding="utf-8"))["budget"] == 200
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [120, 180]  # the first update is the 101st
    args = read_yaml(run / ENV / "args.yml")
    assert (args["n_timesteps"], args["extended_from"]) == (200, [120])
    assert finished(run) and checkpoint_steps(run) == [200]
    assert train(tmp_path, "--resume", str(run)) == 0
    assert "there is nothing to continue; -n N trains on" in capsys.readouterr().out
    shutil.rmtree(run / "resume")
    assert train(tmp_path, "--resume", str(run), "-n", "300") == 2
    assert "its last checkpoint is not there; train its agent on in a new run with: python" in capsys.readouterr().err


def test_two_at_once(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = logs / "sac" / f"{ENV}_1"
    holder = RunFolder.reopen(run)
    assert train(tmp_path, "--resume", str(run), "-n", "200") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"is being trained by process {os.getpid()} on {os.uname().nodename}" in lines[0]
    holder.release()
    assert finished(run), "the refused one changed nothing"
