"""An actor that draws its actions from a Gaussian, or has one action per state."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
)
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.networks import gaussian
from sb3_diffusion.policies.actors.base import Actor


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
