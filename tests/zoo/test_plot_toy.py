"""The picture of the toys: what the methods are told, and what is drawn."""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_diffusion.envs import boltzmann_density, boltzmann_entropy, get_toy, toy_dataset
from sb3_diffusion.taxonomy import Method, available_methods, get_method
from tests.helpers import parameters
from tests.zoo.processes import check, run, script

pytest.importorskip("matplotlib")
from matplotlib.image import imread

from zoo.datasets import toys as toy_data
from zoo.plot_toy import parse_arguments
from zoo.toys.densities import total_variation
from zoo.toys.drawing import Panel, draw, n_columns
from zoo.toys.training import give_critic, make_model, method_arguments, toy_problem

METHODS = [method for method in available_methods() if method.setting == "off-policy"]
TINY = ["--updates", "20", "--random-steps", "40", "--batch-size", "8", "--n-particles", "32", "--width", "8"]


def arguments(monkeypatch: pytest.MonkeyPatch, *options: str) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["plot_toy.py", *TINY, *options])
    return parse_arguments()


@pytest.mark.parametrize("critic", ["exact", "learned"])
def test_the_picture_has_a_panel_per_method(critic: str, tmp_path: Path) -> None:
    small = ["--samples", "50", "--toy", "moons", "--critic", critic, "--dpi", "50", "--output", "pictures/toy.png"]
    out = check(run(script("plot_toy"), "--algo", "dacer", "sdac", *TINY, *small, cwd=tmp_path))
    assert re.findall(r"^(\w+): total variation [01]\.\d{3}, \d+ s$", out, flags=re.MULTILINE) == ["DACER", "SDAC"]
    # three panels of two inches, two gaps and the border; one row with three lines of titles
    assert imread(tmp_path / "pictures" / "toy.png").shape[:2] == (150, 336)


def test_methods_that_learn_from_data_have_a_picture_of_their_own(tmp_path: Path) -> None:
    small = ["--offline", "--algo", "bc", "iql", "idql", "--samples", "50", "--dpi", "50", "--output", "toy.png"]
    out = check(run(script("plot_toy"), *small, *TINY, cwd=tmp_path))
    assert re.findall(r"^(\w+): total variation [01]\.\d{3}, \d+ s$", out, flags=re.MULTILINE) == ["BC", "IQL", "IDQL"]
    assert imread(tmp_path / "toy.png").shape[1] > 336  # the density, the data, and a panel per method


def test_the_density_of_offline_methods_is_that_of_the_data_where_rewards_do_not_count() -> None:
    toy, cells = get_toy("8gaussians"), 200
    flat = toy_data.target_density("8gaussians", 1e6, cells)
    points = toy_data.as_dataset("8gaussians", 20_000, seed=0)
    assert total_variation(points.actions.numpy(), flat) < 0.06
    greedy = toy_data.target_density("8gaussians", 0.01, cells)
    axis = np.linspace(-1, 1, 2 * cells + 1)[1::2]
    best = np.unravel_index(greedy.argmax(), greedy.shape)
    # the eighth direction has the largest reward
    np.testing.assert_allclose([axis[best[1]], axis[best[0]]], [0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(greedy.mean() * 4, 1.0)
    assert toy.energy is not None
    rewards = points.rewards.numpy()
    np.testing.assert_allclose(rewards, toy.energy(4.0 * points.actions.numpy().astype(float)), atol=1e-6)
    with pytest.raises(ValueError, match="--toy moons"):
        toy_data.target_density("moons", 1.0, 40)


@pytest.mark.parametrize("method", toy_data.methods(), ids=lambda method: method.zoo_name)
def test_every_offline_method_is_built_for_the_toy(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_data.make_model(method, arguments(monkeypatch, "--offline", "--n-particles", "4"))
    model.learn_offline(3)
    actions, _ = model.predict(np.zeros((5, 1), np.float32))
    assert actions.shape == (5, 2) and np.isfinite(actions).all()


def test_methods_belong_to_one_of_the_pictures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for options, word in ((["--algo", "dql"], "--offline"), (["--algo", "sdac", "--offline"], "do not learn")):
        with pytest.raises(SystemExit):
            arguments(monkeypatch, *options)
        assert word in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.zoo_name)
def test_every_method_is_given_the_exact_values_only(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(monkeypatch)
    model: Any = make_model(method, args, toy_problem(args))
    value = get_toy("8gaussians").value
    model.learn(40)
    give_critic(model, value)
    actions = th.tensor([[0.1, 0.2], [-0.3, 0.4]])
    for critic in (model.critic, model.critic_target):
        values = critic.q(actions, critic.encode(th.zeros(2, 1)))
        th.testing.assert_close(values, value(actions).expand(2, 2))
        smaller, gradient = critic.value_and_gradient(actions, critic.encode(th.zeros(2, 1)))
        th.testing.assert_close(smaller, value(actions))
        step = th.tensor([1e-3, 0.0])
        difference = (value(actions + step) - value(actions - step)) / 2e-3
        th.testing.assert_close(gradient[:, 0], difference, rtol=0.02, atol=0.05)
    before = parameters(model.critic), parameters(model.actor)
    model._current_progress_remaining = 1.0  # it ended at zero, and the learning rate with it
    model.train(4, 8)
    th.testing.assert_close(parameters(model.critic), before[0], rtol=0.0, atol=0.0)
    assert any(not th.equal(weights, before[1][name]) for name, weights in parameters(model.actor).items())


def test_methods_are_asked_for_the_same_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(monkeypatch, "--temperature", "0.5")
    value = get_toy("8gaussians").value
    expected = {
        "QSM": {"temperature": 0.5, "normalize_gradient": False, "exploration_noise": 0.0},
        "SDAC": {"temperature": 0.5, "n_particles": 32},
        "DACER": {
            "target_entropy": boltzmann_entropy(value, 0.5),
            "alpha_update_interval": 10,
            "reward_scale": 1.0,
            "n_entropy_states": 1,
        },
    }
    for name, own in expected.items():
        assert method_arguments(get_method(name), args, toy_problem(args).entropy) == {
            "actor_learning_rate": None,
            "policy_delay": 1,
            **own,
        }


@pytest.mark.parametrize(("n_panels", "columns"), [(2, 2), (4, 4), (5, 5), (6, 6), (9, 3), (12, 4)])
def test_panels_fill_the_rows(n_panels: int, columns: int) -> None:
    assert n_columns(n_panels) == columns


def test_drawing_is_reproducible(tmp_path: Path) -> None:
    density = boltzmann_density(get_toy("moons").value, 1.0, 40)
    panels = [Panel("Q", "true"), Panel("A", "B", toy_dataset("moons", 100).actions)]
    for name in ("a.png", "b.png"):
        draw(panels, density, tmp_path / name, 50, comment="test")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_unknown_names_end_with_status_2(tmp_path: Path) -> None:
    result: subprocess.CompletedProcess[str] = run(script("plot_toy"), "--toy", "moon", cwd=tmp_path)
    assert result.returncode == 2
    assert "moons" in result.stderr.splitlines()[-1]
