"""Densities on the square [-1, 1]²: of samples, between samples, and how much of them lies above a level."""

import math

import numpy as np

BINS = 20
"""Cells per axis in which samples and density are compared."""


def total_variation(samples: np.ndarray, density: np.ndarray) -> float:
    """
    Distance between the histograms of samples and of a density, with :data:`BINS` cells per axis: 0 equal, 1 disjoint.

    :param samples: ``(n, 2)``
    :param density: On a grid whose resolution is a multiple of :data:`BINS`
    """
    per_bin = len(density) // BINS
    mass = density.reshape(BINS, per_bin, BINS, per_bin).sum((1, 3))
    counts, *_ = np.histogram2d(samples[:, 1], samples[:, 0], bins=BINS, range=[[-1.0, 1.0]] * 2)
    return float(0.5 * np.abs(mass / mass.sum() - counts / counts.sum()).sum())


def highest_density_level(density: np.ndarray, mass: float) -> float:
    """
    :param density: On a grid
    :param mass: Between 0 and 1
    :return: The level above which the density has this mass
    """
    ordered = np.sort(density, axis=None)[::-1]
    return float(ordered[np.searchsorted(ordered.cumsum(), mass * ordered.sum())])


def smoothed_density(samples: np.ndarray, bins: int, radius: int = 4) -> np.ndarray:
    """
    :param samples: ``(n, 2)`` in [-1, 1]²
    :param bins: Cells per axis of the histogram
    :param radius: The histogram is smoothed by a binomial kernel of ``2 * radius + 1`` cells
    :return: Estimated density ``(bins, bins)``; row ``i``, column ``j`` belongs to the point of cell ``j`` of the first axis
    """
    cell = _cells(samples, bins)
    counts = np.zeros((bins, bins))
    np.add.at(counts, (cell[:, 1], cell[:, 0]), 1.0)
    kernel = np.array([math.comb(2 * radius, k) for k in range(2 * radius + 1)]) / 4.0**radius
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, kernel, mode="same")
    return counts * ((bins / 2.0) ** 2 / len(samples))


def local_density(samples: np.ndarray, bins: int = 100) -> np.ndarray:
    """
    :param samples: ``(n, 2)`` in [-1, 1]²
    :param bins: Cells per axis of the histogram
    :return: Estimated density at each sample ``(n,)``
    """
    cell = _cells(samples, bins)
    return smoothed_density(samples, bins)[cell[:, 1], cell[:, 0]]  # type: ignore[no-any-return]


def _cells(samples: np.ndarray, bins: int) -> np.ndarray:
    """Column and row of the cell of each sample; the border belongs to the last cell."""
    return np.clip(((samples + 1.0) * (0.5 * bins)).astype(int), 0, bins - 1)
