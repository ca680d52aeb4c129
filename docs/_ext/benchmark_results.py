"""
Directives ``benchmark`` and ``leaderboard``: what has come out of a grid in ``docs/data/benchmark``.

    ```{benchmark} inverted-double-pendulum
    ```

    ```{leaderboard} offline
    ```

Both read ``<name>.yml``, which describes the grid, and the files ``<name>/runs.csv``, ``means.csv`` and ``curves.csv`` that
``python zoo/benchmark.py report --grid docs/data/benchmark/<name>.yml --export docs/data/benchmark`` writes. ``benchmark``
shows learning curves and returns, ``leaderboard`` methods x data sets with the scores on the scale of each; both then say how
the numbers came about, and name every training that has none.
"""

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from benchmark_figure import draw_curves
from beside_reference import beside_reference, mean_returns
from docutils import nodes
from figure_node import figure_node
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from taxonomy_table import link, markdown_table
from variants_figure import draw_variants, families

from sb3_diffusion.taxonomy import METHODS
from zoo.benchmarking.description import Change, Description, read_description
from zoo.figures import MIN_RUNS, bootstrap_interval, title
from zoo.training.score import SUCCESS

FILES = ("runs", "means", "curves")
DATA = "data.csv"
"""What is known of the data sets of a grid, if there are any: columns ``environment, return, score``."""
REFERENCE = "reference.csv"
"""Evaluations of the reference implementation in the same protocol, if it was trained beside."""
COMMAND = "python zoo/benchmark.py run --grid docs/data/benchmark"
ABOUT_NOISE = (
    "Noise: deterministic actions of diffusion and flow policies have fixed noise, unless a column says that it is drawn anew "
    "for every action, as by the reference implementation ({ref}`evaluation-noise`)."
)
WAY = "Mean of all evaluations"
Row = dict[str, str]


class Grid:
    """
    A grid and its results.

    :param data: Folder ``docs/data/benchmark``
    :param name: Name of the grid
    :raises ValueError: If a file is missing or is none of this grid
    """

    def __init__(self, data: Path, name: str):
        self.name = name
        self.paths = [data / f"{name}.yml", *(data / name / f"{file}.csv" for file in FILES)]
        if absent := [str(path.relative_to(data)) for path in self.paths if not path.is_file()]:
            raise ValueError(f"docs/data/benchmark lacks {', '.join(absent)}")
        self.description: Description = read_description(self.paths[0])
        self.runs, self.means, self.curves = (read_rows(path) for path in self.paths[1:])
        about = data / name / DATA
        self.data = {row["environment"]: row for row in read_rows(about)} if about.is_file() else {}
        beside = data / name / REFERENCE
        self.reference = read_rows(beside) if beside.is_file() else []
        planned = {(cell.algo, cell.env, str(cell.seed)) for cell in self.description.cells(Path())}
        found = {(run["algorithm"], run["environment"], run["seed"]) for run in self.runs}
        if planned != found:
            raise ValueError(f"{name}/runs.csv has other trainings than {name}.yml; export the results again")

    def mean(self, algo: str, env: str) -> Row:
        """What the seeds of an algorithm on an environment have in common."""
        return next(row for row in self.means if (row["algorithm"], row["environment"]) == (algo, env))

    @property
    def done(self) -> list[Row]:
        """Trainings with a result."""
        return [run for run in self.runs if run["state"] == "done"]


def read_rows(path: Path) -> list[Row]:
    """
    :param path: A csv file
    :return: Its rows
    """
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str, digits: int | None = None) -> str:
    """
    :param text: A number of a csv file
    :param digits: Behind the point; by default one, none from a thousand on
    :return: The number for readers
    """
    value = float(text)
    digits = (0 if abs(value) >= 1000 else 1) if digits is None else digits
    shown = f"{value:,.{digits}f}"
    return (shown.lstrip("-") if float(shown.replace(",", "")) == 0 else shown).replace("-", "\N{MINUS SIGN}")


def outcome(row: Row, name: str) -> str:
    """
    A mean with what it rests on: its interval, or the number of seeds that give none.

    :param row: Row of ``means.csv``
    :param name: ``"score"``, ``"final"`` or ``"iqm"``
    """
    n_done, n_planned, n_failed = (int(row[key]) for key in ("n_done", "n_planned", "n_failed"))
    value = row["final_iqm" if name == "iqm" else f"{name}_mean"]
    if not n_done or not value:
        return f"failed ({n_failed} of {n_planned})" if n_failed else "missing"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    interval = f" [{number(low)}, {number(high)}]" if low else ""
    seeds = f"{n_done} seed{'' if n_done == 1 else 's'}" + (f", {n_failed} failed" if n_failed else "")
    return f"{number(value)}{interval} ({seeds}{'' if interval else ', no interval'})"


def name_of(algo: str) -> str:
    """Name of an algorithm, with a link to its page if it has one."""
    method = next((method for method in METHODS if method.zoo_name == algo), None)
    return title(algo) if method is None else link(method)


