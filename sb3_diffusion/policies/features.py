"""How actor and critics read observations."""

from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor


def is_vector_space(space: spaces.Space) -> bool:
    """
    Whether observations are numbers that need no preparation.

    :param space: Observation space
    """
    return isinstance(space, spaces.Box) and not is_image_space(space)


class ObservationModel(BaseModel):
    """
    A model of Stable-Baselines3 that reads plain numbers in fewer calls.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param normalize_images: Whether to divide images by 255
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self._observes_vectors = is_vector_space(observation_space)

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> Tensor:
        """
        Preprocess observations and extract features.

        :param obs: Batch of observations
        :param features_extractor: The features extractor to use
        :return: Features ``(batch, features_dim)``
        """
        if self._observes_vectors and type(features_extractor) is FlattenExtractor:
            assert isinstance(obs, Tensor)
            return obs.float().flatten(1)  # what the extractor does, without the calls of two modules
        return super().extract_features(obs, features_extractor)
