"""Folders of runs: each has one owner."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import zoo.lease
from tests.zoo.in_process import SAC, TINY, train
from zoo.lease import lease
from zoo.training.runs.folders import LOCK, Name, RunFolder, owner, run_folders

ENV = "Pendulum-v1"
UUID = "_1b4e28ba-2fa1-11d2-883f-0016d3cca427"


def test_claimed_together_each_has_its_own(tmp_path: Path) -> None:
    barrier, claimed = threading.Barrier(8), []

    def claim() -> None:
        barrier.wait()
        claimed.append(RunFolder.claim(tmp_path / "logs" / "sac", ENV))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.path.name for folder in claimed) == [f"{ENV}_{number}" for number in range(1, 9)]


def test_a_folder_appears_between_looking_and_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment that decides, without luck: another training is faster once."""
    mkdir, faster = os.mkdir, [tmp_path / f"{ENV}_1"]

    def late(path: Path, *args: int) -> None:
        if faster:
            mkdir(faster.pop())
        mkdir(path, *args)

    monkeypatch.setattr("zoo.training.runs.folders.os.mkdir", late)
    assert RunFolder.claim(tmp_path, ENV).path == tmp_path / f"{ENV}_2"


def test_numbers_count_every_kind_of_run(tmp_path: Path) -> None:
    for name in (f"{ENV}_2", f"{ENV}_5{UUID}", f"{ENV}_x", f"{ENV}_9_old", "Pendulum-v1x_8"):
        (tmp_path / name).mkdir()
    (tmp_path / f"{ENV}_6").write_text("a file in the way")
    assert RunFolder.claim(tmp_path, ENV, UUID).path.name == f"{ENV}_7{UUID}"
    assert [path.name for path in run_folders(tmp_path, ENV)] == [f"{ENV}_7{UUID}", f"{ENV}_5{UUID}", f"{ENV}_2"]
    assert Name.parse(f"{ENV}_5{UUID}", ENV) == Name(ENV, 5, UUID)
    assert str(Name(ENV, 5, UUID)) == f"{ENV}_5{UUID}"


def test_environments_whose_names_begin_alike(tmp_path: Path) -> None:
    (tmp_path / "Toy_1_4").mkdir()
    assert run_folders(tmp_path, "Toy") == []
    assert [path.name for path in run_folders(tmp_path, "Toy_1")] == ["Toy_1_4"]
    assert RunFolder.claim(tmp_path, "my/Toy").path.name == "my-Toy_1"


def test_held_by_a_living_process(tmp_path: Path) -> None:
    folder = RunFolder.claim(tmp_path, ENV)
    assert owner(folder.path) == f"process {os.getpid()} on {os.uname().nodename}"
    with pytest.raises(
        ValueError, match=rf"is being trained by process {os.getpid()} on .*; stop that training first"
    ) as error:
        RunFolder.reopen(folder.path)
    assert "\n" not in str(error.value)
    folder.release()
    assert owner(folder.path) is None
    RunFolder.reopen(folder.path).release()


def abandoned(path: Path) -> None:
    """The lock of a process that has died."""
    code = "import os, sys, filelock; lock = filelock.SoftFileLease(sys.argv[1], lease_duration=60.0); lock.acquire()"
    assert subprocess.run([sys.executable, "-c", f"{code}; os._exit(9)", str(path / LOCK)], check=False).returncode == 9
    assert (path / LOCK).is_file()


def test_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    abandoned(tmp_path)
    assert owner(tmp_path) is None
    folder = RunFolder.reopen(tmp_path)
    assert owner(tmp_path) is not None and not folder.lost


def test_owner_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused as soon as it gives a sign of life, and taken over when it gave none for long."""
    monkeypatch.setattr(zoo.lease, "LEASE_SECONDS", 5.0)
    path = tmp_path / LOCK
    with lease(path) as lock:
        assert lock.owner is not None
        marker = path.read_text(encoding="utf-8").replace(lock.owner.hostname, "another-machine")
    path.write_text(marker, encoding="utf-8")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.2):
            os.utime(path)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        assert owner(tmp_path) == f"process {os.getpid()} on another-machine"
        with pytest.raises(ValueError, match="on another-machine"):
            RunFolder.reopen(tmp_path)
    finally:
        stop.set()
        heart.join()
    assert "Waiting for a sign of life of process" in capsys.readouterr().out
    RunFolder.reopen(tmp_path).release()
    os.utime(tmp_path, (0, 0))
    path.write_text(marker, encoding="utf-8")
    os.utime(path, (time.time() - 100.0,) * 2)
    assert owner(tmp_path) is None, "silent for much longer than clocks differ"


def test_only_what_was_made_and_is_worth_nothing_is_removed(tmp_path: Path) -> None:
    parent = tmp_path / "logs" / "sac"
    folder = RunFolder.claim(parent, ENV)
    (folder.path / ENV).mkdir()
    (folder.path / ENV / "args.yml").touch()
    (folder.path / "0.monitor.csv").touch()
    folder.discard()
    assert not (tmp_path / "logs").exists() and tmp_path.exists()
    parent.mkdir(parents=True)
    second = RunFolder.claim(parent, ENV)
    (second.path / "best_model.zip").touch()
    second.discard()
    assert [path.name for path in second.path.iterdir()] == ["best_model.zip"], "something of worth"
    third = RunFolder.claim(parent, ENV)
    third.discard()
    assert [path.name for path in parent.iterdir()] == [second.path.name]
    again = RunFolder.reopen(second.path)
    (second.path / "best_model.zip").unlink()
    again.discard()
    assert second.path.is_dir(), "another process made it"


@pytest.mark.parametrize("params", [["foo:1"], ["policy_kwargs:dict(bar=1)"]])
def test_a_start_that_fails_leaves_nothing(params: list[str], tmp_path: Path) -> None:
    try:
        status = train(tmp_path, *SAC, "-n", "10", "-tb", "", "-params", *params)
    except TypeError:
        status = 1
    assert status != 0 and list(tmp_path.iterdir()) == []


def test_ends_when_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(RunFolder, "lost", property(lambda folder: True))
    assert train(tmp_path, *SAC, "-n", "40", "-params", *TINY) == 2
    assert "was taken over by process" in capsys.readouterr().err.splitlines()[-1]
