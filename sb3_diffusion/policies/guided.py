"""Acting by the critics' own field: guidance at sampling time, without a trained denoiser."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.generative.process import ChainSampler
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.actor_critic import NOISE_BANK_SEED
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.names import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_diffusion.policies.particles import PROPOSALS, boltzmann_noise, particle_value_gradients, propose_clean
from sb3_diffusion.policies.values.critic import ObservationCritic


class FixedParticles(RecordedDraws):
    """Recorded draws that make truncated normal numbers from recorded uniform ones, since every row has its own bounds."""

    def uniform(self, shape: Sequence[int], label: str, like: th.Tensor, low: float = 0.0, high: float = 1.0) -> th.Tensor:
        """See :meth:`Randomness.uniform`; a copy of the stored numbers."""
        return super().uniform(shape, label, like, low, high).clone()

    def truncated_normal(self, shape: Sequence[int], low: th.Tensor, high: th.Tensor, label: str) -> th.Tensor:
        """See :meth:`Randomness.truncated_normal`."""
        return Randomness.truncated_normal(self, shape, low, high, label)


class GuidedActor(DiffusionActor):
    """
    Actor whose chain takes its noise from the critics. The denoiser it inherits is neither trained nor used.

    :meth:`follow` has to be called before the first sample. Arguments: see
    :class:`~sb3_diffusion.policies.actors.diffusion.DiffusionActor`.
    """

    bank_particles: th.Tensor

    def follow(self, critic: ObservationCritic, n_particles: int, temperature: float, proposal: str) -> None:
        """
        Name the critics that show the way.

        :param critic: The critics, which belong to the policy
        :param n_particles: Clean actions per noisy action and step
        :param temperature: Temperature of the density that is sampled, in units of Q
        :param proposal: Where the clean actions come from, see :func:`~sb3_diffusion.policies.particles.propose_clean`
        """
        self._guides = (critic,)  # in a tuple, so that the policy's critics are not registered a second time
        self.n_particles = n_particles
        self.temperature = temperature
        self.proposal = choice("proposal", proposal, PROPOSALS)
        draws = Randomness(th.Generator().manual_seed(NOISE_BANK_SEED))
        draw = draws.uniform if proposal == "truncated" else draws.normal
        bank = draw((n_particles, self.action_dim), "bank", like=th.empty(()))
        self.register_buffer("bank_particles", bank, persistent=False)

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        The observation's share of the critics' first layer.

        :param observations: Batch of observations
        :return: Context ``(n_critics, batch, hidden)``
        """
        return self._guides[0].encode(observations)

    def act(
        self,
        observations: PyTorchObs,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        evaluating: bool = False,
        clip_output: bool = True,
    ) -> th.Tensor:
        """See :meth:`DiffusionActor.act`; the chain is that of :meth:`sample`."""
        chain = self.evaluation_chain if evaluating else self.acting_chain
        return self._follow_critics(chain, self.encode(observations), randomness, label, n_candidates, clip_output)

    def sample(
        self,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Run the update's chain; the noise of every step is estimated from fresh particles named ``"<label>.particles"``.

        :param context: Result of :meth:`encode`
        :param randomness: Source of the starting point, the step noise and the particles
        :param label: Prefix of the names of the draws
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param clip_output: Clamp the result to [-1, 1]
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        return self._follow_critics(self.update_chain, context, randomness, label, n_candidates, clip_output)

    def _follow_critics(
        self,
        chain: ChainSampler,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None,
        clip_output: bool,
    ) -> th.Tensor:
        batch, action_dim = context.shape[1], self.action_dim
        times = chain.times.unsqueeze(-1)

        def denoise(x: th.Tensor, k: int) -> th.Tensor:
            x_t = x.reshape(-1, action_dim)  # candidates become rows
            alpha, sigma = self.process.coefficients(times[k : k + 1])
            a_0, slope = propose_clean(x_t, alpha, sigma, self.n_particles, self.proposal, randomness, f"{label}.particles")
            candidates = a_0.reshape(batch, -1, action_dim)
            values, gradients = particle_value_gradients(self._guides[0], candidates, context)
            eps, _ = boltzmann_noise(values.view(a_0.shape[:2]), gradients.view(a_0.shape), slope, sigma, self.temperature)
            return eps.view(x.shape)

        with th.no_grad():
            return chain.sample(denoise, self._sample_shape(batch, n_candidates), randomness, label, clip_output=clip_output)

    def forward(self, observations: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        """See :meth:`DiffusionActor.forward`."""
        if not deterministic:
            return super().forward(observations, deterministic)
        zero = th.zeros_like(self.bank_particles[0])
        draws = {"sample.x_T": zero, "sample.step_noise": zero, "sample.particles": self.bank_particles}
        return self.act(observations, FixedParticles(draws), "sample")

    def save(self, path: str) -> None:
        """
        Refused: this actor is nothing without the policy's critics.

        :param path: Ignored
        """
        raise NotImplementedError("A GuidedActor follows the critics of its policy; save the policy: model.policy.save(path).")


class GuidedPolicy(DiffusionPolicy):
    """
    Policy whose chains follow the target critics towards ``exp(Q / temperature)`` at acting time.

    :param args: See :class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy`
    :param n_particles: Clean actions per noisy action and step of the chain
    :param temperature: Temperature of the density that is sampled, in units of Q
    :param proposal: Where the clean actions come from, see :func:`~sb3_diffusion.policies.particles.propose_clean`
    :param kwargs: See :class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy`
    """

    actor_class: ClassVar[type[DiffusionActor]] = GuidedActor
    actor: GuidedActor

    def __init__(
        self,
        *args: Any,
        n_particles: int = 64,
        temperature: float = 0.05,
        proposal: str = "normal_clip",
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        n_particles = integer("n_particles", n_particles, low=1)
        temperature = real("temperature", temperature, above=0, remedy="smaller is greedier")
        self.actor.follow(self.critic_target, n_particles, temperature, proposal)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        actor = self.actor
        own = {"n_particles": actor.n_particles, "temperature": actor.temperature, "proposal": actor.proposal}
        return {**super()._get_constructor_parameters(), **own}

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if not deterministic:
            return super()._predict(observation)
        banks = {"act.x_T": self.bank_x, "act.step_noise": self.bank_steps, "act.particles": self.actor.bank_particles}
        return self.select_actions(observation, self.n_action_candidates, FixedParticles(banks))


class GuidedMlpPolicy(GuidedPolicy, MlpPolicy):
    """:class:`GuidedPolicy` that flattens observations."""


class GuidedCnnPolicy(GuidedPolicy, CnnPolicy):
    """:class:`GuidedPolicy` with a ``NatureCNN``."""


class GuidedMultiInputPolicy(GuidedPolicy, MultiInputPolicy):
    """:class:`GuidedPolicy` with a ``CombinedExtractor``."""


GUIDED_POLICIES: dict[str, type[GuidedPolicy]] = {
    "DiffusionPolicy": GuidedPolicy,
    "MlpPolicy": GuidedMlpPolicy,
    "CnnPolicy": GuidedCnnPolicy,
    "MultiInputPolicy": GuidedMultiInputPolicy,
}
"""The guided counterparts of :data:`~sb3_diffusion.policies.names.POLICIES`."""
