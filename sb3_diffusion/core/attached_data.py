"""The data that an algorithm learns from: attached, transformed, and mixed with new experience in its batches."""

from typing import Any

import numpy as np
from typing_extensions import override

from sb3_diffusion.core.arguments.data import Dataset, check_same_spaces, resolved_transform
from sb3_diffusion.core.model_buffer import OwnsBuffer
from sb3_diffusion.data.batch import Batch, concatenated
from sb3_diffusion.data.rewards import RewardTransform, reward_transform
from sb3_diffusion.data.sampler import DatasetSampler
from sb3_diffusion.data.stored.dataset import OfflineDataset
from sb3_diffusion.data.stored.loading import load_dataset
from sb3_diffusion.policies.features import set_observation_statistics


class AttachedData(OwnsBuffer):
    """An off-policy algorithm that may have a data set, and what it takes from there."""

    dataset: OfflineDataset | None
    reward_transform: str | dict[str, Any]
    normalize_observations: bool
    offline_fraction: float | str
    dataset_identity: dict[str, Any] | None
    """What the data was, also where it is not at hand."""
    _sampler: DatasetSampler | None
    _transform: RewardTransform | None

    def set_dataset(self, dataset: Dataset) -> None:
        """
        Learn from this data from now on. What was derived from the data of before, the reward transform and the statistics of
        observations, stays as it is: the networks were trained with it.

        :param dataset: A data set, what :func:`~sb3_diffusion.load_dataset` reads, or ``None`` for none
        :raises ValueError: If its shapes or bounds are not those of the environment
        """
        self.dataset = dataset  # type: ignore[assignment]
        self._attach_dataset()

    def _attach_dataset(self) -> None:
        given: Any = self.dataset
        self._sampler = None
        self._transform = resolved_transform(self.reward_transform)
        if given is None or isinstance(given, dict):  # which data it was, from a file
            self.dataset, self.dataset_identity = None, given or getattr(self, "dataset_identity", None)
            return
        data = given if isinstance(given, OfflineDataset) else load_dataset(given)
        if getattr(self, "observation_space", None) is None:
            self.observation_space, self.action_space, self.n_envs = data.observation_space, data.action_space, 1
        check_same_spaces(self, data)
        self.dataset, self.dataset_identity = data, data.identity()
        if self._transform is None:
            self._transform = reward_transform(str(self.reward_transform), data)
            self.reward_transform = self._transform._asdict()

    @override
    def _policy_arguments(self) -> dict[str, Any]:
        arguments = super()._policy_arguments()
        return {**arguments, "standardize_observations": True} if self.normalize_observations else arguments

    def _standardize(self) -> None:
        """Give a policy that is built the statistics of the data; those of a file come with its weights."""
        if not self.normalize_observations:
            return
        if self.dataset is None and self.dataset_identity is None:
            raise ValueError(
                "normalize_observations=True takes the statistics from data; pass dataset=..., or use VecNormalize."
            )
        if self.dataset is not None:
            set_observation_statistics(self.policy, self.dataset.observations)

    def _data_sampler(self) -> DatasetSampler:
        if self.dataset is None:
            known = f" (it was {self.dataset_identity['name']!r})" if self.dataset_identity else ""
            raise ValueError(
                f"{type(self).__name__} has no data to learn from{known}; pass dataset=... to the constructor or to load(), "
                "or call set_dataset()."
            )
        assert self._transform is not None
        asked = self._transform, self.n_steps, self.gamma
        if self._sampler is None or self._sampler.asked != asked:
            self._sampler = DatasetSampler(self.dataset, self.action_space, *asked, self.device)  # type: ignore[arg-type]
        return self._sampler

    def sample_batch(self, batch_size: int) -> Batch:
        """
        A batch of new experience, and where the model has data, of that: ``offline_fraction`` of the batch, or with
        ``"append"`` as much as is its share of all transitions.

        :param batch_size: Number of transitions
        :return: The transitions
        """
        n_stored = self._n_stored(batch_size)
        env = self._vec_normalize_env
        if n_stored == batch_size:
            return self._data_sampler().sample(batch_size, env)
        samples = self.replay_buffer.sample(batch_size - n_stored, env=env)  # type: ignore[union-attr]
        batch = Batch.from_replay(samples, self.gamma)
        if self._transform is not None and not self._transform.is_identity:
            batch = batch._replace(rewards=self._transform(batch.rewards))
        return batch if n_stored == 0 else concatenated(batch, self._data_sampler().sample(n_stored, env))

    def _n_stored(self, batch_size: int) -> int:
        if self.dataset is None:
            return 0
        if self.offline_fraction == "append":
            share = len(self.dataset) / (len(self.dataset) + self.replay_buffer.size())  # type: ignore[union-attr]
            return int(np.random.binomial(batch_size, share))
        return round(float(self.offline_fraction) * batch_size)
