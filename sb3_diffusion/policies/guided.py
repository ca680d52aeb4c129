"""Guidance at sampling time: an actor whose chains follow a guide, and the policy that knows how strongly."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from typing_extensions import Self

from sb3_diffusion.generative.process import ChainSampler, Denoise
from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.acting import NOISE_BANK_SEED
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.guides import CriticGuide, EnergyGuide, Guide
from sb3_diffusion.policies.names import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_diffusion.policies.values.energy import Energy


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
    Actor whose chain can be guided: at every step the guide's noise, times a scale, is added to that of the denoiser.

    Alone, and for the losses, it is the behaviour that the denoiser has learned; guided it is where :meth:`act` gets a scale,
    which the policy knows. A guide that stands in the place of the denoiser, which is neither trained nor used then, always
    guides.

    Arguments: see :class:`~sb3_diffusion.policies.actors.diffusion.DiffusionActor`.
    """

    bank_particles: th.Tensor | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._guides: tuple[Guide, ...] = ()  # in a tuple, so that no network of the policy is registered a second time
        self.register_buffer("bank_particles", None, persistent=False)

    def follow(self, guide: Guide) -> None:
        """
        Name the guide.

        :param guide: The guide, whose networks belong to the policy
        """
        self._guides = (guide,)
        self.bank_particles = guide.fixed_draws(self.action_dim, Randomness(th.Generator().manual_seed(NOISE_BANK_SEED)))

    @property
    def _stand_in(self) -> Guide | None:
        """The guide that stands in the place of the denoiser, if there is one."""
        return next((guide for guide in self._guides if guide.replaces_denoiser), None)

    def fixed_draws(self, label: str) -> dict[str, th.Tensor]:
        """
        :param label: Prefix of the names of the draws
        :return: What the guide gets for a deterministic action in the place of draws
        """
        return {} if self.bank_particles is None else {f"{label}.particles": self.bank_particles}

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        What :meth:`sample` needs of the observations.

        :param observations: Batch of observations
        :return: Context ``(batch, hidden)`` of the denoiser, or that of a guide which stands in its place
        """
        guide = self._stand_in
        return super().encode(observations) if guide is None else guide.encode(observations)

    def act(
        self,
        observations: PyTorchObs,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        evaluating: bool = False,
        clip_output: bool = True,
        scale: float | th.Tensor | None = None,
    ) -> th.Tensor:
        """
        Actions for observations that nothing else needs encoded; guided ones have no gradient.

        :param observations: Batch of observations
        :param randomness: Source of the starting point, of the step noise and of the guide's draws
        :param label: Prefix of the names of the draws
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param evaluating: Use the chain of deterministic actions (``evaluation_steps``)
        :param clip_output: Clamp the result to [-1, 1]
        :param scale: Guidance scale, ``None`` for the actor alone
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        chain, behavior = self.evaluation_chain if evaluating else self.acting_chain, None
        if self._stand_in is None:
            if scale is None:
                return super().act(observations, randomness, label, n_candidates, evaluating, clip_output)
            features = self.extract_features(observations, self.features_extractor)
            behavior = self.denoiser.bind_features(features, self._network_time(chain.times.view(chain.times.shape[0], -1)))
        with th.no_grad():
            context = self._guides[0].encode(observations)
            return self._guided(chain, context, randomness, label, n_candidates, clip_output, behavior, scale)

    def sample(
        self,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Run the update's chain, of the behaviour, or of a guide that stands in the place of the denoiser.

        :param context: Result of :meth:`encode`
        :param randomness: Source of the starting point, of the step noise and of the guide's draws
        :param label: Prefix of the names of the draws
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param clip_output: Clamp the result to [-1, 1]
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        if self._stand_in is None:
            return super().sample(context, randomness, label, n_candidates, clip_output)
        with th.no_grad():
            return self._guided(self.update_chain, context, randomness, label, n_candidates, clip_output)

    def _guided(
        self,
        chain: ChainSampler,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None,
        clip_output: bool,
        behavior: Denoise | None = None,
        scale: float | th.Tensor | None = None,
    ) -> th.Tensor:
        """A chain whose noise is the behaviour's, if it has one, plus the guide's."""
        if th.jit.is_tracing() or th.compiler.is_exporting():
            raise RuntimeError(
                "A guided chain differentiates its guide at every step, which neither torch.jit.trace nor torch.export can "
                "record; export the behaviour alone (model.policy.actor, where it has learned one), or keep the policy."
            )
        toward = self._guides[0].bind(context, chain.times, self.process, randomness, label)
        factor = 1.0 if scale is None else scale

        def denoise(x: th.Tensor, k: int) -> th.Tensor:
            guidance = toward(x, k) * factor
            return guidance if behavior is None else behavior(x, k) + guidance

        shape = self._sample_shape(context.shape[-2], n_candidates)
        return chain.sample(denoise, shape, randomness, label, clip_output=clip_output)

    def forward(self, observations: PyTorchObs, deterministic: bool = True) -> th.Tensor:
        """See :meth:`DiffusionActor.forward`."""
        if not deterministic:
            return super().forward(observations, deterministic)
        zero = th.zeros((), device=self.device)
        draws = {"sample.x_T": zero, "sample.step_noise": zero, **self.fixed_draws("sample")}
        return self.act(observations, FixedParticles(draws), "sample", evaluating=True)

    def save(self, path: str) -> None:
        """
        Save the behaviour. Refused where there is none.

        :param path: The file
        """
        if self._stand_in is not None:
            raise NotImplementedError(
                "A GuidedActor follows the critics of its policy; save the policy: model.policy.save(path)."
            )
        super().save(path)


class GuidedPolicy(DiffusionPolicy, hands_on=True):
    """
    Policy whose chains are guided when an action is asked for: by the target critics towards ``exp(Q / temperature)``, or by
    an energy, which is added to the behaviour that the denoiser has learned.

    How strongly, may be changed whenever an action is asked for, without training anew:

    .. code-block:: python

        model.policy.guidance_scale = 2.0
        with model.policy.guided(4.0):
            action, _ = model.predict(observation)

    :param args: See :class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy`
    :param guide: What guides: ``"critics"``, or the name of the one of ``networks`` that is an
        :class:`~sb3_diffusion.policies.values.energy.Energy`
    :param guidance_scale: Factor of the guidance: 0 is the reference alone, 1 the policy that the method stands for, more is
        greedier
    :param n_particles: Clean actions per noisy action and step of the chain; of the critics
    :param temperature: Temperature of the density that is sampled, in units of Q; of the critics
    :param proposal: Where the clean actions come from, see :func:`~sb3_diffusion.policies.particles.propose_clean`; of the
        critics
    :param kwargs: See :class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy`
    """

    actor_class: ClassVar[type[DiffusionActor]] = GuidedActor
    actor: GuidedActor
    scale: th.Tensor

    def __init__(
        self,
        *args: Any,
        guide: str = "critics",
        guidance_scale: float = 1.0,
        n_particles: int = 64,
        temperature: float = 0.05,
        proposal: str = "normal_clip",
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._guide_arguments = {
            "guide": guide,
            "n_particles": n_particles,
            "temperature": temperature,
            "proposal": proposal,
        }
        if guide == "critics":
            self.actor.follow(CriticGuide(self.critic_target, n_particles, temperature, proposal))
        else:
            energies = {name: network for name, network in self.trained.items() if isinstance(network, Energy)}
            self.actor.follow(EnergyGuide(energies[choice("guide", guide, ("critics", *energies))]))
        # in a tensor, which a CUDA graph reads anew
        self.register_buffer("scale", th.ones((), device=self.device), persistent=False)
        self.guidance_scale = guidance_scale

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {**self._guide_arguments, "guidance_scale": self.guidance_scale}
        return {**super()._get_constructor_parameters(), **own}

    @property
    def guidance_scale(self) -> float:
        """Factor of the guidance of every action that is asked for; :meth:`save` keeps it."""
        return self._scale

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self._scale = check_scale(scale)
        self.scale.fill_(self._scale)

    @contextmanager
    def guided(self, scale: float) -> Iterator[Self]:
        """
        Within it, actions have another guidance scale.

        :param scale: The scale
        """
        before, self.guidance_scale = self.guidance_scale, scale
        try:
            yield self
        finally:
            self.guidance_scale = before

    def draw_actions(
        self,
        observations: PyTorchObs,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        evaluating: bool = False,
    ) -> th.Tensor:
        """See :meth:`ActingPolicy.draw_actions`; guided."""
        return self.actor.act(observations, randomness, label, n_candidates, evaluating, scale=self.scale)

    def fixed_draws(self) -> RecordedDraws:
        """See :meth:`ActingPolicy.fixed_draws`."""
        return FixedParticles({**super().fixed_draws().draws, **self.actor.fixed_draws("act")})


def check_scale(scale: float) -> float:
    """
    :param scale: A guidance scale
    :return: The same
    :raises ValueError: If it is negative
    """
    return real("guidance_scale", scale, low=0, remedy="0 is no guidance, more is greedier")


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
