"""The value of a state, without an action."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffusion.networks.backbones.mlp import MLP
from sb3_diffusion.networks.norms import LayerNorm
from sb3_diffusion.policies.features import ObservationModel


class StateValue(ObservationModel):
    """
    Value of a state, without an action.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param net_arch: Widths of the hidden layers
    :param activation: Name or class
    :param layer_norm: Layer norms, see :class:`~sb3_diffusion.networks.backbones.mlp.MLP`
    :param input_norm: Whether a layer norm comes before the first layer
    :param dropout: Share of the hidden units that is dropped while the network is trained
    :param normalize_images: Whether to divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        net_arch: Sequence[int] = (256, 256),
        activation: str | Callable[[], nn.Module] = "relu",
        layer_norm: bool | str = False,
        input_norm: bool = False,
        dropout: float = 0.0,
        normalize_images: bool = True,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images)
        features_dim = features_extractor.features_dim
        self.norm = LayerNorm(features_dim) if input_norm else None
        self.mlp = MLP([features_dim], net_arch, 1, activation, layer_norm=layer_norm, dropout=dropout)
        settings = {"layer_norm": layer_norm, "input_norm": input_norm, "dropout": dropout}
        self._arguments = {"net_arch": net_arch, "activation": activation, **settings}

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Batch of observations
        :return: Values ``(batch,)``
        """
        extractor: Any = self.features_extractor
        features = self.extract_features(observations, extractor)
        return self.mlp.single(features if self.norm is None else self.norm(features)).squeeze(-1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments}
