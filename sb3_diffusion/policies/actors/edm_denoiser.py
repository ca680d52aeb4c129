"""A denoiser that knows how far an action is from those of the data: the behaviour model of DTQL."""

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffusion.generative.edm import EDM
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.networks.denoiser import Denoiser
from sb3_diffusion.policies.features import ObservationModel


class EDMDenoiser(ObservationModel):
    """
    Preconditioned denoiser of actions given the observation (Karras et al. 2022). It is trained and asked, but not sampled.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param normalize_images: Whether to divide images by 255
    :param net_arch: Widths of the hidden layers
    :param activation: Name or class
    :param time_dim: Width of the embedding of the noise level
    :param process_kwargs: Arguments of :class:`~sb3_diffusion.generative.edm.EDM`
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool = True,
        net_arch: Sequence[int] = (256, 256, 256, 256),
        activation: str | Callable[[], nn.Module] = "mish",
        time_dim: int = 16,
        process_kwargs: dict[str, Any] | None = None,
    ):
        super().__init__(observation_space, action_space, features_extractor, normalize_images)
        self._arguments = {
            "net_arch": net_arch,
            "activation": activation,
            "time_dim": time_dim,
            "process_kwargs": process_kwargs,
        }
        self.process = EDM(**(process_kwargs or {}))
        self.denoiser = Denoiser(
            features_extractor.features_dim,
            get_action_dim(action_space),
            net_arch,
            activation,
            time_embedding="positional",
            time_dim=time_dim,
            state_arch=(),
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments}

    def encode(self, observations: PyTorchObs) -> th.Tensor:
        """
        The observation's share of the first layer.

        :param observations: Batch of observations
        :return: Context ``(batch, hidden)``
        """
        return self.denoiser.encode_state(self.extract_features(observations, self.features_extractor))

    def denoise(self, x: th.Tensor, sigma: th.Tensor, context: th.Tensor) -> th.Tensor:
        """
        Clean actions that are expected behind noisy ones.

        :param x: Noisy actions ``(batch, action_dim)``
        :param sigma: Their noise levels ``(batch, 1)``
        :param context: Result of :meth:`encode`
        :return: Actions in [-1, 1], of the shape of ``x``
        """
        scalings = self.process.scalings(sigma)
        output = self.denoiser(scalings.input * x, context, self.denoiser.encode_time(scalings.noise))
        return self.process.denoised(x, sigma, output).clamp(-1.0, 1.0)

    def error(self, actions: th.Tensor, context: th.Tensor, randomness: Randomness, label: str) -> th.Tensor:
        """
        Mean squared error at a random noise level, in units of what the network predicts there: the loss of the denoiser at
        actions of the data, and at others a measure of how unlike the data they are. Its gradient reaches the actions.

        :param actions: Actions ``(batch, action_dim)``
        :param context: Result of :meth:`encode`
        :param randomness: Source of levels and noise
        :param label: Prefix of the names of the draws
        :return: Scalar
        """
        sigma = self.process.sample_sigma((len(actions), 1), randomness, f"{label}.u", like=actions)
        eps = randomness.normal(actions.shape, f"{label}.eps", like=actions)
        denoised = self.denoise(self.process.add_noise(actions, sigma, eps), sigma, context)
        return ((denoised - actions) / self.process.scalings(sigma).out).square().mean()
