"""``GaussianPolicy``: an actor that draws its actions from a Gaussian, or has one action per state, with critics."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
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

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.networks import gaussian
from sb3_diffusion.numeric import real
from sb3_diffusion.policies.actor_critic import ActorCritic, common_arguments
from sb3_diffusion.policies.parts import Actor, per_network


class GaussianActor(Actor):
    """
    Policy that draws actions from a diagonal Gaussian given the observation; or always takes its mean, without a density.

    ``predict``, ``save`` and ``load`` are Stable-Baselines3's. The actor alone asks no critics and adds no exploration noise.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param normalize_images: Whether to divide images by 255
    :param deterministic: Whether there is one action per state instead of a density
    :param network_kwargs: Arguments of :class:`~sb3_diffusion.networks.gaussian.GaussianActor` (of
        :class:`~sb3_diffusion.networks.gaussian.DeterministicActor` if ``deterministic``) behind the sizes
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool = True,
        deterministic: bool = False,
        **network_kwargs: Any,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images, squash_output=True)
        self._arguments = {"deterministic": deterministic, **network_kwargs}
        self.action_dim = get_action_dim(action_space)
        sizes = features_extractor.features_dim, self.action_dim
        self.network: gaussian.GaussianActor | gaussian.DeterministicActor
        if deterministic:
            self.network = gaussian.DeterministicActor(*sizes, **network_kwargs)
        else:
            self.network = gaussian.GaussianActor(*sizes, **network_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments}

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        The features of observations.

        :param observations: Batch of observations
        :return: Features ``(batch, features_dim)``
        """
        return self.extract_features(observations, self.features_extractor)

    def sample(
        self,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Draw actions, reparameterised: differentiable unless called under ``no_grad``.

        :param context: Result of :meth:`encode`
        :param randomness: Source of the draw, which is called ``"<label>.x_T"`` as the starting point of a chain is
        :param label: Prefix of its name
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param clip_output: Clamp the result to [-1, 1]
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        shape = self._sample_shape(context.shape[0], n_candidates)
        if isinstance(self.network, gaussian.DeterministicActor):
            actions = self.network(context)
            actions = actions if n_candidates is None else actions.unsqueeze(1).expand(shape)
        else:
            mean, std = self.network(context)
            if n_candidates is not None:
                mean, std = mean.unsqueeze(1), std.unsqueeze(1)
            actions = mean + std * randomness.normal(shape, f"{label}.x_T", like=mean)
            actions = actions.tanh() if self.network.squash == "action" else actions
        return actions.clamp(-1.0, 1.0) if clip_output else actions

    def imitation_error(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        How far actions are from those of this actor: minus their log-density, or, where there is none, the squared distance.

        :param observations: Batch of observations
        :param actions: Actions ``(batch, action_dim)``
        :return: Errors ``(batch,)``
        """
        features = self.encode(observations)
        if isinstance(self.network, gaussian.DeterministicActor):
            return (self.network(features) - actions).square().sum(-1)
        return -self.network.log_prob(features, actions)


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
