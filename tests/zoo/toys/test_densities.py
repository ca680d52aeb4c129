"""Densities of samples on the square, and distances between them."""

import numpy as np
import pytest
import torch as th

from sb3_diffusion.envs import boltzmann_density, get_toy, toy_dataset

pytest.importorskip("matplotlib")
from zoo.toys.densities import highest_density_level, local_density, smoothed_density, total_variation


def test_the_distance_of_samples_and_density() -> None:
    density = np.zeros((40, 40))
    density[:, :20] = 0.5  # uniform on the left half
    grid = (np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1).reshape(-1, 2) + 0.5) / 10.0 - 1.0
    assert total_variation(grid, density) == pytest.approx(0.5)
    assert total_variation(grid[grid[:, 0] < 0.0], density) == pytest.approx(0.0, abs=1e-12)
    assert total_variation(grid[grid[:, 0] > 0.0], density) == pytest.approx(1.0)


def test_samples_have_the_colour_of_their_density() -> None:
    value = get_toy("8gaussians").value
    samples = toy_dataset("8gaussians", 50_000).actions
    true = value(th.from_numpy(samples)).exp().numpy()
    assert np.corrcoef(local_density(samples), true)[0, 1] > 0.97
    assert local_density(samples).mean() == pytest.approx(true.mean(), rel=0.1)  # the kernel flattens the peaks a little
    assert local_density(np.array([[1.0, -1.0]])).shape == (1,)  # the border belongs to the last cell


def test_the_contour_encloses_its_mass() -> None:
    density = boltzmann_density(get_toy("moons").value, 1.0, 200)
    level = highest_density_level(density, 0.9)
    assert density[density >= level].sum() / density.sum() == pytest.approx(0.9, abs=1e-3)


def test_a_smoothed_histogram_is_a_density_in_the_order_of_pictures() -> None:
    samples = np.random.default_rng(0).normal([0.5, -0.2], 0.05, (20_000, 2)).clip(-1.0, 1.0)
    density = smoothed_density(samples, 100)
    assert density.sum() * 0.02**2 == pytest.approx(1.0, abs=1e-9)
    row, column = np.unravel_index(density.argmax(), density.shape)
    # rows belong to the second coordinate, as in every picture
    np.testing.assert_allclose([column * 0.02 - 0.99, row * 0.02 - 0.99], [0.5, -0.2], atol=0.05)
