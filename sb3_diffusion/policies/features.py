"""How actor and critics read observations."""

from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn
from typing_extensions import override

from sb3_diffusion.policies.parts import is_frozen
from sb3_diffusion.processes import moments, n_processes

_SMALLEST_STD = 1e-4
"""An entry that varies less than this is only centred: divided by it, a first change would be an explosion."""


def is_vector_space(space: spaces.Space) -> bool:
    """
    Whether observations are numbers that need no preparation.

    :param space: Observation space
    """
    return isinstance(space, spaces.Box) and not is_image_space(space)


def extractor_for(space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """
    The features extractor that a space asks for.

    :param space: Observation space
    """
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(space) else FlattenExtractor


def make_extractor(
    extractor_class: type[BaseFeaturesExtractor], space: spaces.Space, kwargs: dict[str, Any], chooses: str
) -> BaseFeaturesExtractor:
    """
    :param extractor_class: Features extractor
    :param space: Observation space
    :param kwargs: Its keyword arguments
    :param chooses: Name of the policy that chooses by the space, for the message
    :return: The features extractor
    :raises ValueError: If one of Stable-Baselines3's cannot read the space, where it would fail later or without a reason
    """
    is_dict = isinstance(space, spaces.Dict)
    if (
        (issubclass(extractor_class, FlattenExtractor) and is_dict)
        or (issubclass(extractor_class, NatureCNN) and not isinstance(space, spaces.Box))
        or (issubclass(extractor_class, CombinedExtractor) and not is_dict)
    ):
        raise ValueError(
            f"{extractor_class.__name__} cannot read {space}; pass {chooses!r}, which chooses by the space "
            "('MlpPolicy' flattens it, 'CnnPolicy' is for images, 'MultiInputPolicy' for a Dict)."
        )
    try:
        return extractor_class(space, **kwargs)
    except RuntimeError as error:
        if not issubclass(extractor_class, NatureCNN | CombinedExtractor):
            raise
        raise ValueError(
            f"{extractor_class.__name__} cannot read {space} ({error}); NatureCNN needs at least 36 x 36 pixels, and the "
            "channels first if the images are normalised already. Use 'MlpPolicy' to flatten them, or a "
            "features_extractor_class of your own."
        ) from error


class StandardizedExtractor(BaseFeaturesExtractor):
    """
    Standardises observations, then hands them to another extractor. The statistics are part of the weights.

    :param extractor: Features extractor of the same space
    """

    def __init__(self, extractor: BaseFeaturesExtractor):
        super().__init__(extractor._observation_space, extractor.features_dim)
        self.extractor = extractor
        self._names = frozenset(_vector_parts(extractor._observation_space))
        for name, space in _vector_parts(extractor._observation_space).items():
            self.register_buffer(f"mean_{name}", th.zeros(space.shape))
            self.register_buffer(f"std_{name}", th.ones(space.shape))

    @override
    def forward(self, observations: PyTorchObs) -> Tensor:
        if not self._names:  # images
            return self.extractor(observations)  # type: ignore[no-any-return]
        if isinstance(observations, Tensor):
            return self.extractor(self._standardized("", observations))  # type: ignore[no-any-return]
        return self.extractor(  # type: ignore[no-any-return]
            {key: self._standardized(key, value) if key in self._names else value for key, value in observations.items()}
        )

    def _standardized(self, name: str, values: Tensor) -> Tensor:
        mean, std = getattr(self, f"mean_{name}"), getattr(self, f"std_{name}")
        return (values.float() - mean) / std


def without(space: spaces.Space, hidden: Sequence[str]) -> spaces.Space:
    """
    :param space: Observation space
    :param hidden: Names of entries
    :return: The space without them
    :raises ValueError: If it has no such entries, or no others
    """
    if not hidden:
        return space
    known = set(space.spaces) if isinstance(space, spaces.Dict) else set()
    if set(hidden) - known or not known - set(hidden):
        raise ValueError(
            f"privileged={sorted(hidden)} must name some entries of the observation, and leave others; it has {sorted(known)}."
        )
    assert isinstance(space, spaces.Dict)
    return spaces.Dict({name: part for name, part in space.spaces.items() if name not in hidden})


class PublicExtractor(BaseFeaturesExtractor):
    """
    Shows another extractor the entries of an observation that it was made for, and no others.

    :param extractor: Features extractor of a part of the space
    """

    def __init__(self, extractor: BaseFeaturesExtractor):
        space: Any = extractor._observation_space
        super().__init__(space, extractor.features_dim)
        self.extractor = extractor
        self._shown = tuple(space.spaces)

    @override
    def forward(self, observations: PyTorchObs) -> Tensor:
        assert isinstance(observations, dict)
        return self.extractor({name: observations[name] for name in self._shown})  # type: ignore[no-any-return]


class RunningStandardizedExtractor(StandardizedExtractor):
    """
    The same with statistics of everything seen so far, which :func:`update_observation_statistics` goes on with.

    :param extractor: Features extractor of the same space
    """

    count: Tensor

    def __init__(self, extractor: BaseFeaturesExtractor):
        super().__init__(extractor)
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        for name, space in _vector_parts(extractor._observation_space).items():
            self.register_buffer(f"variance_{name}", th.zeros(space.shape))


@th.no_grad()
def update_observation_statistics(policy: nn.Module, observations: Any) -> None:
    """
    Let further observations count in the mean and standard deviation by which a policy standardises (Chan et al. 1979). Before
    the first call nothing is changed by standardising. What a network sees that is frozen as a whole stays as it was.

    :param policy: A policy whose networks have a :class:`RunningStandardizedExtractor`
    :param observations: Observations ``(n, ...)``, or a dictionary of them
    """
    parts = observations if isinstance(observations, dict) else {"": observations}
    frozen = _modules_of_frozen_networks(policy)
    for extractor in policy.modules():
        if isinstance(extractor, RunningStandardizedExtractor) and extractor not in frozen:
            n = len(next(iter(parts.values()))) * n_processes()
            for name in _vector_parts(extractor._observation_space):
                _merge_statistics(extractor, name, parts[name].float(), n)
            extractor.count += n


def _modules_of_frozen_networks(policy: Any) -> set[nn.Module]:
    names = [name for name, network in policy.trained.items() if is_frozen(network)]
    copies = (getattr(policy, f"{name}_target", None) for name in names)
    networks = [*(policy.trained[name] for name in names), *(copy for copy in copies if copy is not None)]
    return {module for network in networks for module in network.modules()}


def _merge_statistics(extractor: RunningStandardizedExtractor, name: str, values: Tensor, n: int) -> None:
    mean, variance = getattr(extractor, f"mean_{name}"), getattr(extractor, f"variance_{name}")
    new_mean, new_variance = moments(values, 0)
    share = (n / (extractor.count + n)).float()  # type: ignore[union-attr]  # a tensor divides
    shift = new_mean - mean
    variance.lerp_(new_variance, share).add_(share * (1.0 - share) * shift.square())
    mean.add_(share * shift)
    std = variance.sqrt()
    getattr(extractor, f"std_{name}").copy_(th.where(std > _SMALLEST_STD, std, th.ones_like(std)))


def set_observation_statistics(policy: nn.Module, observations: Any) -> None:
    """
    Standardise by the mean and standard deviation of these observations. An entry that is (almost) always the same is only
    centred.

    :param policy: A policy whose networks have a :class:`StandardizedExtractor`
    :param observations: Observations ``(n, ...)``, or a dictionary of them
    """
    parts = observations if isinstance(observations, dict) else {"": observations}
    for extractor in policy.modules():
        if isinstance(extractor, StandardizedExtractor):
            for name in _vector_parts(extractor._observation_space):
                std, mean = th.std_mean(parts[name].float(), 0, correction=0)
                getattr(extractor, f"mean_{name}").copy_(mean)
                getattr(extractor, f"std_{name}").copy_(th.where(std > 1e-3, std, th.ones_like(std)))


def _vector_parts(space: spaces.Space) -> dict[str, spaces.Box]:
    """What is standardised: numbers, but no images."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return {name: part for name, part in parts.items() if is_vector_space(part)}  # type: ignore[misc]


class ObservationModel(BaseModel):
    """
    A model of Stable-Baselines3 that reads plain numbers in fewer calls.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Maps observations to ``(batch, features_dim)``
    :param normalize_images: Whether to divide images by 255
    :param kwargs: Arguments of the next base class
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        normalize_images: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images, **kwargs
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

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "features_extractor": self.features_extractor}
