"""
A grid that is described in a YAML file: what is asked, which trainings answer it, what they change about the settings and why.

.. code-block:: yaml

    title: Hopper, 100,000 steps
    question: Which method learns to hop first?
    why: What the reader has to know of the protocol.
    algorithms:
      sac:                                          # as its settings are
      sdac:
        n_particles: {value: 16, why: 500 take a second per update}
      sdac-few:                                     # a variant, under a name of its own
        algorithm: sdac
        n_particles: {value: 4, why: does that do as well?}
    environments: [Hopper-v5]
    seeds: [0, 1, 2]
    budget: 100_000                                 # environment steps; updates for methods that learn from data
    evaluation: {every: 10_000, episodes: 10}
    settings:                                       # of all algorithms
      learning_starts: {value: 1_000, why: 5,000 are meant for a million}

No value without a reason: ``value`` and ``why`` go together. Text is read as on the command line, such as ``lin_3e-4``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.names import suggest
from sb3_diffusion.printable import printable, quoted
from sb3_diffusion.taxonomy import CONTRIB, load_algorithm

from ..training.options.command_line import parse_assignment
from ..training.options.hyperparameters import check
from ..training.options.registry import algorithm_names
from ..training.options.settings import overwrite, with_origin
from ..training.runs.text_files import read_yaml
from .cells import Cell, Settings

REQUIRED = ("title", "question", "algorithms", "environments", "seeds", "budget")
OPTIONAL = ("why", "evaluation", "settings", "env_kwargs", "gym_packages", "threads", "device")
EVALUATION = {"every": "eval_freq", "episodes": "eval_episodes", "environments": "n_eval_envs"}
MAX_CELLS = 10_000


class Change(NamedTuple):
    """
    A setting that differs from the settings file.

    :param name: Its name
    :param value: Its value
    :param why: The reason
    """

    name: str
    value: Any
    why: str

    @property
    def word(self) -> str:
        """As it stands on the command line."""
        return f"{self.name}:{self.value}"


@dataclass(frozen=True)
class Description:
    """
    See the module.

    :param path: The file
    :param title: What is compared, in a few words
    :param question: What the grid is to answer
    :param why: What else there is to know
    :param algorithms: What each algorithm or variant changes
    :param variants: Name of a variant -> its algorithm
    :param environments: Ids of environments, or names of data sets
    :param seeds: Seeds
    :param changes: What all algorithms change
    :param settings: What all trainings have in common
    """

    path: Path
    title: str
    question: str
    why: str
    algorithms: Mapping[str, tuple[Change, ...]]
    variants: Mapping[str, str]
    environments: tuple[str, ...]
    seeds: tuple[int, ...]
    changes: tuple[Change, ...]
    settings: Settings

    def cells(self, root: Path) -> list[Cell]:
        """
        One seed of everything after the other, so that a grid that is interrupted compares all algorithms.

        :param root: Folder of the benchmark
        """
        return [
            Cell(root, algo, env, seed, self.settings_of(algo))
            for seed in self.seeds
            for env in self.environments
            for algo in self.algorithms
        ]

    def settings_of(self, algo: str) -> Settings:
        """
        :param algo: One of its algorithms
        :return: Its settings; what it changes itself replaces what all change
        """
        changes = {change.name: change.word for change in (*self.changes, *self.algorithms[algo])}
        return replace(self.settings, params=tuple(changes.values()), algorithm=self.variants.get(algo))

    @property
    def trained(self) -> list[str]:
        """Names of the algorithms, each once."""
        return list(dict.fromkeys(self.variants.get(algo, algo) for algo in self.algorithms))

    def only(
        self, algos: Iterable[str] | None = None, envs: Iterable[str] | None = None, seeds: Iterable[int] | None = None
    ) -> "Description":
        """
        :param algos: Take only these
        :param envs: Take only these
        :param seeds: Take only these
        :return: A part of the grid, in the order of the file
        :raises ValueError: If something is not part of it
        """
        part: dict[str, Any] = {}
        for name, option, wanted in (
            ("algorithms", "algos", algos),
            ("environments", "envs", envs),
            ("seeds", "seeds", seeds),
        ):
            if wanted is None:
                continue
            known, chosen = list(getattr(self, name)), list(wanted)
            for value in chosen:
                if value not in known:
                    listed = ", ".join(map(str, known))
                    raise ValueError(f"--{option} {value} is not in {self.path}, which has {listed}; add it there.")
            part[name] = tuple(value for value in known if value in chosen)
        if "algorithms" in part:
            part["algorithms"] = {algo: self.algorithms[algo] for algo in part["algorithms"]}
        return replace(self, **part)


def read_description(path: Path) -> Description:
    """
    :param path: A YAML file
    :return: The grid
    :raises ValueError: Naming the file, the key, its value and the remedy
    """
    if not path.is_file():
        beside = sorted(str(other) for other in path.parent.glob("*.yml"))
        there = f"there are {', '.join(beside)}" if beside else "give the path of a YAML file"
        raise ValueError(f"--grid {path}: there is no such file; {there}.")
    values = read_yaml(path)
    _refuse_twice(path)
    content = _Reader(path, values, "")
    content.refuse_unknown((*REQUIRED, *OPTIONAL))
    if missing := [key for key in REQUIRED if key not in content.values]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}.")
    algorithms = list(content.mapping("algorithms").entries())
    description = Description(
        path,
        content.text("title"),
        content.text("question"),
        content.text("why") if "why" in content.values else "",
        {name: entry.without("algorithm").changes() for name, entry in algorithms},
        {name: entry.variant_of(name) for name, entry in algorithms if "algorithm" in entry.values},
        tuple(content.texts("environments")),
        tuple(content.numbers("seeds", 0)),
        content.mapping("settings").changes() if "settings" in content.values else (),
        _settings(content),
    )
    n_cells = len(description.algorithms) * len(description.environments) * len(description.seeds)
    if n_cells > MAX_CELLS:
        raise ValueError(f"{path} has {n_cells:,} trainings, more than {MAX_CELLS:,}; divide it into several files.")
    return description


def _refuse_twice(path: Path) -> None:
    """Of two entries with the same name, YAML takes the second without a word. The file is known to be small and readable."""
    stack, seen = [yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)], set()
    while stack:
        node = stack.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            stack += node.value
            continue
        names: set[Any] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                where = f"line {key.start_mark.line + 1}"
                raise ValueError(f"{path}, {where}: {quoted(key.value)} is there twice; put both into one entry.")
            names |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
            stack.append(value)


def check_changes(description: Description) -> None:
    """
    Compare what a grid changes with the arguments of its algorithms, which takes seconds and saves the days until a wrong name
    is reached.

    :param description: A grid whose algorithms exist
    :raises ValueError: If a name or a value is wrong
    """
    for name, own in description.algorithms.items():
        algo = description.variants.get(name, name)
        if algo in CONTRIB or not (*description.changes, *own):
            continue
        algorithm: type[BaseAlgorithm] = load_algorithm(algo)
        given = with_origin({"policy": next(iter(algorithm.policy_aliases)), "n_timesteps": 1}, "")
        for origin, changes in (("settings", description.changes), (f"algorithms: {name}", own)):
            values = dict(parse_assignment(change.word) for change in changes)
            given = overwrite(given, with_origin(values, f"{description.path}, {origin}"))
        check(algorithm, given)


def _settings(content: "_Reader") -> Settings:
    settings: dict[str, Any] = {"n_timesteps": content.number("budget", 1)}
    if "evaluation" in content.values:
        evaluation = content.mapping("evaluation")
        evaluation.refuse_unknown(EVALUATION)
        settings |= {EVALUATION[key]: evaluation.number(key, 1) for key in evaluation.values}
    if "threads" in content.values:
        settings["threads"] = content.number("threads", 1)
    if "device" in content.values:
        settings["device"] = content.text("device")
    if "gym_packages" in content.values:
        settings["gym_packages"] = tuple(content.texts("gym_packages"))
    if "env_kwargs" in content.values:
        settings["env_kwargs"] = tuple(change.word for change in content.mapping("env_kwargs").changes())
    return Settings(**settings)


class _Reader:
    """
    The values of a mapping, each of the kind that is asked for.

    :param path: The file
    :param values: The mapping
    :param where: Its key in the file
    """

    def __init__(self, path: Path, values: Mapping[Any, Any], where: str):
        self.path, self.values, self.where = path, values, where

    def error(self, key: Any, problem: str) -> ValueError:
        place = ": ".join([*([self.where] if self.where else []), printable(str(key), 80)])
        return ValueError(f"{self.path}, {place}: {problem}")

    def _wrong(self, key: Any, value: Any, remedy: str) -> ValueError:
        return self.error(key, f"{quoted(value)} is not what belongs there; give {remedy}.")

    def refuse_unknown(self, known: Iterable[str]) -> None:
        for key in self.values:
            if key not in (names := list(known)):
                raise self.error(key, f"there is no such key; {suggest(str(key), names)}")

    def text(self, key: str) -> str:
        value = self.values[key]
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, value, "a text")
        return value.strip()

    def number(self, key: str, least: int) -> int:
        return self._whole(key, self.values[key], least)

    def _whole(self, key: str, value: Any, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._wrong(key, value, f"a whole number of at least {least}")
        return value

    def numbers(self, key: str, least: int) -> list[int]:
        return [self._whole(key, value, least) for value in self._list(key, "such as [0, 1, 2]")]

    def texts(self, key: str) -> list[str]:
        values = self._list(key, "of names")
        if wrong := [value for value in values if not isinstance(value, str) or not value]:
            raise self._wrong(key, wrong[0], "a name")
        return values

    def _list(self, key: str, example: str) -> list[Any]:
        values = self.values[key]
        if not isinstance(values, list) or not values:
            raise self._wrong(key, values, f"a list {example}")
        if twice := [value for index, value in enumerate(values) if value in values[:index]]:
            raise self.error(key, f"{quoted(twice[0])} is there twice; give it once.")
        return values

    def mapping(self, key: str) -> "_Reader":
        value = self.values[key]
        if not isinstance(value, dict) or not value:
            raise self._wrong(key, value, "names and what belongs to each")
        return _Reader(self.path, value, ": ".join([*([self.where] if self.where else []), str(key)]))

    def entries(self) -> Iterable[tuple[str, "_Reader"]]:
        """Every name with its mapping; nothing behind a name is an empty one."""
        for key, value in self.values.items():
            if not isinstance(key, str):
                raise self._wrong(key, key, "a name")
            if value is not None and not isinstance(value, dict):
                raise self._wrong(key, value, "nothing, or what it changes, such as {batch_size: {value: 512, why: ...}}")
            yield key, _Reader(self.path, value or {}, f"{self.where}: {printable(key, 80)}")

    def without(self, key: str) -> "_Reader":
        return _Reader(self.path, {name: value for name, value in self.values.items() if name != key}, self.where)

    def variant_of(self, name: str) -> str:
        """The algorithm of a variant, whose name is that of a folder."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name) or name in algorithm_names():
            raise self.error(
                "algorithm", f"a variant cannot be called {quoted(name)}; give a name of its own, such as sac-fast."
            )
        return self.text("algorithm")

    def changes(self) -> tuple[Change, ...]:
        """Settings, each with its reason."""
        found = []
        for name, entry in self.values.items():
            if not isinstance(entry, dict) or set(entry) != {"value", "why"}:
                raise self._wrong(name, entry, "its value and the reason, {value: ..., why: ...}")
            reason = _Reader(self.path, entry, f"{self.where}: {printable(str(name), 80)}").text("why")
            change = Change(str(name), entry["value"], reason)
            try:
                read = parse_assignment(change.word)
            except ValueError as error:
                raise self.error(name, f"{error}.") from None
            if not isinstance(change.value, str) and read != (change.name, change.value):
                raise self._wrong(name, change.value, "a value that the command line can express")
            found.append(change)
        return tuple(found)
