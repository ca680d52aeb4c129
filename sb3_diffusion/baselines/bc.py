"""Behaviour cloning: a diffusion policy that imitates the data, whatever it was worth."""

from collections.abc import Sequence
from typing import Any

import torch as th
from typing_extensions import override

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.parts import Part
from sb3_diffusion.data.batch import Batch

IMITATED = ("noise", "velocity")
"""Predictions that are trained by a regression onto one noisy version of an action."""


class BC(OffPolicyDiffusion):
    r"""
    Behaviour Cloning (BC) with a diffusion or flow policy.

    The yardstick of the offline methods, and where fine-tuning and steering start: the denoiser learns the distribution of the
    data's actions. There are no critics; nothing looks at rewards.

    The diffusion policy as an imitator is that of D-QL without its value: Wang et al. 2022, Diffusion Policies as an
    Expressive Policy Class for Offline Reinforcement Learning, https://arxiv.org/abs/2208.06193

    Differences from the reference implementation: the process is continuous in time unless ``process="discrete"`` asks for a
    table; ``process="flow"`` clones by flow matching.

    Of the arguments below those of the critics (``tau``, ``gamma``, ``n_steps``, ``critic_learning_rate``, ``policy_delay``)
    are without effect.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"critics": False}

    @override
    def parts(self) -> Sequence[Part]:
        return [Part("actor", self.actor_loss, self.actor)]

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        return self.actor.denoising_error(batch.actions, context, self.randomness, "actor").mean(), {}

    @override
    def _check_prediction(self) -> None:
        if self.policy.actor.process.prediction not in IMITATED:
            super()._check_prediction()
