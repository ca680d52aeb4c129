"""
Two lobes of actions as data, ``N((0.5, 0), 0.01) + N((-0.5, 0), 0.01)`` in equal shares, and the value ``a_x``: what a policy
that stays close to the data and likes the value does with them is known.
"""

from typing import Any

import torch as th

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.envs.bandits import BanditEnv
from tests.bandits import SMALL_NET, give_critic

CENTRE, SPREAD = 0.5, 0.1


def lobe_actions(n: int) -> th.Tensor:
    """Actions of the data, ``(n, 2)``."""
    centres = th.stack((CENTRE * (2.0 * th.randint(0, 2, (n,)) - 1.0), th.zeros(n)), dim=1)
    return centres + SPREAD * th.randn(n, 2)


def lobe_batch(n: int = 256) -> Batch:
    """Transitions of one state that end the episode."""
    zeros = th.zeros(n)
    observations = th.zeros(n, 1)
    return Batch(observations, lobe_actions(n), zeros, observations, zeros)


def lobe_model(algorithm: type[OffPolicyDiffusion], slope: float = 1.0, **kwargs: Any) -> Any:
    """The method with small networks, and critics that know the value ``slope * a_x``."""
    policy_kwargs = {**SMALL_NET, **kwargs.pop("policy_kwargs", {})}
    kwargs.setdefault("learning_rate", 2e-3)
    env = BanditEnv(action_dim=2)
    model: Any = algorithm("DiffusionPolicy", env, seed=0, policy_kwargs=policy_kwargs, device="cpu", **kwargs)
    give_critic(model, lambda actions: slope * actions[..., 0])
    return model


def train(model: Any, names: tuple[str, ...], updates: int, batch_size: int = 256) -> None:
    """Train some parts of a method on the lobes, at rates that fall to zero."""
    model.policy.set_training_mode(True)
    base = model.lr_schedule(1)
    parts = [part for part in model.parts() if part.name in names]
    for update in range(updates):
        batch = lobe_batch(batch_size)
        for part in parts:
            for group in part.optimizer.param_groups:
                group["lr"] = base * (1.0 - update / updates)
            model.step(part, part.loss(batch)[0])
            if part.then is not None:
                part.then()


def right_mass(actions: th.Tensor) -> float:
    """Share of the actions that belong to the better lobe."""
    return float((actions[:, 0] > 0).float().mean())


def near_a_lobe(actions: th.Tensor, spreads: float = 4.0) -> float:
    """Share of the actions within some standard deviations of a lobe."""
    distance = (actions - th.tensor([CENTRE, 0.0]) * actions[:, :1].sign()).norm(dim=1)
    return float((distance < spreads * SPREAD).float().mean())


def inside_the_data(actions: th.Tensor) -> float:
    """Share of the actions that are not beyond the outermost of the data, four standard deviations from the lobes."""
    return float(((actions[:, 0].abs() < CENTRE + 4.0 * SPREAD) & (actions[:, 1].abs() < 4.0 * SPREAD)).float().mean())


# -- what is known of noisy actions of the lobes, ``a_t = alpha a + sigma eps`` ----------------------------------------------


def behind(a_t: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    The clean actions behind noisy ones ``(..., 2)``: of each lobe its share ``(..., 2)``, its mean ``(..., 2, 2)`` and the
    common variance.
    """
    centres = th.tensor([[CENTRE, 0.0], [-CENTRE, 0.0]])
    alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
    marginal = (alpha * SPREAD).square() + sigma.square()
    apart = a_t.unsqueeze(-2) - alpha * centres
    shares = th.softmax(-apart.square().sum(-1) / (2.0 * marginal.squeeze(-1)), -1)
    means = centres + alpha * SPREAD**2 / marginal * apart
    return shares, means, (SPREAD * sigma).square().squeeze(-1) / marginal.squeeze(-1)


def exact_noise(a_t: th.Tensor, alpha: th.Tensor, sigma: th.Tensor) -> th.Tensor:
    """What the denoiser of the lobes answers once it has learned them."""
    shares, means, _ = behind(a_t, alpha, sigma)
    return (a_t - alpha * (shares.unsqueeze(-1) * means).sum(-2)) / sigma


def exact_energy(a_t: th.Tensor, alpha: th.Tensor, sigma: th.Tensor, slope: float) -> th.Tensor:
    """Logarithm of the mean of ``exp(slope a_x)`` over the clean actions behind noisy ones, ``(..., 1)``."""
    shares, means, variance = behind(a_t, alpha, sigma)
    return (shares.log() + slope * means[..., 0] + 0.5 * slope**2 * variance).logsumexp(-1, keepdim=True)


class ExactBehavior:
    """Stands in for the denoiser of an actor that has learned the lobes."""

    def __init__(self, process: Any, times: th.Tensor):
        self.coefficients = process.coefficients(times.view(-1, 1))

    def __call__(self, x: th.Tensor, k: int) -> th.Tensor:
        alpha, sigma = (table[k] for table in self.coefficients)
        return exact_noise(x, alpha, sigma)


def know_lobes(model: Any) -> Any:
    """A model whose actor imitates the lobes as well as can be."""
    process = model.actor.process
    model.actor.denoiser.bind_features = lambda features, times: ExactBehavior(process, times)
    return model


def guided_draws(model: Any, scale: float, n: int = 20_000) -> th.Tensor:
    """Actions of a guided policy at a guidance scale, ``(n, 2)``."""
    th.manual_seed(0)
    with th.no_grad():
        return model.actor.act(th.zeros(n, 1), model.randomness, "test", scale=scale)


class ExactEnergy:
    """
    Stands in for the energy of ``exp(slope a_x)``, and can be bent by ``bend``, a weight per bump.

    :param process: The forward process
    :param slope: The slope
    :param biased: Whether it is the logarithm at the noisy action itself instead of the mean over the clean ones behind it
    """

    def __init__(self, process: Any, slope: float, biased: bool = False):
        self.process, self.slope, self.biased = process, slope, biased
        self.bend = th.zeros(4, requires_grad=True)

    def encode(self, observations: th.Tensor) -> th.Tensor:
        return th.zeros(1, len(observations), 1)

    def encode_time(self, t: th.Tensor) -> th.Tensor:
        return t.unsqueeze(0)

    def __call__(self, x: th.Tensor, context: th.Tensor) -> th.Tensor:
        t = context[0] if x.dim() == 2 else context[0].unsqueeze(1)
        alpha, sigma = self.process.coefficients(t)
        value = self.slope * x[..., :1] if self.biased else exact_energy(x, alpha, sigma, self.slope)
        bumps = th.cat((x[..., :1], th.tanh(4.0 * x[..., :1]), alpha * x[..., :1], alpha * x[..., 1:].square()), -1)
        return value.squeeze(-1) + bumps @ self.bend

    def gradient(self, x: th.Tensor, context: th.Tensor) -> th.Tensor:
        with th.enable_grad():
            inputs = x.detach().requires_grad_()
            return th.autograd.grad(self(inputs, context).sum(), inputs)[0]


def pulls(model: Any, batch: Batch, slope: float = 2.0) -> tuple[float, float]:
    """How much the loss of the energy would bend the exact energy, and the biased one: the largest of its slopes."""
    found = []
    for biased in (False, True):
        model.policy.trained["energy"] = energy = ExactEnergy(model.actor.process, slope, biased)
        th.manual_seed(0)
        (bending,) = th.autograd.grad(model.energy_loss(batch)[0], energy.bend)
        found.append(float(bending.abs().max()))
    return found[0], found[1]
