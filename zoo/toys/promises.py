"""What the theory of a method promises on a toy: the law that its training would reach with a perfect network."""

import argparse
from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.envs import get_toy
from sb3_diffusion.envs.bandits import ActionValue
from sb3_diffusion.taxonomy import Method

from .densities import highest_density_level, smoothed_density

MAXIMISERS = ("QVPO", "DACER", "DACERv2")
"""Methods that make the value large and keep an entropy up by noise of their own, so that one maximum is enough for them."""

N_ROUNDS = 10
"""Rounds of mirror descent, in each of which a policy is multiplied by ``exp(Q / (N_ROUNDS * temperature))``."""

N_SAMPLES = 200_000
"""Samples from which a density is estimated that has no formula."""

CELLS = 100
"""Cells per axis of such a density: fewer would flatten the peaks of QSM, more would show the single samples."""


@dataclass(frozen=True)
class Promise:
    """
    A law on the square.

    :param label: What it is, in a few words
    :param density: On a grid; for a maximiser that of ``exp(Q / temperature)``, whose peaks are the maxima
    :param level: Where to draw a line round what matters of it
    """

    label: str
    density: np.ndarray
    level: float


def promise_of(method: Method, model: OffPolicyDiffusion, args: argparse.Namespace, density: np.ndarray) -> Promise:
    """
    :param method: A method
    :param model: The method on the toy, which has begun: mirror descent starts from this policy
    :param args: Command line
    :param density: ``exp(Q / temperature)``, normalised, on a grid
    :return: What it would become
    """
    if method.name in MAXIMISERS:
        return Promise("a maximum of Q", density, 0.8 * float(density.max()))
    label = "exp(Q / λ)"
    if method.name == "QSM":
        label = "a chain along ∇Q / λ"
        density = smoothed_density(_chain_along_gradient(model, get_toy(args.toy).value, args.temperature), CELLS)
    elif method.reference == "previous" and args.critic == "learned":  # the law changes with the values
        label = "mirror descent"
    elif method.reference == "previous":
        label = f"{N_ROUNDS} rounds of mirror descent"
        actions, _ = model.predict(np.zeros((N_SAMPLES, 1), np.float32), deterministic=False)
        begin = smoothed_density(actions, CELLS).repeat(len(density) // CELLS, 0).repeat(len(density) // CELLS, 1)
        density = begin * density
        density = density / (density.mean() * 4.0)  # the box has an area of 4
    return Promise(label, density, highest_density_level(density, 0.9))


def _chain_along_gradient(model: OffPolicyDiffusion, value: ActionValue, temperature: float) -> np.ndarray:
    """What QSM's chain samples if its network says exactly what it is trained to say: ``-sigma grad Q(a_t) / temperature``."""
    actor, chain = model.actor, model.actor.acting_chain

    def denoise(x: th.Tensor, k: int) -> th.Tensor:
        _, sigma = actor.process.coefficients(chain.times[k])
        with th.enable_grad():
            point = x.detach().requires_grad_()
            (gradient,) = th.autograd.grad(value(point).sum(), point)
        return -sigma * gradient / temperature

    with th.no_grad():
        return chain.sample(denoise, (N_SAMPLES, 2), model.randomness, "promise").cpu().numpy()  # type: ignore[no-any-return]
