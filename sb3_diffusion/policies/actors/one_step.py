"""An actor of one step: from noise to an action, without a chain."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.networks.backbones import resolve_backbone
from sb3_diffusion.policies.actors.base import Actor

STATE, NOISE = 0, 1
"""Positions of the inputs in the first layer."""


class OneStepActor(Actor):
    """
    Network that turns the observation and standard normal noise into an action.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param normalize_images: Whether to divide images by 255
    :param net_arch: Widths of the hidden layers
    :param activation: Name or class
    :param backbone: Name or class of the network
    :param layer_norm: Layer norms in it, see the backbone
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool = True,
        net_arch: Sequence[int] = (256, 256, 256),
        activation: str | Callable[[], nn.Module] = "mish",
        backbone: str = "mlp",
        layer_norm: bool | str = False,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images, squash_output=True)
        self.action_dim = get_action_dim(action_space)
        in_dims = features_extractor.features_dim, self.action_dim
        self.trunk = resolve_backbone(backbone)(in_dims, net_arch, self.action_dim, activation, layer_norm=layer_norm)
        self._arguments = {
            "net_arch": net_arch,
            "activation": activation,
            "backbone": backbone,
            "layer_norm": layer_norm,
        }

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments}

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        The observation's share of the first layer, computed once for all actions.

        :param observations: Batch of observations
        :return: Context ``(batch, hidden)``
        """
        return self.trunk.share(STATE, self.extract_features(observations, self.features_extractor), bias=True)

    def sample(
        self,
        context: th.Tensor,
        randomness: Randomness,
        label: str,
        n_candidates: int | None = None,
        clip_output: bool = True,
    ) -> th.Tensor:
        """
        Draw actions, differentiable unless called under ``no_grad``.

        :param context: Result of :meth:`encode`
        :param randomness: Source of the noise, which is called ``"<label>.x_T"`` as the starting point of a chain is
        :param label: Prefix of its name
        :param n_candidates: Independent samples per row, ``None`` for one without a candidate axis
        :param clip_output: Clamp the result to [-1, 1]; the clamp has no gradient outside the box
        :return: Actions ``(batch, action_dim)`` or ``(batch, n_candidates, action_dim)``
        """
        noise = randomness.normal(self._sample_shape(context.shape[0], n_candidates), f"{label}.x_T", like=context)
        actions = self.trunk.evaluate(NOISE, noise, context)
        return actions.clamp(-1.0, 1.0) if clip_output else actions
