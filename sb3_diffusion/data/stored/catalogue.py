"""Data sets that have names: which file, which environment, which scale of scores, where the file can be had."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sb3_diffusion.data.stored.source import ReferenceScores
from sb3_diffusion.names import suggest

FOLDER = "SB3_DIFFUSION_DATA"
"""Environment variable with the folder of data sets."""

DEFAULT_FOLDER = "~/.sb3_diffusion/datasets"


class KnownDataset(NamedTuple):
    """
    A data set that has a name.

    :param name: Its name
    :param kind: Form of its file: ``"hdf5"`` or ``"ogbench"``
    :param file: Path of the file within the folder of data sets
    :param env_id: Environment in which an agent that learned from it is evaluated, ``None`` if none fits
    :param reference: Scale of its scores
    :param max_episode_steps: Time limit of the task that the data were recorded in
    :param url: Where the file can be had
    :param recipe: What ``zoo/data.py make`` makes it with: ``"robots"``, ``"oracles"`` or ``"bundled"`` agents; or empty
    :param note: What else there is to know
    :param task: Number of the task that the rewards are for, where the data are for several
    :param env_kwargs: Arguments of the environment without which its observations do not fit
    """

    name: str
    kind: str
    file: str
    env_id: str | None
    reference: ReferenceScores | None
    max_episode_steps: int | None = None
    url: str | None = None
    recipe: str = ""
    note: str = ""
    task: int | None = None
    env_kwargs: tuple[tuple[str, object], ...] = ()

    @property
    def names(self) -> list[str]:
        """Its name; where the data are for several tasks, then that of the data, which tasks and validation files share."""
        return [self.name] if self.task is None else [self.name, Path(self.file).stem.removesuffix("-val")]


def folder() -> Path:
    """Where data sets are kept: ``SB3_DIFFUSION_DATA``, or a folder of the user's."""
    return Path(os.environ.get(FOLDER) or DEFAULT_FOLDER).expanduser()


def find(name: str) -> KnownDataset:
    """
    :param name: Name of a data set, such as ``"hopper-medium-v2"``
    :return: What is known of it
    :raises ValueError: If there is none of that name
    """
    known = KNOWN.get(name) or ogbench(name)
    if known is None:
        raise ValueError(f"There is no data set {name!r}; {suggest(name, KNOWN, 'python zoo/data.py list shows the names.')}")
    return known


def known_file(path: Path) -> KnownDataset | None:
    """
    :param path: A file of data
    :return: The data set whose file this is, going by how it is called
    """
    parts = path.resolve().parts
    for known in KNOWN.values():
        tail = Path(known.file).parts
        # the files of D4RL have names that nobody else uses, and may lie anywhere
        tail = tail[-1:] if tail[0] == "d4rl" else tail
        if parts[-len(tail) :] == tail:
            return known
    return None


def places(known: KnownDataset) -> list[Path]:
    """
    :param known: A data set
    :return: Where its file may be, also where the package of its makers puts it
    """
    own, name = folder() / known.file, Path(known.file).name
    if known.kind == "ogbench":
        return [own, Path("~/.ogbench/data").expanduser() / name]
    if known.file.startswith("d4rl/"):
        return [own, Path(os.environ.get("D4RL_DATASET_DIR") or "~/.d4rl/datasets").expanduser() / name]
    return [own]


def locate(known: KnownDataset) -> Path:
    """
    :param known: A data set
    :return: Its file
    :raises FileNotFoundError: Saying which file is missing, where it was looked for, and how to get it
    """
    for place in places(known):
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in places(known))
    raise FileNotFoundError(
        f"{known.name} needs the file {Path(known.file).name}, which was looked for as {looked} "
        f"(set {FOLDER} to the folder of your data sets). {how_to_get(known)}"
    )


def how_to_get(known: KnownDataset) -> str:
    """
    :param known: A data set
    :return: Sentences that say where its file comes from
    """
    ways = []
    if known.url:
        ways.append(f"It can be had from {known.url}: python zoo/data.py download {known.name}.")
    if known.recipe:
        ways.append(f"{'The like' if known.url else 'It'} is made by: python zoo/data.py make {known.name}.")
    return " ".join([*ways, *([known.note] if known.note else [])])


