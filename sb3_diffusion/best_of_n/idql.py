"""IDQL: a diffusion policy imitates the data, and critics of implicit Q-learning choose among what it draws."""

from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.critics.in_sample import InSampleArguments, InSampleCritics
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.core.update.parts import Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy

CLIPPED = {"x0": "x0", "xt": "state"}
"""Value of ``clip`` -> what the policy calls it."""
BEHAVIORS = ("argmax", "implicit")


class IDQL(InSampleCritics):
    r"""
    Implicit Diffusion Q-Learning (IDQL).

    Best of N with the behaviour policy as reference: the actor imitates the data and never hears of values; the critics are
    those of implicit Q-learning and never hear of the actor. Both meet when an action is asked for, which is the best of
    ``n_action_candidates`` imitated ones. One candidate is behaviour cloning; many exploit the critics' errors.

    Paper: Hansen-Estruch et al. 2023, IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies,
    https://arxiv.org/abs/2304.10573

    Differences from the authors' implementation (there is no other): the estimate of the clean action is clipped instead of
    the noisy action, which the first steps leave anyway (``clip="xt"`` is theirs); times count from 1; the last layer of the
    time network is activated, and weights start orthogonal, as in all networks of this library; all of the data is
    learned from.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of actor, value and critics
    :param batch_size: Transitions per update
    :param n_action_candidates: Imitated actions of which the target critics choose the best (``deterministic=True``)
    :param n_behavior_candidates: The same for ``deterministic=False``
    :param behavior: How they choose for ``deterministic=False``: ``"argmax"`` the best, or ``"implicit"`` a draw in which an
        action better than the value of the state counts ``expectile``, another one ``1 - expectile``
    :param actor_tau: Rate of the averaged actor, which is the one that acts
    :param weight_decay: Decay of the actor's weights
    :param value_input_norm: Whether the state value sees its observations through a layer norm, as the authors' does. It takes
        two dimensions away, a vector's mean and its size, which is much of an observation of three numbers
    :param clip: What the chain clips to the box at every step: ``"x0"`` or ``"xt"``
    :param actor_updates: Updates of the actor in ``learn_offline``, relative to ``critic_updates``
    :param critic_updates: Updates of value and critics; where both are equal, all is trained at once, otherwise the critics
        come first
    :param kwargs: See :class:`~sb3_diffusion.core.critics.in_sample.InSampleCritics`
    """

    def __init__(  # type: ignore[misc]  # the size of a batch has another default
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        batch_size: int = 512,
        n_action_candidates: int = 64,
        n_behavior_candidates: int = 64,
        behavior: str = "argmax",
        actor_tau: float = 0.001,
        weight_decay: float = 1e-4,
        value_input_norm: bool = True,
        clip: str = "x0",
        actor_updates: int = 3_000_000,
        critic_updates: int = 3_000_000,
        **kwargs: Unpack[InSampleArguments],
    ):
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        self.n_behavior_candidates = integer("n_behavior_candidates", n_behavior_candidates, low=1)
        self.behavior = choice("behavior", behavior, BEHAVIORS)
        self.actor_tau = real("actor_tau", actor_tau, 0, 1, remedy="1 lets the trained actor act")
        self.weight_decay = real("weight_decay", weight_decay, low=0)
        self.value_input_norm = value_input_norm
        self.clip = choice("clip", clip, CLIPPED)
        self.actor_updates = integer("actor_updates", actor_updates, low=1)
        self.critic_updates = integer("critic_updates", critic_updates, low=1)
        super().__init__(policy, env, learning_rate, batch_size=batch_size, **kwargs)  # type: ignore[misc]

    @override
    def policy_requirements(self) -> dict[str, Any]:
        value = {"kind": "value", "input_norm": self.value_input_norm}
        return {"networks": {"value": value}, "actor_target": True, "acting": "actor_target"}

    @override
    def policy_settings(self) -> dict[str, Any]:
        actor = {
            "net_arch": {"pi": [256, 256, 256], "qf": [256, 256]},
            "backbone": {"pi": "residual"},
            "layer_norm": {"pi": True},
            "activation_fn": {"pi": "silu"},
            "dropout": 0.1,
            "time_dim": 128,
            "time_arch": (256, 256),
            "state_arch": (),
        }
        chain: dict[str, Any] = {"process": "discrete", "noise_schedule": "vp", "diffusion_steps": 5}
        if self.policy_kwargs.get("process", "discrete") != "discrete":
            chain = {}
        optimizers = {
            "optimizer_class": {"pi": "AdamW", "qf": "Adam"},
            "optimizer_kwargs": {"pi": {"weight_decay": self.weight_decay}},
        }
        rule = "expectile" if self.behavior == "implicit" else "argmax"
        acting = {
            "n_action_candidates": self.n_action_candidates,
            "n_behavior_candidates": self.n_behavior_candidates,
            "choose_with_target": True,
            "selection": {"rule": rule, "expectile": self.expectile, "target": True},
        }
        return {**actor, **chain, "clip_target": CLIPPED[self.clip], **optimizers, **acting}

    @override
    def stages(self) -> Sequence[Stage]:
        if self.actor_updates == self.critic_updates:
            return super().stages()
        return [
            Stage("critic", ("value", "critic"), self.critic_updates),
            Stage("behavior", ("actor",), self.actor_updates),
        ]

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        return self.actor.denoising_error(batch.actions, context, self.randomness, "actor").sum(-1).mean(), {}

    @override
    def update_targets(self) -> None:
        super().update_targets()
        assert self.actor_target is not None
        polyak_update(self.actor_target, self.actor, self.actor_tau)
