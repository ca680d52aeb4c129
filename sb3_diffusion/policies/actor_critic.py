"""What policies with an actor and critics are made of, whatever the actor is."""

from collections.abc import Callable, Sequence
from inspect import Signature, signature
from typing import Any, ClassVar, TypedDict

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_diffusion.names import choice
from sb3_diffusion.policies.acting import ActingPolicy
from sb3_diffusion.policies.actors.base import Actor
from sb3_diffusion.policies.actors.edm_denoiser import EDMDenoiser
from sb3_diffusion.policies.actors.exploration import ExplorationNoise
from sb3_diffusion.policies.actors.one_step import OneStepActor
from sb3_diffusion.policies.features import (
    PublicExtractor,
    RunningStandardizedExtractor,
    StandardizedExtractor,
    extractor_for,
    make_extractor,
    without,
)
from sb3_diffusion.policies.multiplier import make_multiplier
from sb3_diffusion.policies.parts import (
    Module,
    begin_as,
    forget_moments,
    frozen_copy,
    optimizer_settings,
    own_parameters,
    per_network,
    widths_of_both,
)
from sb3_diffusion.policies.values.critic import ObservationCritic
from sb3_diffusion.policies.values.energy import Energy
from sb3_diffusion.policies.values.state_value import StateValue
from sb3_diffusion.signature import complete_signature

ONE_STEP_ARGUMENTS = ("net_arch", "activation", "backbone", "layer_norm")
"""Arguments of the actor that an actor of one step takes over."""


class ActorCriticArguments(TypedDict, total=False):
    """What every policy hands on to :class:`ActorCritic` unchanged."""

    n_critics: int
    features_extractor_class: type[BaseFeaturesExtractor] | None
    features_extractor_kwargs: dict[str, Any] | None
    share_features_extractor: bool
    normalize_images: bool
    optimizer_class: type[th.optim.Optimizer] | str | dict[str, Any]
    optimizer_kwargs: dict[str, Any] | None
    critic_head: str
    critic_kwargs: dict[str, Any] | None
    critics: bool
    target_critics: bool
    particle_precision: str
    n_action_candidates: int
    n_behavior_candidates: int
    choose_with_target: bool
    selection: str | dict[str, Any]
    evaluation_noise: str
    exploration_noise: float
    exploration_multiplier: str | None
    actor_target: bool
    multipliers: dict[str, dict[str, Any]] | None
    networks: dict[str, dict[str, Any]] | None
    acting: str
    evaluating: str | None
    standardize_observations: bool | str
    privileged: Sequence[str]


