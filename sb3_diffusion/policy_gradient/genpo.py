"""GenPO: a flow on doubled actions that can be inverted, and with it PPO on an exact density."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.on_policy import CommonArguments
from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.core.ratios.surrogate import clipped_surrogate
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.data.rollout import RolloutBatch
from sb3_diffusion.generative.coupled_flow import CoupledSampler
from sb3_diffusion.generative.process import Denoise
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy


class GenPO(OnPolicyDiffusion):
    r"""
    Generative diffusion policies with PPO (GenPO): a flow that can be inverted has a density.

    The policy draws an action twice, as two halves :math:`x = (z, y)`; what is executed is their mean, and users see nothing
    else. Noise becomes :math:`x` by ``T`` steps that change one half by a velocity of the other and then mix both with a
    coefficient ``p``; every line of that can be inverted, see :class:`~sb3_diffusion.generative.coupled_flow.CoupledFlow`. So
    the density of :math:`x` is known, and PPO can do what it does:

    .. math:: \log \pi(x | s) = \log \mathcal{N}(F^{-1}(x; s); 0, I) - 2 d T \log p, \qquad
        L = -\mathrm{mean}\,\min(\rho A,\ \mathrm{clip}(\rho) A) + c\,\mathrm{mean} \log \pi + \nu\,\mathrm{mean} |z - y|

    with :math:`\rho = \pi(x | s) / \pi_{\mathrm{old}}(x | s)` and, in the last term, halves of fresh samples. Only the mixing
    changes volumes, by a constant: the determinant, for which paper and reference differentiate through the whole map, costs
    nothing here. It follows that the entropy of :math:`x` is the same for every policy, and that the bonus for it
    (``ent_coef``) has no gradient in the mean. What the policy can do is to trade: its actions become more certain where the
    halves move apart. So ``compression_coef``, which draws the halves together, keeps exploration up.

    Paper: Ding et al. 2025, GenPO: Generative Diffusion Models Meet On-Policy Reinforcement Learning,
    https://arxiv.org/abs/2505.18763

    Differences from the reference implementation: the density of the policy that acted is that of the inverse as well,
    computed when the rollout is complete, so that ratios begin at one; learning rates are adapted before the step that the
    divergence belongs to, as in the authors' code, not behind it; every epoch sees the whole rollout. The last layer begins
    near zero (``policy_kwargs=dict(output_gain=2**0.5)`` for the reference's). In the paper's runs the first half was executed
    (``executed="first"``). The authors have one optimizer for both networks, and their evaluation draws noise.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it, or SB3's names, which stand for it with their features extractor
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param mixing: The coefficient ``p`` in (0.5, 1], the same in every step; 1 never mixes the halves
    :param ent_coef: Weight ``c`` of the mean log-density
    :param compression_coef: Weight of the distance of the halves
    :param executed: What of a doubled action is executed: the ``"mean"`` of its halves, or the ``"first"``
    :param n_epochs: Passes over a rollout
    :param clip_range: How far ratios may be from one; a float, or a function of the remaining progress
    :param value_learning_rate: Learning rate of the value; ``None`` for that of the actor
    :param desired_kl: Divergence to which both learning rates are adapted before every step of the actor; ``None`` for rates
        that go by their schedules
    :param kwargs: See :class:`~sb3_diffusion.core.on_policy.OnPolicyDiffusion`
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "flowrl_paper": {
            "mixing": 0.9,
            "ent_coef": 0.002,
            "executed": "first",
            "desired_kl": None,
            "policy_kwargs": {"output_gain": 2.0**0.5},
        },
        "flowrl_code": {"policy_kwargs": {"output_gain": 2.0**0.5}},
    }
    prediction = "coupled velocity"
    actor: DiffusionActor

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        mixing: float = 0.95,
        ent_coef: float = 0.0,
        compression_coef: float = 0.01,
        executed: str = "mean",
        n_epochs: int = 5,
        clip_range: float | Schedule = 0.2,
        value_learning_rate: float | Schedule | None = 1e-3,
        desired_kl: float | None = 0.01,
        **kwargs: Unpack[CommonArguments],
    ):
        self.mixing = mixing
        self.compression_coef = real("compression_coef", compression_coef, low=0, remedy="0 lets the halves go")
        self.executed = executed
        real("ent_coef", ent_coef, low=0, remedy="0 is for no bonus")
        super().__init__(
            policy,
            env,
            learning_rate,
            n_epochs=n_epochs,
            clip_range=clip_range,
            value_learning_rate=value_learning_rate,
            desired_kl=desired_kl,
            **kwargs,
        )
        self.ent_coef = ent_coef

    @override
    def policy_requirements(self) -> dict[str, Any]:
        coupled = {"process": "coupled", "process_kwargs": {"mixing": self.mixing}}
        return {**super().policy_requirements(), **coupled, "sampler_kwargs": {"executed": self.executed}}

    @override
    def policy_settings(self) -> dict[str, Any]:
        networks = {"net_arch": [256, 256, 256], "activation_fn": "elu", "state_arch": (), "output_gain": 0.01}
        times = {"time_embedding": "fourier", "time_dim": 32, "time_activation": "mish"}
        return {**networks, **times, "diffusion_steps": 5}

    @property
    def sampler(self) -> CoupledSampler:
        """What draws doubled actions and knows their density."""
        return self.actor.acting_chain  # type: ignore[no-any-return]

    @override
    def act(self, observations: Any) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        context = self.actor.encode(observations)
        doubled = self._draw(context, "act")
        return self.sampler.action(doubled), {"doubled": doubled}

    @override
    def remember(self, batch: RolloutBatch) -> dict[str, th.Tensor]:
        context = self.actor.encode(batch.observations)
        return {"log_prob": self.sampler.flow.log_prob(self._velocity(context), batch.fields["doubled"])}

    @override
    def actor_loss(self, batch: RolloutBatch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        log_prob = self.sampler.flow.log_prob(self._velocity(context), batch.fields["doubled"])
        log_ratio = log_prob - batch.fields["log_prob"]
        loss, metrics = clipped_surrogate(log_ratio, self.advantages(batch), self.clip)
        metrics |= {"approx_kl": -log_ratio.detach().mean(), "log_prob": log_prob.detach().mean()}
        if self.ent_coef:
            loss = loss + self.ent_coef * log_prob.mean()
        if self.compression_coef:
            z, y = self._draw(context, "compress").chunk(2, dim=-1)
            distance = ((z - y).square().sum(-1) + 1e-8).sqrt().mean()
            loss = loss + self.compression_coef * distance
            metrics["distance_of_halves"] = distance.detach()
        return loss, metrics

    def _velocity(self, context: th.Tensor) -> Denoise:
        return self.actor.bind(context, self.sampler.times)

    def _draw(self, context: th.Tensor, label: str) -> th.Tensor:
        """Doubled actions, one for each observation."""
        shape = len(context), self.actor.action_dim
        return self.sampler.draw(self._velocity(context), shape, self.randomness, label)