# -- D4RL --------------------------------------------------------------------------------------------------------------

_D4RL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
_MUJOCO = {
    # robot -> returns of a random policy and of an expert, shared by all data of the robot
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
    "ant": ("Ant-v4", -325.6, 3879.7),
}
_MUJOCO_KINDS = ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert")
_ADROIT = {
    "pen": ("AdroitHandPen-v1", 96.262799, 3076.8331017826877, 100),
    "hammer": ("AdroitHandHammer-v1", -274.856578, 12794.134825156867, 200),
    "door": ("AdroitHandDoor-v1", -56.512833, 2880.5693087298737, 200),
    "relocate": ("AdroitHandRelocate-v1", -6.425911, 4233.877797728884, 200),
}
_ANTMAZE = {
    "umaze": ("u-maze", False, False, 700),
    "umaze-diverse": ("u-maze", True, True, 700),
    "medium-play": ("big-maze", True, False, 1000),
    "medium-diverse": ("big-maze", True, True, 1000),
    "large-play": ("hardest-maze", True, False, 1000),
    "large-diverse": ("hardest-maze", True, True, 1000),
}
_KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider-v0",
    "partial": "kitchen_microwave_kettle_light_slider-v0",
    "mixed": "kitchen_microwave_kettle_bottomburner_light-v0",
}
_MAZE2D = {
    "umaze": (300, (23.85, 161.86), (68.537689, 193.66285642381482)),
    "medium": (600, (13.13, 277.39), (44.264742, 297.4552547777125)),
    "large": (800, (6.7, 273.99), (30.569041, 303.4857382709002)),
}


def _d4rl(name: str, address: str, env_id: str | None, low: float, high: float, limit: int, **more: object) -> KnownDataset:
    url = f"{_D4RL}/{address}.hdf5"
    scores = ReferenceScores(low, high, 100.0, "D4RL")
    return KnownDataset(name, "hdf5", f"d4rl/{url.rpartition('/')[2]}", env_id, scores, limit, url, **more)  # type: ignore[arg-type]


def _d4rl_sets() -> Iterator[KnownDataset]:
    for robot, (env_id, low, high) in _MUJOCO.items():
        # version 4 has the 111 observations of the data only with these
        more = {"env_kwargs": (("use_contact_forces", True),)} if robot == "ant" else {}
        for kind in _MUJOCO_KINDS:
            for version in ("v2", "v1"):
                file = f"gym_mujoco_{version}/{robot}_{kind.replace('-', '_')}-{version}"
                yield _d4rl(f"{robot}-{kind}-{version}", file, env_id, low, high, 1000, **more)
    for hand, (env_id, low, high, limit) in _ADROIT.items():
        for kind in ("human", "cloned", "expert"):
            yield _d4rl(f"{hand}-{kind}-v1", f"hand_dapg_v1/{hand}-{kind}-v1", env_id, low, high, limit)
    note = "No environment of today has its observations."
    for kind, (maze, starts, goals, limit) in _ANTMAZE.items():
        for version, place, end in (("v2", "ant_maze_v2", "sparse_fixed"), ("v0", "ant_maze_new", "sparse")):
            file = f"{place}/Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_{end}"
            yield _d4rl(f"antmaze-{kind}-{version}", file, None, 0.0, 1.0, limit, note=note)
    for kind, name in _KITCHEN.items():
        yield _d4rl(f"kitchen-{kind}-v0", f"kitchen/{name}", None, 0.0, 4.0, 280, note=note)
    for size, (limit, sparse, dense) in _MAZE2D.items():
        yield _d4rl(f"maze2d-{size}-v1", f"maze2d/maze2d-{size}-sparse-v1", None, *sparse, limit, note=note)
        yield _d4rl(f"maze2d-{size}-dense-v1", f"maze2d/maze2d-{size}-dense-v1", None, *dense, limit, note=note)


# -- rolled out by published agents, and by people -----------------------------------------------------------------------

ROBOTS = {
    "hopper": ("Hopper-v5", 17.0, 3071.4),
    "halfcheetah": ("HalfCheetah-v5", -275.3, 8897.9),
    "walker2d": ("Walker2d-v5", 2.1, 3954.4),
}
"""Robot -> task, and mean returns of a random policy and of RL Zoo's best one, both as sampled in that task."""

