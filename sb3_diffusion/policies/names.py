"""What Stable-Baselines3's names of policies mean: each its features extractor, whatever the observations are."""

from typing import ClassVar

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN

from sb3_diffusion.policies.diffusion import DiffusionPolicy


class MlpPolicy(DiffusionPolicy):
    """:class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy` that flattens observations, images too."""

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = FlattenExtractor


class CnnPolicy(DiffusionPolicy):
    """
    :class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy` with a ``NatureCNN``. Images that are not ``uint8`` in [0, 255]
    need ``normalize_images=False`` and have their channels first.
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = NatureCNN


class MultiInputPolicy(DiffusionPolicy):
    """:class:`~sb3_diffusion.policies.diffusion.DiffusionPolicy` with a ``CombinedExtractor``, for Dict observations."""

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = CombinedExtractor


POLICIES: dict[str, type[BasePolicy]] = {
    "DiffusionPolicy": DiffusionPolicy,
    "MlpPolicy": MlpPolicy,
    "CnnPolicy": CnnPolicy,
    "MultiInputPolicy": MultiInputPolicy,
}
"""What the first argument of an algorithm may be called."""
