"""What every algorithm has: what it asks of its policy, the parts that it trains, and their learning rates."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from typing_extensions import override

from sb3_diffusion.core.arguments.algorithm import check_policy_kwargs, check_switches
from sb3_diffusion.core.arguments.schedules import check_schedule, scheduled
from sb3_diffusion.core.reporting.metrics import Metrics
from sb3_diffusion.core.saving import SavedAlgorithm
from sb3_diffusion.core.surroundings import check_surroundings
from sb3_diffusion.core.update.execution import make_update
from sb3_diffusion.core.update.in_place import set_learning_rate
from sb3_diffusion.core.update.parts import Part, due_parts
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.envs.spaces import check_action_space, check_observation_space
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.actor_critic import ActorCritic
from sb3_diffusion.policies.gaussian import GAUSSIAN_POLICIES
from sb3_diffusion.policies.names import POLICIES
from sb3_diffusion.signature import complete_signature

_GENERAL_NAMES = {*POLICIES, *GAUSSIAN_POLICIES}


class PartSchedule:
    """
    Attribute ``<part>_lr_schedule`` of an algorithm: the learning rate of one part as a function of the remaining progress.
    It is what was assigned to it, else made of the argument ``<part>_learning_rate``, else ``lr_schedule``. All of them are
    looked up at every call, since callbacks replace each of them.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.part = name.removesuffix("_lr_schedule")

    def __get__(self, model: "DiffusionAlgorithm | None", owner: type) -> Any:
        return self if model is None else model.lr_schedule_of(self.part)

    def __set__(self, model: "DiffusionAlgorithm", schedule: Schedule) -> None:
        model._own_lr_schedules[self.part] = schedule


