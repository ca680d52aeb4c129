"""SfBC: a diffusion policy imitates the data, a critic learns what was best in it, and chooses among imitated actions."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.behavior.support import DrawsSupport, SupportArguments, in_support_values
from sb3_diffusion.core.reporting.metrics import Metrics, saturation
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.core.update.parts import Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.normalization import normalize_rewards
from sb3_diffusion.data.planning import LABEL_RULES, planned_returns
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.parts import is_frozen
from sb3_diffusion.policies.values.critic import ObservationCritic

SMALLEST_SPREAD = 0.1
"""Least standard deviation by which returns are divided."""


class SfBC(DrawsSupport):
    r"""
    Selecting from Behaviour Candidates (SfBC).

    Best of N with the behaviour policy as reference, in stages. The actor imitates the data. Then a critic regresses onto
    returns: first those of the data; then, at every iteration, returns in which at each step the value of the state takes the
    place of what followed if it is better. That value is a softmax average of the critic over actions that the actor draws, so
    no action outside of the data's distribution is ever asked for. To act, ``n_action_candidates`` are drawn, of which the
    critic chooses.

    Learning online, the critic bootstraps from the same value of the next state, for which actions are drawn anew.

    Paper: Chen et al. 2022, Offline Reinforcement Learning via High-Fidelity Generative Behavior Modeling,
    https://arxiv.org/abs/2209.14548

    Differences from the authors' implementation (there is no other): labels follow the paper (``label_rule="official"`` is
    the code's); chains are those of DPM-Solver++ (2M) with as many steps, whose estimate of the action is clipped to the box
    (``policy_kwargs={"clip_target": "none"}`` clips their end only); the code draws four candidates by scores that leave
    hardly any but the best four, here it is these; the features of the time enter the embedding without a layer of their
    own, and weights start orthogonal, as in all networks of this library.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of the actor
    :param critic_learning_rate: Learning rate of the critic
    :param batch_size: Transitions per update
    :param n_iterations: Iterations of the critic; one learns the returns of the data
    :param inverse_temperature: Of the softmax whose average is the value of a state, per standard deviation of the returns
    :param label_rule: How values take the place of what followed: ``"paper"`` or ``"official"``, see
        :func:`~sb3_diffusion.data.planning.planned_returns`
    :param reset_critic: Whether the critic begins anew at every iteration
    :param n_action_candidates: Imitated actions of which the critic chooses (``deterministic=True``)
    :param n_behavior_candidates: The same for ``deterministic=False``
    :param n_averaged: Of how many of the best the mean is taken; where good actions differ, 1 does not mix them
    :param behavior_updates: Updates of the actor in ``learn_offline``, relative to ``critic_updates``
    :param critic_updates: Updates of the critic, all iterations together
    :param kwargs: See :class:`~sb3_diffusion.core.behavior.support.DrawsSupport`
    """

    support_in_batches = False

    def __init__(  # type: ignore[misc]  # the size of a batch and the critic's rate have other defaults
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-4,
        *,
        critic_learning_rate: float | Schedule | None = 1e-3,
        batch_size: int = 4096,
        n_iterations: int = 2,
        inverse_temperature: float = 20.0,
        label_rule: str = "paper",
        reset_critic: bool = True,
        n_action_candidates: int = 32,
        n_behavior_candidates: int = 32,
        n_averaged: int = 4,
        behavior_updates: int = 600_000,
        critic_updates: int = 48_000,
        **kwargs: Unpack[SupportArguments],
    ):
        self.n_iterations = integer("n_iterations", n_iterations, low=1, remedy="1 learns the returns of the data")
        self.inverse_temperature = real("inverse_temperature", inverse_temperature, low=0, remedy="0 is the mean")
        self.label_rule = choice("label_rule", label_rule, LABEL_RULES)
        self.reset_critic = reset_critic
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        self.n_behavior_candidates = integer("n_behavior_candidates", n_behavior_candidates, low=1)
        self.n_averaged = integer("n_averaged", n_averaged, low=1)
        self.behavior_updates = integer("behavior_updates", behavior_updates, low=1)
        self.critic_updates = integer("critic_updates", critic_updates, low=1)
        own = {"critic_learning_rate": critic_learning_rate, "batch_size": batch_size}
        super().__init__(policy, env, learning_rate, **own, **kwargs)  # type: ignore[arg-type, misc]

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"critic_head": "standardized"}

    @override
    def policy_settings(self) -> dict[str, Any]:
        networks = {
            "net_arch": {"pi": [512, 256, 128], "qf": [256, 256]},
            "backbone": {"pi": "unet"},
            "activation_fn": "silu",
            "time_embedding": "random",
            "time_dim": 32,
            "state_arch": (32,),
            "n_critics": 1,
        }
        chain: dict[str, Any] = {"noise_schedule": "linear", "solver": "dpm++2m", "diffusion_steps": 15}
        if self.policy_kwargs.get("process", "continuous") != "continuous":
            chain = {}
        acting = {
            "n_action_candidates": self.n_action_candidates,
            "n_behavior_candidates": self.n_behavior_candidates,
            "selection": {"rule": "topk_mean", "top": self.n_averaged},
        }
        return {**networks, **chain, **acting}

    @override
    def stages(self) -> Sequence[Stage]:
        bounds = [round(self.critic_updates * k / self.n_iterations) for k in range(self.n_iterations + 1)]
        iterations = [
            Stage(f"critic {k + 1}", ("critic",), bounds[k + 1] - bounds[k], partial(self.prepare_labels, k))
            for k in range(self.n_iterations)
        ]
        return [Stage("behavior", ("actor",), self.behavior_updates), *iterations]

    # -- the losses ---------------------------------------------------------------------------------------------------

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        return self.actor.denoising_error(batch.actions, context, self.randomness, "actor").sum(-1).mean(), {}

    @override
    def critic_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        labels = batch.extras.get("labels")
        metrics: Metrics = {}
        if labels is None:
            with th.no_grad():
                next_values, metrics = self.next_values(batch)
                labels = batch.rewards + batch.discounts * next_values
        values = self.critic.q(batch.actions, self.critic.encode(batch.observations))
        error = (values - labels) / self.critic.ensemble.running_std
        return error.square().mean(), {"q_mean": values.detach().mean(), **metrics}

    @override
    def next_values(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        actions = self.next_support(batch)
        return self.state_values(self.critic_target, batch.next_observations, actions), saturation(actions)

    def state_values(self, critic: ObservationCritic, observations: Any, actions: th.Tensor) -> th.Tensor:
        """
        What the best imitated actions of a state are worth.

        :param critic: The critic
        :param observations: Batch of observations
        :param actions: Imitated actions ``(batch, n_support, action_dim)``
        :return: ``sum_j softmax_j(inverse_temperature Q_j / std) Q_j``, ``(batch,)``
        """
        values = critic.q(actions, critic.encode(observations)).mean(0)
        return in_support_values(values, self.inverse_temperature / critic.ensemble.running_std)

    # -- learning from data -------------------------------------------------------------------------------------------

    @th.no_grad()
    def prepare_labels(self, iteration: int) -> None:
        """
        Make the labels of an iteration of the critic. The critic of the iteration before is kept as its target, so that an
        interrupted iteration finds the same labels.

        :param iteration: Number of the iteration, from 0
        """
        data, values = self._data_sampler().dataset, None
        begins = self._stage_updates == 0
        if begins:
            self.critic_target.load_state_dict(self.critic.state_dict())
        if iteration > 0:
            values = self._support_values()
        assert self._transform is not None
        rewards = normalize_rewards(self._transform(data.rewards), self._vec_normalize_env)
        labels = planned_returns(data, rewards, self.gamma, values, self.label_rule)
        if begins:
            if self.reset_critic and iteration > 0:
                self.policy.begin_critics_anew()
            if not is_frozen(self.critic.ensemble):
                self.critic.ensemble.standardize(labels, SMALLEST_SPREAD)
        self.prepared = {"labels": labels}

    def _support_values(self) -> th.Tensor:
        """Values of all states of the data under the critic of the iteration before."""
        actions = self.draw_support()
        self.policy.set_training_mode(False)
        pieces = self.pieces_of_states("values of the data")
        found = [
            self.state_values(self.critic_target, observations, actions[rows].to(self.device)) for rows, observations in pieces
        ]
        return th.cat(found)

    @override
    def update_targets(self) -> None:
        """Nothing: see :meth:`after_update`."""

    @override
    def after_update(self, batch: Batch) -> Metrics:
        if "labels" not in batch.extras:  # while labels are learned the target keeps the iteration before
            polyak_update(self.critic_target, self.critic, self.tau)
        return {}
