"""``GaussianPolicy``: an actor that draws its actions from a Gaussian, or has one action per state, with critics."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_diffusion.numeric import optional, real
from sb3_diffusion.policies.actor_critic import ActorCritic, common_arguments
from sb3_diffusion.policies.actors.gaussian import GaussianActor
from sb3_diffusion.policies.parts import per_network


class GaussianPolicy(ActorCritic):
    """
    Policy of the off-policy algorithms that have no diffusion: a Gaussian actor with an ensemble of critics.

    Arguments that are not listed here: see :class:`~sb3_diffusion.policies.actor_critic.ActorCritic`. By default the actor has
    the hidden layers [256, 256] with ReLU.

    :param squash: What keeps actions in the box: ``"mean"`` a tanh of the mean (samples are clipped), ``"action"`` a tanh of
        the samples, ``"none"`` the clipping alone
    :param state_dependent_std: Whether the network predicts the standard deviation; otherwise it is a learned vector that
        starts at one
    :param log_std_bounds: Smallest and largest logarithm of the standard deviation
    :param init_std: Standard deviation at the beginning, if it is a learned vector
    :param output_gain: Gain of the initialisation of the actor's last layer; ``None`` for the square root of two
    :param dropout: Share of the actor's hidden units that is dropped while it is trained
    :param deterministic_actor: Whether the actor has one action per state, ``tanh`` of its network, instead of a density
    """

    general_name: ClassVar[str] = "GaussianPolicy"
    actor_class: ClassVar[type[GaussianActor]] = GaussianActor
    actor: GaussianActor
    actor_target: GaussianActor | None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: Callable[[], nn.Module] | str | dict[str, Any] | None = None,
        backbone: str | dict[str, str] = "mlp",
        layer_norm: bool | dict[str, bool] = False,
        squash: str = "mean",
        state_dependent_std: bool = False,
        log_std_bounds: tuple[float, float] = (-5.0, 2.0),
        init_std: float = 1.0,
        output_gain: float | None = None,
        dropout: float = 0.0,
        deterministic_actor: bool = False,
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
        multipliers: dict[str, dict[str, float]] | None = None,
        networks: dict[str, dict[str, Any]] | None = None,
        acting: str = "actor",
        standardize_observations: bool = False,
    ):
        self.constructor_arguments = {
            key: value
            for key, value in locals().items()
            if key not in ("self", "__class__", "observation_space", "action_space")
        }
        actor_arguments: dict[str, Any] = {
            "deterministic": deterministic_actor,
            "net_arch": [256, 256] if net_arch is None else get_actor_critic_arch(net_arch)[0],
            "activation": per_network(activation_fn, "pi", "relu"),
            "backbone": per_network(backbone, "pi", "mlp"),
            "layer_norm": per_network(layer_norm, "pi", False),
            "dropout": real("dropout", dropout, 0, below=1, remedy="0 drops nothing"),
        }
        if not deterministic_actor:
            actor_arguments |= {
                "squash": squash,
                "state_dependent_std": state_dependent_std,
                "log_std_bounds": tuple(log_std_bounds),
                "init_std": real("init_std", init_std, above=0),
                "output_gain": optional(real, "output_gain", output_gain, low=0),
            }
        super().__init__(
            observation_space, action_space, lr_schedule, actor_arguments, **common_arguments(self.constructor_arguments)
        )


class GaussianMlpPolicy(GaussianPolicy):
    """:class:`GaussianPolicy` that flattens observations, images too."""

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = FlattenExtractor


class GaussianCnnPolicy(GaussianPolicy):
    """
    :class:`GaussianPolicy` with a ``NatureCNN``. Images that are not ``uint8`` in [0, 255] need ``normalize_images=False`` and
    have their channels first.
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = NatureCNN


class GaussianMultiInputPolicy(GaussianPolicy):
    """:class:`GaussianPolicy` with a ``CombinedExtractor``, for Dict observations."""

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = CombinedExtractor


GAUSSIAN_POLICIES: dict[str, type[GaussianPolicy]] = {
    "GaussianPolicy": GaussianPolicy,
    "MlpPolicy": GaussianMlpPolicy,
    "CnnPolicy": GaussianCnnPolicy,
    "MultiInputPolicy": GaussianMultiInputPolicy,
}
"""What the first argument of an algorithm with a Gaussian policy may be called."""
