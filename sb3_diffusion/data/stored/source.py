"""Where data come from, and the scale of their scores."""

from typing import NamedTuple


class ReferenceScores(NamedTuple):
    """
    The returns that are the ends of a scale.

    :param low: Return whose score is 0, usually that of a random policy
    :param high: Return whose score is ``scale``, usually that of an expert
    :param scale: 100 for D4RL's scores, 1 for Minari's
    :param origin: Who defined the scale; scores of different origins are not comparable
    """

    low: float
    high: float
    scale: float = 100.0
    origin: str = "own"


class DataSource(NamedTuple):
    """
    Where data come from.

    :param kind: Their form: ``"arrays"``, ``"hdf5"``, ``"minari"``, ``"npz"``, ``"ogbench"``, ``"replay_buffer"`` or
        ``"collected"``
    :param name: What the data are called
    :param path: File or folder, if they come from one
    :param checksum: SHA-256 of that file
    :param env_id: Environment in which an agent that learned from them is evaluated
    :param reference: Scale of their scores
    """

    kind: str
    name: str
    path: str | None = None
    checksum: str | None = None
    env_id: str | None = None
    reference: ReferenceScores | None = None
