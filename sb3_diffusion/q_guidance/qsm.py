"""Q-Score Matching: the noise network regresses onto the critic's action gradient at noisy actions."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy

SCORE_FORMS = ("eps", "raw")


class QSM(OffPolicyDiffusion):
    r"""
    Q-Score Matching (QSM).

    Q-value guidance with a uniform reference: the score of the policy is regressed onto the action gradient of the target
    critics at the *noisy* action. The field is not the score of a diffused density, so the policy is narrower than
    ``exp(Q / temperature)`` by construction.

    Paper: Psenka et al. 2023, Learning a Diffusion Model Policy from Rewards via Q-Score Matching,
    https://arxiv.org/abs/2312.11752

    Differences from the reference implementation: exploring actions are clipped to the box before they are stored; the actor
    uses the target critics of before this update's averaging. ``score_form="raw", normalize_gradient=False`` is the
    regression of the authors' own code.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param temperature: Temperature of the policy: in units of the mean gradient magnitude if ``normalize_gradient``,
        else in units of Q
    :param normalize_gradient: Whether to divide the gradients by their mean magnitude over the batch
    :param score_form: ``"eps"``: the target of the noise network is ``-sigma_t grad Q / temperature``;
        ``"raw"``: it is ``-grad Q / temperature``
    :param exploration_noise: Standard deviation of the noise added to actions while training
    :param target_action_noise: The same for the next actions in the critics' target
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
        temperature: float = 0.1,
        normalize_gradient: bool = True,
        score_form: str = "eps",
        exploration_noise: float = 0.1,
        target_action_noise: float = 0.0,
        n_action_candidates: int = 10,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.temperature = real("temperature", temperature, above=0, remedy="smaller is greedier")
        self.normalize_gradient = normalize_gradient
        self.score_form = choice("score_form", score_form, SCORE_FORMS)
        self.exploration_noise = real("exploration_noise", exploration_noise, low=0, remedy="pass a standard deviation >= 0")
        self.target_action_noise = real(
            "target_action_noise", target_action_noise, low=0, remedy="pass a standard deviation >= 0"
        )
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {"n_action_candidates": self.n_action_candidates, "exploration_noise": self.exploration_noise}

    @override
    def target_actions(self, batch: Batch) -> th.Tensor:
        actions = super().target_actions(batch)
        if self.target_action_noise > 0.0:
            noise = self.randomness.normal(actions.shape, "next_action.explore", like=actions)
            actions = (actions + self.target_action_noise * noise).clamp(-1.0, 1.0)
        return actions

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        a_t, t, _, sigma, _ = self.actor.add_noise(batch.actions, self.randomness, "actor")
        target, gradient_size = self.noise_target(batch, a_t, sigma)
        predicted = self.actor.denoise(a_t, t, self.actor.encode(batch.observations))
        loss = (predicted - target).square().mean()
        return loss, {"q_gradient": gradient_size}

    def noise_target(self, batch: Batch, a_t: th.Tensor, sigma: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Target of the noise network: noise is ``-sigma`` times the score, and the score is ``grad Q / temperature``.

        :param batch: Batch of transitions
        :param a_t: Noisy actions ``(batch, action_dim)``
        :param sigma: Noise coefficients ``(batch, 1)``
        :return: Target ``(batch, action_dim)``, and the mean magnitude of the gradient's entries
        """
        with th.no_grad():
            context = self.critic_target.encode(batch.observations)
        _, gradient = self.critic_target.value_and_gradient(a_t, context, reduction="mean")
        size = gradient.abs().mean()
        scale = self.temperature * (size + 1e-6) if self.normalize_gradient else self.temperature
        score = gradient / scale
        return -sigma * score if self.score_form == "eps" else -score, size
