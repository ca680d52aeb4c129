"""
One cell of a benchmark: one algorithm on one environment with one seed, and the files in its folder.

``<benchmark>/<algorithm>/<environment>/seed-<seed>/`` holds

``cell.json``
    what the cell is, written when it is planned
``run/``
    the log folder of ``zoo/train.py``
``log.txt``, ``attempts.json``
    output of the training, and one entry for every time that it was started
``result.json``
    the curve, the final evaluation and how they came about; written once, at the end

All of them are plain JSON and checked against ``data/cell.schema.json`` when they are read.
"""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName  # a module of sb3-team-hf-integration, which rl-zoo3 brings

from sb3_diffusion.files import write_atomically
from sb3_diffusion.printable import printable

from ..lease import lease
from ..training.options.registry import frames_of_a_step

DATA = Path(__file__).resolve().parent / "data"
FORMAT = 1
EVAL_FRAMES = 10_000
"""Simulator frames between two evaluations (Table 3 of the FlowRL paper), if nothing else is asked for."""


class CellFileError(ValueError):
    """A file of a cell does not hold what it should; the message is one line that names file and reason."""


@dataclass(frozen=True)
class Settings:
    """
    Options of ``zoo/train.py`` that are the same for a whole command.

    :param n_timesteps: Environment steps, ``None`` for those of the settings file
    :param eval_freq: Evaluate every so many steps, ``None`` for every :data:`EVAL_FRAMES` frames
    :param eval_episodes: Episodes of an evaluation
    :param n_eval_envs: Environments that an evaluation uses at once
    :param threads: Threads of one training
    :param device: PyTorch device
    :param params: Settings that are overwritten, ``key:value``
    :param env_kwargs: Arguments of the environment, ``key:value``
    :param gym_packages: Packages that register environments or algorithms
    :param algorithm: Algorithm that is trained, if what is compared is a variant of it with a name of its own
    """

    n_timesteps: int | None = None
    eval_freq: int | None = None
    eval_episodes: int = 10
    n_eval_envs: int = 1
    threads: int = 1
    device: str = "auto"
    params: tuple[str, ...] = ()
    env_kwargs: tuple[str, ...] = ()
    gym_packages: tuple[str, ...] = ()
    algorithm: str | None = None

    def for_env(self, env: str) -> "Settings":
        """
        :param env: Id of an environment
        :return: The same with a number of steps between two evaluations. A step is a decision of the agent; the settings files
            repeat it in the DeepMind Control Suite, so that it is several frames there
        """
        return replace(self, eval_freq=EVAL_FRAMES // frames_of_a_step(env)) if self.eval_freq is None else self

    def options(self) -> list[str]:
        """The settings on the command line of ``zoo/train.py``."""
        options = [] if self.n_timesteps is None else ["-n", str(self.n_timesteps)]
        options += ["--eval-freq", str(self.eval_freq), "--eval-episodes", str(self.eval_episodes)]
        options += ["--n-eval-envs", str(self.n_eval_envs), "--num-threads", str(self.threads), "--device", self.device]
        lists = {"-params": self.params, "--env-kwargs": self.env_kwargs, "--gym-packages": self.gym_packages}
        return options + [word for option, words in lists.items() if words for word in (option, *words)]


@dataclass(frozen=True)
class Cell:
    """
    One training of a benchmark.

    :param root: Folder of the benchmark
    :param algo: Name of the algorithm on the command line, or of a variant of one
    :param env: Id of the environment
    :param seed: Seed
    :param settings: Everything else
    """

    root: Path
    algo: str
    env: str
    seed: int
    settings: Settings

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", self.settings.for_env(self.env))  # what is written down is a number of steps

    def __str__(self) -> str:
        return f"{self.algo} {self.env} seed {self.seed}"

    @cached_property
    def folder(self) -> Path:
        """Folder of the cell, which depends on nothing but the cell."""
        return self.root / self.algo / EnvironmentName(self.env) / f"seed-{self.seed}"

    @property
    def trained(self) -> str:
        """Name of the algorithm on the command line."""
        return self.settings.algorithm or self.algo

    @property
    def log(self) -> Path:
        """Output of the training."""
        return self.folder / "log.txt"

    def options(self) -> list[str]:
        """Command line of ``zoo/train.py``, without the folder."""
        return ["--algo", self.trained, "--env", self.env, "--seed", str(self.seed), *self.settings.options()]

    @property
    def command(self) -> str:
        """The command that repeats the training."""
        return shlex.join(["python", "zoo/train.py", *self.options()])

    def describe(self) -> dict[str, Any]:
        """Content of ``cell.json``."""
        # through JSON, so that it compares equal to what is read
        settings = json.loads(json.dumps(asdict(self.settings)))
        if settings["algorithm"] is None:
            del settings["algorithm"]
        return {"algorithm": self.algo, "environment": self.env, "seed": self.seed, "settings": settings}


def expand(root: Path, algos: Sequence[str], envs: Sequence[str], seeds: Sequence[int], settings: Settings) -> list[Cell]:
    """
    The grid, one seed of everything after the other, so that an interrupted benchmark compares all algorithms.

    :param root: Folder of the benchmark
    :param algos: Algorithms
    :param envs: Environments
    :param seeds: Seeds
    :param settings: Everything else
    """
    cells = [Cell(root, algo, env, seed, settings) for seed in seeds for env in envs for algo in algos]
    return list(dict.fromkeys(cells))


def plan(cells: Sequence[Cell]) -> None:
    """
    Write down what the cells are, before any of them is started.

    :param cells: Cells of one benchmark
    :raises ValueError: If a folder belongs to a cell with other settings; then nothing is written
    """
    root = cells[0].root
    root.mkdir(parents=True, exist_ok=True)
    with lease(root / "plan.lease"):
        new = []
        for cell in cells:
            if not (cell.folder / "cell.json").is_file():
                new.append(cell)
                continue
            known, asked = read(cell.folder, "cell"), cell.describe()
            if known != asked:
                raise ValueError(f"{cell.folder} was started with {_differences(known, asked)}; give another --folder.")
        for cell in new:
            cell.folder.mkdir(parents=True, exist_ok=True)
            write(cell.folder, "cell", cell.describe())


def _differences(known: dict[str, Any], asked: dict[str, Any]) -> str:
    before, now = ({"environment": entry["environment"], **entry["settings"]} for entry in (known, asked))
    keys = [*before, *(key for key in now if key not in before)]
    return ", ".join(f"{key} {before.get(key)} (not {now.get(key)})" for key in keys if before.get(key) != now.get(key))


def read(folder: Path, kind: str) -> Any:
    """
    :param folder: Folder of a cell
    :param kind: ``"cell"``, ``"attempts"`` or ``"result"``
    :return: Content of the file
    :raises CellFileError: If the file is not what it should be
    :raises FileNotFoundError: If there is none
    """
    path = folder / f"{kind}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise CellFileError(f"{path} is not readable as JSON: {printable(reason, 200)}") from None
    check(content, kind, path)
    return content


def read_result(folder: Path) -> dict[str, Any]:
    """
    :param folder: Folder of a cell
    :return: Its result
    :raises CellFileError: If it is damaged, or that of another cell
    :raises FileNotFoundError: If there is none
    """
    result = read(folder, "result")
    if result["cell"] != read(folder, "cell"):
        raise CellFileError(f"{folder / 'result.json'} is damaged: it is the result of another cell")
    return result


def write(folder: Path, kind: str, content: Any) -> None:
    """
    :param folder: Folder of a cell
    :param kind: See :func:`read`
    :param content: What the file shall hold
    :raises CellFileError: If that is not what it should be
    """
    path = folder / f"{kind}.json"
    check(content, kind, path)
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError as error:
        raise CellFileError(f"{path} cannot be written: {error}") from None
    write_atomically(path, f"{text}\n".encode())


def check(content: Any, kind: str, path: Path) -> None:
    """
    :param content: What a file holds
    :param kind: See :func:`read`
    :param path: The file
    :raises CellFileError: If that is not what it should be
    """
    error = next(iter(_validator(kind).iter_errors(content)), None)
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the whole"
        raise CellFileError(f"{path} is damaged: {printable(where, 200)}: {printable(error.message, 200)}")


@cache
def _validator(kind: str) -> Any:
    from jsonschema import Draft202012Validator  # of the extra "benchmark"

    definitions = json.loads((DATA / "cell.schema.json").read_text(encoding="utf-8"))["$defs"]
    return Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": definitions})


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number
