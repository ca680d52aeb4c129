"""The command of data sets, as it is typed."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("h5py")
from matplotlib.image import imread
from stable_baselines3 import SAC

from sb3_diffusion import OfflineDataset, load_dataset, save_agent
from tests.environments import PointEnv
from tests.zoo.datasets.file_server import FileServer
from tests.zoo.datasets.test_downloading import CONTENT, SHA256
from tests.zoo.processes import ROOT
from zoo import data as command

EDGE = ROOT / "tests" / "data" / "stored" / "edge"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Type ``data.py ...``; gives what it printed, or the line of its error."""
    monkeypatch.setenv("SB3_DIFFUSION_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["data.py", *arguments])
        try:
            command.main()
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err
        return capsys.readouterr().out

    return typed


def test_inspect_says_what_there_is_and_draws_it(call: Any, tmp_path: Path) -> None:
    out = call("inspect", str(EDGE / "card_17_2.hdf5"))
    for line in (
        "transitions: 5 in 2 episodes",
        "complete episodes: 2 with 6 steps",
        "returns: 3.8 +/- 2.2 (from 1.5 to 6.0)",
        "lengths: 3.0 +/- 0.0",
        "flags: 1 terminated, 0 truncated",
        "range of observations: 0 to 40",
        "range of actions: -0.3 to 0.1",
        "Saved as card_17_2.png",
    ):
        assert line in " ".join(out.split()), (line, out)
    height, width, _ = imread(tmp_path / "card_17_2.png").shape
    assert height >= 400 and width >= 1200
    assert "constant in observations: entries 1" in " ".join(
        call("inspect", str(EDGE / "constant_feature.hdf5"), "--no-figure").split()
    )
    assert not (tmp_path / "constant_feature.png").exists()


def test_inspect_of_pictures_and_of_keys(call: Any, tmp_path: Path) -> None:
    for observation in ("image", "dict with image"):
        data = OfflineDataset.collect(PointEnv(observation), None, 25, seed=0)
        data.save(tmp_path / "mine.npz")
        call("inspect", "mine.npz", "-o", f"{observation}.svg")
        assert (tmp_path / f"{observation}.svg").is_file()


def test_inspect_a_known_name(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "sets" / "rlzoo" / "hopper" / "mixed-v0.hdf5"
    path.parent.mkdir(parents=True)
    shutil.copy(EDGE / "card_17_2.hdf5", path)
    out = " ".join(call("inspect", "rlzoo/hopper/mixed-v0").split())
    assert "environment: Hopper-v5" in out and "scores (rlzoo): -0.4" in out
    assert (tmp_path / "rlzoo-hopper-mixed-v0.png").is_file()
    assert "here" in next(line for line in call("list", "hopper").splitlines() if "rlzoo/hopper/mixed" in line)


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_convert(suffix: str, call: Any, tmp_path: Path) -> None:
    out = call("convert", str(EDGE / "with_next_observations.hdf5"), f"new{suffix}", "--keep-timeouts")
    assert out == f"Saved as new{suffix}: 7 transitions\n"
    data = load_dataset(tmp_path / f"new{suffix}", **({} if suffix == ".npz" else {"keep_timeouts": True}))
    assert len(data) == 7 and data.next_observations[5, 0] == -5


def test_collect_with_an_agent(call: Any, tmp_path: Path) -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, device="cpu", seed=0)
    save_agent(model, tmp_path / "agent.zip")
    files = []
    for name in ("one", "two"):
        out = call("collect", "--env", "Pendulum-v1", "-n", "30", "-o", f"{name}.npz", "--agent", "agent.zip", "--seed", "3")
        assert f"Saved as {name}.npz: 30 transitions, 1 episodes" in out
        files.append(load_dataset(tmp_path / f"{name}.npz"))
    assert files[0].source.env_id == "Pendulum-v1"
    assert (files[0].actions == files[1].actions).all()


def test_download(call: Any, tmp_path: Path) -> None:
    server = FileServer(CONTENT)
    try:
        server.break_after = 400_000
        assert "ended after 400,000" in call("download", "hopper-medium-v2", "--url", server.url)
        server.break_after = None
        target = tmp_path / "sets" / "d4rl" / "hopper_medium-v2.hdf5"
        assert f"Saved as {target}" in call("download", "hopper-medium-v2", "--url", server.url, "--sha256", SHA256)
        assert target.read_bytes() == CONTENT
        assert server.requests[-1]["Range"] == "bytes=400000-"
        assert "is here already" in call("download", "hopper-medium-v2")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "hoper-medium-v2"], ["did you mean hopper-medium-v2"]),
        (["inspect", "hopper-medium-v2"], ["hopper_medium-v2.hdf5", "data.py download hopper-medium-v2"]),
        (["inspect", str(EDGE / "not_hdf5.hdf5")], ["no HDF5 file"]),
        (["inspect", str(EDGE / "card_17_2.hdf5"), "-o", "x.doc"], ["x.doc", ".png"]),
        (["inspect", str(EDGE / "card_17_2.hdf5"), "--task", "2"], ["no option 'task'"]),
        (["convert", str(EDGE / "card_17_2.hdf5"), "x.csv"], ["x.csv", ".npz, .hdf5"]),
        (["download", "rlzoo/hopper/mixed-v0"], ["cannot be downloaded", "data.py make rlzoo/hopper/mixed-v0"]),
        (["download", "a", "b", "--url", "http://x"], ["--url and --sha256 are for one file"]),
        (["make", "hopper-medium-v2"], ["cannot be made here", "data.py download hopper-medium-v2"]),
        (["make", "dapg/door-human-v0"], ["cannot be made here", "pickle"]),
        (["make", "rlzoo/hopper/single-v0", "--agents", "nowhere"], ["sac-Hopper-v3.zip"]),
        (["list", "nothing"], ["No name contains 'nothing'"]),
        (["collect", "--env", "Pendulum-v1", "-n", "0", "-o", "x.npz"], ["0 is too small"]),
        (["collect", "--env", "Pendulum-v1", "-n", "5", "-o", "x.txt"], ["x.txt"]),
        (["inspect", "x.npz", "--keep-timoeuts"], ["unrecognised: --keep-timoeuts"]),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: list[str], call: Any) -> None:
    error = call(*arguments)
    assert error.startswith("data.py") and error.count("\n") == 1
    assert all(word in error for word in words), error


def test_what_exists_is_not_overwritten(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.hdf5"
    path.write_text("precious")
    assert "exists; delete it" in call("make", "rlzoo/hopper/single-v0", "-o", str(path))
    assert path.read_text() == "precious"
