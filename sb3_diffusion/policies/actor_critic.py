"""What policies with an actor and critics have in common, whatever the actor is: how they are made, how they act."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn
from typing_extensions import override

from sb3_diffusion.generative.randomness import Randomness, RecordedDraws
from sb3_diffusion.names import choice
from sb3_diffusion.numeric import integer
from sb3_diffusion.policies.actors.base import Actor
from sb3_diffusion.policies.actors.edm_denoiser import EDMDenoiser
from sb3_diffusion.policies.actors.exploration import ExplorationNoise
from sb3_diffusion.policies.actors.one_step import OneStepActor
from sb3_diffusion.policies.actors.selection import Selection, best_candidates
from sb3_diffusion.policies.features import (
    RunningStandardizedExtractor,
    StandardizedExtractor,
    extractor_for,
    is_vector_space,
    make_extractor,
)
from sb3_diffusion.policies.multiplier import make_multiplier
from sb3_diffusion.policies.parts import (
    Module,
    forget_moments,
    frozen_copy,
    optimizer_settings,
    own_parameters,
    per_network,
    train_unless_frozen,
)
from sb3_diffusion.policies.values.critic import ObservationCritic, reduce_critics
from sb3_diffusion.policies.values.energy import Energy
from sb3_diffusion.policies.values.state_value import StateValue

NOISE_BANK_SEED = 0
MAX_CANDIDATES = 100_000
"""Most candidates of a deterministic action: their noise is made at construction."""
ONE_STEP_ARGUMENTS = ("net_arch", "activation", "backbone", "layer_norm")
"""Arguments of the actor that an actor of one step takes over."""


class ActorCritic(BasePolicy):
    """
    An actor with an ensemble of critics; what kind of actor it is, a subclass says.

    Works in the normalised action box [-1, 1]; ``predict`` returns actions in the units of the environment. With
    ``deterministic=True`` the action is a pure function of weights and observation: the actor gets its noise from a fixed
    bank, and where the method evaluates so, the best of ``n_action_candidates`` actions under the critics is chosen.
    ``deterministic=False`` is the method's behaviour while training.

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
        :func:`~sb3_diffusion.policies.features.set_observation_statistics`
    """

    for_methods: ClassVar[frozenset[str]] = frozenset(
        ("critic_head", "critic_kwargs", "critics", "target_critics", "actor_target", "multipliers", "exploration_multiplier")
    ) | {"networks", "acting", "evaluating", "standardize_observations"}
    """Arguments that are for the method to decide, not for its user."""

    general_name: ClassVar[str]
    """Name of the policy that chooses its features extractor by the observation space."""
    actor_class: ClassVar[type[Actor]]
    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = None
    """Features extractor where none is given, ``None`` for that of the observation space."""
    constructor_arguments: dict[str, Any]
    """What the policy was made of, for :meth:`save`; a subclass notes it before anything else."""
    actor: Any
    actor_target: Any
    critic: ObservationCritic
    critic_target: ObservationCritic
    exploration: ExplorationNoise
    bank_x: th.Tensor
    bank_steps: th.Tensor

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
        exploration_noise: float = 0.0,
        exploration_multiplier: str | None = None,
        actor_target: bool = False,
        multipliers: dict[str, dict[str, Any]] | None = None,
        networks: dict[str, dict[str, Any]] | None = None,
        acting: str = "actor",
        evaluating: str | None = None,
        standardize_observations: bool = False,
    ):
        optimizers = {key: optimizer_settings(optimizer_class, optimizer_kwargs, key) for key in ("pi", "qf")}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or self.default_features_extractor or extractor_for(observation_space),
            dict(features_extractor_kwargs or {}),  # Stable-Baselines3 adds to it
            optimizer_class=optimizers["pi"][0],
            optimizer_kwargs=optimizers["pi"][1],
            squash_output=True,
            normalize_images=normalize_images,
        )
        if th.get_default_dtype() != th.float32:
            raise ValueError(
                f"Policies compute in float32, not {th.get_default_dtype()}; reset torch.set_default_dtype first."
            )
        self.n_action_candidates = integer("n_action_candidates", n_action_candidates, 1, MAX_CANDIDATES)
        self.n_behavior_candidates = integer("n_behavior_candidates", n_behavior_candidates, low=1)
        self.choose_with_target = choose_with_target
        self.selection = Selection.of(selection)
        self.standardize_observations = standardize_observations
        self.randomness = Randomness()
        #: Stands in for :meth:`explore`, a CUDA graph of it
        self.explore_graph: Callable[[PyTorchObs], th.Tensor] | None = None
        self._holds_frozen = False
        self._observes_vectors = is_vector_space(observation_space)
        self._extracts_purely = self.features_extractor_class in (FlattenExtractor, NatureCNN, CombinedExtractor)
        self._actor_arguments = actor_arguments
        self._value_arguments: dict[str, Any] = {
            "net_arch": [256, 256] if net_arch is None else get_actor_critic_arch(net_arch)[1],
            "activation": per_network(activation_fn, "qf", "relu"),
            "layer_norm": per_network(layer_norm, "qf", False),
        }
        self._critic_arguments: dict[str, Any] = {
            **self._value_arguments,
            "head": critic_head,
            "particle_precision": particle_precision,
            "n_critics": n_critics,
            "backbone": per_network(backbone, "qf", "mlp"),
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

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """A new features extractor."""
        arguments = self.features_extractor_class, self.observation_space, self.features_extractor_kwargs
        extractor = make_extractor(*arguments, chooses=self.general_name)
        wrappers = {False: None, True: StandardizedExtractor, "running": RunningStandardizedExtractor}
        wrapper = wrappers[choice("standardize_observations", self.standardize_observations, wrappers)]
        return extractor if wrapper is None else wrapper(extractor)

    def _make(self, build: Callable[..., Module], extractor: BaseFeaturesExtractor | None = None, **arguments: Any) -> Module:
        return build(
            self.observation_space,
            self.action_space,
            self.make_features_extractor() if extractor is None else extractor,
            normalize_images=self.normalize_images,
            **arguments,
        )

    @th.no_grad()
    def begin_critics_anew(self) -> None:
        """Draw new weights for the critics and forget what their optimizer remembers, in the tensors that there are."""
        arguments = {"share_features_extractor": self.critic.share_features_extractor, **self._critic_arguments}
        fresh = self._make(ObservationCritic, self.critic.features_extractor, **arguments)
        self.critic.ensemble.load_state_dict(fresh.ensemble.state_dict())
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

    def _build_noise_bank(self, n_steps: int) -> None:
        """Noise of ``predict(deterministic=True)``: none for the first candidate, random but fixed for the others."""
        n, action_dim = self.n_action_candidates, get_action_dim(self.action_space)
        generator = th.Generator().manual_seed(NOISE_BANK_SEED)
        bank = Randomness(generator).normal((n_steps + 1, 1, n, action_dim), "bank", like=th.empty(()))
        bank[:, :, 0] = 0.0
        if n == 1:  # without a candidate axis
            bank = bank.squeeze(2)
        self.register_buffer("bank_x", bank[0, 0], persistent=False)
        self.register_buffer("bank_steps", bank[1:], persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(self.constructor_arguments)
        # the class as it is, whatever class of ours loads it; the schedule is only needed for training
        data.update(features_extractor_class=self.features_extractor_class, lr_schedule=self._dummy_schedule)
        return data

    @property
    def device(self) -> th.device:
        """Device of the policy."""
        return self.bank_x.device  # without walking through all modules for the first parameter

    @override
    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic=deterministic)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions in the units of the environment.

        :param observation: One observation or a batch of them
        :param state: Returned as it is (the policy has no memory)
        :param episode_start: Ignored
        :param deterministic: Whether to return the deterministic action
        :return: Actions, and ``state``
        """
        # tensors that no gradient will ever need are cheaper to make, a tenth of the time of a one-row chain;
        # a features extractor of the user's own may keep some of its tensors for the training
        with th.inference_mode(self._extracts_purely):
            return super().predict(observation, state, episode_start, deterministic)

    def obs_to_tensor(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[PyTorchObs, bool]:
        """
        Convert observations for the networks.

        :param observation: One observation or a batch of them
        :return: A batch of tensors, and whether ``observation`` was a batch
        """
        if self._observes_vectors and isinstance(observation, np.ndarray):
            shape = self.observation_space.shape
            single = observation.shape == shape
            if single or observation.shape[1:] == shape:
                copied = np.array(observation[None] if single else observation)
                return th.from_numpy(copied).to(self.device), not single
        return super().obs_to_tensor(observation)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if deterministic:
            bank, critic = self.fixed_draws(), self.choosing_critic(self.choose_with_target)
            rule = self.selection if self.selection.rule == "topk_mean" else None
            return self.select_actions(observation, self.n_action_candidates, bank, critic=critic, evaluating=True, rule=rule)
        return (self.explore_graph or self.explore)(observation)

    def fixed_draws(self) -> RecordedDraws:
        """What a deterministic action gets in the place of draws."""
        return RecordedDraws({"act.x_T": self.bank_x, "act.step_noise": self.bank_steps})

    def choosing_critic(self, target: bool) -> ObservationCritic:
        """
        :param target: Whether the target critics are to choose, where the critics do
        :return: What chooses among candidates
        """
        if self.selection.critics != "critic":
            return self.trained[self.selection.critics]  # type: ignore[return-value]
        return self.critic_target if target else self.critic

    def explore(self, observations: PyTorchObs) -> th.Tensor:
        """
        The method's behaviour while training.

        :param observations: Batch of observations
        :return: Actions in [-1, 1], ``(batch, action_dim)``
        """
        rule = self.selection
        n_candidates = 1 if rule.rule == "none" else self.n_behavior_candidates
        critic = self.choosing_critic(rule.target)
        actions = self.select_actions(observations, n_candidates, self.randomness, critic=critic, rule=rule)
        return self.exploration(actions, self.randomness, "act.explore")

    def select_actions(
        self,
        observations: PyTorchObs,
        n_candidates: int,
        randomness: Randomness,
        label: str = "act",
        critic: ObservationCritic | None = None,
        evaluating: bool = False,
        rule: Selection | None = None,
    ) -> th.Tensor:
        """
        Draw ``n_candidates`` actions per observation and keep one that the critics choose.

        :param observations: Batch of observations
        :param n_candidates: Actions per observation
        :param randomness: Source of the draws
        :param label: Prefix of the names of the draws
        :param critic: The critics that choose, ``None`` for the trained ones
        :param evaluating: Whether it is a deterministic action, for which an actor may take other steps
        :param rule: How they choose, ``None`` for the largest value
        :return: Actions in [-1, 1], ``(batch, action_dim)``
        """
        if n_candidates == 1:
            return self.draw_actions(observations, randomness, label, evaluating=evaluating)
        candidates = self.draw_actions(observations, randomness, label, n_candidates, evaluating)
        critic = self.critic if critic is None else critic
        values = reduce_critics(critic.q(candidates, critic.encode(observations)), self.selection.reduction)
        if rule is not None and rule.rule == "expectile":
            values = values - getattr(self, rule.baseline)(observations).unsqueeze(1)
        return best_candidates(candidates, values) if rule is None else rule.choose(candidates, values, randomness, label)

    def draw_actions(
        self,
        observations: PyTorchObs,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        evaluating: bool = False,
    ) -> th.Tensor:
        """
        What the acting actor draws.

        :param observations: Batch of observations
        :param randomness: Source of the draws
        :param label: Prefix of the names of the draws
        :param n_candidates: Actions per observation, ``None`` for one without a candidate axis
        :param evaluating: Whether it is for a deterministic action, for which an actor may take other steps
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        actor: Any = self._modules[self.evaluating if evaluating else self.acting]  # skips nn.Module's slow attribute lookup
        return actor.act(observations, randomness, label, n_candidates, evaluating)  # type: ignore[no-any-return]

    def set_training_mode(self, mode: bool) -> None:
        """
        Put actor and critics in training or evaluation mode; the targets always stay in evaluation mode, and so does what
        the user froze.

        :param mode: ``True`` for training
        """
        actor: Any = self._modules["actor"]
        critic: Any = self._modules.get("critic", actor)
        networks = self.trained.values()
        if mode and not all(p.requires_grad for network in networks for p in network.parameters()):
            for network in networks:
                train_unless_frozen(network)
            self._holds_frozen = True
        elif mode == self.training == actor.training == critic.training and not self._holds_frozen:
            return  # asked for at every action
        else:
            for network in networks:
                _switch(network, mode)
            self._holds_frozen = False
        self.training = mode


def common_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """
    :param given: Arguments of a subclass by name
    :return: Those that :class:`ActorCritic` takes as they are
    """
    names = inspect.signature(ActorCritic).parameters
    return {name: value for name, value in given.items() if name in names and name != "lr_schedule"}


def _switch(module: nn.Module, mode: bool) -> None:
    """``module.train(mode)`` in a tenth of the time, which training spends twice per environment step."""
    if type(module).train is not nn.Module.train or type(module).__setattr__ is not nn.Module.__setattr__:
        module.train(mode)  # somebody's own rule
        return
    module.__dict__["training"] = mode
    for child in module._modules.values():
        if child is not None:
            _switch(child, mode)