class DiffusionAlgorithm(SavedAlgorithm):
    """
    What all algorithms have in common, whatever they learn from; a base class beside one of Stable-Baselines3's.

    A method says what it asks of the policy (:meth:`policy_requirements`, :meth:`policy_settings`) and what it trains
    (:meth:`parts`). Optimizers, learning rates, saved members, compiled losses and CUDA graphs follow from the parts.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES
    """What ``policy`` may be called; a class has to be the first of these, or derive from it."""
    policy: ActorCritic
    policy_class: Any
    prediction: str = "noise"
    """What the actor's network has to predict for the method's losses (``prediction`` of the process)."""
    max_grad_norm: float | None
    execution: str
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings of others by name; those of a subclass come on top, see :meth:`preset`."""
    actor_lr_schedule = PartSchedule()
    critic_lr_schedule = PartSchedule()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """
        Show the complete constructor in ``help()``, editors and the documentation, not ``**kwargs``. The order is
        Stable-Baselines3's, with the method's own arguments between ``n_steps`` and the rest.
        """
        super().__init_subclass__(**kwargs)
        ours = (base for base in cls.__mro__[1:] if issubclass(base, DiffusionAlgorithm))
        parent = next((base for base in ours if "__init__" in vars(base)), None)
        if parent is not None:
            cls.__signature__ = complete_signature(cls.__init__, parent, behind="n_steps")  # type: ignore[attr-defined]

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        """
        Arguments that reproduce the settings of others: ``DPPO("DiffusionPolicy", env, **DPPO.preset("flowrl_paper"))``.

        :param name: ``"flowrl_paper"``, the text of the FlowRL paper of March 2026 and its on-policy runs; what else there is,
            the page of the method says
        :return: Arguments of the constructor; those of the policy are its ``policy_kwargs``
        :raises ValueError: If there is no such preset
        """
        tables = [vars(base)["presets"] for base in reversed(cls.__mro__) if "presets" in vars(base)]
        known = dict.fromkeys(key for table in tables for key in table)
        if not known:
            raise ValueError(f"{cls.__name__} has no presets; leave it out.")
        choice("name", name, known)
        return {key: value for table in tables for key, value in table.get(name, {}).items()}

    # -- what a method supplies --------------------------------------------------------------------------------------

    def policy_requirements(self) -> dict[str, Any]:
        """
        Arguments of the policy without which the method's losses have no meaning, such as ``critic_head`` or ``multipliers``.
        ``policy_kwargs`` cannot override them.
        """
        return {}

    def policy_settings(self) -> dict[str, Any]:
        """Arguments of the policy that the method prefers; ``policy_kwargs`` override them."""
        return {}

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """What is trained, in the order of the update."""

    def adapt_multipliers(self, metrics: Metrics) -> Metrics:
        """
        Adapt learned numbers at the end of an update; part of compiled updates and CUDA graphs.

        :param metrics: Quantities of the update; those of a part are missing where it was not due
        :return: Further quantities to log
        """
        return {}

    def update_targets(self) -> None:
        """Move the copies of networks that lag behind, at the end of an update."""

    def after_update(self, batch: Batch) -> Metrics:
        """
        What happens after the update, outside compiled code and CUDA graphs (e.g. rare temperature updates).

        :param batch: Batch of transitions
        :return: Quantities to log
        """
        return {}

    def review(self, means: dict[str, float]) -> None:
        """
        Look at the logged quantities after a call of :meth:`train`, e.g. to warn of settings that do not fit.

        :param means: Mean of every quantity over the updates of the call
        """

    def limit_gradients(self, part: Part) -> None:
        """
        Clip the gradients before a step.

        :param part: What was differentiated
        """
        if self.max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(part.parameters, self.max_grad_norm)

    # -- the update -------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, among: Sequence[str] | None = None) -> Metrics:
        """
        Count an update and perform it.

        :param batch: Batch of transitions
        :param among: Names of the parts that may be trained, ``None`` for all
        :return: Quantities to log, as detached scalar tensors
        """
        self._n_updates += 1
        due = due_parts(self.parts(), self._n_updates)
        metrics = self._run_update(batch, due if among is None else tuple(name for name in due if name in among))
        return {**metrics, **self.after_update(batch)}

    def step(self, part: Part, loss: th.Tensor) -> None:
        """
        One step of a part's optimizer. What is frozen (``requires_grad_(False)``) stays where it is.

        :param part: What is trained
        :param loss: Its loss, a scalar
        """
        # optimizers pass over what has no gradient: decay and momentum leave frozen parameters where they are
        part.optimizer.zero_grad(set_to_none=True)
        parameters = part.parameters
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if len(trained) < len(parameters) and not (trained and loss.requires_grad):
            return
        # restricting the inputs keeps every other network free of gradients, and saves computing them
        loss.backward(inputs=trained)
        self.limit_gradients(part)
        part.optimizer.step()

    def finish_update(self, metrics: Metrics) -> Metrics:
        """
        :param metrics: Quantities of the parts
        :return: Further ones
        """
        further = self.adapt_multipliers(metrics)
        self.update_targets()
        return further

    def _report(self, means: dict[str, float]) -> None:
        """Look at the means of the logged quantities, and log them."""
        self.review(means)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)

    @property
    def optimizers(self) -> list[th.optim.Optimizer]:
        """Optimizers of the parts and of the learned multipliers."""
        learned: Any = self.policy.multipliers.values()
        return [*(part.optimizer for part in self.parts()), *(multiplier.optimizer for multiplier in learned)]

    def _setup_update(self) -> None:
        """Prepare the update of a policy that is built."""
        pieces = (self.parts, self.step, self.finish_update)
        self._run_update = make_update(self.execution, pieces, lambda: self.optimizers, self.device)

    # -- Stable-Baselines3's hooks ----------------------------------------------------------------------------------

    @override
    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        check_surroundings(self.device)
        if total_timesteps != math.inf:  # until a callback ends it
            total_timesteps = real("total_timesteps", total_timesteps, low=0)  # type: ignore[assignment]  # 1e6 is a number
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _run_name(self, tb_log_name: str | None) -> str:
        """What a run is called in TensorBoard."""
        return type(self).__name__ if tb_log_name is None else tb_log_name

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_observation_space(env.observation_space)  # Stable-Baselines3's wrappers fail on some without a reason
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    # -- learning rates ---------------------------------------------------------------------------------------------

    def _setup_lr_schedule(self) -> None:
        check_schedule("learning_rate", self.learning_rate)  # somebody may have changed it
        super()._setup_lr_schedule()
        self._own_lr_schedules: dict[str, Schedule] = {}

    def lr_schedule_of(self, part: str) -> Schedule:
        """
        :param part: Name of a part
        :return: Its learning rate as a function of the remaining progress
        """
        rate = getattr(self, f"{part}_learning_rate", None)
        common: Schedule = self.lr_schedule if rate is None else FloatSchedule(rate)
        return self._own_lr_schedules.get(part, common)

    def _set_learning_rates(self) -> dict[str, float]:
        """Set and log what the schedules say now; the rates of the parts."""
        progress = self._current_progress_remaining
        self.logger.record("train/learning_rate", scheduled("learning_rate", self.lr_schedule, progress))
        rates = {}
        for part in self.parts():
            schedule = self.lr_schedule_of(part.name)
            rates[part.name] = scheduled(f"{part.name}_learning_rate", schedule, progress)
            if schedule is not self.lr_schedule:
                self.logger.record(f"train/{part.name}_learning_rate", rates[part.name])
            set_learning_rate(part.optimizer, rates[part.name])
        for name, options in self.policy_requirements().get("multipliers", {}).items():
            learned: Any = self.policy.multipliers[name]
            set_learning_rate(learned.optimizer, options["learning_rate"])
        return rates

    # -- the policy -------------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Before anything is built: types of arguments, spaces that no network of ours is for, names, other policies."""
        check_policy_kwargs(self.policy_kwargs)
        check_switches(self)
        check_observation_space(self.observation_space)
        check_action_space(self.action_space)
        self._resolve_names()
        self._check_policy_class()

    def _policy_arguments(self) -> dict[str, Any]:
        """
        The method's arguments of the policy, and the user's.

        :raises ValueError: If the user's are unknown, or would change what the method requires
        """
        chosen, required = dict(self.policy_kwargs), self.policy_requirements()
        parameters = inspect.signature(self.policy_class).parameters
        takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
        known = list(parameters)[3:]  # behind the spaces and the schedule, which SB3 passes
        unknown = [] if takes_all else [name for name in chosen if name not in known]
        if unknown:
            raise ValueError(
                f"Unknown policy_kwargs {', '.join(unknown)}; {self.policy_class.__name__} knows {', '.join(known)}."
            )
        method = type(self).__name__
        for name, value in chosen.items():
            if name in required and value != required[name]:
                raise ValueError(
                    f"policy_kwargs: {name}={value!r} would replace {required[name]!r}, which {method} requires; leave it out "
                    f"(arguments of {method} itself may change it)."
                )
            if name not in required and name in ActorCritic.for_methods:
                raise ValueError(f"policy_kwargs: {name}={value!r} is for methods to decide, and {method} has no use for it.")
        return {**self.policy_settings(), **chosen, **required}

    def _check_policy_class(self) -> None:
        required = next(iter(self.policy_aliases.values()))
        if not (isinstance(self.policy_class, type) and issubclass(self.policy_class, required)):
            raise ValueError(
                f"policy={self.policy_class!r} is no {required.__name__}, which {type(self).__name__} needs; pass "
                f"{next(iter(self.policy_aliases))!r} by name, or a subclass of {required.__module__}.{required.__name__}."
            )

    def _check_prediction(self) -> None:
        if not hasattr(self.policy.actor, "process"):
            return
        predicted, name = self.policy.actor.process.prediction, self.policy.constructor_arguments["process"]
        if predicted != self.prediction:
            raise ValueError(
                f"process={name!r} has a network of {predicted}, but the losses of {type(self).__name__} are for one of "
                f"{self.prediction}; leave process out of policy_kwargs."
            )

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name in _GENERAL_NAMES and policy_name not in self.policy_aliases:
            raise ValueError(
                f"policy={policy_name!r} has another kind of actor than the losses of {type(self).__name__} are for; "
                f"known are {', '.join(self.policy_aliases)}."
            )
        return self.policy_aliases[choice("policy", policy_name, self.policy_aliases)]