class ActorCritic(ActingPolicy):
    """
    An actor with an ensemble of critics; what kind of actor it is, a subclass says.

    Works in the normalised action box [-1, 1]; ``predict`` returns actions in the units of the environment. With
    ``deterministic=True`` the action is a pure function of weights and observation: the actor gets its noise from a fixed
    bank (unless ``evaluation_noise="fresh"``), and where the method evaluates so, the best of ``n_action_candidates`` actions
    under the critics is chosen. ``deterministic=False`` is the method's behaviour while training.

    :param observation_space: Observation space (Box, image, Dict, ...)
    :param action_space: Action space, a Box of any shape with finite bounds
    :param lr_schedule: Learning rate schedule; the algorithm sets the rates of all networks before every update
    :param actor_arguments: Arguments of the actor behind its spaces and its features extractor
    :param n_step_draws: Draws of an action behind that of its starting point
    :param net_arch: Hidden layers: a list for both networks or ``dict(pi=[...], qf=[...])``; without any, a network is linear.
        Default of the critics: [256, 256]
    :param activation_fn: Activation class, name (such as ``"mish"``) or function without arguments that makes one, or
        ``dict(pi=..., qf=...)``. Default of the critics: ReLU
    :param backbone: ``"mlp"``, ``"residual"``, ``"simba"`` or ``"bronet"``, or ``dict(pi=..., qf=...)``
    :param layer_norm: Whether the backbones normalise their hidden layers, or ``dict(pi=..., qf=...)``
    :param n_critics: Number of critics
    :param features_extractor_class: Features extractor; ``None`` picks it from the observation space
        (``FlattenExtractor``, ``NatureCNN`` for ``uint8`` images in [0, 255], ``CombinedExtractor`` for Dict), or, in the
        classes that Stable-Baselines3's names stand for, takes that of the name
    :param features_extractor_kwargs: Its keyword arguments
    :param share_features_extractor: Whether the critics use the actor's extractor (trained by the actor's loss)
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: Optimizer class, or the name of one in ``torch.optim``, or ``dict(pi=..., qf=...)``
    :param optimizer_kwargs: Its keyword arguments, excluding the learning rate, or ``dict(pi=dict(...), qf=dict(...))``
    :param critic_head: ``"scalar"``, ``"gaussian"`` or ``"categorical"``; chosen by the algorithm
    :param critic_kwargs: Further arguments of the critic head (support of the categorical one, batch renormalisation)
    :param critics: Whether there are critics; without, ``critic`` and ``critic_target`` are ``None``
    :param target_critics: Whether there are target critics; without, ``critic_target`` is the critics themselves
    :param particle_precision: ``"float32"``, or ``"tf32"`` or ``"bfloat16"`` for faster and coarser values of the particles
        that a method weighs; their errors are divided by its temperature, see the page on speed
    :param n_action_candidates: Actions per observation of which the critics choose the best when ``deterministic=True``
    :param n_behavior_candidates: The same for ``deterministic=False``
    :param choose_with_target: Whether the target critics choose it when ``deterministic=True``
    :param selection: How one of ``n_behavior_candidates`` actions is chosen: a rule (``"argmax"``, ``"softmax"``,
        ``"topk_mean"``, ``"expectile"``, ``"none"``), or arguments of
        :class:`~sb3_diffusion.policies.actors.selection.Selection`
    :param evaluation_noise: Where actions with ``deterministic=True`` have their noise from: ``"fixed"``, or ``"fresh"`` for
        new draws at each call, see :attr:`~sb3_diffusion.policies.acting.ActingPolicy.evaluation_noise`
    :param exploration_noise: Standard deviation of the noise added when ``deterministic=False``
    :param exploration_multiplier: Name of the multiplier that is a factor of that noise, ``None`` for no such factor
    :param actor_target: Whether to keep a second actor, a frozen copy that the algorithm moves: the previous policy of mirror
        descent, or a moving average
    :param multipliers: Learned positive numbers of the method (temperatures, Lagrange multipliers) by name, each with the
        arguments of :func:`~sb3_diffusion.policies.multiplier.make_multiplier`
    :param networks: Further networks of the method by name, each with its ``kind`` (``"value"``: a
        :class:`~sb3_diffusion.policies.values.state_value.StateValue`, ``"actor"``: another actor, such as a
        behaviour policy, ``"critic"``: further critics, ``"one_step"``: a
        :class:`~sb3_diffusion.policies.actors.one_step.OneStepActor`, ``"edm"``: an
        :class:`~sb3_diffusion.policies.actors.edm_denoiser.EDMDenoiser`, ``"energy"``: an
        :class:`~sb3_diffusion.policies.values.energy.Energy`), whether it has a ``target`` (a copy ``<name>_target`` that the
        method moves), and arguments of the kind that differ from those of the policy
    :param acting: Name of the actor that acts: ``"actor"``, ``"actor_target"``, or one of ``networks``
    :param evaluating: Name of the actor of deterministic actions, ``None`` for the same
    :param standardize_observations: Whether all networks see standardised observations, see
        :func:`~sb3_diffusion.policies.features.set_observation_statistics`, or, ``"running"``,
        :func:`~sb3_diffusion.policies.features.update_observation_statistics`
    :param privileged: Entries of a ``Dict`` observation that actors do not see, only what values states and actions
    """

    for_methods: ClassVar[frozenset[str]] = frozenset(
        ("critic_head", "critic_kwargs", "critics", "target_critics", "actor_target", "multipliers", "exploration_multiplier")
    ) | {"networks", "acting", "evaluating", "standardize_observations", "privileged", "finetune_steps"}
    """Arguments that are for the method to decide, not for its user."""

    __signature__: ClassVar[Signature]
    general_name: ClassVar[str]
    """Name of the policy that chooses its features extractor by the observation space."""
    actor_class: ClassVar[type[Actor]]
    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = None
    """Features extractor where none is given, ``None`` for that of the observation space."""
    constructor_arguments: dict[str, Any]
    """What the policy was made of, for :meth:`save`; a subclass notes it before anything else."""
    actor: Any
    actor_target: Any

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        actor_arguments: dict[str, Any],
        n_step_draws: int = 0,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: Callable[[], nn.Module] | str | dict[str, Any] | None = None,
        backbone: str | dict[str, str] = "mlp",
        layer_norm: bool | dict[str, bool] = False,
        n_critics: int = 2,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] | str | dict[str, Any] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        critic_head: str = "scalar",
        critic_kwargs: dict[str, Any] | None = None,
        critics: bool = True,
        target_critics: bool = True,
        particle_precision: str = "float32",
        n_action_candidates: int = 1,
        n_behavior_candidates: int = 1,
        choose_with_target: bool = False,
        selection: str | dict[str, Any] = "argmax",
        evaluation_noise: str = "fixed",
        exploration_noise: float = 0.0,
        exploration_multiplier: str | None = None,
        actor_target: bool = False,
        multipliers: dict[str, dict[str, Any]] | None = None,
        networks: dict[str, dict[str, Any]] | None = None,
        acting: str = "actor",
        evaluating: str | None = None,
        standardize_observations: bool | str = False,
        privileged: Sequence[str] = (),
    ):
        optimizers = {key: optimizer_settings(optimizer_class, optimizer_kwargs, key) for key in ("pi", "qf")}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or self.default_features_extractor or extractor_for(observation_space),
            dict(features_extractor_kwargs or {}),  # Stable-Baselines3 adds to it
            optimizer_class=optimizers["pi"][0],
            optimizer_kwargs=optimizers["pi"][1],
            normalize_images=normalize_images,
            n_action_candidates=n_action_candidates,
            n_behavior_candidates=n_behavior_candidates,
            choose_with_target=choose_with_target,
            selection=selection,
            evaluation_noise=evaluation_noise,
        )
        if th.get_default_dtype() != th.float32:
            raise ValueError(
                f"Policies compute in float32, not {th.get_default_dtype()}; reset torch.set_default_dtype first."
            )
        self.standardize_observations = standardize_observations
        self.privileged = tuple(privileged)
        self._actor_arguments = actor_arguments
        self._value_arguments: dict[str, Any] = {
            "net_arch": widths_of_both(net_arch, [256, 256])["qf"],
            "activation": per_network("activation_fn", activation_fn, "qf", "relu"),
            "layer_norm": per_network("layer_norm", layer_norm, "qf", False),
        }
        self._critic_arguments: dict[str, Any] = {
            **self._value_arguments,
            "head": critic_head,
            "particle_precision": particle_precision,
            "n_critics": n_critics,
            "backbone": per_network("backbone", backbone, "qf", "mlp"),
            **(critic_kwargs or {}),
        }
        self.actor = self._make(self.actor_class, **self._actor_arguments)
        # a copy, so that both policies are the same at first and nothing is drawn for the second one
        self.actor_target = frozen_copy(self.actor) if actor_target else None
        self.trained: dict[str, nn.Module] = {"actor": self.actor}
        if critics:
            self._build_critics(share_features_extractor, target_critics)
            self.trained["critic"] = self.critic
        else:
            self._go_without_critics()
        self.multipliers = nn.ModuleDict({name: make_multiplier(**of) for name, of in (multipliers or {}).items()})
        factor: Any = None if exploration_multiplier is None else self.multipliers[exploration_multiplier]
        self.exploration = ExplorationNoise(exploration_noise, factor)
        for name, options in (networks or {}).items():
            self._add_network(name, **options)
        self.acting, self.evaluating = acting, evaluating or acting
        for role, name in (("acting", self.acting), ("evaluating", self.evaluating)):
            if not isinstance(getattr(self, name, None), Actor):
                raise ValueError(f"{role}={name!r} is none of the policy's actors.")
        self.selection.check_networks(self.trained)
        self._build_noise_bank(n_step_draws)
        for network in self.trained.values():
            trained: Any = network
            make, options = optimizers["pi" if isinstance(network, Actor) else "qf"]
            trained.optimizer = make(own_parameters(network), lr=lr_schedule(1), **options)  # type: ignore[call-arg]

    def __init_subclass__(cls, hands_on: bool = False, **kwargs: Any) -> None:
        """
        Note the signature, which would be inherited otherwise.

        :param hands_on: Whether ``**kwargs`` of the constructor are arguments of the parent class and nothing else. Then
            ``help()``, editors and the documentation show these too, and whatever else is given is refused by name
        :param kwargs: Further arguments of the class
        """
        super().__init_subclass__(**kwargs)
        if hands_on:
            parent = next(base for base in cls.__mro__[1:] if "__init__" in vars(base))
            cls.__signature__ = complete_signature(cls.__init__, parent, "n_critics", ("actor_arguments", "n_step_draws"))
        elif "__init__" in vars(cls):
            _, *own = signature(cls.__init__).parameters.values()
            cls.__signature__ = Signature(own)

    def make_features_extractor(self, hidden: Sequence[str] = ()) -> BaseFeaturesExtractor:
        """
        A new features extractor.

        :param hidden: Entries of the observation that it does not see
        """
        space = without(self.observation_space, hidden)
        extractor = make_extractor(
            self.features_extractor_class, space, self.features_extractor_kwargs, chooses=self.general_name
        )
        wrappers = {False: None, True: StandardizedExtractor, "running": RunningStandardizedExtractor}
        wrapper = wrappers[choice("standardize_observations", self.standardize_observations, wrappers)]
        extractor = extractor if wrapper is None else wrapper(extractor)
        return PublicExtractor(extractor) if hidden else extractor

    def _make(self, build: Callable[..., Module], extractor: BaseFeaturesExtractor | None = None, **arguments: Any) -> Module:
        if extractor is None:
            acts = isinstance(build, type) and issubclass(build, Actor)
            extractor = self.make_features_extractor(self.privileged if acts else ())
        return build(
            self.observation_space,
            self.action_space,
            extractor,
            normalize_images=self.normalize_images,
            **arguments,
        )

    @th.no_grad()
    def begin_critics_anew(self) -> None:
        """Draw new weights for the critics and forget what their optimizer remembers, in the tensors that there are."""
        arguments = {"share_features_extractor": self.critic.share_features_extractor, **self._critic_arguments}
        fresh = self._make(ObservationCritic, self.critic.features_extractor, **arguments)
        begin_as(self.critic.ensemble, fresh.ensemble)
        forget_moments(self.critic.optimizer)  # type: ignore[arg-type]

    def _build_critics(self, share_features_extractor: bool, target_critics: bool) -> None:
        extractor = self.actor.features_extractor if share_features_extractor else None
        arguments = self._critic_arguments
        self.critic = self._make(ObservationCritic, extractor, share_features_extractor=share_features_extractor, **arguments)
        if not target_critics:
            self.critic_target = self.critic
            return
        # the target never shares the extractor: it has to lag behind
        self.critic_target = self._make(ObservationCritic, **arguments)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        self.critic_target.set_training_mode(False)

    def _go_without_critics(self) -> None:
        if max(self.n_action_candidates, self.n_behavior_candidates) > 1:
            raise ValueError(
                f"n_action_candidates={self.n_action_candidates} and n_behavior_candidates={self.n_behavior_candidates} must "
                "be 1: the method has no critics that could choose among several."
            )
        self.critic = self.critic_target = None  # type: ignore[assignment]

    def _add_network(self, name: str, kind: str, target: bool = False, **arguments: Any) -> None:
        kinds: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "value": (StateValue, self._value_arguments),
            "actor": (self.actor_class, self._actor_arguments),
            "critic": (ObservationCritic, self._critic_arguments),
            "edm": (EDMDenoiser, {}),
            "energy": (Energy, {}),
            "one_step": (OneStepActor, {name: self._actor_arguments[name] for name in ONE_STEP_ARGUMENTS}),
        }
        build, defaults = kinds[choice(f"networks[{name!r}]['kind']", kind, kinds)]
        if hasattr(self, name):
            raise ValueError(f"networks: the policy has {name!r} already; choose another name.")
        network = self._make(build, **{**defaults, **arguments})
        self.add_module(name, network)
        self.trained[name] = network
        if target:
            self.add_module(f"{name}_target", frozen_copy(network))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.constructor_arguments, evaluation_noise=self.evaluation_noise)
        # the class as it is, whatever class of ours loads it; the schedule is only needed for training
        data.update(features_extractor_class=self.features_extractor_class, lr_schedule=self._dummy_schedule)
        return data


def all_arguments(policy_class: type[ActorCritic], given: dict[str, Any]) -> dict[str, Any]:
    """
    :param policy_class: A policy
    :param given: Local variables of its constructor, with ``kwargs``
    :return: All of its arguments but the spaces, by name
    """
    given = {**given, **given["kwargs"]}
    _, _, *others = signature(policy_class).parameters.values()
    return {argument.name: given.get(argument.name, argument.default) for argument in others}
