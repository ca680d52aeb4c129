"""
Two-dimensional toy densities as bandits: an action is a point of [-1, 1]², its reward the log density there.

The shapes and energies are those on which guided diffusion has been studied since Lu et al. 2023 (arXiv 2304.12824). The
literature draws them on [-4, 4]²; here a point is divided by 4 to become an action.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch as th

from sb3_diffusion.envs.bandits import ActionValue, BanditEnv
from sb3_diffusion.names import suggest

EXTENT = 4.0
"""Half the side of the square on which the literature draws the shapes."""

BACKGROUND, BACKGROUND_STD = 0.01, 0.5
"""
Share and width of a Gaussian in the middle of the box that is added to every density: the values are bounded on the box, and
their gradients lead back to it from everywhere (methods ask for gradients at noisy actions, most of which lie outside).
"""

PRIORS = ("data", "uniform")

Sampler = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
Energy = Callable[[np.ndarray], np.ndarray]


class ToyDataset(NamedTuple):
    """
    One-step transitions for offline learning; observations are zero, and every transition is terminal.

    :param observations: ``(n, 1)``
    :param actions: Points in [-1, 1]², ``(n, 2)``
    :param rewards: Energies in [0, 1], or small positive numbers for ``8gaussiansmix``; ``(n,)``
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray


@dataclass(frozen=True)
class Toy:
    """
    A density on the plane.

    :param density: Density in units of the box: actions ``(..., 2)`` -> ``(...)``
    :param sample: Draws points on the square of :data:`EXTENT` with their energies; ``None`` if the data are uniform
    :param energy: Energy of any point of that square; ``None`` if it is known for the points of ``sample`` only
    """

    density: ActionValue
    sample: Sampler | None
    energy: Energy | None

    @property
    def priors(self) -> tuple[str, ...]:
        """The distributions from which :func:`toy_dataset` can draw points."""
        return tuple(prior for prior, source in zip(PRIORS, (self.sample, self.energy), strict=True) if source is not None)

    def value(self, actions: th.Tensor) -> th.Tensor:
        """
        ``Q``, the log density including the :data:`BACKGROUND`: at temperature 1 ``exp(Q)`` is the toy itself.

        :param actions: Points of the box ``(..., 2)``
        :return: ``(...)``
        """
        variance = BACKGROUND_STD**2
        background = math.log(BACKGROUND / (2.0 * math.pi * variance)) - actions.square().sum(-1) / (2.0 * variance)
        density = (1.0 - BACKGROUND) * self.density(actions)
        # outside the box both terms vanish in float32, but the logarithm of the background does not
        vanished = density < th.finfo(density.dtype).tiny
        shape = density.masked_fill(vanished, 1.0).log().masked_fill(vanished, -math.inf)
        return th.logaddexp(shape, background)


# -- densities, in units of the box ----------------------------------------------------------------------------------------


def _gaussians(centres: np.ndarray, std: float, weights: np.ndarray | None = None) -> ActionValue:
    """Mixture of isotropic Gaussians; a curve is a mixture whose centres are at most one standard deviation apart."""
    shares = np.full(len(centres), 1.0 / len(centres)) if weights is None else weights / weights.sum()
    precision = 1.0 / std**2
    # the exponents are linear in (x, y, x² + y², 1), so that one matrix product gives all of them
    offset = np.log(shares * precision / (2.0 * math.pi)) - 0.5 * precision * np.square(centres).sum(-1)
    columns = [*(precision * centres.T), np.full(len(centres), -0.5 * precision), offset]
    coefficients = th.from_numpy(np.stack(columns))

    def density(actions: th.Tensor) -> th.Tensor:
        squared = actions.square().sum(-1, keepdim=True)
        features = th.cat([actions, squared, th.ones_like(squared)], dim=-1)
        return (features @ coefficients.to(actions)).exp().sum(-1)

    return density


def _circles(radii: list[float], std: float) -> ActionValue:
    """Concentric circles of equal mass with Gaussian noise, in closed form: the angle integrates to a Bessel function."""

    def density(actions: th.Tensor) -> th.Tensor:
        distance = th.linalg.vector_norm(actions, dim=-1)
        terms = [
            (-((distance - radius) ** 2) / (2.0 * std**2)).exp() * th.special.i0e(distance * radius / std**2)
            for radius in radii
        ]
        return th.stack(terms).sum(0) / (len(radii) * 2.0 * math.pi * std**2)

    return density


