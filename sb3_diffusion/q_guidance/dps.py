"""DPS: guidance by the gradient of the Monte-Carlo log-partition of exp(Q / temperature)."""

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.guided_acting import ActsGuided
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.names import choice
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.guided import GUIDED_POLICIES, GuidedPolicy, check_scale
from sb3_diffusion.policies.particles import PROPOSALS
from sb3_diffusion.q_guidance.idem import iDEM

SCORE_INJECTIONS = ("distill", "online")


class DPS(ActsGuided, iDEM):
    r"""
    Q-guidance with importance-sampled intermediate scores (DPS).

    Q-value guidance with a uniform reference. The noise is ``-sigma_t`` times the gradient of
    ``log sum_k exp(Q(s, clip(a_k)) / temperature)`` by the noisy action, where ``a_k = (a_t + sigma_t z_k) / alpha_t`` with
    normal ``z_k``. Either the noise network regresses onto it, or the chain uses it directly whenever an action is drawn.

    The taxonomy names the method without a definition. This is our reading of it: the estimator of
    :class:`~sb3_diffusion.q_guidance.idem.iDEM` applied to a Q-function, as Diffusion Q-Sampling does. Nothing about
    its constants in this setting is published, and they are arguments: ``proposal``, ``score_injection``, ``n_particles``,
    ``temperature``, ``normalize_gradient``.

    Clipped proposals treat Q as constant beyond the edges of the box. The density that they stand for has mass outside, which
    the sampler's clipping moves to the edges: the policy is edge-heavy. ``proposal="truncated"`` is iDEM's and has less of
    it.

    Paper: Jain et al. 2024, Sampling from Energy-based Policies using Diffusion, https://arxiv.org/abs/2410.01312

    Differences from the reference implementation: there is none to differ from. Not related to the method for inverse
    problems of the same abbreviation.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param temperature: Temperature of the policy: in units of the mean gradient magnitude if ``normalize_gradient``,
        else in units of Q
    :param normalize_gradient: Whether the temperature is in units of the mean gradient magnitude over batch and particles;
        not with ``score_injection="online"``, where the action of a state must not depend on its batch
    :param n_particles: Proposals per noisy action; 64 is enough with ``score_injection="online"``
    :param proposal: ``"normal_clip"``: proposals are normal and clipped to the box; ``"truncated"``: they are truncated to it;
        ``"normal"``: they are unlimited, the critics are asked outside of the box
    :param score_injection: ``"distill"``: the noise network regresses onto the estimate; ``"online"``: no noise network is
        trained, every step of the chain asks the critics
    :param guidance_scale: Factor of the estimate with ``score_injection="online"``, which may be changed whenever an action is
        asked for, see :attr:`guidance_scale`
    :param clip_target: Whether to limit the target of the noise network to noise that leads to ``a_t`` from inside the box
    :param exploration_noise: Standard deviation of the noise added to actions while training
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        temperature: float = 0.05,
        normalize_gradient: bool = True,
        n_particles: int = 500,
        proposal: str = "normal_clip",
        score_injection: str = "distill",
        guidance_scale: float = 1.0,
        clip_target: bool = True,
        exploration_noise: float = 0.1,
        n_action_candidates: int = 10,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        if score_injection == "online" and normalize_gradient:
            raise ValueError(
                "normalize_gradient=True needs a batch, which acting with score_injection='online' has not; "
                "pass normalize_gradient=False and a temperature in units of Q."
            )
        self.guidance_scale = check_scale(guidance_scale)
        if score_injection == "distill" and guidance_scale != 1.0:
            raise ValueError(
                f"guidance_scale={guidance_scale} has no meaning for a network that has learned the estimate; pass "
                "score_injection='online', or another temperature."
            )
        self.proposal = choice("proposal", proposal, PROPOSALS)
        self.score_injection = choice("score_injection", score_injection, SCORE_INJECTIONS)
        super().__init__(
            policy,
            env,
            learning_rate,
            temperature=temperature,
            normalize_gradient=normalize_gradient,
            n_particles=n_particles,
            clip_target=clip_target,
            exploration_noise=exploration_noise,
            n_action_candidates=n_action_candidates,
            policy_delay=policy_delay,
            **kwargs,
        )

    @override
    def policy_requirements(self) -> dict[str, Any]:
        if self.score_injection == "distill":
            return {}
        estimate = {"n_particles": self.n_particles, "temperature": self.temperature, "proposal": self.proposal}
        return {"guide": "critics", "guidance_scale": self.guidance_scale, **estimate}

    @override
    def parts(self) -> Sequence[Part]:
        # with guidance at sampling time the critics are all there is to learn
        return [part for part in super().parts() if part.name == "critic" or self.score_injection == "distill"]

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        policy_class = super()._get_policy_from_name(policy_name)
        return GUIDED_POLICIES[policy_name] if self.score_injection == "online" else policy_class

    def _setup_model(self) -> None:
        self._resolve_names()
        if self.score_injection == "online" and not issubclass(self.policy_class, GuidedPolicy):
            raise ValueError(
                f"score_injection='online' needs a GuidedPolicy, which {self.policy_class.__name__} is not; "
                "pass 'DiffusionPolicy' by name or a subclass of sb3_diffusion.policies.guided.GuidedPolicy."
            )
        super()._setup_model()
