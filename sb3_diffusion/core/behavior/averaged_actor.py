"""An actor that imitates data, with a slow average of it that supplies the next actions of the critics' targets."""

from typing import Any

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy


class AveragedActorArguments(OffPolicyArguments, total=False):
    """What every method with such an actor hands on to :class:`AveragedActor` unchanged."""

    actor_tau: float
    actor_target_interval: int
    actor_target_start: int
    policy_delay: int


class AveragedActor(OffPolicyDiffusion):
    """
    Base class of the methods whose averaged actor begins late and moves now and then.

    :param policy: ``"DiffusionPolicy"`` or a subclass of it
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks
    :param actor_tau: Rate of the averaged actor: ``average = actor_tau * actor + (1 - actor_tau) * average``
    :param actor_target_interval: Updates between two steps of the average
    :param actor_target_start: Updates before its first step; until then it is the initial actor
    :param policy_delay: Update the actor every ``policy_delay`` updates of the critics
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        actor_tau: float = 0.005,
        actor_target_interval: int = 5,
        actor_target_start: int = 1000,
        policy_delay: int = 1,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.actor_tau = real("actor_tau", actor_tau, 0, 1, remedy="1 copies the actor")
        self.actor_target_interval = integer("actor_target_interval", actor_target_interval, low=1)
        self.actor_target_start = integer("actor_target_start", actor_target_start, low=0)
        super().__init__(policy, env, learning_rate, policy_delay=policy_delay, **kwargs)

    @override
    def policy_requirements(self) -> dict[str, Any]:
        return {"actor_target": True}

    def fitting_chain(self, chain: dict[str, Any]) -> dict[str, Any]:
        """
        :param chain: Preferred arguments of the policy that make a chain of discrete steps
        :return: Those that have a meaning for the process that the user has chosen
        """
        if self.policy_kwargs.get("process", "discrete") == "discrete":
            return chain
        return {name: value for name, value in chain.items() if name not in ("noise_schedule", "process_kwargs")}

    @property
    def averaged_actor(self) -> DiffusionActor:
        """The actor of the critics' targets."""
        assert self.actor_target is not None
        return self.actor_target

    @override
    def after_update(self, batch: Batch) -> Metrics:
        # not in update_targets(): a CUDA graph would repeat what it has seen once
        if self._n_updates >= self.actor_target_start and self._n_updates % self.actor_target_interval == 0:
            polyak_update(self.averaged_actor, self.actor, self.actor_tau)
        return {}
