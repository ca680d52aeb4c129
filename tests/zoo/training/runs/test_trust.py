"""Whose files may run code: runs of the user's own, and what ``--trust-remote-code`` names."""

import os
import pickle
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from stable_baselines3 import SAC

from sb3_diffusion import SDAC, load_agent, save_agent
from tests.checkpoints.test_agents import baseline, write
from tests.zoo.training.runs.test_resume import write_run
from zoo import enjoy, push_to_hub, train
from zoo.hub.client import HubError, Repository, check_secrets, push
from zoo.training.options.errors import fail
from zoo.training.options.registry import register_algorithms
from zoo.training.runs import trust
from zoo.training.runs.resume import continue_run
from zoo.training.runs.starting_agent import StartingAgent
from zoo.training.tuning.report import print_summary
from zoo.training.tuning.study import load_trial

ENV = "Pendulum-v1"
SMALL = ["policy_kwargs:dict(net_arch=[8],diffusion_steps=2)", "n_particles:2", "buffer_size:1000", "batch_size:8"]
TRAIN = ["--algo", "sdac", "--env", ENV, "-n", "60", "--eval-freq", "-1", "--eval-episodes", "0", "--device", "cpu"]


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> Any:
        return Path.touch, (self.proof,)


def command(tool: Any, monkeypatch: pytest.MonkeyPatch, cwd: Path, *arguments: str) -> None:
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", [f"{tool.PROG}", *arguments])
    tool.main()


