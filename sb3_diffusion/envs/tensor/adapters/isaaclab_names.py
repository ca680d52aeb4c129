"""Names of Isaac Lab's tasks, which release 3.0 changed; none of the old ones is registered there, and vice versa."""

import re
import warnings
from collections.abc import Collection

from sb3_diffusion.names import closest

RENAMED = {
    "Isaac-Lift-Cube-Franka-v0": "IsaacContrib-Lift-Cube-Franka",
    "Isaac-Franka-Cabinet-Direct-v0": "Isaac-Open-Drawer-Franka-Direct",
    "Isaac-Open-Drawer-Franka-v0": "Isaac-Open-Drawer-Franka",
    "Isaac-Velocity-Flat-Anymal-D-v0": "Isaac-Velocity-Flat-AnymalD",
    "Isaac-Velocity-Rough-Anymal-D-v0": "Isaac-Velocity-Rough-AnymalD",
}
"""Release 2 to 3. Other names follow the rule: no ``-v0``, robots in one word, and a prefix for contributed tasks."""

OTHER_TASKS = ("Isaac-Lift-Franka",)
"""Names of release 3 that a name of release 2 must not lead to: this one lifts other things for longer."""

CHANGED = {
    "Isaac-Ant-Direct": "its observations have 60 numbers since, and had 36",
    "Isaac-Humanoid-Direct": "its observations have 87 numbers since, and had 75",
}

ROBOTS = {
    "Anymal-B": "AnymalB",
    "Anymal-C": "AnymalC",
    "Anymal-D": "AnymalD",
    "Unitree-A1": "UnitreeA1",
    "Unitree-Go1": "UnitreeGo1",
    "Unitree-Go2": "UnitreeGo2",
}


def resolve_isaac_task(task: str, registered: Collection[str]) -> str:
    """
    :param task: Name of a task, of either release
    :param registered: Names that Gymnasium knows
    :return: The task's name in the release that is installed
    :raises ValueError: If there is no such task, naming the nearest
    """
    if task in registered:
        return task
    for candidate in _other_names(task):
        if candidate in registered:
            if note := CHANGED.get(candidate) or CHANGED.get(_new_name(candidate)):
                warnings.warn(f"{task} is called {candidate} in this release of Isaac Lab, and {note}.", stacklevel=3)
            return candidate
    known = [name for name in registered if name.startswith("Isaac")]
    nearest = closest(task, known, n=3)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "have isaaclab_tasks been imported?"
    raise ValueError(f"Isaac Lab has no task {task!r}, under its old or its new name; {hint}.")


def isaac_names_agree(one: str, other: str) -> bool:
    """
    :param one: Name of a task
    :param other: Name of a task
    :return: Whether both are names of the same task, in whatever release
    """
    return one == other or one in _other_names(other) or other in _other_names(one)


def _other_names(task: str) -> list[str]:
    """What the task may be called in another release, the likeliest first."""
    if task.endswith("-v0"):
        new = _new_name(task)
        names = [RENAMED.get(task, new), new, new.replace("Isaac-", "IsaacContrib-", 1)]
        return [name for name in names if name not in OTHER_TASKS]
    inverse = {new: old for old, new in RENAMED.items()}
    names = [inverse.get(task, ""), _old_name(task), _old_name(task.replace("IsaacContrib-", "Isaac-", 1))]
    return [name for name in names if name]


def _new_name(task: str) -> str:
    name = re.sub(r"-v0$", "", task)
    for old, new in ROBOTS.items():
        name = name.replace(old, new)
    return name


def _old_name(task: str) -> str:
    name = task
    for old, new in ROBOTS.items():
        name = name.replace(new, old)
    return f"{name}-v0"
