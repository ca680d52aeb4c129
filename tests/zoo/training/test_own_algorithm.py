"""A class of the user's own in the zoo: found by the module that registers it, trained, loaded, searched."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_diffusion import load_agent
from sb3_diffusion.taxonomy import registered_methods
from tests.zoo.in_process import train
from zoo.training.options.registry import algorithm_names, check_command_line
from zoo.training.runs.saved_agents import find_run

MODULE = """
from pathlib import Path
from sb3_diffusion import QSM, register_method

class {name}(QSM):
    '''QSM with a name of its own.'''

register_method({name}{settings})
"""
SETTINGS = """
default:
  policy: DiffusionPolicy
  n_timesteps: 30
  learning_starts: 25
  buffer_size: 100
  batch_size: 4
  policy_kwargs: {net_arch: [8], diffusion_steps: 2, activation_fn: mish}
search:
  temperature: {low: 0.1, high: 1.0, log: true}
"""
COMMON = (
    "--env",
    "Pendulum-v1",
    "--device",
    "cpu",
    "--seed",
    "1",
    "--eval-freq",
    "-1",
    "--eval-episodes",
    "1",
    "--verbose",
    "0",
)


@pytest.fixture
def folder(tmp_path: Path, own_names: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two modules of the user's own, one with settings; nothing of them is left behind the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = ", settings=Path(__file__).with_name('ownone.yml')"
    (tmp_path / "own_one.py").write_text(MODULE.format(name="OwnOne", settings=settings), encoding="utf-8")
    (tmp_path / "own_two.py").write_text(MODULE.format(name="OwnTwo", settings=""), encoding="utf-8")
    (tmp_path / "own_clash.py").write_text(MODULE.format(name="TQC", settings=""), encoding="utf-8")
    (tmp_path / "ownone.yml").write_text(SETTINGS, encoding="utf-8")
    yield tmp_path
    for name in ("own_one", "own_two", "own_clash"):
        sys.modules.pop(name, None)
    for table in (ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER):
        for name in ("ownone", "owntwo"):
            table.pop(name, None)


def test_it_is_trained_and_loaded_like_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "--algo", "ownone", *COMMON, "--gym-packages", "own_one") == 0
    output = capsys.readouterr().out
    assert "--algo ownone --env Pendulum-v1 --gym-packages own_one -f logs" in output  # how to watch it
    own = registered_methods()["ownone"].algorithm
    assert "ownone" in algorithm_names() and ALGOS["ownone"] is own
    agent = find_run(str(folder / "logs"), "ownone", "Pendulum-v1", env_kwargs={})
    model = load_agent(agent.archive)
    assert type(model) is own and model.num_timesteps == 30

    check_command_line("enjoy.py", ["--algo", "ownone", "--env", "Pendulum-v1", "--gym-packages", "own_one"])
    assert train(folder, "--resume", "logs/ownone/Pendulum-v1_1", "-n", "35") == 0  # the run remembers the module


def test_it_needs_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "--algo", "owntwo", *COMMON, "--gym-packages", "own_two") == 2
    assert "no settings for owntwo; give --conf-file, or register it with settings=" in capsys.readouterr().err
    dry = ("--conf-file", "ownone.yml", "--dry-run", "--gym-packages", "own_two")
    assert train(folder, "--algo", "owntwo", *COMMON, *dry) == 0
    assert "ownone.yml, entry default" in capsys.readouterr().out


def test_it_is_searched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = ("-optimize", "--n-trials", "1", "--n-evaluations", "1", "--no-optim-plots", "--gym-packages", "own_one")
    options = ("--algo", "ownone", *COMMON[:-4], "--eval-episodes", "1", "--verbose", "0")
    assert train(folder, *options, *search) == 0
    output = capsys.readouterr().out
    assert "1 trials (1 complete)" in output and "    temperature: 0." in output and "    tau: 0.0" in output
    (folder / "wrong.yml").write_text(SETTINGS.replace("temperature", "temperatures"), encoding="utf-8")
    assert train(folder, *options, "-conf", "wrong.yml", *search) != 0
    message = "search: OwnOne cannot be searched over 'temperatures'; did you mean temperature?"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--algo ownone", "known are idql, .* --gym-packages imports the module that registers one of your own"),
        ("--algo onone --gym-packages own_one", "unknown algorithm 'onone'; did you mean ownone?"),
        ("--algo tqc --gym-packages own_clash", "the name 'tqc' is that of an algorithm of sb3-contrib"),
    ],
)
def test_what_is_wrong_is_one_line(options: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(folder, "--env", "Pendulum-v1", *options.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not list(folder.glob("logs"))
    assert re.search(message, error)
