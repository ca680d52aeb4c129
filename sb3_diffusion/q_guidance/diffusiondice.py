"""Diffusion-DICE: a density ratio learned inside of the data guides the behaviour, and critics choose among what it draws."""

from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.behavior.energy_guided import EnergyArguments, EnergyGuided
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.parts import Part, Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, optional, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.values.critic import ObservationCritic
from sb3_diffusion.policies.values.state_value import StateValue

SELECTIONS = ("argmax", "softmax")
LOWEST_ENERGY = -80.0
"""Below, the loss of the energy is a straight line: the exponential of more than its negative would be of no use."""


def dual(u: th.Tensor) -> th.Tensor:
    """
    The function whose derivative is :func:`density_ratio`.

    :param u: Advantages in units of the temperature
    :return: ``u^2 / 4 + u`` where ``u`` is not negative, ``exp(u) - 1`` elsewhere
    """
    # where both are computed, the one that is not taken must stay finite
    return th.where(u >= 0.0, u.square() / 4.0 + u, u.clamp(max=1.0).exp() - 1.0)


def density_ratio(u: th.Tensor) -> th.Tensor:
    """
    How much more likely the optimal policy takes an action than the data.

    :param u: Advantages in units of the temperature
    :return: ``u / 2 + 1`` where ``u`` is not negative, ``exp(u)`` elsewhere
    """
    return th.where(u >= 0.0, u / 2.0 + 1.0, u.clamp(max=1.0).exp())


def log_mean_error(weights: th.Tensor, energies: th.Tensor) -> th.Tensor:
    """
    A loss whose minimum is the logarithm of the mean weight: ``weights * exp(-energies) + energies``, divided by the largest
    exponential of the batch so that it does not overflow.

    :param weights: Positive, broadcast to the energies
    :param energies: What learns the logarithm
    :return: Loss, a scalar
    """
    exponents = (energies - LOWEST_ENERGY).clamp(max=0.0).detach() - energies
    largest = exponents.detach().amax().clamp(min=-1.0)
    return (weights * (exponents - largest).exp() + (-largest).exp() * energies).mean()


