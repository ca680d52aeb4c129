"""DeepMind Control Suite tasks as ordinary Gymnasium environments."""

import importlib.util
import warnings
from importlib.metadata import version
from typing import Any

import gymnasium as gym

from sb3_diffusion.envs.mujoco_log import quiet_mujoco
from sb3_diffusion.envs.wrappers import ActionRepeat, Float32Action, Float32Observation
from sb3_diffusion.names import suggest

DMC_TASKS = (
    "cartpole-balance",
    "hopper-stand",
    "cheetah-run",
    "quadruped-run",
    "humanoid-stand",
    "humanoid-walk",
    "humanoid-run",
    "dog-run",
)
"""The eight tasks of the FlowRL benchmark; every other task of the suite works as well."""


def register_dmc() -> None:
    """
    Make the ``dm_control/<domain>-<task>-v0`` ids known to Gymnasium.

    :raises ImportError: If dm_control or shimmy is missing, or the installed MuJoCo cannot run dm_control
    """
    missing = [name for name in ("mujoco", "dm_control", "shimmy") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"DeepMind Control tasks need {' and '.join(missing)}; install them with: pip install 'sb3_diffusion[dmc]'"
        )
    _check_versions(version("mujoco"), version("dm-control"))
    with warnings.catch_warnings():
        # dm_control probes for a window system while it is imported; training needs none
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing.*")
        import shimmy  # noqa: F401  (registers the tasks)
    quiet_mujoco()


def make_dmc(domain: str, task: str, action_repeat: int = 2, **kwargs: Any) -> gym.Env:
    """
    Make a DeepMind Control task with flat float32 observations.

    Observation entries are concatenated in alphabetical order of their names (Gymnasium's ``FlattenObservation``), which
    is not the order of dm_control's own ``flat_observation``: policies cannot be exchanged between the two. The time
    limit arrives as truncation, the reward of one step is the sum over its frames.

    :param domain: Domain of the suite, such as ``"cheetah"``
    :param task: Task of the domain, such as ``"run"``
    :param action_repeat: Frames per action
    :param kwargs: Passed to ``gymnasium.make``: ``render_mode``, ``render_kwargs``, ``task_kwargs``, ``environment_kwargs``
    """
    register_dmc()
    env_id = f"dm_control/{domain}-{task}-v0"
    if env_id not in gym.registry:
        known = [name for name in gym.registry if name.startswith("dm_control/")]
        raise ValueError(
            f"domain={domain!r}, task={task!r}: there is no environment {env_id}; {suggest(env_id, sorted(known))}"
        )
    return wrap_dmc(gym.make(env_id, **kwargs), action_repeat=action_repeat)


def wrap_dmc(env: gym.Env, action_repeat: int = 2) -> gym.Env:
    """
    Flatten the observations of a DeepMind Control task, cast spaces to float32 and repeat actions.

    :param env: Environment made from a ``dm_control/...`` id
    :param action_repeat: Frames per action
    """
    env = Float32Observation(gym.wrappers.FlattenObservation(env))
    return ActionRepeat(Float32Action(env), repeat=action_repeat)


def _check_versions(mujoco: str, dm_control: str) -> None:
    if _numbers(mujoco) >= (4,) and _numbers(dm_control) <= (1, 0, 50):
        raise ImportError(
            f"dm_control {dm_control} cannot load any task with MuJoCo {mujoco}. Install MuJoCo 3.17 instead: "
            "pip uninstall -y mujoco mujoco-core mujoco-studio && pip install 'mujoco>=3.17,<3.18' "
            "(uninstall first: the parts of release 4 share a folder with release 3)."
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
