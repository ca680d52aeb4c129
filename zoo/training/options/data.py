"""Data sets on the command line: a name that stands for data and environment, and what the scores of a run mean."""

import argparse
from typing import Any

from sb3_diffusion.data.catalogue import KNOWN
from sb3_diffusion.data.tasks import dataset_of, environment_name


def complete_names(args: argparse.Namespace) -> None:
    """
    Fill in the data set where ``--env`` names one, and the environment where only ``--dataset`` is given.

    :param args: The options of a training, changed in place
    """
    known = dataset_of(args.env or "")
    if known is not None:
        args.env = environment_name(known.name)
        args.dataset = args.dataset or known.name
    elif not args.env and dataset_of(args.dataset) is not None:
        args.env = environment_name(args.dataset)


def entries_for(dataset: str, env_id: str) -> list[str]:
    """
    :param dataset: Value of ``--dataset``
    :param env_id: Environment
    :return: Entries of a settings file that may be meant, the best first
    """
    known = dataset_of(env_id)
    names = [known.name] if known is not None else []
    return [*([dataset] if dataset in KNOWN else []), *names, env_id]


def task_of(env_id: str) -> str:
    """
    :param env_id: Environment of a run, which may be called as its data
    :return: The environment itself
    """
    known = dataset_of(env_id)
    return env_id if known is None else str(known.env_id)


def score_of(model: Any, returns: list[float]) -> dict[str, Any]:
    """
    :param model: An agent
    :param returns: Returns of its episodes
    :return: What the returns are on the scale of its data, if they have one
    """
    from sb3_diffusion import normalized_score  # imports PyTorch, which checking names does not wait for

    dataset = getattr(model, "dataset", None)
    reference = None if dataset is None else dataset.source.reference
    if reference is None or not returns:
        return {}
    scores = normalized_score(returns, reference).tolist()
    return {"scale": reference.origin, "low": reference.low, "high": reference.high, "scores": scores}
