"""
The report of a benchmark: tables as csv, and one HTML page that needs nothing but itself.

Everything that comes from the folders of the benchmark is text for the page, whatever it contains: the template escapes it,
and the page forbids scripts and connections.
"""

import base64
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sb3_diffusion import __version__

from ..figures import CONFIDENCE, MIN_RUNS, title
from .cells import DATA, Cell
from .pictures import address, aggregate_pictures, count, curves
from .scores import (
    Aggregate,
    CellState,
    aggregate,
    aggregate_table,
    curve_table,
    environment_table,
    maximum_returns,
    read_benchmark,
    score_table,
    thresholds,
)

ABSENT = "\N{EN DASH}"
CARD, VIDEO = "README.md", "replay.mp4"
MAX_CARD_CHARACTERS = 100_000


def make_report(root: Path, output: Path, heading: str, max_video_mb: float, grid: Sequence[Cell] = ()) -> Path:
    """
    Read the results, write ``curves.csv``, ``scores.csv``, ``environments.csv``, ``aggregates.csv`` and ``index.html``.

    :param root: Folder of the benchmark
    :param output: Folder of the report
    :param heading: Heading of the page
    :param max_video_mb: Larger videos are not put into the page
    :param grid: What belongs to the benchmark; without it, whatever is there
    :return: The page
    """
    cells = read_benchmark(root, grid)
    scores = score_table(cells)
    environments, aggregates = environment_table(scores), aggregate(scores)
    output.mkdir(parents=True, exist_ok=True)
    tables = {
        "curves": curve_table(cells),
        "scores": scores,
        "environments": environments,
        "aggregates": aggregate_table(aggregates),
    }
    for name, table in tables.items():
        table.to_csv(output / f"{name}.csv", index=False, lineterminator="\n")
    content = page_content(cells, scores, environments, aggregates) | media(cells, root, max_video_mb)
    page = output / "index.html"
    page.write_text(render(heading, content), encoding="utf-8")
    return page


