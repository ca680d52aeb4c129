"""Where an on-policy training begins at demonstrations: the actor learns to imitate them before it collects anything."""

import math
from abc import abstractmethod
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import configure_logger
from typing_extensions import Self

from sb3_diffusion.core.arguments.data import check_same_spaces
from sb3_diffusion.core.reporting.divergence import cause_of_data
from sb3_diffusion.core.reporting.metrics import MetricLog
from sb3_diffusion.core.reporting.progress import ProgressBar
from sb3_diffusion.core.surroundings import check_surroundings
from sb3_diffusion.core.update.in_place import polyak_update
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.rewards import RewardTransform
from sb3_diffusion.data.sampler import DatasetSampler
from sb3_diffusion.data.stored.dataset import OfflineDataset
from sb3_diffusion.data.stored.loading import load_dataset
from sb3_diffusion.numeric import integer, real
from sb3_diffusion.policies.features import update_observation_statistics
from sb3_diffusion.policies.parts import forget_moments, is_frozen

_FINAL_RATE = 0.1
_LOOK_EVERY = 100
_NO_TRANSFORM = RewardTransform("none", 1.0, 0.0)


class ImitatesFirst(BaseAlgorithm):
    """An on-policy algorithm whose actor can imitate data before it learns from what it does."""

    policy: Any
    actor: Any
    normalize_observations: bool
    value_warmup: int
    _n_pretraining_updates: int = 0

    @abstractmethod
    def imitation_error(self, batch: Batch) -> th.Tensor:
        """
        How far the actor is from the actions of a batch.

        :param batch: Transitions of the data
        :return: Errors of any shape, whose mean is minimised
        """

    def after_pretraining(self) -> None:
        """What follows the imitation, such as to keep a copy of what was learned."""

    def pretrain(
        self,
        dataset: OfflineDataset | str | Path,
        total_updates: int = 10_000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        average_decay: float = 0.995,
        log_interval: int = 1000,
        progress_bar: bool = False,
    ) -> Self:
        """
        Imitate the actions of a data set; then :meth:`learn` goes on from there.

        The rate falls by half a cosine to a tenth. What remains is the moving average of the weights, as in the authors' code
        of DPPO. With ``normalize_observations`` the statistics are those of the data, and stay so, since what was learned
        depends on them. An imitation that is trained for too long is sure of its actions, and explores little.

        :param dataset: A data set, or what :func:`~sb3_diffusion.load_dataset` reads
        :param total_updates: Number of updates
        :param batch_size: Transitions per update
        :param learning_rate: Learning rate at the beginning
        :param average_decay: What an update leaves of the average; 0 keeps the last weights
        :param log_interval: Log every ``log_interval`` updates
        :param progress_bar: Show a progress bar (needs tqdm)
        :return: The model
        :raises TrainingDiverged: If the error is not finite
        :raises ValueError: If the data has other shapes or bounds than the environment, or all of the actor is frozen
        """
        check_surroundings(self.device)
        total_updates = integer("total_updates", total_updates, low=1)
        decay = real("average_decay", average_decay, 0, below=1)
        rate = real("learning_rate", learning_rate, low=0)
        if is_frozen(self.actor):
            raise ValueError("pretrain() trains the actor, all of which is frozen; call model.actor.requires_grad_(True).")
        data = dataset if isinstance(dataset, OfflineDataset) else load_dataset(dataset)
        check_same_spaces(self, data)
        sampler = DatasetSampler(data, self.action_space, _NO_TRANSFORM, 1, 0.0, self.device)  # type: ignore[arg-type]
        if self.normalize_observations:
            update_observation_statistics(self.policy, sampler.dataset.observations)
        self.policy.set_training_mode(True)
        trained = [parameter for parameter in self.actor.parameters() if parameter.requires_grad]
        optimizer = th.optim.AdamW(trained, lr=rate, weight_decay=1e-6, fused=True)
        averaged, bar = deepcopy(self.actor), ProgressBar(progress_bar)
        if not self._custom_logger and getattr(self, "_logger", None) is None:
            self._logger = configure_logger(self.verbose, None, "pretrain", True)
        log = MetricLog(1)
        for update in range(1, total_updates + 1):
            share = _FINAL_RATE + (1.0 - _FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * (update - 1) / total_updates))
            optimizer.param_groups[0]["lr"] = rate * share
            loss = self.imitation_error(sampler.sample(integer("batch_size", batch_size, low=1))).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=trained)
            optimizer.step()
            # in the beginning of a short training the average would still be the untrained network
            polyak_update(averaged, self.actor, max(1.0 - decay, 1.0 / update))
            log.append({"imitation_error": loss.detach()})
            if update % _LOOK_EVERY == 0 or update == total_updates:
                self._look_at_imitation(log, update, update % integer("log_interval", log_interval, low=1) == 0)
                log = MetricLog(update + 1)
            bar.show("pretraining", update, total_updates)
        bar.close()
        if decay:
            polyak_update(self.actor, averaged, 1.0)
        forget_moments(self.actor.optimizer)
        self._n_pretraining_updates += total_updates
        self._n_warmup_rollouts = self.value_warmup
        self.after_pretraining()
        return self

    def _look_at_imitation(self, log: MetricLog, update: int, dump: bool) -> None:
        rates = {"imitation": 0.0}
        for numbers in log.values(f"update {update} of the imitation", lambda untrained: cause_of_data(rates, untrained)):
            self.logger.record_mean("pretrain/imitation_error", numbers["imitation_error"])
        if dump:
            self.logger.record("pretrain/updates", update, exclude="tensorboard")
            self.logger.dump(step=update)