class DiffusionDICE(EnergyGuided):
    r"""
    Diffusion-DICE: in-sample diffusion guidance by a stationary distribution correction.

    Q-value guidance with the behaviour policy as reference, in two stages. The actor imitates the data. Then a value of states
    and critics learn, from actions of the data alone, how much more often an optimal policy close to the data takes each of
    them, the density ratio ``w = f'((Q - V) / alpha)``; an energy learns the logarithm of the mean ratio behind a noisy
    action, again from actions of the data alone. Its gradient, added to the score of the behaviour, makes the chain sample the
    data's density times the ratio. Of a few actions that are guided so the critics choose one: guide, then select.

    No action is drawn while it is trained.

    Paper: Mao et al. 2024, Diffusion-DICE: In-Sample Diffusion Guidance for Offline Reinforcement Learning,
    https://arxiv.org/abs/2407.20109

    Differences from the authors' implementation (there is no other): chains are those of DPM-Solver++ (2M) with as many steps,
    whose estimate of the action is clipped to the box (``policy_kwargs={"clip_target": "none"}`` clips their end only);
    ``selection="softmax"`` asks the smaller of both target critics instead of the first; the features of the time enter the
    networks without a layer of their own, and weights start orthogonal, as in all networks of this library.

    :param policy: ``"DiffusionPolicy"`` or a subclass of :class:`~sb3_diffusion.policies.guided.GuidedPolicy`
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks but the actor
    :param alpha: Temperature of the density ratio, in units of Q; smaller is greedier
    :param guidance_scale: Factor of the energy's gradient: 0 imitates the data, 1 is the density ratio's policy, more is
        greedier. It may be changed whenever an action is asked for, without training anew: ``model.guidance_scale = 2.0``, or
        ``with model.policy.guided(2.0): model.predict(...)``
    :param n_noisy: Noisy copies of an action at one diffusion time, from which the energy learns
    :param max_weight: Largest density ratio from which the energy learns
    :param n_selection_critics: Further critics, the mean of which chooses among guided actions; with 0 the smaller target
        critic does
    :param selection: How they choose for ``deterministic=False``: ``"argmax"`` the best, ``"softmax"`` a draw
    :param selection_temperature: Temperature of that draw, in units of Q
    :param n_action_candidates: Guided actions of which they choose the best (``deterministic=True``)
    :param n_behavior_candidates: The same for ``deterministic=False``
    :param batch_size: Transitions per update
    :param value_learning_rate: Learning rate of the value if it differs
    :param weight_decay: Decay of the weights of all networks but the actor
    :param training_updates: Updates of the second stage of ``learn_offline``, relative to ``behavior_updates``
    :param kwargs: See :class:`~sb3_diffusion.core.behavior.energy_guided.EnergyGuided`
    """

    value_lr_schedule = PartSchedule()

    def __init__(  # type: ignore[misc]  # the size of a batch has another default
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        alpha: float = 0.5,
        guidance_scale: float = 4.0,
        n_noisy: int = 16,
        max_weight: float = 100.0,
        n_selection_critics: int = 10,
        selection: str = "argmax",
        selection_temperature: float = 1.0,
        n_action_candidates: int = 8,
        n_behavior_candidates: int = 8,
        batch_size: int = 512,
        value_learning_rate: float | Schedule | None = None,
        weight_decay: float = 1e-4,
        training_updates: int = 1_000_000,
        **kwargs: Unpack[EnergyArguments],
    ):
        self.alpha = real("alpha", alpha, above=0, remedy="smaller is greedier")
        self.n_noisy = integer("n_noisy", n_noisy, low=1)
        self.max_weight = real("max_weight", max_weight, above=0)
        self.n_selection_critics = integer("n_selection_critics", n_selection_critics, low=0)
        self.selection = choice("selection", selection, SELECTIONS)
        greedy = "smaller is greedier"
        self.selection_temperature = real("selection_temperature", selection_temperature, above=0, remedy=greedy)
        self.value_learning_rate = optional(check_schedule, "value_learning_rate", value_learning_rate)
        self.weight_decay = real("weight_decay", weight_decay, low=0)
        self.training_updates = integer("training_updates", training_updates, low=1)
        super().__init__(
            policy,
            env,
            learning_rate,
            guidance_scale=guidance_scale,
            n_action_candidates=n_action_candidates,
            n_behavior_candidates=n_behavior_candidates,
            batch_size=batch_size,
            **kwargs,
        )

    @override
    def policy_requirements(self) -> dict[str, Any]:
        required = super().policy_requirements()
        required["networks"]["value"] = {"kind": "value", "layer_norm": True}
        if self.n_selection_critics:
            required["networks"]["ensemble"] = {"kind": "critic", "n_critics": self.n_selection_critics}
        return required

    @override
    def policy_settings(self) -> dict[str, Any]:
        networks = {"net_arch": {"pi": [512, 256, 128], "qf": [256, 256]}}
        optimizers = {
            "optimizer_class": {"pi": "Adam", "qf": "AdamW"},
            "optimizer_kwargs": {"qf": {"weight_decay": self.weight_decay}},
        }
        critics = {"critics": "ensemble", "reduction": "mean"} if self.n_selection_critics else {"target": True}
        rule = {"rule": self.selection, "temperature": self.selection_temperature, **critics}
        return {**super().policy_settings(), **networks, **optimizers, "selection": rule, "choose_with_target": True}

    @override
    def parts(self) -> Sequence[Part]:
        parts = [Part("value", self.value_loss, self.value), *super().parts()]
        if self.n_selection_critics:
            parts.append(Part("ensemble", self.ensemble_loss, self.ensemble))
        return parts

    @override
    def lr_schedule_of(self, part: str) -> Schedule:
        return super().lr_schedule_of("critic" if part == "ensemble" else part)

    @override
    def stages(self) -> Sequence[Stage]:
        others = tuple(part.name for part in self.parts() if part.name != "actor")
        return [self.behavior_stage(), Stage("training", others, self.training_updates)]

    @property
    def value(self) -> StateValue:
        """The value of states."""
        return self.policy.trained["value"]  # type: ignore[return-value]

    @property
    def ensemble(self) -> ObservationCritic:
        """Critics that only choose."""
        return self.policy.trained["ensemble"]  # type: ignore[return-value]

    # -- the losses ---------------------------------------------------------------------------------------------------

    def advantages(self, batch: Batch, values: th.Tensor) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :param values: Values of their observations ``(batch,)``
        :return: ``(Q - V) / alpha`` at their actions, of the smaller target critic, ``(batch,)``
        """
        with th.no_grad():
            q = self.critic_target.q(batch.actions, self.critic_target.encode(batch.observations)).amin(0)
        return (q - values) / self.alpha

    def value_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        The dual problem of an optimal density ratio, whose mean is one at the minimum.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        values = self.value(batch.observations)
        loss = (dual(self.advantages(batch, values)) + values / self.alpha).mean()
        return loss, {"v_mean": values.detach().mean()}

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        return self.value(batch.next_observations), {}

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        loss, metrics = super().critic_loss(batch)
        return loss * self.critic.n_critics, metrics

    def ensemble_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        The critics' regression, of those that only choose.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """
        with th.no_grad():
            target = batch.rewards + batch.discounts * self.value(batch.next_observations)
        values = self.ensemble.q(batch.actions, self.ensemble.encode(batch.observations))
        return (values - target).square().mean(), {}

    def density_ratios(self, batch: Batch) -> th.Tensor:
        """
        How much more likely the optimal policy takes the actions of a batch than the data.

        :param batch: Batch of transitions
        :return: Ratios up to ``max_weight``, constants, ``(batch,)``
        """
        with th.no_grad():
            ratios = density_ratio(self.advantages(batch, self.value(batch.observations)))
            return ratios.clamp(max=self.max_weight)

    @override
    def energy_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        ratios = self.density_ratios(batch)
        copies = batch.actions.unsqueeze(1).expand(-1, self.n_noisy, -1)
        energies = self.noisy_energies(batch, copies)
        metrics = {"density_ratio": ratios.mean(), "energy": energies.detach().mean()}
        return log_mean_error(ratios.unsqueeze(1), energies), metrics