def _squares(std: float) -> ActionValue:
    """The black squares of a 4 x 4 board with blurred edges: differences of Gaussian distribution functions."""
    edges = th.linspace(-1.0, 1.0, 5, dtype=th.float64)

    def density(actions: th.Tensor) -> th.Tensor:
        below = th.special.ndtr((actions.unsqueeze(-1) - edges.to(actions)) / std)
        inside = below[..., :-1] - below[..., 1:]
        x, y = inside.unbind(-2)
        even = x[..., 0::2].sum(-1) * y[..., 0::2].sum(-1)
        odd = x[..., 1::2].sum(-1) * y[..., 1::2].sum(-1)
        return 0.5 * (even + odd)

    return density


# -- samples and energies, on the square of EXTENT -------------------------------------------------------------------------

_S = math.sqrt(0.5)
DIRECTIONS = np.array([(0, 1), (-_S, _S), (-1, 0), (-_S, -_S), (0, -1), (_S, -_S), (1, 0), (_S, _S)])
"""Directions of the eight Gaussians: counter-clockwise from the top."""

_RING_RADII = np.array([3.0, 2.25, 1.5, 0.75])


def _midpoints(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


def _roll(t: np.ndarray) -> np.ndarray:
    angle = 1.5 * math.pi * (1.0 + 2.0 * t)
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=-1) / 5.0


def _moon(t: np.ndarray, lower: bool) -> np.ndarray:
    x, y = np.cos(math.pi * t), np.sin(math.pi * t)
    return 2.0 * (np.stack([1.0 - x, 0.5 - y], axis=-1) if lower else np.stack([x, y], axis=-1)) + (-1.0, -0.2)


def _spiral(angle: np.ndarray) -> np.ndarray:
    return np.stack([-np.cos(angle) * angle, np.sin(angle) * angle], axis=-1) / 3.0


def _on_circles(n: int, radii: np.ndarray) -> np.ndarray:
    radius = radii[np.arange(n) % len(radii)]
    angle = 2.0 * math.pi * _midpoints(n)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _squared_norm(points: np.ndarray) -> np.ndarray:
    return np.square(points).sum(-1)


