"""Bandits and toy densities: their environments, their exact densities and their data."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env as check_gymnasium
from stable_baselines3.common.env_checker import check_env as check_sb3

from sb3_diffusion.envs import (
    TOYS,
    BanditEnv,
    boltzmann_density,
    boltzmann_entropy,
    get_toy,
    grid_axis,
    make_toy,
    toy_dataset,
)
from sb3_diffusion.envs.toys import BACKGROUND, BACKGROUND_STD, DIRECTIONS


def value_at(name: str, *point: float) -> float:
    return get_toy(name).value(th.tensor(point, dtype=th.float64)).item()


def log_density(shape: float, radius: float) -> float:
    """Value at a point at this distance from the middle, where the shape itself has this density."""
    background = math.exp(-0.5 * (radius / BACKGROUND_STD) ** 2) / (2.0 * math.pi * BACKGROUND_STD**2)
    return math.log((1.0 - BACKGROUND) * shape + BACKGROUND * background)


def cells(points: np.ndarray, bins: int) -> np.ndarray:
    """Share of the points in each of ``bins`` x ``bins`` cells, indexed as a density is: ``[y, x]``."""
    counts, *_ = np.histogram2d(points[:, 1], points[:, 0], bins=bins, range=[[-1.0, 1.0]] * 2)
    return counts / len(points)


# -- environments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.filterwarnings("ignore:.*render:UserWarning")
def test_toys_are_proper_environments(name: str) -> None:
    env = gym.make(f"toy/{name}-v0")
    check_gymnasium(env.unwrapped, skip_render_check=True)
    check_sb3(env)


def test_an_episode_is_one_action_and_its_value() -> None:
    env = make_toy("moons")
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0.0]
    action = np.array([0.3, -0.2], np.float32)
    observation, reward, terminated, truncated, _ = env.step(action)
    assert reward == pytest.approx(get_toy("moons").value(th.from_numpy(action)).item())
    assert (observation.tolist(), terminated, truncated) == ([0.0], True, False)


def test_a_bandit_has_any_dimension_and_value() -> None:
    env = BanditEnv(lambda actions: -actions.square().sum(-1), action_dim=3, observation_dim=2)
    check_sb3(env)
    assert env.step(np.array([0.5, -1.0, 0.0], np.float32))[1] == pytest.approx(-1.25)
    assert BanditEnv().step(np.zeros(1, np.float32))[1] == 0.0


def test_wrong_names_are_explained() -> None:
    with pytest.raises(ValueError, match=r"name='moon'; did you mean moons\?"):
        make_toy("moon")
    with pytest.raises(ValueError, match="known are swissroll, circles"):
        get_toy("pendulum")


# -- densities -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", TOYS)
def test_densities_integrate_to_one(name: str, temperature: float) -> None:
    density = boltzmann_density(get_toy(name).value, temperature, 100)
    assert density.shape == (100, 100)
    assert density.min() > 0.0
    assert density.mean() * 4.0 == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in TOYS if name != "8gaussiansmix"])
def test_at_temperature_one_the_exponential_of_the_value_is_a_density(name: str) -> None:
    """So the normaliser is one; little noise reaches over the border of the box."""
    axis = th.from_numpy(grid_axis(400))
    values = get_toy(name).value(th.stack(th.meshgrid(axis, axis, indexing="xy"), dim=-1))
    assert values.exp().mean().item() * 4.0 == pytest.approx(1.0, abs=0.02)


def test_density_of_a_linear_value() -> None:
    """``exp(2 x / temperature)`` on [-1, 1]², x along the columns."""
    density = boltzmann_density(lambda actions: 2.0 * actions[..., 0], 0.5, 400)
    expected = 4.0 * np.exp(4.0 * grid_axis(400)) / (2.0 * math.sinh(4.0)) / 2.0
    np.testing.assert_allclose(density, np.broadcast_to(expected, (400, 400)), rtol=1e-3)


def test_entropies_known_in_closed_form() -> None:
    assert boltzmann_entropy(lambda actions: 0.0 * actions[..., 0]) == pytest.approx(math.log(4.0))
    # at temperature 2 the variance of a Gaussian doubles
    gaussian = boltzmann_entropy(lambda actions: -actions.square().sum(-1) / (2.0 * 0.1**2), temperature=2.0)
    assert gaussian == pytest.approx(math.log(2.0 * math.pi * math.e * 2.0 * 0.1**2), abs=1e-6)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature=0 must be positive"):
        boltzmann_density(get_toy("moons").value, 0)


def test_values_by_hand() -> None:
    # the centre of one of eight Gaussians of standard deviation 0.125 / 1.414, far from the others
    peak = 1.414**2 / (8 * 2 * math.pi * 0.125**2)
    assert value_at("8gaussians", 0.0, 1.0 / 1.414) == pytest.approx(log_density(peak, 1.0 / 1.414))
    # black squares and a white one
    radius = math.hypot(0.75, 0.25)
    assert value_at("checkerboard", -0.75, 0.25) == pytest.approx(log_density(0.5, radius))
    assert value_at("checkerboard", 0.25, -0.75) == pytest.approx(log_density(0.5, radius))
    assert value_at("checkerboard", 0.75, 0.25) == pytest.approx(log_density(0.0, radius))
    # on a circle: half the mass over its circumference, times the peak of the noise across it (curvature: less than 1 %)
    across = 1.0 / (0.06 * math.sqrt(2.0 * math.pi))
    assert value_at("circles", 0.0, 0.75) == pytest.approx(log_density(0.5 * across / (2 * math.pi * 0.75), 0.75), abs=0.01)
    # far from the shape, and far from everything
    assert value_at("moons", 1.0, 1.0) == pytest.approx(log_density(0.0, math.sqrt(2.0)))
    # the middle is two standard deviations away from every component of the mixture
    middle = math.exp(-0.5 * 2.0**2) / (2.0 * math.pi * 0.375**2)
    assert value_at("8gaussiansmix", 0.0, 0.0) == pytest.approx(log_density(middle, 0.0))
    # weights fall counter-clockwise from the top
    around = [value_at("8gaussiansmix", *(0.75 * direction)) for direction in DIRECTIONS]
    assert np.argmax(around) == 1
    assert np.argmin(around) == 6


@pytest.mark.parametrize("name", TOYS)
def test_values_are_differentiable_everywhere(name: str) -> None:
    """At the origin, in the box and far outside, where methods that look at noisy actions ask for gradients."""
    actions = th.tensor([[0.0, 0.0], [0.4, -0.3], [-40.0, 30.0]], requires_grad=True)
    values = get_toy(name).value(actions)
    assert values.shape == (3,)
    (gradient,) = th.autograd.grad(values.sum(), actions)
    assert th.isfinite(values).all()
    assert th.isfinite(gradient).all()
    # from outside the gradient leads back to the middle
    th.testing.assert_close(gradient[2], -actions[2].detach() / BACKGROUND_STD**2)
    step = 1e-4 * gradient[1].double() / gradient[1].double().norm()
    point = actions[1].detach().double()
    slope = (get_toy(name).value(point + step) - get_toy(name).value(point - step)) / 2e-4
    assert slope.item() == pytest.approx(gradient[1].norm().item(), rel=1e-2)


# -- data ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, toy in TOYS.items() if "data" in toy.priors])
def test_data_follow_the_density(name: str) -> None:
    data = toy_dataset(name, 40_000, seed=1)
    expected = boltzmann_density(get_toy(name).value, 1.0, 400).reshape(20, 20, 20, 20).mean((1, 3)) / 100.0
    distance = 0.5 * np.abs(cells(data.actions, 20) - expected).sum()
    # background and blurred edges are in the density only; the rest is sampling noise
    blur = 0.03 if name == "checkerboard" else 0.0
    assert distance < BACKGROUND + blur + 0.03
    other = toy_dataset(name, 40_000, seed=2)
    assert not np.array_equal(data.actions, other.actions)
    np.testing.assert_array_equal(data.actions, toy_dataset(name, 40_000, seed=1).actions)


@pytest.mark.parametrize("name", TOYS)
def test_data_have_the_form_of_transitions(name: str) -> None:
    for prior in get_toy(name).priors:
        data = toy_dataset(name, 501, prior=prior)
        assert (data.observations.shape, data.actions.shape, data.rewards.shape) == ((501, 1), (501, 2), (501,))
        assert all(part.dtype == np.float32 for part in data)
        assert not data.observations.any()
        assert np.abs(data.actions).max() <= 1.0
        assert data.rewards.min() >= 0.0


def test_energies_by_hand() -> None:
    def energies(name: str, *points: tuple[float, float]) -> list[float]:
        energy = get_toy(name).energy
        assert energy is not None
        return energy(np.array(points)).tolist()

    assert energies("swissroll", (3.0, 0.0), (0.0, -1.5)) == [1.0, 0.25]
    assert energies("circles", (1.9, 0.0), (0.0, 2.1)) == [1.0, 0.0]
    assert energies("rings", (0.75, 0.0), (1.5, 0.0), (2.25, 0.0), (3.0, 0.0)) == [0.0, 1.0, 1 / 3, 2 / 3]
    assert energies("8gaussians", (0.0, 3.0), (-3.0, 0.0), (2.0, 2.0)) == pytest.approx([0.0, 2 / 7, 1.0])
    assert energies("checkerboard", (1.0, 0.0), (3.0, 0.0), (-1.0, 0.0), (-3.0, 0.0)) == [1.0, 0.0, 0.0, 1.0]
    assert energies("8gaussiansmix", (0.0, 0.0)) == pytest.approx([36 * math.exp(-2.0) / (4.5 * math.pi)])


def test_energies_of_the_data_belong_to_their_parts() -> None:
    rings = toy_dataset("rings", 4000)
    radius = 4.0 * np.linalg.norm(rings.actions, axis=1)
    for energy, expected in ((0.0, 0.75), (1.0, 1.5), (1 / 3, 2.25), (2 / 3, 3.0)):
        part = radius[np.isclose(rings.rewards, energy)]
        assert len(part) == 1000
        assert part.mean() == pytest.approx(expected, abs=0.02)
    moons = toy_dataset("moons", 4000)
    # the arcs are half circles of radius 2: their centres of mass lie 4 / pi above and below their centres
    for label, height in ((0.0, 4.0 / math.pi - 0.2), (1.0, 0.8 - 4.0 / math.pi)):
        assert 4.0 * moons.actions[moons.rewards == label, 1].mean() == pytest.approx(height, abs=0.03)
    spirals = toy_dataset("2spirals", 4000)
    # the energy falls along the arm, on which the radius grows
    assert np.corrcoef(spirals.rewards, np.linalg.norm(spirals.actions, axis=1))[0, 1] < -0.95


def test_missing_priors_are_explained() -> None:
    with pytest.raises(ValueError, match="prior='uniform' is not available for moons; use 'data'"):
        toy_dataset("moons", 10, prior="uniform")
    with pytest.raises(ValueError, match="use 'uniform'"):
        toy_dataset("8gaussiansmix", 10)
