"""Flow Policy Mirror Descent: the regression of DPMD with a flow, whose samples need one step."""

from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import CommonArguments
from sb3_diffusion.generative.flow import MeanFlow, directional_derivative
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import MAX_STEPS, integer, optional, real
from sb3_diffusion.policies.actors.diffusion import NoisyActions
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.weighted_matching.dpmd import DPMD

VARIANTS = ("rectified", "meanflow")


class FPMD(DPMD):
    """
    Flow Policy Mirror Descent (FPMD).

    Weighted matching with the previous policy as reference, as in DPMD, for a policy that is a flow on straight paths. The
    error of a single step is bounded by the variance of the policy, which shrinks as training converges, so that evaluation
    takes one step (``evaluation_steps``) while training takes ``diffusion_steps``. With ``variant="meanflow"`` the network
    predicts average velocities, and one step is enough in training as well.

    Paper: Chen et al. 2025, One-Step Flow Policy Mirror Descent, https://arxiv.org/abs/2507.23675

    Differences from the publication: this is our composition. No code of the authors could be identified, and we keep the
    frame of DPMD (particles of the previous policy, self-normalised weights, a temperature that is learned from a
    divergence, refreshes) and exchange the generative model, which makes the two comparable. Uniform flow times and the
    share of single times among the intervals of ``"meanflow"`` (``instantaneous``) are our choice.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the critics, and of the actor if it has none of its own
    :param actor_learning_rate: Learning rate of the actor; ``None`` for ``learning_rate``
    :param variant: ``"rectified"``: the network predicts velocities; ``"meanflow"``: it predicts average velocities
    :param evaluation_steps: Steps of the flow with ``deterministic=True``; ``None`` for as many as in training
    :param instantaneous: Share of the training times of ``"meanflow"`` that are single times and not intervals
    :param n_particles: Actions of the previous policy per state
    :param weights: ``"exp"`` or ``"linear"``, see :class:`~sb3_diffusion.weighted_matching.dpmd.DPMD`
    :param target_kl: Divergence of the weights from equal ones in nats, less than ``log(n_particles)``
    :param initial_temperature: Initial temperature in units of Q
    :param temperature_learning_rate: Learning rate of the logarithm of the temperature, 0 fixes it
    :param refresh_interval: Updates between two copies of the policy to the previous policy (the first one copies)
    :param particle_noise: Standard deviation of the noise added to the particles
    :param clip_particles: Whether to clip the noisy particles to the box
    :param loss_clip: Squared errors above this have no gradient, ``None`` for no such limit
    :param n_action_candidates: Actions of which the critics choose the best when evaluating (``deterministic=True``)
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    prediction = "velocity"

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        actor_learning_rate: float | Schedule | None = 1e-4,
        variant: str = "rectified",
        evaluation_steps: int | None = 1,
        instantaneous: float = 0.5,
        n_particles: int = 64,
        weights: str = "exp",
        target_kl: float = 2.0,
        initial_temperature: float = 1.0,
        temperature_learning_rate: float = 3e-4,
        refresh_interval: int = 1000,
        particle_noise: float = 0.2,
        clip_particles: bool = True,
        loss_clip: float | None = None,
        n_action_candidates: int = 10,
        policy_delay: int = 1,
        **kwargs: Unpack[CommonArguments],
    ):
        self.variant = choice("variant", variant, VARIANTS)
        self.evaluation_steps = optional(integer, "evaluation_steps", evaluation_steps, 1, MAX_STEPS)
        self.instantaneous = real("instantaneous", instantaneous, 0, 1, remedy="it is a share")
        if variant == "meanflow":
            self.prediction = MeanFlow.prediction
        super().__init__(
            policy,
            env,
            learning_rate,
            actor_learning_rate=actor_learning_rate,
            n_particles=n_particles,
            weights=weights,
            target_kl=target_kl,
            initial_temperature=initial_temperature,
            temperature_learning_rate=temperature_learning_rate,
            refresh_interval=refresh_interval,
            particle_noise=particle_noise,
            clip_particles=clip_particles,
            loss_clip=loss_clip,
            n_action_candidates=n_action_candidates,
            policy_delay=policy_delay,
            **kwargs,
        )

    @override
    def policy_settings(self) -> dict[str, Any]:
        settings = {**super().policy_settings(), "evaluation_steps": self.evaluation_steps}
        if self.variant == "rectified":
            return {**settings, "process": "flow"}
        return {
            **settings,
            "process": "meanflow",
            "process_kwargs": {"instantaneous": self.instantaneous},
            "diffusion_steps": 1,
        }

    @override
    def regression_target(self, particles: th.Tensor, noisy: NoisyActions, context: th.Tensor) -> th.Tensor:
        velocity = super().regression_target(particles, noisy, context)
        process = self.actor.process
        if not isinstance(process, MeanFlow):
            return velocity
        # u = v + h du/dt, with the derivative along the path as a constant
        with th.no_grad():
            direction = process.time_direction(noisy.t)
            network = partial(self.actor.denoise, context=context.detach())
            derivative = directional_derivative(network, (noisy.x_t, noisy.t), (velocity, direction))
        return process.average_target(velocity, noisy.t, derivative)