def _sample_swissroll(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    points = _roll(rng.random(n)) + 0.2 * rng.normal(size=(n, 2))
    return points, _squared_norm(points) / 9.0


def _sample_circles(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    points = _on_circles(n, np.array([3.0, 1.5])) + 0.24 * rng.normal(size=(n, 2))
    return points, _circles_energy(points)


def _circles_energy(points: np.ndarray) -> np.ndarray:
    return (_squared_norm(points) < 4.0).astype(float)


def _sample_rings(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    points = _on_circles(n, _RING_RADII)
    return points + 0.08 * rng.normal(size=(n, 2)), _rings_energy(points)


def _rings_energy(points: np.ndarray) -> np.ndarray:
    return np.array([0.0, 1.0, 1.0 / 3.0, 2.0 / 3.0])[np.digitize(_squared_norm(points), [2.0, 5.0, 8.5])]


def _sample_moons(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    lower = np.arange(n) % 2 == 1
    t = _midpoints(n)
    points = np.where(lower[:, None], _moon(t, lower=True), _moon(t, lower=False))
    return points + 0.2 * rng.normal(size=(n, 2)), lower.astype(float)


def _sample_gaussians(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    points = (4.0 * DIRECTIONS[rng.integers(8, size=n)] + 0.5 * rng.normal(size=(n, 2))) / 1.414
    return points, _gaussians_energy(points)


def _gaussians_energy(points: np.ndarray) -> np.ndarray:
    return (points @ DIRECTIONS.T).argmax(-1) / 7.0  # the nearest of centres on a circle has the largest projection


def _sample_spirals(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    angle = 3.0 * math.pi * np.sqrt(rng.random(n))
    points = _spiral(angle) + rng.random((n, 2)) / 6.0
    sign = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    return sign[:, None] * points + 0.1 * rng.normal(size=(n, 2)), np.clip(1.0 - angle / 10.0, 0.0, 1.0)


def _sample_checkerboard(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.uniform(-2.0, 2.0, n)
    y = rng.random(n) - 2.0 * rng.integers(2, size=n) + np.floor(x) % 2
    points = 2.0 * np.stack([x, y], axis=-1)
    return points, _checkerboard_energy(points)


def _checkerboard_energy(points: np.ndarray) -> np.ndarray:
    x = points[..., 0]
    return (((x > 0.0) & (x <= 2.0)) | (x <= -2.0)).astype(float)


def _mixture_energy(points: np.ndarray) -> np.ndarray:
    squared = np.square(points[..., None, :] - 3.0 * DIRECTIONS).sum(-1)
    return (np.exp(-squared / 4.5) / (4.5 * math.pi)) @ np.arange(8.0, 0.0, -1.0)


def _moons_density() -> ActionValue:
    arcs = [_moon(_midpoints(32), lower) for lower in (False, True)]
    return _gaussians(np.concatenate(arcs) / EXTENT, 0.2 / EXTENT)


def _spirals_density() -> ActionValue:
    # the uniform offset of the samples is replaced by its mean and variance: 1/12 of 1/6 squared
    arm = _spiral(3.0 * math.pi * np.sqrt(_midpoints(160))) + 1.0 / 12.0
    return _gaussians(np.concatenate([arm, -arm]) / EXTENT, math.sqrt(0.1**2 + 1.0 / 432.0) / EXTENT)


TOYS: MappingProxyType[str, Toy] = MappingProxyType(
    {
        "swissroll": Toy(
            _gaussians(_roll(_midpoints(96)) / EXTENT, 0.05), _sample_swissroll, lambda points: _squared_norm(points) / 9.0
        ),
        "circles": Toy(_circles([0.75, 0.375], 0.06), _sample_circles, _circles_energy),
        "rings": Toy(_circles(list(_RING_RADII / EXTENT), 0.02), _sample_rings, _rings_energy),
        "moons": Toy(_moons_density(), _sample_moons, None),
        "8gaussians": Toy(_gaussians(DIRECTIONS / 1.414, 0.125 / 1.414), _sample_gaussians, _gaussians_energy),
        "2spirals": Toy(_spirals_density(), _sample_spirals, None),
        "checkerboard": Toy(_squares(0.02), _sample_checkerboard, _checkerboard_energy),
        "8gaussiansmix": Toy(_gaussians(0.75 * DIRECTIONS, 0.375, np.arange(8.0, 0.0, -1.0)), None, _mixture_energy),
    }
)
"""Name -> density; the environments are ``toy/<name>-v0``."""


def get_toy(name: str) -> Toy:
    """
    :param name: Key of :data:`TOYS`
    :raises ValueError: If there is no such toy
    """
    if name in TOYS:
        return TOYS[name]
    raise ValueError(f"Unknown toy name={name!r}; {suggest(name, TOYS)}")


def make_toy(name: str) -> BanditEnv:
    """
    The bandit of a toy: one step, the action is a point in [-1, 1]², the reward is :meth:`Toy.value`.

    :param name: Key of :data:`TOYS`
    """
    return BanditEnv(get_toy(name).value, action_dim=2)


def toy_dataset(name: str, n: int, seed: int = 0, prior: str = "data") -> ToyDataset:
    """
    Points with energies, from which an offline method learns ``p(a) exp(beta * reward)`` for a density ``p`` of points.

    :param name: Key of :data:`TOYS`
    :param n: Number of points
    :param seed: Seed of the draws
    :param prior: ``"data"``: points of the shape; ``"uniform"``: uniform points. Not every toy has both.
    :return: The transitions, in random order
    """
    toy = get_toy(name)
    if prior not in toy.priors:
        raise ValueError(f"prior={prior!r} is not available for {name}; use {' or '.join(map(repr, toy.priors))}.")
    rng = np.random.default_rng(seed)
    if prior == "data":
        assert toy.sample is not None
        points, energies = toy.sample(n, rng)
    else:
        assert toy.energy is not None
        points = rng.uniform(-EXTENT, EXTENT, (n, 2))
        energies = toy.energy(points)
    order = rng.permutation(n)
    # a few points in ten thousand of the noisy shapes lie outside the square
    actions = np.clip(points[order] / EXTENT, -1.0, 1.0).astype(np.float32)
    return ToyDataset(np.zeros((n, 1), np.float32), actions, energies[order].astype(np.float32))


def register_toys() -> None:
    """Make the ``toy/<name>-v0`` ids known to Gymnasium."""
    for name in TOYS:
        gym.register(f"toy/{name}-v0", entry_point="sb3_diffusion.envs.toys:make_toy", kwargs={"name": name})