def refusal(tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, cwd: Path, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command(tool, monkeypatch, cwd, *arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a training of the user's own."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        command(train, monkeypatch, folder, *TRAIN, "--seed", "1", "-params", *SMALL, "learning_starts:40")
    return folder


def run_in(folder: Path) -> Path:
    return folder / "logs" / "sdac" / f"{ENV}_1"


@pytest.fixture
def foreign(runs: Path, tmp_path: Path) -> Path:
    """The same training, as if it had come from somebody else: every pickle and every evaluated text has a bomb."""
    shutil.copytree(runs / "logs", tmp_path / "logs")
    run = run_in(tmp_path)
    with zipfile.ZipFile(run / f"{ENV}.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    write(run / f"{ENV}.zip", {**members, "data": pickle.dumps(Bomb(tmp_path / "proof"))})
    (run / "replay_buffer.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "proof")))
    (run / ENV / "vecnormalize.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "proof")))
    evil = f"__import__('pathlib').Path({str(tmp_path / 'proof')!r}).touch()"
    settings = {"normalize": evil, "policy_kwargs": evil, "policy": "evil.Policy", "n_timesteps": 60}
    (run / ENV / "config.yml").write_text(yaml.safe_dump(settings))
    return tmp_path


# -- marks ------------------------------------------------------------------------------------------------------------


def test_mark(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert not trust.is_own(run) and not trust.is_own(tmp_path / "nowhere")
    trust.mark(run)
    assert trust.is_own(run)
    run.rename(tmp_path / "renamed")
    assert trust.is_own(tmp_path / "renamed")
    before = (tmp_path / "renamed" / trust.MARK).stat()
    trust.mark(tmp_path / "renamed")
    assert trust.is_own(tmp_path / "renamed")
    after = (tmp_path / "renamed" / trust.MARK).stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)  # there is no moment without a mark


def test_a_run_is_its_users_before_it_can_be_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However early it is killed."""
    seen = []

    def save_config(manager: Any, _: Any) -> None:
        seen.append(trust.is_own(manager.save_path))
        raise SystemExit(3)

    monkeypatch.setattr("rl_zoo3.exp_manager.ExperimentManager._save_config", save_config)
    with pytest.raises(SystemExit, match="3"):
        command(train, monkeypatch, tmp_path, *TRAIN, "-params", *SMALL)
    assert seen == [True]


@pytest.mark.parametrize("copy", [shutil.copytree, lambda a, b: os.system(f"cp -a {a} {b}"), lambda a, b: _tar(a, b)])
def test_a_mark_is_worth_nothing_elsewhere(copy: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    trust.mark(run)
    copy(run, tmp_path / "copy")
    assert (tmp_path / "copy" / trust.TAG).read_bytes() == (run / trust.TAG).read_bytes()
    assert not trust.is_own(tmp_path / "copy")
    # numbers of files that were deleted are given away again
    shutil.rmtree(run)
    copy(tmp_path / "copy", run)
    assert not trust.is_own(run)


def _tar(source: Path, target: Path) -> None:
    packed = shutil.make_archive(str(source), "tar", source)
    shutil.unpack_archive(packed, target)


def test_forged_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust.mark(tmp_path)
    own = (tmp_path / trust.TAG).read_bytes()
    for forged in (b"", own[:-1], own + b"0", b"0" * 64, b"\xff" * 64):
        (tmp_path / trust.TAG).write_bytes(forged)
        assert not trust.is_own(tmp_path)
    (tmp_path / trust.TAG).write_bytes(own)
    assert trust.is_own(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody else"))
    assert not trust.is_own(tmp_path)
    assert not (tmp_path / "somebody else").exists()  # looking makes no key
    (tmp_path / trust.MARK).unlink()
    assert not trust.is_own(tmp_path)


def test_the_key_is_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    trust.mark(tmp_path)
    key = trust.key_file()
    assert key is not None and stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    assert [path.name for path in key.parent.iterdir()] == [key.name] and trust.is_own(tmp_path)
    content = key.read_bytes()
    trust._make_key(tmp_path / "other")
    with pytest.raises(FileExistsError):  # the faster process wins
        trust._make_key(key)
    assert key.read_bytes() == content
    key.chmod(0o644)
    assert not trust.is_own(tmp_path)
    key.chmod(0o600)
    key.write_bytes(b"short")
    assert not trust.is_own(tmp_path)


def test_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    trust.mark(tmp_path)
    assert not trust.is_own(tmp_path) and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null/nowhere")
    trust.mark(tmp_path)
    assert not trust.is_own(tmp_path) and list(tmp_path.iterdir()) == []


def test_a_training_marks_its_folder(runs: Path) -> None:
    assert trust.is_own(run_in(runs))


# -- resume -----------------------------------------------------------------------------------------------------------


def test_resuming_a_strangers_run(foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (run_in(foreign) / ENV / "finished.json").unlink(missing_ok=True)
    shutil.rmtree(run_in(foreign) / ENV / "started_with", ignore_errors=True)
    arguments = run_in(foreign) / ENV / "args.yml"
    arguments.write_text(yaml.safe_dump({**_plain(arguments), "conf": "evil.py", "gym_packages": ["evil"]}))
    message = refusal(train, monkeypatch, capsys, foreign, "--resume", str(run_in(foreign)))
    assert "is not known as a run of yours" in message and "add --trust-remote-code" in message
    assert "policy 'evil.Policy' is imported and run" in message
    assert "--gym-packages evil" in message and "--conf=evil.py" in message
    assert not (foreign / "proof").exists()


def _plain(path: Path) -> dict[str, Any]:
    from zoo.training.runs.text_files import read_yaml

    return read_yaml(path)


def test_resuming_with_leave(tmp_path: Path, capsys: Any) -> None:
    run = write_run(tmp_path)
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    shutil.copytree(run, tmp_path / "copy" / "sac" / "Pendulum-v1_1")
    copy = tmp_path / "copy" / "sac" / "Pendulum-v1_1"
    with pytest.raises(ValueError, match=r"args.yml becomes the command line --log-folder="):
        continue_run(str(copy), None, [])
    continued = continue_run(str(copy), None, [], trusted=True)
    assert continued is not None and continued[0].folder == copy
    assert "--trust-remote-code: --resume goes on with it: args.yml becomes" in capsys.readouterr().out


def test_what_runs() -> None:
    settings = {
        "normalize": "dict(norm_obs=True)",
        "policy": "my.module.Policy",
        "env_wrapper": [{"my.Wrapper": {"x": 1}}],
        "callback": "my.\x1bCallback",
        "policy_kwargs": {"net_arch": [8]},
        "vec_env_wrapper": None,
    }
    text = trust.what_runs(settings, ["--algo=sac", "--env-kwargs", "a:exit()"])
    assert text.isprintable() and "policy_kwargs" not in text and "vec_env_wrapper" not in text
    for part in ("callback 'my.\\x1bCallback' is imported", "policy 'my.module.Policy' is imported", "my.Wrapper"):
        assert part in text
    assert text.endswith("args.yml becomes the command line --algo=sac --env-kwargs 'a:exit()'")


# -- train -i ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Stable-Baselines3's file, and the one that can be loaded safely."""
    folder = tmp_path_factory.mktemp("saved")
    model = baseline(SAC, ENV).learn(12)
    model.save(folder / "pickled.zip")
    save_agent(model, folder / "plain.zip")
    return {path.stem: path.read_bytes() for path in folder.glob("*.zip")}


@pytest.mark.parametrize(
    ("kind", "beside", "expected"),
    [
        ("plain", [], None),
        ("pickled", [], r"-i unpickles agent.zip \(it has no sb3_diffusion.json\), which can run any code"),
        ("plain", ["replay_buffer.pkl"], r"-i unpickles replay_buffer.pkl \(move it away to start without\), which"),
        ("plain", [f"{ENV}/vecnormalize.pkl"], f"-i unpickles {ENV}/vecnormalize.pkl, which"),
        ("pickled", ["replay_buffer.pkl"], "-i unpickles agent.zip .* and replay_buffer.pkl"),
    ],
)
def test_agents_to_start_from(
    kind: str, beside: list[str], expected: str | None, saved: dict[str, bytes], tmp_path: Path, capsys: Any
) -> None:
    start = StartingAgent(tmp_path / "agent.zip", ENV)
    start.archive.write_bytes(saved[kind])
    for name in beside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    if expected is None:
        start.check("sac", False)
        return
    with pytest.raises(ValueError, match=f"is not known as a run of yours .*add --trust-remote-code: .*{expected}"):
        start.check("sac", False)
    start.check("sac", True)
    assert "--trust-remote-code: -i unpickles" in capsys.readouterr().out
    trust.mark(tmp_path)
    start.check("sac", False)
    assert capsys.readouterr().out == ""


def test_start_from_a_strangers_agent(foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What it describes is read, the pickle in it is not opened, and hyperparameters that are given here win."""
    agent = foreign / "agent.zip"
    shutil.copy(run_in(foreign) / f"{ENV}.zip", agent)
    shutil.rmtree(foreign / "logs")
    start = [*TRAIN, "-i", str(agent), "-params", "learning_starts:20", "gamma:0.5", "batch_size:4", "n_particles:2"]
    command(train, monkeypatch, foreign, *start)
    assert not (foreign / "proof").exists()
    trained: Any = load_agent(run_in(foreign) / f"{ENV}.zip")
    assert (type(trained), trained.gamma, trained.batch_size, trained.policy_kwargs["net_arch"]) == (SDAC, 0.5, 4, [8])
    other = [*TRAIN[2:], "-f", "new", "--algo", "qsm", "-i", str(agent)]
    assert "agent.zip is an agent of sdac, not of qsm" in refusal(train, monkeypatch, capsys, foreign, *other)
    assert not (foreign / "new").exists()


def test_a_strangers_memory(foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    agent = run_in(foreign) / f"{ENV}.zip"
    message = refusal(train, monkeypatch, capsys, foreign, *TRAIN, "-f", "new", "-i", str(agent))
    assert f"-i unpickles {ENV}/vecnormalize.pkl and replay_buffer.pkl (move it away" in message
    assert not (foreign / "proof").exists() and not (foreign / "new").exists()


# -- enjoy, push_to_hub -----------------------------------------------------------------------------------------------

ACT = ["--algo", "sdac", "--env", ENV, "--no-render", "-n", "200", "--device", "cpu"]


def test_watching_a_strangers_run(foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    command(enjoy, monkeypatch, foreign, *ACT)
    out = capsys.readouterr().out
    assert "is loaded without running code of it" in out and "Mean reward: " in out
    assert not (foreign / "proof").exists()


def test_watching_a_strangers_pickle(
    foreign: Path, saved: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (run_in(foreign) / f"{ENV}.zip").write_bytes(saved["pickled"])
    message = refusal(enjoy, monkeypatch, capsys, foreign, *ACT)
    assert "has no sb3_diffusion.json, so that it can be loaded by unpickling only" in message
    assert "--trust-remote-code allows that" in message and not (foreign / "proof").exists()


def test_watching_a_pickle_of_ones_own(
    runs: Path, saved: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    run = tmp_path / "logs" / "sac" / f"{ENV}_1"
    run.mkdir(parents=True)
    (run / f"{ENV}.zip").write_bytes(saved["pickled"])
    trust.mark(run)
    command(enjoy, monkeypatch, tmp_path, "--algo", "sac", *ACT[2:])
    out = capsys.readouterr().out
    assert "Mean reward: " in out and "without running" not in out


def test_publishing_a_strangers_run(foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    message = refusal(push_to_hub, monkeypatch, capsys, foreign, *ACT[:4], "--dry-run", "--no-video")
    assert "publishing unpickles" in message and "add --trust-remote-code" in message
    assert not (foreign / "proof").exists()


# -- studies ----------------------------------------------------------------------------------------------------------


def test_a_strangers_study(tmp_path: Path, capsys: Any) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="a\x1b[2Jb", direction="maximize")
    for name in ("policy_kwargs", "env_wrapper", "policy"):
        values = optuna.distributions.CategoricalDistribution(["exit()"])
        study.add_trial(optuna.trial.create_trial(params={name: "exit()"}, distributions={name: values}, value=1.0))
    register_algorithms()
    for trial, name in enumerate(("policy_kwargs", "env_wrapper", "policy")):
        with pytest.raises(ValueError, match=f"--trial-id {trial} sets {name}, which no search draws"):
            load_trial(storage, "a\x1b[2Jb", trial, "sdac")
    with pytest.raises(ValueError, match=r"it has a\\x1b\[2Jb"):
        load_trial(storage, "other", 0, "sdac")
    print_summary(study, [])
    assert "\x1b" not in capsys.readouterr().out


# -- secrets and terminals --------------------------------------------------------------------------------------------

TOKEN = "hf_ofSomebodyElse0123456789abcdef"


@pytest.mark.parametrize("where", ["message", "revision", "repository"])
def test_tokens_are_not_sent(where: str, tmp_path: Path) -> None:
    repository = Repository("me", TOKEN if where == "repository" else "agent", endpoint="http://127.0.0.1:9")
    options = {where: f"see {TOKEN}"} if where != "repository" else {}
    with pytest.raises(
        ValueError, match=f"the {where if where != 'message' else 'commit message'} contains a token"
    ) as caught:
        push(tmp_path, repository, "sdac", ENV, **options)  # type: ignore[arg-type]
    assert TOKEN not in str(caught.value)


def test_tokens_in_names() -> None:
    check_secrets({"config.yml": b"hf_short", "message": "half_of"})
    with pytest.raises(ValueError, match=r"^<token>.yml contains a token of the Hub; nothing was sent") as caught:
        check_secrets({f"{TOKEN}.yml": f"x{TOKEN}"})
    assert TOKEN not in str(caught.value)


def test_a_token_is_refused_before_the_evaluation(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(push_to_hub, "prepare", lambda *args: pytest.fail("evaluated"))
    for option, value in (("-m", TOKEN), ("--revision", TOKEN), ("-name", TOKEN)):
        options = [*ACT[:4], "-orga", "me", "--dry-run", option, value]
        message = refusal(push_to_hub, monkeypatch, capsys, runs, *options)
        assert "contains a token of the Hub; nothing was sent" in message and TOKEN not in message


def test_errors_do_not_command_the_terminal(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        fail("train.py", "no \x1b[2J\u202e\nfile")
    assert capsys.readouterr().err == "train.py: error: no \\x1b[2J\\u202e file\n"
    with pytest.raises(ValueError, match=r"'a\\x1b' cannot be a name on the Hub"):
        Repository("a\x1b", "b")
    with pytest.raises(HubError) as caught:
        from zoo.hub.client import _clear_errors

        with _clear_errors(Repository("a", "b", "http://127.0.0.1:9"), "asking"):
            raise RuntimeError("\x1b]0;title\x07 line\n\u2066")
    assert str(caught.value).isprintable()
