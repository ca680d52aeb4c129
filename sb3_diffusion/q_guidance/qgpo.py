"""QGPO: the energy of every noisy action is learned by contrast between imitated actions, and guides the behaviour."""

from collections.abc import Sequence
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.behavior.energy_guided import EnergyArguments, EnergyGuided
from sb3_diffusion.core.behavior.support import DrawsSupport, in_support_values
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.parts import Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy

VALUES = "support_values"
"""Name of the values of support actions among a batch's ``extras``."""


class QGPO(EnergyGuided, DrawsSupport):
    r"""
    Q-Guided Policy Optimization (QGPO), by contrastive energy prediction.

    Q-value guidance with the behaviour policy as reference, in three stages. The actor imitates the data, and draws
    ``n_support`` actions for every state. Critics learn with the softmax average over these as the value of the next state.
    Noise of one level is added to the actions of a state, and an energy learns to tell which of them are good: which softmax
    over them ``exp(beta Q)`` is. Its optimum is the logarithm of the mean of ``exp(beta Q)`` behind a noisy action, up to a
    number per state and time, so that its gradient, added to the score of the behaviour, leads to exactly the data's density
    times ``exp(beta Q)``.

    When the critics are learned the values of all support actions are computed once, and the energy goes on alone.

    Paper: Lu et al. 2023, Contrastive Energy Prediction for Exact Energy-Guided Diffusion Sampling in Offline Reinforcement
    Learning, https://arxiv.org/abs/2304.12824

    Differences from the authors' implementation (there is no other): chains are those of DPM-Solver++ (2M) with as many steps,
    whose estimate of the action is clipped to the box (``policy_kwargs={"clip_target": "none"}`` clips their end only); the
    features of the time enter the networks without a layer of their own, and weights start orthogonal, as in all networks of
    this library.

    :param policy: ``"DiffusionPolicy"`` or a subclass of :class:`~sb3_diffusion.policies.guided.GuidedPolicy`
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of critics and energy
    :param beta: Inverse temperature of the policy, per unit of Q; 0 imitates the data, larger is greedier
    :param inverse_temperature: Of the softmax whose average is the value of a state, per unit of Q
    :param guidance_scale: Factor of the energy's gradient: 0 imitates the data, 1 is the policy of ``beta``, more is greedier.
        It may be changed whenever an action is asked for, without training anew: ``model.guidance_scale = 2.0``, or
        ``with model.policy.guided(2.0): model.predict(...)``
    :param n_support: Actions drawn for every state of the data
    :param support_folder: Folder in which to keep these, see :class:`~sb3_diffusion.core.behavior.support.DrawsSupport`
    :param critic_updates: Updates of critics and energy in ``learn_offline``, relative to ``behavior_updates``
    :param energy_updates: Updates of the energy alone that follow
    :param kwargs: See :class:`~sb3_diffusion.core.behavior.energy_guided.EnergyGuided`
    """

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        beta: float = 3.0,
        inverse_temperature: float = 1.0,
        guidance_scale: float = 1.0,
        n_support: int = 16,
        support_folder: str | None = None,
        critic_updates: int = 500_000,
        energy_updates: int = 500_000,
        **kwargs: Unpack[EnergyArguments],
    ):
        self.beta = real("beta", beta, low=0, remedy="0 imitates the data, larger is greedier")
        self.inverse_temperature = real("inverse_temperature", inverse_temperature, low=0, remedy="0 is the mean")
        self.critic_updates = integer("critic_updates", critic_updates, low=1)
        self.energy_updates = integer("energy_updates", energy_updates, low=1)
        support: Any = {"n_support": n_support, "support_folder": support_folder}
        super().__init__(policy, env, learning_rate, guidance_scale=guidance_scale, **support, **kwargs)

    @override
    def policy_settings(self) -> dict[str, Any]:
        return {**super().policy_settings(), "net_arch": {"pi": [512, 256, 128], "qf": [256, 256, 256]}}

    @override
    def stages(self) -> Sequence[Stage]:
        return [
            self.behavior_stage(),
            Stage("critic", ("critic", "energy"), self.critic_updates, self.draw_support),
            Stage("energy", ("energy",), self.energy_updates, self.value_support),
        ]

    # -- the losses ---------------------------------------------------------------------------------------------------

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        actions = self.next_support(batch)
        values = self.target_values(batch.next_observations, actions)
        return in_support_values(values, self.inverse_temperature), saturation(actions)

    def target_values(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: Batch of observations
        :param actions: Actions ``(batch, n, action_dim)``
        :return: Values of the smaller target critic ``(batch, n)``
        """
        return self.critic_target.q(actions, self.critic_target.encode(observations)).amin(0)

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        loss, metrics = super().critic_loss(batch)
        return 0.5 * self.critic.n_critics * loss, metrics

    @override
    def energy_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        actions, values = self.support(batch), batch.extras.get(VALUES)
        if values is None:
            with th.no_grad():
                values = self.target_values(batch.observations, actions)
        energies = self.noisy_energies(batch, actions)
        error = -(th.softmax(self.beta * values, 1) * th.log_softmax(energies, 1)).sum(1).mean()
        return error, {"support_q_mean": values.mean(), "support_q_std": values.std(1, correction=0).mean()}

    @override
    def finish_update(self, metrics: Metrics) -> Metrics:
        # where the energy is learned alone, what it learns from stays as it is
        return super().finish_update(metrics) if "critic_loss" in metrics else {}

    # -- learning from data -------------------------------------------------------------------------------------------

    @th.no_grad()
    def value_support(self) -> None:
        """Compute the values of the support actions of all states, once the critics are learned."""
        actions = self.draw_support()
        self.policy.set_training_mode(False)
        values = th.empty(actions.shape[:2], device=self.device)
        for rows, observations in self.pieces_of_states("values of the data"):
            values[rows] = self.target_values(observations, actions[rows].to(self.device))
        self.state_tables[VALUES] = values
