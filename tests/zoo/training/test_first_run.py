"""What a training tells a newcomer: how long nothing is learned, and the learning curve at the end."""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from rl_zoo3.utils import ALGOS

from zoo.training import warmup
from zoo.training.manager import Manager
from zoo.training.options.registry import register_algorithms
from zoo.training.runs import curve

register_algorithms()

TINY: dict[str, Any] = {"net_arch": [8], "diffusion_steps": 2}

# -- warm-up ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learning_starts", "n_timesteps", "beginning"),
    [
        (0, 1000, ""),
        (250, 1000, ""),
        (251, 1000, "No update before step 252 of 1000: "),
        (5_000, 8_000, "No update before step 5001 of 8000: "),
        (999, 1000, "No update before step 1000 of 1000: "),
        (1000, 1000, "No update at all: learning_starts is 1000, and the training has 1000 steps"),
        (5_000, 1_000_000, ""),
    ],
)
def test_long_warm_up_is_announced(learning_starts: int, n_timesteps: int, beginning: str) -> None:
    notice = warmup.warm_up_notice(learning_starts, n_timesteps)
    assert notice.startswith(beginning)
    assert bool(notice) == bool(beginning)
    assert "\n" not in notice


def train(tmp_path: Path, algo: str, eval_freq: int, **options: Any) -> tuple[Path, th.Tensor]:
    """Folder of a small training, and all weights at its end."""
    small: dict[str, Any] = {"policy_kwargs": TINY if algo == "qsm" else {"net_arch": [8]}, "batch_size": 4}
    if algo == "ppo":
        small |= {"n_steps": 20, "n_envs": 1}
    else:
        small |= {"learning_starts": 50, "buffer_size": 200}
    defaults: dict[str, Any] = {"n_timesteps": 100, "n_eval_episodes": 1, "log_interval": -1, "verbose": 0, "seed": 1}
    hyperparams = small | options.pop("hyperparams", {})
    log_folder = str(tmp_path / str(eval_freq))
    settings = {**defaults, **options, "eval_freq": eval_freq, "hyperparams": hyperparams}
    manager = Manager(argparse.Namespace(), algo, "Pendulum-v1", log_folder, **settings)
    experiment = manager.setup_experiment()
    assert experiment is not None
    model, _ = experiment
    manager.learn(model)
    manager.save_trained_model(model)
    return Path(manager.save_path), th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.mark.parametrize("algo, expected", [("qsm", [60, 80, 100]), ("td3", [60, 80, 100]), ("ppo", [20, 40, 60, 80, 100])])
def test_evaluations_wait_for_the_first_update(
    algo: str, expected: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, weights = train(tmp_path, algo, eval_freq=20)
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == expected
    assert (folder / "best_model.zip").is_file()
    output = capsys.readouterr().out
    assert ("No update before step 51 of 100" in output) == (algo != "ppo")
    assert len(output.split("Learning curve")[1].splitlines()[1:]) >= len(expected)
    # evaluations change nothing of the training
    assert th.equal(weights, train(tmp_path, algo, eval_freq=-1)[1])


def test_training_without_updates_is_evaluated_all_the_same(tmp_path: Path) -> None:
    """Nothing to wait for: the files that everybody expects are there."""
    folder, _ = train(tmp_path, "td3", eval_freq=50, hyperparams={"learning_starts": 100})
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [50, 100]
    assert (folder / "best_model.zip").is_file()


def test_trained_agent_is_not_waited_for(tmp_path: Path) -> None:
    """``-i``: the network has learned before, although the first steps are random again."""
    folder, _ = train(tmp_path, "td3", eval_freq=100)
    agent = str(folder / "Pendulum-v1.zip")
    folder, _ = train(tmp_path, "td3", eval_freq=25, trained_agent=agent)
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [25, 50, 75, 100]


def test_several_environments(tmp_path: Path) -> None:
    folder, _ = train(tmp_path, "td3", eval_freq=20, hyperparams={"n_envs": 4, "train_freq": 1})
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [60, 80, 100]


def test_search_announces_its_warm_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"optimize_hyperparameters": True, "n_trials": 0, "hyperparams": {"learning_starts": 30}}
    manager = Manager(argparse.Namespace(), "qsm", "Pendulum-v1", str(tmp_path), n_timesteps=100, **options)
    assert manager.setup_experiment() is None
    manager.hyperparameters_optimization()
    assert "No update before step 31 of 100" in capsys.readouterr().out


def test_every_algorithm_with_a_warm_up_counts_its_updates() -> None:
    """``_n_updates`` is what tells that the first one was made."""
    algorithm: Any = ALGOS["qsm"]
    model = algorithm("DiffusionPolicy", "Pendulum-v1", learning_starts=5, buffer_size=50, policy_kwargs=TINY)
    model._total_timesteps = 10
    assert warmup.is_warming_up(model)
    model.learn(6)
    assert not warmup.is_warming_up(model)


# -- learning curve ----------------------------------------------------------------------------------------------------------


def rows(steps: list[int], values: list[float], **options: Any) -> list[str]:
    return curve.draw_text((np.array(steps, float), np.array(values)), **options).splitlines()


def test_curve_is_drawn_between_lowest_and_highest() -> None:
    lines = rows([1000, 2000, 3000], [-100.0, -50.0, 0.0], unicode=False)
    assert [line.count("#") for line in lines] == [1, 20, 40]
    assert lines[0].split() == ["1,000", "-100.00", "#"]
    assert [line.endswith("best") for line in lines] == [False, False, True]
    assert lines[1].index("#") == lines[2].index("#")
    lines = rows([1000, 2000, 3000], [-100.0, -49.0, 0.0])
    assert [line.count("█") for line in lines] == [0, 20, 40]
    assert "▍" in lines[1]  # 20.4 cells


def test_long_curve_keeps_first_best_and_last() -> None:
    values = [float(value) for value in range(100)]
    values[37] = 1000.0
    lines = rows(list(range(1, 101)), values, unicode=False)
    assert len(lines) == curve.MAX_ROWS + 1
    steps = [int(line.split()[0]) for line in lines]
    assert steps[0] == 1 and steps[-1] == 100 and 38 in steps and steps == sorted(steps)


@pytest.mark.parametrize(
    "values", [[5.0, 5.0], [float("nan"), 1.0], [float("nan"), float("nan")], [float("inf"), 1.0], [-1e30, 1e30], [0.0, -0.0]]
)
def test_odd_values_are_drawn(values: list[float]) -> None:
    lines = rows([1, 2], values, unicode=False)
    assert len(lines) == 2
    assert all(line.count("#") <= curve.WIDTH for line in lines)
    assert sum(line.endswith("best") for line in lines) == 1


def write(folder: Path, steps: list[int], values: list[float]) -> None:
    np.savez(
        folder / "evaluations.npz", timesteps=steps, results=np.array(values)[:, None], ep_lengths=np.ones((len(steps), 1))
    )


def test_curve_is_printed_in_the_characters_of_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [10, 20], [1.0, 2.0])
    for encoding, block in (("utf-8", "█"), ("ascii", "#"), ("latin-1", "#"), ("cp1252", "#")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        curve.print_curve(tmp_path)
        stream.flush()
        assert block * curve.WIDTH in stream.buffer.getvalue().decode(encoding)


def test_curve_takes_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve.print_curve(tmp_path)
    write(tmp_path, [10], [1.0])
    curve.print_curve(tmp_path)
    assert capsys.readouterr().out == ""


def test_damaged_evaluations_do_not_spoil_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluations.npz").write_bytes(b"nonsense")
    curve.print_curve(tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("No learning curve: ") and "is damaged" in line
