"""Proximal policy optimisation with a Gaussian policy, in tensors from the simulator to the loss."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.on_policy import OnPolicyArguments
from sb3_diffusion.core.behavior.pretraining import ImitatesFirst
from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.core.ratios.surrogate import clipped_surrogate
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.networks import gaussian
from sb3_diffusion.networks.gaussian import gaussian_divergence, gaussian_entropy
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.actors.gaussian import GaussianActor
from sb3_diffusion.policies.gaussian import GAUSSIAN_POLICIES, GaussianPolicy


class PPO(ImitatesFirst, OnPolicyDiffusion):
    r"""
    Proximal Policy Optimization (PPO) for thousands of environments that speak tensors.

    The Gaussian baseline of the on-policy methods, and what their training loop is measured with. Stable-Baselines3's own PPO
    remains what it is (``ppo`` on the command line; this one is ``tensor_ppo``). A policy
    :math:`\mathcal{N}(\mu(s), \sigma^2)` with a free :math:`\sigma` maximises

    .. math:: \mathrm{mean}\,\min(\rho A,\ \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A) + c\,H(\pi), \qquad
        \rho = \pi(a | s) / \pi_{\mathrm{old}}(a | s)

    on actions of the last rollout, and a value learns their returns.

    Papers: Schulman et al. 2017, Proximal Policy Optimization Algorithms, https://arxiv.org/abs/1707.06347;
    settings for robots in parallel: Rudin et al. 2022, https://arxiv.org/abs/2109.11978

    Differences from Stable-Baselines3's: two networks and optimizers with a rate and a clipped gradient each; advantages are
    standardised over the rollout; values are clipped as ratios are; time-outs of simulators that do not tell their last
    observation are bootstrapped from the one before; a rollout is 24 steps of many environments.

    Differences from the reference implementation: the mean begins near zero (``output_gain`` of the policy); where the last
    observation of an episode is known, its value stands for the future.

    :param policy: ``"GaussianPolicy"`` or a subclass of it, or SB3's names, which stand for it with their features extractor
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param ent_coef: Weight of the entropy, of the Gaussian before its actions are squashed if they are
    :param squash: Whether a tanh keeps actions in the box, instead of the cut at its bounds
    :param kwargs: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flowrl_paper": {
            "ent_coef": 1e-4,
            "squash": True,
            "policy_kwargs": {"log_std_bounds": (-5.0, 2.0), "output_gain": 2.0**0.5},
        },
        "flowrl_code": {"policy_kwargs": {"output_gain": 2.0**0.5}},
    }
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**GAUSSIAN_POLICIES}
    actor: GaussianActor

    def __init__(
        self,
        policy: str | type[GaussianPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        ent_coef: float = 0.005,
        squash: bool = False,
        **kwargs: Unpack[OnPolicyArguments],
    ):
        real("ent_coef", ent_coef, low=0, remedy="0 is for no bonus")
        self.squash = squash
        super().__init__(policy, env, learning_rate, **kwargs)
        self.ent_coef = ent_coef

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {**super().policy_requirements(), "squash": "action" if self.squash else "none", "deterministic_actor": False}

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {
            "net_arch": {"pi": [256, 256, 256], "qf": [256, 256, 256]},
            "activation_fn": "elu",
            "log_std_bounds": (-20.0, 2.0),
            "output_gain": 0.01,
        }

    @override
    def act(self, observations: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        mean, std = self.distribution(observations)
        noise = self.randomness.normal(mean.shape, "act.x_T", like=mean)
        actions = self.density.act(mean, std, noise)
        return actions, {"mean": mean, "std": std, "log_prob": self.density.log_density(actions, mean, std)}

    @override
    def actor_loss(self, batch: RolloutBatch) -> tuple[th.Tensor, Metrics]:
        mean, std = self.distribution(batch.observations)
        log_ratio = self.density.log_density(batch.actions, mean, std) - batch.fields["log_prob"]
        loss, metrics = clipped_surrogate(log_ratio, self.advantages(batch), self.clip)
        with th.no_grad():
            moved = gaussian_divergence(batch.fields["mean"], batch.fields["std"], mean, std).mean()
        entropy = gaussian_entropy(std).mean()
        metrics |= {"approx_kl": moved, "entropy": entropy.detach(), "std": std.detach().mean()}
        return loss - self.ent_coef * entropy, metrics

    @override
    def imitation_error(self, batch: Batch) -> th.Tensor:
        return self.actor.imitation_error(batch.observations, batch.actions)

    @property
    def density(self) -> gaussian.GaussianActor:
        """The actor's network: a Gaussian of every state."""
        return self.actor.network  # type: ignore[return-value]

    def distribution(self, observations: Any) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: Batch of observations
        :return: Mean and standard deviation ``(batch, action_dim)`` of the actions, before a squash
        """
        return self.density(self.actor.encode(observations))  # type: ignore[no-any-return]