def minutes(text: str) -> str:
    """Seconds of a csv file in minutes."""
    return number(str(float(text) / 60)) if text else "unknown"


# -- tables ----------------------------------------------------------------------------------------------------------------


def leaderboard(grid: Grid) -> str:
    """Methods x data sets: scores on the scale of the data; where there is none, how many episodes were solved, or returns."""
    envs = grid.description.environments
    scored = {env: any(grid.mean(algo, env)["score_mean"] for algo in grid.description.algorithms) for env in envs}
    solved = {run["environment"] for run in grid.done if run["scale"] == SUCCESS}
    column = {env: "% solved" if env in solved else "score" if scored[env] else "return" for env in envs}
    tried = [env for env in envs if any(run["environment"] == env and run["state"] != "missing" for run in grid.runs)]
    rows = []
    for algo in grid.description.algorithms:
        found = [outcome(grid.mean(algo, env), "score" if scored[env] else "final") for env in tried]
        spent = [float(run["cpu_seconds"]) for run in grid.done if run["algorithm"] == algo and run["cpu_seconds"]]
        rows.append([name_of(algo), *found, minutes(str(sum(spent) / len(spent))) if spent else ""])
    if grid.data:
        facts = [grid.data[env]["score" if scored[env] else "return"] for env in tried]
        rows.insert(0, ["Mean of the data", *(number(fact) if fact else "" for fact in facts), ""])
    header = [f"`{env}`, {column[env]}" for env in tried]
    text = markdown_table(["Method", *header, "CPU minutes of a training"], rows, n_text=1)
    if untried := [f"`{env}`" for env in envs if env not in tried]:
        text += f"\n\nNothing has been trained yet on {', '.join(untried)}: these columns are missing."
    return text


def returns(grid: Grid) -> str:
    """A row for every algorithm on every environment."""
    rows, noise = [], other_noise(grid)
    envs = grid.description.environments
    for env in envs:
        for algo in grid.description.algorithms:
            row = grid.mean(algo, env)
            best = number(row["best_mean"]) if row["best_mean"] else ""
            cpu = minutes(row["cpu_seconds_mean"]) if row["n_done"] != "0" else ""
            where = [f"`{env}`"] if len(envs) > 1 else []
            other = [number(row["other_mean"]) if row.get("other_mean") else ""] if noise else []
            way = on_the_way(grid.curves, algo, env)
            rows.append([name_of(algo), *where, outcome(row, "iqm"), outcome(row, "final"), *other, best, way, cpu])
    names = ["Method", *(["Environment"] if len(envs) > 1 else [])]
    with_other = [f"Mean with {noise} noise"] if noise else []
    header = [*names, "Interquartile mean of final returns", "Mean", *with_other, "Best evaluation", WAY, "CPU minutes"]
    return markdown_table(header, rows, n_text=len(names))


def on_the_way(curves: Sequence[Row], algo: str, env: str) -> str:
    """
    :param curves: Rows of evaluations
    :param algo: An algorithm
    :param env: An environment
    :return: Mean over the evaluations of a training and over seeds, with its interval: who learns earlier has more
    """
    found = mean_returns(curves, algo, env)
    if not len(found):
        return ""
    mean = number(str(found.mean()))
    if len(found) < MIN_RUNS:
        return mean
    low, high = bootstrap_interval(found[:, None])
    return f"{mean} [{number(str(low[0]))}, {number(str(high[0]))}]"


def trainings(grid: Grid) -> str:
    """A row for every training that has a result, with what makes it again."""
    rows, noise = [], other_noise(grid)
    scored = any(run["score"] for run in grid.done)
    for run in grid.done:
        final = f"{number(run['final_return'])} ± {number(run['final_std'])}"
        score = [f"{number(run['score'])} ± {number(run['score_std'])}" if run["score"] else ""] if scored else []
        other = [f"{number(run['other_return'])} ± {number(run['other_std'])}" if run["other_return"] else ""] if noise else []
        again = f"`--algos {run['algorithm']} --envs {run['environment']} --seeds {run['seed']}`"
        time = [minutes(run["cpu_seconds"]), minutes(run["seconds"])]
        rows.append([title(run["algorithm"]), again, f"`{run['commit']}`", final, *other, *score, *time])
    results = ["Return", *([f"With {noise} noise"] if noise else []), *(["Score"] if scored else [])]
    header = ["Method", "Options", "Commit", *results, "CPU minutes", "Minutes by the clock"]
    return markdown_table(header, rows, n_text=3)


def other_noise(grid: Grid) -> str:
    """
    The noise of the second evaluation of every agent whose deterministic actions have noise; empty where there is none, as in
    files of before. An export with both has the returns of either kind in one column, and both names.
    """
    return " or ".join(sorted({run["other_noise"] for run in grid.done if run.get("other_noise")}))


