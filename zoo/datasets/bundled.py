"""Data of an agent that comes with the clone: ``pendulum-medium-v0``, for which nothing has to be fetched."""

from pathlib import Path

from sb3_diffusion.checkpoints.agents import load_agent
from sb3_diffusion.data.stored.catalogue import KnownDataset
from sb3_diffusion.data.stored.dataset import OfflineDataset

AGENT = "fpo-Pendulum-v1"
"""Acts with the noise of its training, which makes it a middling one: -500 a swing-up, where the best have -142."""

N_ROWS = 20_000


def make(known: KnownDataset, target: Path, agents: Path, *, n_rows: int = N_ROWS) -> Path:
    """
    :param known: Which data set
    :param target: The file
    :param agents: Folder of the agents that come with the clone
    :param n_rows: Number of transitions
    :return: The file
    """
    agent = load_agent(agents / AGENT / f"{AGENT}.zip", device="cpu")
    dataset = OfflineDataset.collect(known.env_id, agent, n_rows, seed=0, progress_bar=True, name=known.name)  # type: ignore[arg-type]
    return dataset.save(target)
