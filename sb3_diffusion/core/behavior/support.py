"""Actions that an imitator of the data draws for every state, once: the support in which values look for better actions."""

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from typing_extensions import Unpack, override

from sb3_diffusion.core.arguments.off_policy import OffPolicyArguments
from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.data.batch import Batch
from sb3_diffusion.data.normalization import normalize_observations
from sb3_diffusion.data.state_table import DamagedTable, StateTable, make_table, open_table
from sb3_diffusion.generative.randomness import Randomness
from sb3_diffusion.numeric import integer
from sb3_diffusion.policies.actors.diffusion import DiffusionActor
from sb3_diffusion.policies.diffusion import DiffusionPolicy

SUPPORT_SEED = 0
"""Of the actions drawn for the states of the data, which have to be the same ones after an interruption."""
ROWS_AT_ONCE = {"cpu": 4096}
"""Actions that are drawn, or valued, in one piece: as many as stay in a processor's cache (1.5 times the speed of 65,536)."""
_OTHERWISE = 2**18


class SupportArguments(OffPolicyArguments, total=False):
    """What every method with support actions hands on to :class:`DrawsSupport` unchanged."""

    support_folder: str | None


class DrawsSupport(OffPolicyDiffusion):
    """
    Base class of the methods with support actions: ``n_support`` imitated actions of every state of the data.

    A stage whose :class:`~sb3_diffusion.core.update.Stage` calls :meth:`draw_support` in its ``prepare`` has them in its
    batches. They are drawn once, with a progress bar, and stand in a table that is no part of any agent's file or checkpoint.
    These know only its checksum: where a training goes on in another process, the table comes from its file in
    ``support_folder`` if that still is what was written, and is drawn anew otherwise. Learning online, actions are drawn anew
    for every batch.

    :param policy: Name or class of the policy
    :param env: The environment, or its id if it is registered
    :param learning_rate: Learning rate of all networks
    :param n_support: Actions drawn for every state of the data
    :param support_folder: Folder in which to keep these, so that a training that goes on need not draw them again; ``None``
        for the memory, or where they are large a file that is gone with the process
    :param kwargs: See :class:`~sb3_diffusion.core.off_policy.OffPolicyDiffusion`
    """

    support_in_batches: ClassVar[bool] = True
    """Whether the losses ask for them; a method may make something else of them once."""
    _support: tuple[str, StateTable] | None
    """Digest of what the table was drawn from, and the table."""
    _support_record: dict[str, str]
    """The same digest, and the table's checksum."""

    def __init__(
        self,
        policy: str | type[DiffusionPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        n_support: int = 16,
        support_folder: str | None = None,
        **kwargs: Unpack[OffPolicyArguments],
    ):
        self.n_support = integer("n_support", n_support, low=1)
        self.support_folder = None if support_folder is None else str(support_folder)
        super().__init__(policy, env, learning_rate, **kwargs)

    @property
    def support_actor(self) -> DiffusionActor:
        """Who draws the actions."""
        return self.actor

    # -- for the losses -----------------------------------------------------------------------------------------------

    def support(self, batch: Batch) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :return: Imitated actions of its observations, constants ``(batch, n_support, action_dim)``
        """
        return self._support_of(batch, "support", batch.observations)

    def next_support(self, batch: Batch) -> th.Tensor:
        """
        :param batch: Batch of transitions
        :return: The same of its next observations
        """
        return self._support_of(batch, "next_support", batch.next_observations)

    def _support_of(self, batch: Batch, name: str, observations: PyTorchObs) -> th.Tensor:
        if name in batch.extras:
            return batch.extras[name]
        with th.no_grad():
            actor = self.support_actor
            return actor.sample(actor.encode(observations), self.randomness, name, self.n_support)

    # -- for the stages -----------------------------------------------------------------------------------------------

    def draw_support(self) -> th.Tensor:
        """
        Draw the actions of all states of the data, unless those of these very weights, data and settings are at hand. To be
        called when a stage is prepared; from then on they come with the batches, if :attr:`support_in_batches`.

        :return: Actions ``(n_states, n_support, action_dim)``, in the order of the data's table of states
        """
        key = self._support_key()
        if self._support is None or self._support[0] != key:
            self._support = None  # before there is room for others
            self.state_tables.pop("support", None)
            self._support = key, self._stored_support(key) or self._drawn_support(key)
        _, table = self._support
        self._support_record = {"key": key, "checksum": table.checksum}
        if self.support_in_batches:
            self.state_tables["support"] = table.values
        return table.values

    def _stored_support(self, key: str) -> StateTable | None:
        path, checksum = self._support_path(key), self._known_checksum(key)
        if path is None or checksum is None:
            return None
        try:
            return open_table(path, self._support_shape(), self.device, checksum)
        except DamagedTable as error:
            warnings.warn(f"The support actions are drawn anew: {error}.", stacklevel=2)
            return None

    def _drawn_support(self, key: str) -> StateTable:
        table = make_table(self._support_pieces(), self._support_shape(), self.device, self._support_path(key))
        if self._known_checksum(key) not in (None, table.checksum):
            warnings.warn(
                "The support actions that were drawn anew are not exactly those from before the interruption, since another "
                "machine, or another number of threads, rounds differently: the training goes on with these.",
                stacklevel=2,
            )
        return table

    def _known_checksum(self, key: str) -> str | None:
        return self._support_record["checksum"] if self._support_record.get("key") == key else None

    @th.no_grad()
    def _support_pieces(self) -> Iterator[th.Tensor]:
        self.policy.set_training_mode(False)
        draws = Randomness(th.Generator(self.device).manual_seed(SUPPORT_SEED))
        for _, observations in self.pieces_of_states("support actions"):
            yield self.support_actor.act(observations, draws, "support", self.n_support)

    def pieces_of_states(self, name: str) -> Iterator[tuple[slice, Any]]:
        """
        Go through the states of the data, with a progress bar.

        :param name: What is done with them
        :return: Rows of the table, and their observations as the networks see them
        """
        states = self._data_sampler().dataset.states
        at_once = max(1, ROWS_AT_ONCE.get(self.device.type, _OTHERWISE) // self.n_support)
        for rows in self.bar.over(name, self._n_states(), at_once):
            # a copy, since normalising may change what it is given
            piece = {key: table[rows].clone() for key, table in states.items()} if _is_dict(states) else states[rows].clone()
            yield rows, normalize_observations(piece, self._vec_normalize_env)

    def _n_states(self) -> int:
        states = self._data_sampler().dataset.states
        return len(next(iter(states.values())) if _is_dict(states) else states)

    def _support_shape(self) -> tuple[int, int, int]:
        return self._n_states(), self.n_support, self.support_actor.action_dim

    def _support_path(self, key: str) -> Path | None:
        return None if self.support_folder is None else Path(self.support_folder) / f"support-{key[:16]}.f32"

    def _support_key(self) -> str:
        """Digest of all that the actions depend on."""
        assert self.dataset_identity is not None
        described = (self.dataset_identity["checksum"], self._support_shape(), SUPPORT_SEED)
        digest = hashlib.sha256(repr(described).encode())
        for weights in self.support_actor.state_dict().values():
            digest.update(weights.detach().cpu().contiguous().numpy())
        env = self._vec_normalize_env
        if env is not None and env.norm_obs:
            moments: Any = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
            for entry in moments.values():
                assert isinstance(entry, RunningMeanStd)
                digest.update(np.concatenate((np.ravel(entry.mean), np.ravel(entry.var))).tobytes())
        return digest.hexdigest()

    # -- what a training keeps ----------------------------------------------------------------------------------------

    @override
    def _lacks_prepared(self) -> bool:
        if not (self.support_in_batches and self._support_record):
            return False
        return self._support is None or self._support[1].checksum != self._support_record["checksum"]

    @override
    def _forget_prepared(self) -> None:
        super()._forget_prepared()
        self._support_record = {}

    @override
    def _setup_offline(self) -> None:
        super()._setup_offline()
        self.__dict__ = {"_support_record": {}, **vars(self), "_support": None}

    @override
    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_support"]


def in_support_values(values: th.Tensor, inverse_temperature: float | th.Tensor) -> th.Tensor:
    """
    What the best imitated actions of a state are worth.

    :param values: Values of its support actions, ``(batch, n_support)``
    :param inverse_temperature: 0 is their mean, infinity their maximum
    :return: ``sum_j softmax_j(inverse_temperature Q_j) Q_j``, ``(batch,)``
    """
    return (th.softmax(inverse_temperature * values, dim=1) * values).sum(1)


def _is_dict(states: Any) -> bool:
    return isinstance(states, dict)