def render(heading: str, content: dict[str, Any]) -> str:
    """
    :param heading: Heading of the page
    :param content: Everything else that the template names
    :return: The page
    """
    environment = Environment(
        loader=FileSystemLoader(DATA), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = (DATA / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    # nothing is allowed but pictures and videos inside the page, and this one style sheet
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("report.html.jinja").render(title=heading, css=Markup(css), policy=policy, **content)


def page_content(
    cells: list[CellState], scores: pd.DataFrame, environments: pd.DataFrame, aggregates: list[Aggregate]
) -> dict[str, Any]:
    """
    Tables and figures as the template wants them.

    :param cells: What the folders hold
    :param scores: See :func:`~zoo.benchmarking.scores.score_table`
    :param environments: See :func:`~zoo.benchmarking.scores.environment_table`
    :param aggregates: See :func:`~zoo.benchmarking.scores.aggregate`
    """
    algos, envs = list(scores["algorithm"].unique()), list(scores["environment"].unique())
    n_done = int((scores["state"] == "done").sum())
    return {
        "overview": f"{count(len(algos), 'algorithm')}, {count(len(envs), 'environment')}, "
        f"{n_done} of {count(len(scores), 'planned run')} with a result.",
        "problems": [
            {"run": _name(cell), "state": cell.state, "text": cell.problem} for cell in cells if cell.state != "done"
        ],
        "scores": _score_rows(environments, algos, envs),
        "curves": curves(cells),
        "normalisation": _normalisation(envs),
        "confidence": f"{CONFIDENCE:.0%}".replace("%", " %"),
        "aggregates": _aggregate_rows(aggregates),
        "aggregate_pictures": aggregate_pictures(aggregates, algos, thresholds(scores)),
        "runs": [_run_row(cell, row) for cell, row in zip(cells, scores.to_dict("records"), strict=True)],
        "groups": _groups(cells),
        "facts": _facts(cells),
        "footer": f"Made with sb3_diffusion {__version__} on {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC. "
        "The numbers are in the csv files beside this page.",
    }


def _name(cell: CellState) -> str:
    return f"{title(cell.algo)} on {cell.env}, seed {cell.seed}"


def _number(value: Any, digits: int | None = None) -> str:
    """A number with about four digits and a real minus sign."""
    if value is None or pd.isna(value):
        return ABSENT
    if digits is None:
        digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _range(low: Any, high: Any, digits: int | None = None) -> str:
    if low is None or pd.isna(low):
        return ""
    return f"[{_number(low, digits)}, {_number(high, digits)}]"


def _score_rows(environments: pd.DataFrame, algos: list[str], envs: list[str]) -> dict[str, Any]:
    found = {(row["algorithm"], row["environment"]): row for row in environments.to_dict("records")}
    largest = environments.groupby("environment")["final_mean"].max()
    rows = []
    for algo in algos:
        entries = []
        for env in envs:
            row = found.get((algo, env))
            done = row is not None and row["n_done"] > 0
            entries.append(
                {
                    "value": _number(row["final_mean"]) if row and done else "not planned" if row is None else "missing",
                    "range": _range(row["final_low"], row["final_high"]) if row and done else "",
                    "runs": f"{row['n_done']} of {count(row['n_planned'], 'seed')}" if row else "",
                    "largest": bool(row and done and len(algos) > 1 and row["final_mean"] == largest[env]),
                    "absent": not done,
                }
            )
        rows.append({"name": title(algo), "entries": entries})
    few = bool((environments["n_done"] < MIN_RUNS).any())
    return {
        "envs": envs,
        "rows": rows,
        "explanation": "Mean over seeds of the return of the trained agent, without normalisation; in brackets the "
        f"{CONFIDENCE:.0%}".replace("%", " %")
        + " bootstrap interval of this mean. The largest mean of a column is bold, which says nothing where intervals overlap."
        + (f" With fewer than {MIN_RUNS} seeds there is no interval." if few else ""),
    }


def _normalisation(envs: list[str]) -> str:
    maxima, source = maximum_returns()
    known = [f"{env} {maxima[env]:g}" for env in envs if env in maxima]
    unknown = [env for env in envs if env not in maxima]
    if not known:
        return f"No environment of this benchmark has a maximum return in {source}. There are no normalised scores."
    text = (
        f"Scores are final returns divided by the maximum returns of {source}: {', '.join(known)}. "
        "The interquartile mean (IQM) is the mean of the middle half of all runs; intervals draw the seeds of each "
        "environment anew (stratified bootstrap). An algorithm takes part if it has a result on each of these environments."
    )
    return text + (f" No maximum return is known for {', '.join(unknown)}, which are left out here." if unknown else "")


def _aggregate_rows(aggregates: list[Aggregate]) -> list[dict[str, Any]]:
    ordered = sorted(aggregates, key=lambda entry: -np.inf if entry.iqm is None else entry.iqm, reverse=True)
    return [
        {
            "name": title(entry.algo),
            "iqm": "missing" if entry.iqm is None else _number(entry.iqm, 3),
            "interval": _range(*entry.interval, 3) if entry.interval else ABSENT,
            "n_runs": entry.n_runs,
            "note": entry.note,
            "absent": entry.iqm is None,
        }
        for entry in ordered
    ]


def _run_row(cell: CellState, row: dict[str, Any]) -> dict[str, Any]:
    done = cell.state == "done"
    known = done and not pd.isna(row["seconds"])
    minutes, seconds = divmod(round(row["seconds"]) if known else 0, 60)
    hours, minutes = divmod(minutes, 60)
    return {
        "name": title(cell.algo),
        "env": cell.env,
        "seed": cell.seed,
        "state": cell.state,
        "steps": _number(row["timesteps"], 0) if done else ABSENT,
        "final": f"{_number(row['final_return'])} ± {_number(row['final_std'])}" if done else ABSENT,
        "other": _other(row),
        "best": _number(row["best_return"]),
        "best_step": _number(row["best_timesteps"], 0) if done else ABSENT,
        "time": f"{hours}:{minutes:02d}:{seconds:02d}" if known else ABSENT,
        "starts": row["attempts"] if done else ABSENT,
    }


def _other(row: dict[str, Any]) -> str:
    if pd.isna(row["other_return"]):
        return ABSENT
    return f"{row['other_noise']}: {_number(row['other_return'])} ± {_number(row['other_std'])}"


def _groups(cells: list[CellState]) -> list[dict[str, str]]:
    """One command for all runs that differ in nothing but the seed."""
    seeds: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for cell in cells:
        if cell.result is not None:
            final, settings = cell.result["final"], cell.settings
            command = cell.result["command"].replace(f"--seed {cell.seed}", "--seed SEED")
            kind = "deterministic" if final["deterministic"] else "stochastic"
            episodes = count(settings["eval_episodes"], f"{kind} episode")
            noise = f" with {final['evaluation_noise']} noise" if "evaluation_noise" in final else ""
            protocol = (
                f"Budget: {final['budget']:,} environment steps. Evaluation: {episodes}{noise} every "
                f"{settings['eval_freq']:,} steps and at the end."
            )
            seeds[cell.algo, cell.env, command, protocol].append(cell.seed)
    return [
        {
            "title": f"{title(algo)} on {env}, {'seed' if len(numbers) == 1 else 'seeds'} {', '.join(map(str, numbers))}",
            "command": command,
            "protocol": protocol,
        }
        for (algo, env, command, protocol), numbers in seeds.items()
    ]


def _facts(cells: list[CellState]) -> list[tuple[str, str]]:
    """What runs have in common, or the different values."""
    results = [cell.result for cell in cells if cell.result is not None]
    values: dict[str, set[str]] = defaultdict(set)
    for result in results:
        values["commit"].add(result["commit"] or "unknown, not a clone")
        values["machine"].add(f"{result['machine']['cpu']}, {result['machine']['cores']} processors")
        values["versions"].add(", ".join(f"{package} {version}" for package, version in result["versions"].items()))
    facts = [(name, "; ".join(sorted(found))) for name, found in values.items()]
    hours = sum(attempt["seconds"] or 0.0 for result in results for attempt in result["attempts"]) / 3600
    return [*facts, ("time of all trainings", f"{hours:.2f} hours")] if results else []


def media(cells: list[CellState], root: Path, max_video_mb: float) -> dict[str, Any]:
    """
    Replays and model cards that lie in the folders of the cells.

    :param cells: What the folders hold
    :param root: Folder of the benchmark
    :param max_video_mb: Larger videos are named, not shown
    """
    videos, large, cards = [], [], []
    for cell in cells:
        video, card = _find(cell.folder, VIDEO), _find(cell.folder, CARD)
        if video is not None:
            size = video.stat().st_size
            if size <= max_video_mb * 1e6:
                videos.append({"run": _name(cell), "data": address("video/mp4", video.read_bytes())})
            else:
                limit = f"{size / 1e6:.1f} MB, more than {max_video_mb:g} MB"
                large.append(f"The video of {_name(cell)} is not shown ({limit}): {video.relative_to(root)}")
        if card is not None:
            with card.open(encoding="utf-8", errors="replace") as file:
                text = file.read(MAX_CARD_CHARACTERS + 1)
            if len(text) > MAX_CARD_CHARACTERS:
                text = f"{text[:MAX_CARD_CHARACTERS]}\n... (shortened)"
            cards.append({"run": _name(cell), "text": text})
    return {"videos": videos, "large_videos": large, "cards": cards}


def _find(folder: Path, name: str) -> Path | None:
    """A file in the folder of a cell, or in the one that ``zoo/push_to_hub.py`` has made of its training."""
    places = [folder / name, *sorted(folder.glob(f"run/*/*_1/hub/*/{name}"))]
    return next((path for path in places if path.is_file()), None)