def protocol(grid: Grid) -> str:
    """What was asked, and how the numbers came about."""
    description, done = grid.description, grid.done
    settings = description.settings
    of_data = any(run["dataset"] for run in done)
    noise = [f"* {ABOUT_NOISE}"] if other_noise(grid) else []
    steps = {settings.for_env(env).eval_freq or 0 for env in description.environments}
    every = " or ".join(f"{number_of_steps:,}" for number_of_steps in sorted(steps))
    lines = [
        f"* Budget: {settings.n_timesteps:,} {'updates' if of_data else 'environment steps'} per training.",
        f"* Seeds: {', '.join(map(str, description.seeds))}. An interval, which holds 95 % of the means when the seeds "
        "are drawn anew (bootstrap), needs at least three; a number with less is one that the next seed may overturn.",
        f"* Evaluation: {settings.eval_episodes} {_kinds(done)} episodes every {every}, and at the end; ± is "
        "the standard deviation over the episodes of one agent.",
        *noise,
        *(f"* Differs from `hyperparams/`, all methods: {_change(change)}" for change in description.changes),
        *(
            f"* Differs from `hyperparams/`, {title(algo)}: {_change(change)}"
            for algo, changes in description.algorithms.items()
            for change in changes
        ),
        *(f"* {what}: {', '.join(found)}." for what, found in _facts(done).items()),
    ]
    return "\n".join(lines)


def _kinds(done: Sequence[Row]) -> str:
    kinds = {"True": "deterministic", "False": "stochastic"}
    return " and ".join(sorted({kinds[run["deterministic"]] for run in done})) or "deterministic"


def _change(change: Change) -> str:
    return f"`{change.name}: {change.value}` ({change.why})."


def _facts(done: Sequence[Row]) -> dict[str, list[str]]:
    """What trainings have in common, or the different values."""
    packages = ("stable-baselines3", "torch", "gymnasium", "mujoco")
    facts = {
        "Commit": [f"`{run['commit']}`" for run in done],
        "Versions": [" ".join(f"{package} {run[package]}" for package in packages if run[package]) for run in done],
        "Machine": [run["machine"] for run in done],
        "Data": [
            f"`{run['dataset']}` (checksum `{run['checksum']}`), evaluated in {run['task']}" for run in done if run["dataset"]
        ],
    }
    return {what: list(dict.fromkeys(found)) for what, found in facts.items() if found}


def problems(grid: Grid) -> str:
    """Trainings that failed with the reason, and how many have not been done."""
    lines = [
        f"* {title(run['algorithm'])} on `{run['environment']}`, seed {run['seed']}: {run['state']}, {run['problem']}"
        for run in grid.runs
        if run["state"] in ("failed", "damaged")
    ]
    n_missing = sum(run["state"] == "missing" for run in grid.runs)
    counts = f"{len(grid.done)} with a result, {len(lines)} failed, {n_missing} not done yet or under way"
    return "\n".join([f"Of {len(grid.runs)} trainings: {counts}.", "", *lines])


# -- directives ------------------------------------------------------------------------------------------------------------


class Benchmark(SphinxDirective):
    """The directive ``benchmark``, see the module."""

    required_arguments = 1
    shows_scores: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        try:
            grid = Grid(Path(self.env.srcdir, "data", "benchmark"), name)
        except ValueError as error:
            raise self.error(f"{self.name} {name}: {error}") from error
        for path in grid.paths:
            self.env.note_dependency(str(path))
        description = grid.description
        begin = f"**{description.question}** {description.why}"
        command = f"```bash\n{COMMAND}/{name}.yml\n```"
        again = (
            f"`{COMMAND}/{name}.yml` with the options of a row makes this training again; "
            f"`docs/data/benchmark/{name}/runs.csv` has the command of `zoo/train.py` as well."
        )
        table = leaderboard(grid) if self.shows_scores else returns(grid)
        if grid.reference:
            names = {algo: name_of(algo) for algo in description.algorithms}
            table += "\n\n" + beside_reference(grid.done, grid.curves, grid.reference, names)
        end = [problems(grid), protocol(grid), *([again, trainings(grid)] if grid.done else [])]
        parts = [self.parse_text_to_nodes("\n\n".join([begin, command]))]
        if not self.shows_scores and grid.curves:
            parts.append([self.figure(grid)])
        for text in (table, *end):
            box = nodes.container(classes=["compact"])
            box += self.parse_text_to_nodes(text)
            parts.append([box])
        return [node for part in parts for node in part]

    def figure(self, grid: Grid) -> nodes.Node:
        """Learning curves, once for each colour scheme of the pages."""
        alt = f"Learning curves, one panel for every method: {grid.description.title}"
        algos = list(grid.description.algorithms)
        draw: Callable[[str, Path], None] = partial(draw_curves, grid.curves, algos, reference=grid.reference)
        if grid.description.variants:
            draw = partial(draw_variants, grid.curves, families(grid.description), reference=grid.reference)
        return figure_node(self.env, f"benchmark-{grid.name}", alt, draw)


class Leaderboard(Benchmark):
    """The directive ``leaderboard``, see the module."""

    shows_scores = True


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_directive("benchmark", Benchmark)
    app.add_directive("leaderboard", Leaderboard)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
