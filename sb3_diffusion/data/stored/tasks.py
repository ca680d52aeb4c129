"""The environments of data sets under the names of the data: ``gym.make("hopper-medium-v2")`` makes the task of those data."""

from typing import Any

import gymnasium as gym

from sb3_diffusion.data.stored.catalogue import KNOWN, KnownDataset, ogbench


def dataset_of(env_id: str) -> KnownDataset | None:
    """
    :param env_id: Id of an environment
    :return: The data set that this is the name of; ``None`` if there is none, or no environment of today fits it
    """
    by_id = {environment_name(name): known for name, known in KNOWN.items()}
    known = KNOWN.get(env_id) or by_id.get(env_id) or ogbench(env_id)
    return known if known is not None and known.env_id is not None else None


def environment_name(dataset: str) -> str:
    """
    :param dataset: Name of a data set
    :return: The same as Gymnasium allows it for an environment: at most one slash
    """
    first, *rest = dataset.split("/")
    return "/".join([first, "-".join(rest)]) if rest else first


def register_data_task(env_id: str) -> str | None:
    """
    Make the name of a data set known to Gymnasium.

    :param env_id: Name of a data set
    :return: Id of the environment, ``None`` if the name is not one of a data set
    """
    known = dataset_of(env_id)
    if known is None:
        return None
    name = environment_name(known.name)
    if name not in gym.registry:
        arguments = {"task": known.env_id, **dict(known.env_kwargs)}
        gym.register(
            name,
            "sb3_diffusion.data.stored.tasks:make_data_task",
            kwargs=arguments,
            disable_env_checker=True,
            order_enforce=False,
        )
    return name


def make_data_task(task: str, **kwargs: Any) -> gym.Env:
    """
    :param task: Id of the environment itself
    :param kwargs: Passed to ``gymnasium.make``
    :return: The environment
    """
    _import_makers(task)
    return gym.make(task, **kwargs)


def _import_makers(task: str) -> None:
    """Packages that register their tasks when they are imported."""
    if task.startswith("AdroitHand"):
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
    if "-singletask" in task:
        import ogbench as _  # noqa: F401
