"""What shows a chain the way while it is sampled: critics alone, or an energy beside the denoiser."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.generative.process import Denoise, GenerativeProcess
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.particles import PROPOSALS, boltzmann_noise, particle_value_gradients, propose_clean
from sb3_diffusion.policies.values.critic import ObservationCritic
from sb3_diffusion.policies.values.energy import Energy


class Guide(ABC):
    """The noise that leads a chain from its reference policy to the policy that is wanted, at guidance scale one."""

    replaces_denoiser: ClassVar[bool]
    """Whether there is no noise of a reference to which it is added: that of the uniform policy is zero."""

    @abstractmethod
    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        What depends on the observation alone.

        :param observations: Batch of observations
        :return: Context, whose axis before the last is that of the observations
        """

    @abstractmethod
    def bind(
        self, context: th.Tensor, times: th.Tensor, process: GenerativeProcess, randomness: Randomness, label: str
    ) -> Denoise:
        """
        The guide for fixed observations and the times of a chain.

        :param context: Result of :meth:`encode`
        :param times: Diffusion times of the evaluations, ``(n_evaluations,)``
        :param process: The forward process
        :param randomness: Source of its draws
        :param label: Prefix of their names
        :return: Noise as a function of noisy actions ``(batch, action_dim)`` or ``(batch, n, action_dim)`` and the number of
            the evaluation
        """

    def fixed_draws(self, action_dim: int, randomness: Randomness) -> th.Tensor | None:
        """
        :param action_dim: Size of an action
        :param randomness: Source of the draws
        :return: What it draws at every step for a deterministic action, if it draws anything
        """
        return None


class CriticGuide(Guide):
    """
    Towards ``exp(Q / temperature)`` from the uniform policy: what the noise at a noisy action has to be is estimated from the
    critics' values and gradients at clean actions that are drawn at every step, as ``"<label>.particles"``.

    :param critic: The critics
    :param n_particles: Clean actions per noisy action and step
    :param temperature: Temperature of the density that is sampled, in units of Q
    :param proposal: Where the clean actions come from, see :func:`~sb3_diffusion.policies.particles.propose_clean`
    """

    replaces_denoiser: ClassVar[bool] = True

    def __init__(self, critic: ObservationCritic, n_particles: int, temperature: float, proposal: str):
        self.critic = critic
        self.n_particles = integer("n_particles", n_particles, low=1)
        self.temperature = real("temperature", temperature, above=0, remedy="smaller is greedier")
        self.proposal = choice("proposal", proposal, PROPOSALS)

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """See :meth:`Guide.encode`; ``(n_critics, batch, hidden)``."""
        return self.critic.encode(observations)

    def bind(
        self, context: th.Tensor, times: th.Tensor, process: GenerativeProcess, randomness: Randomness, label: str
    ) -> Denoise:
        """See :meth:`Guide.bind`."""
        times, batch = times.unsqueeze(-1), context.shape[1]

        def noise(x: th.Tensor, k: int) -> th.Tensor:
            x_t = x.reshape(-1, x.shape[-1])  # candidates become rows
            alpha, sigma = process.coefficients(times[k : k + 1])
            a_0, slope = propose_clean(x_t, alpha, sigma, self.n_particles, self.proposal, randomness, f"{label}.particles")
            candidates = a_0.reshape(batch, -1, x.shape[-1])
            values, gradients = particle_value_gradients(self.critic, candidates, context)
            eps, _ = boltzmann_noise(values.view(a_0.shape[:2]), gradients.view(a_0.shape), slope, sigma, self.temperature)
            return eps.view(x.shape)

        return noise

    def fixed_draws(self, action_dim: int, randomness: Randomness) -> th.Tensor:
        """See :meth:`Guide.fixed_draws`; ``(n_particles, action_dim)``."""
        draw = randomness.uniform if self.proposal == "truncated" else randomness.normal
        return draw((self.n_particles, action_dim), "bank", like=th.empty(()))


class EnergyGuide(Guide):
    """
    From the behaviour that the denoiser has learned: the gradient of an energy is added to its score.

    :param energy: The energy
    """

    replaces_denoiser: ClassVar[bool] = False

    def __init__(self, energy: Energy):
        self.energy = energy

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """See :meth:`Guide.encode`; ``(1, batch, hidden)``."""
        return self.energy.encode(observations)

    def bind(
        self, context: th.Tensor, times: th.Tensor, process: GenerativeProcess, randomness: Randomness, label: str
    ) -> Denoise:
        """See :meth:`Guide.bind`; nothing is drawn."""
        times = times.unsqueeze(-1)
        encoded, (_, sigmas) = self.energy.encode_time(times), process.coefficients(times)

        def noise(x: th.Tensor, k: int) -> th.Tensor:
            return self.energy.gradient(x, context + encoded[:, k : k + 1]) * -sigmas[k]

        return noise
