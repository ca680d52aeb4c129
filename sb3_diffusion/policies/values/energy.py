"""Energies of noisy actions, whose gradients guide a chain."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffusion.networks.critics import ScalarCritics
from sb3_diffusion.policies.features import ObservationModel


class Energy(ObservationModel):
    """
    A number for every observation, noisy action and diffusion time. What matters is its gradient by the action: where it is
    the logarithm of how much the density at this time is to be changed, adding its gradient to the score of a chain makes the
    chain sample the changed density.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param normalize_images: Whether to divide images by 255
    :param net_arch: Widths of the hidden layers
    :param activation: Name or class
    :param layer_norm: Layer norms, see :class:`~sb3_diffusion.networks.backbones.mlp.MLP`
    :param time_embedding: How the time enters, see :class:`~sb3_diffusion.networks.embeddings.TimeNetwork`
    :param time_dim: Number of features of the time
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool = True,
        net_arch: Sequence[int] = (256, 256, 256, 256),
        activation: str | Callable[[], nn.Module] = "silu",
        layer_norm: bool | str = False,
        time_embedding: str = "random",
        time_dim: int = 32,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images)
        self._arguments = {
            "net_arch": net_arch,
            "activation": activation,
            "layer_norm": layer_norm,
            "time_embedding": time_embedding,
            "time_dim": time_dim,
        }
        sizes = features_extractor.features_dim, get_action_dim(action_space)
        self.network = ScalarCritics(*sizes, n_critics=1, **self._arguments)  # type: ignore[arg-type]
        self._begin_flat()

    @th.no_grad()
    def _begin_flat(self) -> None:
        """Before it has learned anything it shall lead nowhere; an arbitrary slope would lead every chain out of the box."""
        last: Any = self.network.trunk.output or self.network.trunk.first
        for weight in last.parameters():
            weight.mul_(0.01)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments}

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        The observation's share of the first layer, computed once for all noisy actions.

        :param observations: Batch of observations
        :return: Context ``(1, batch, hidden)``
        """
        return self.network.encode_state(self.extract_features(observations, self.features_extractor))

    def encode_time(self, t: th.Tensor) -> th.Tensor:
        """
        The time's share of the first layer.

        :param t: Diffusion times ``(n, 1)``: of every row of a batch, or of the steps of a chain
        :return: Encoded times ``(1, n, hidden)``, to be added to the context
        """
        return self.network.encode_time(t)

    def forward(self, x_t: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        :param x_t: Noisy actions ``(batch, action_dim)`` or ``(batch, n, action_dim)``
        :param context: Sum of :meth:`encode` and :meth:`encode_time`
        :return: Energies ``(batch,)`` or ``(batch, n)``
        """
        return self.network(x_t, context).squeeze(0)  # type: ignore[no-any-return]

    def gradient(self, x_t: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        :param x_t: Noisy actions ``(batch, action_dim)`` or ``(batch, n, action_dim)``
        :param context: Sum of :meth:`encode` and :meth:`encode_time`
        :return: Gradient of the energies by the actions, a constant of the shape of ``x_t``
        """
        return self.network.value_and_gradient(x_t, context)[1]
