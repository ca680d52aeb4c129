"""D-QL: a denoiser imitates the actions of the data, and -Q is backpropagated through its whole chain."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.behavior.averaged_actor import AveragedActor, AveragedActorArguments
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.values.critic import reduce_critics

NORMALIZERS = ("other", "same")


class DQL(AveragedActor):
    """
    Diffusion Q-Learning (D-QL).

    Reparameterisation with the behaviour policy as reference: the loss of the actor is that of behaviour cloning, the error of
    the predicted noise at the actions of the data, plus ``eta`` times the negative value of a sample, which is backpropagated
    through all steps of its chain. The value is divided by its own magnitude, measured by the other critic, so that ``eta``
    needs no knowledge of the scale of the rewards. An averaged actor supplies the next actions of the critics' targets.

    Paper: Wang et al. 2022, Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning,
    https://arxiv.org/abs/2208.06193

    Differences from the reference implementation: the losses of the critics are summed as in the authors' code, for whose
    gradients ``max_grad_norm`` was tuned (``sum_critic_losses=False`` averages them); layers are initialised orthogonally;
    the time passes through two layers of 32 and 16 units, both activated.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor and critics
    :param eta: Weight of the value in the actor's loss; 0 is behaviour cloning
    :param normalizer: Whose magnitude the value of a critic is divided by: that of the ``"other"`` critic, or the ``"same"``
    :param max_q_backup: Whether each critic values the best of ``n_target_candidates`` next actions, and not one of them
    :param n_target_candidates: Next actions per transition with ``max_q_backup``
    :param sum_critic_losses: Whether the critics' loss is the sum over the critics, and not their mean
    :param n_action_candidates: Actions of which the target critics choose: the best when evaluating (``deterministic=True``),
        a draw from the softmax of their values otherwise
    :param selection_temperature: Temperature of that softmax, in units of Q
    :param max_grad_norm: Clip the norm of each network's gradient, ``None`` for no clipping
    :param kwargs: See :class:`~sb3_diffusion.core.behavior.averaged_actor.AveragedActor`
    """

    choose_with_target = True
    """Whether the target critics choose among candidates."""

    def __init__(  # type: ignore[misc]  # max_grad_norm has another default
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        eta: float = 1.0,
        normalizer: str = "other",
        max_q_backup: bool = False,
        n_target_candidates: int = 10,
        sum_critic_losses: bool = True,
        n_action_candidates: int = 50,
        selection_temperature: float = 1.0,
        max_grad_norm: float | None = 5.0,
        **kwargs: Unpack[AveragedActorArguments],
    ):
        self.eta = real("eta", eta, low=0, remedy="0 is behaviour cloning")
        self.normalizer = choice("normalizer", normalizer, NORMALIZERS)
        self.max_q_backup = max_q_backup
        self.n_target_candidates = integer("n_target_candidates", n_target_candidates, low=1)
        self.sum_critic_losses = sum_critic_losses
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        greedy = "smaller is greedier"
        self.selection_temperature = real("selection_temperature", selection_temperature, above=0, remedy=greedy)
        super().__init__(policy, env, learning_rate, max_grad_norm=max_grad_norm, **kwargs)

    @override
    def policy_settings(self) -> dict[str, Any]:
        networks = {"net_arch": [256, 256, 256], "activation_fn": "mish", "state_arch": ()}
        time = {"time_embedding": "positional", "time_dim": 16, "time_arch": (32, 16)}
        chain = self.fitting_chain(self.chain_settings())
        rule = {"rule": "softmax", "temperature": self.selection_temperature, "target": self.choose_with_target}
        n = self.n_action_candidates
        acting = {"n_action_candidates": n, "n_behavior_candidates": n, "choose_with_target": self.choose_with_target}
        return {**networks, **time, **chain, **acting, "selection": rule}

    def chain_settings(self) -> dict[str, Any]:
        """Arguments of the policy that make its chain."""
        return {"process": "discrete", "noise_schedule": "vp", "diffusion_steps": 5, "variance": "posterior"}

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        loss, metrics = super().critic_loss(batch)
        return loss * self.critic.ensemble.n_critics if self.sum_critic_losses else loss, metrics

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        n_candidates = self.n_target_candidates if self.max_q_backup else None
        context = self.averaged_actor.encode(batch.next_observations)
        actions = self.averaged_actor.sample(context, self.randomness, "next_action", n_candidates)
        values = self.critic_target.q(actions, self.critic_target.encode(batch.next_observations))
        # each critic chooses for itself, and only then the more pessimistic one counts
        return reduce_critics(values.amax(2) if self.max_q_backup else values), saturation(actions)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        noisy = self.actor.add_noise(batch.actions, self.randomness, "actor")
        imitation = (self.actor.denoise(noisy.x_t, noisy.t, context) - noisy.eps).square().mean()
        # the gradient flows through every step of the chain
        actions = self.actor.sample(context, self.randomness, "actor")
        value = self.normalized_value(self.action_values(actions, batch))
        return imitation - self.eta * value, {"bc_loss": imitation.detach(), "q_term": value.detach()}

    def action_values(self, actions: th.Tensor, batch: Batch) -> th.Tensor:
        """
        :param actions: Actions of the policy ``(batch, action_dim)``
        :param batch: The batch of whose observations they are
        :return: Their values ``(n_critics, batch)``, whose gradient reaches the actions only
        """
        with th.no_grad():
            context = self.critic.encode(batch.observations)
        return self.critic.q(actions, context)

    def normalized_value(self, values: th.Tensor) -> th.Tensor:
        """
        Mean value by one critic in units of its magnitude by the next one (or itself, see ``normalizer``); a coin says which
        critic, the same for the whole batch.

        :param values: Values ``(n_critics, batch)``
        :return: Scalar of the order of one
        """
        n_critics = values.shape[0]
        sizes = values.detach().abs().mean(1) + 1e-6
        coin = self.randomness.uniform((1,), "actor.choice", like=values)
        critic = ((1.0 - coin) * n_critics).long().clamp(max=n_critics - 1)
        units = sizes.roll(-1) if self.normalizer == "other" else sizes
        return (values.mean(1) / units).gather(0, critic).squeeze(0)
