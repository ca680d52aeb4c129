"""Methods that imitate the data and guide what they imitate by an energy, whenever an action is asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.algorithm import PartSchedule
from sb3_diffusion.core.arguments.off_policy import CommonArguments
from sb3_diffusion.core.arguments.schedules import check_schedule
from sb3_diffusion.core.guided_acting import ActsGuided
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.parts import Part, Stage
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.numeric import integer, optional, widths
from sb3_diffusion.policies.diffusion import DiffusionPolicy
from sb3_diffusion.policies.guided import GUIDED_POLICIES
from sb3_diffusion.policies.values.energy import Energy


class EnergyArguments(CommonArguments, total=False):
    """What every method with an energy hands on to :class:`EnergyGuided` unchanged."""

    energy_net_arch: Sequence[int]
    energy_learning_rate: float | Schedule | None
    behavior_batch_size: int
    behavior_updates: int
    n_behavior_candidates: int


class EnergyGuided(ActsGuided, OffPolicyDiffusion):
    """
    Base class of the methods that imitate the data by a diffusion, learn an energy of its noisy actions, and add the gradient
    of the energy to the score of the behaviour whenever an action is asked for.

    :param policy: Name or class of the policy
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks but the actor
    :param guidance_scale: Factor of the energy's gradient: 0 imitates the data, 1 is the policy of the method's theory, more
        is greedier. It may be changed whenever an action is asked for, without training anew: ``model.guidance_scale = 2.0``,
        or ``with model.policy.guided(2.0): model.predict(...)``
    :param energy_net_arch: Hidden layers of the energy
    :param actor_learning_rate: Learning rate of the actor
    :param energy_learning_rate: Learning rate of the energy if it differs
    :param n_action_candidates: Guided actions of which the critics choose (``deterministic=True``)
    :param n_behavior_candidates: The same for ``deterministic=False``
    :param behavior_batch_size: Transitions per update in the first stage of ``learn_offline``, which learns the behaviour
    :param behavior_updates: Updates of that stage, relative to those of the others
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**GUIDED_POLICIES}
    energy_lr_schedule = PartSchedule()

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        guidance_scale: float = 1.0,
        energy_net_arch: Sequence[int] = (256, 256, 256, 256),
        actor_learning_rate: float | Schedule | None = 1e-4,
        energy_learning_rate: float | Schedule | None = None,
        n_action_candidates: int = 1,
        n_behavior_candidates: int = 1,
        behavior_batch_size: int = 4096,
        behavior_updates: int = 600_000,
        **kwargs: Unpack[CommonArguments],
    ):
        self.guidance_scale = guidance_scale
        self.energy_net_arch = widths("energy_net_arch", energy_net_arch)
        self.energy_learning_rate = optional(check_schedule, "energy_learning_rate", energy_learning_rate)
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, low=1)
        self.n_behavior_candidates = integer("n_behavior_candidates", n_behavior_candidates, low=1)
        self.behavior_batch_size = integer("behavior_batch_size", behavior_batch_size, low=1)
        self.behavior_updates = integer("behavior_updates", behavior_updates, low=1)
        super().__init__(policy, env, learning_rate, actor_learning_rate=actor_learning_rate, **kwargs)  # type: ignore[misc]

    # -- the policy ---------------------------------------------------------------------------------------------------

    @override
    def policy_requirements(self) -> dict[str, Any]:
        energy = {"kind": "energy", "net_arch": self.energy_net_arch}
        return {"networks": {"energy": energy}, "guide": "energy", "guidance_scale": self.guidance_scale}

    @override
    def policy_settings(self) -> dict[str, Any]:
        behavior = {
            "backbone": {"pi": "unet"},
            "activation_fn": {"pi": "silu", "qf": "relu"},
            "time_embedding": "random",
            "time_dim": 32,
            "state_arch": (32,),
        }
        chain: dict[str, Any] = {"noise_schedule": "linear", "solver": "dpm++2m", "diffusion_steps": 15}
        if self.policy_kwargs.get("process", "continuous") != "continuous":
            chain = {}
        candidates = {
            "n_action_candidates": self.n_action_candidates,
            "n_behavior_candidates": self.n_behavior_candidates,
        }
        return {**behavior, **chain, **candidates}

    @property
    def energy(self) -> Energy:
        """What guides."""
        return self.policy.trained["energy"]  # type: ignore[return-value]

    # -- what is learned ----------------------------------------------------------------------------------------------

    @override
    def parts(self) -> Sequence[Part]:
        return [*super().parts(), Part("energy", self.energy_loss, self.energy)]

    def behavior_stage(self) -> Stage:
        """The first stage, which imitates the data."""
        return Stage("behavior", ("actor",), self.behavior_updates, batch_size=self.behavior_batch_size)

    @override
    def actor_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        context = self.actor.encode(batch.observations)
        return self.actor.denoising_error(batch.actions, context, self.randomness, "actor").sum(-1).mean(), {}

    @abstractmethod
    def energy_loss(self, batch: Batch) -> tuple[th.Tensor, Metrics]:
        """
        Loss of the energy.

        :param batch: Batch of transitions
        :return: Loss, and quantities to log
        """

    def noisy_energies(self, batch: Batch, actions: th.Tensor) -> th.Tensor:
        """
        Energies of actions with noise of one random time per state, which is the same for all actions of the state.

        :param batch: The batch of whose observations they are
        :param actions: Actions ``(batch, n, action_dim)``
        :return: Energies ``(batch, n)``
        """
        t = self.actor.process.sample_time((len(actions), 1), self.randomness, "energy.t", like=actions)
        noise = self.randomness.normal(actions.shape, "energy.eps", like=actions)
        noisy = self.actor.process.add_noise(actions, t.unsqueeze(1), noise)
        context = self.energy.encode(batch.observations) + self.energy.encode_time(t)
        return self.energy(noisy, context)  # type: ignore[no-any-return]
