"""The agent that a training starts from, ``train.py -i FILE``: unpickled only if it is the user's own, or by their leave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffusion import load_agent
from sb3_diffusion.checkpoints.agents import described_algorithm, why_unsafe
from sb3_diffusion.printable import printable

from .saved_agents import has_normalization
from .trust import check_own

REPLAY_BUFFER = "replay_buffer.pkl"


@dataclass(frozen=True)
class StartingAgent:
    """
    An agent in a file.

    :param archive: The file
    :param env_name: Environment, as it is written in names of files
    """

    archive: Path
    env_name: str

    @property
    def replay_buffer(self) -> Path:
        """The memory beside it, which rl-zoo3 takes along."""
        return self.archive.with_name(REPLAY_BUFFER)

    @property
    def pickled_normalization(self) -> Path:
        """Where rl-zoo3 keeps the normalisation of an archive that holds none."""
        return self.archive.parent / self.env_name / "vecnormalize.pkl"

    @property
    def holds_normalization(self) -> bool:
        """Whether the statistics are in the archive."""
        return has_normalization(self.archive)

    def check(self, algo: str, trusted: bool) -> None:
        """
        :param algo: Algorithm of the training
        :param trusted: Whether the user has given ``--trust-remote-code``
        :raises ValueError: If it is an agent of another algorithm, or if something would be unpickled that is neither of one
            of the user's own runs nor trusted
        """
        other = described_algorithm(self.archive)
        if other is not None and other != algo:
            raise ValueError(f"-i {self.archive} is an agent of {printable(other, 100)}, not of {algo}.")
        reason = why_unsafe(self.archive)
        pickles = [] if reason is None else [f"{self.archive.name} (it {reason})"]
        if self.pickled_normalization.is_file() and not self.holds_normalization:
            pickles.append(f"{self.env_name}/{self.pickled_normalization.name}")
        if self.replay_buffer.is_file():
            pickles.append(f"{REPLAY_BUFFER} (move it away to start without)")
        if pickles:
            check_own(self.archive.parent, trusted, f"-i unpickles {' and '.join(pickles)}, which can run any code")

    def load(self, algo: str, env: VecEnv, settings: dict[str, Any], truncate_last_trajectory: bool) -> BaseAlgorithm:
        """
        :param algo: Algorithm
        :param env: Environment to train in
        :param settings: Arguments of the algorithm that replace those of the agent
        :param truncate_last_trajectory: What becomes of an unfinished episode in a memory of HER
        """
        load = ALGOS[algo].load if why_unsafe(self.archive) else load_agent
        model = load(self.archive, env=env, **settings)
        if self.replay_buffer.is_file():
            if not hasattr(model, "load_replay_buffer"):
                raise ValueError(f"{self.replay_buffer} is a memory, which {algo} has not; move it away.")
            print("Loading replay buffer")
            model.load_replay_buffer(self.replay_buffer, truncate_last_traj=truncate_last_trajectory)
        return model