ZOO_KINDS = ("single", "mixed", "expert-mixed", "switching")


def _other_sets() -> Iterator[KnownDataset]:
    for robot, (env_id, low, high) in ROBOTS.items():
        for kind in ZOO_KINDS:
            name, scores = f"rlzoo/{robot}/{kind}-v0", ReferenceScores(low, high, 100.0, "rlzoo")
            yield KnownDataset(name, "hdf5", f"{name}.hdf5", env_id, scores, 1000, recipe="robots")
    yield KnownDataset(
        "pendulum-medium-v0",
        "hdf5",
        "pendulum-medium-v0.hdf5",
        "Pendulum-v1",
        ReferenceScores(-1193.0, -142.0, 100.0, "pendulum"),
        200,
        recipe="bundled",
    )
    yield KnownDataset(
        "dapg/door-human-v0",
        "hdf5",
        "dapg/door-human-v0.hdf5",
        "AdroitHandDoor-v1",
        ReferenceScores(-56.5, 794.1, 100.0, "dapg"),
        note=(
            "Its 25 demonstrations by people are published as a pickle (aravindr93/hand_dapg), which is never read here; "
            "turn them into this layout yourself, or take the set door-human-v1."
        ),
    )


KNOWN: dict[str, KnownDataset] = {known.name: known for known in (*_d4rl_sets(), *_other_sets())}
"""Name -> data set; those of OGBench follow a rule instead, see :func:`ogbench`."""


# -- OGBench -------------------------------------------------------------------------------------------------------------

_OGBENCH = "https://rail.eecs.berkeley.edu/datasets/ogbench"
_OGBENCH_KINDS = {
    # environments -> sorts of data, number of the task that is meant where none is named
    r"(pointmaze|antmaze)-(medium|large|giant|teleport)": (("navigate", "stitch", "explore"), 1),
    r"humanoidmaze-(medium|large|giant)": (("navigate", "stitch"), 1),
    r"antsoccer-(arena|medium)": (("navigate", "stitch"), 4),
    r"cube-(single|double|triple|quadruple|octuple)": (("play", "noisy"), 2),
    r"scene": (("play", "noisy"), 2),
    r"puzzle-(3x3|4x4)": (("play", "noisy"), 4),
    r"puzzle-(4x5|4x6)": (("play", "noisy"), 2),
}
_OGBENCH_NAME = re.compile(
    r"(?:ogbench/)?(?P<env>.+?)-(?P<kind>[a-z]+)(?P<single>-singletask(?:-task(?P<task>[1-5]))?)?-v0(?P<val>-val)?"
)
OGBENCH_RECIPES = ("cube-single-noisy", "cube-single-play", "pointmaze-medium-navigate")
"""What ``zoo/data.py make`` can make of OGBench."""


def ogbench(name: str, task: int | None = None) -> KnownDataset | None:
    """
    Data sets of OGBench are named ``<environment>-<kind>-v0``; with ``-singletask-task<number>`` before the version, the
    rewards are those of that task.

    :param name: A name, with ``ogbench/`` before it or not
    :param task: Number of the task, if the name does not say it
    :return: The data set, ``None`` if this is none of these names
    :raises ValueError: If the name says another task
    """
    match = _OGBENCH_NAME.fullmatch(name)
    if match is None:
        return None
    for environments, (kinds, default) in _OGBENCH_KINDS.items():
        env, kind = match["env"], match["kind"]
        if kind in kinds and re.fullmatch(environments, env):
            if task is not None and match["task"] not in (None, str(task)):
                raise ValueError(f"task={task} contradicts the name {name}; leave it out.")
            task = int(match["task"] or task or default)
            file, validation = f"{env}-{kind}-v0{match['val'] or ''}.npz", match["val"] or ""
            return KnownDataset(
                f"{env}-{kind}-singletask-task{task}-v0{validation}",
                "ogbench",
                f"ogbench/{file}",
                f"{env}-singletask-task{task}-v0",
                None,
                url=f"{_OGBENCH}/{file}",
                recipe="oracles" if f"{env}-{kind}" in OGBENCH_RECIPES else "",
                task=task,
            )
    return None
