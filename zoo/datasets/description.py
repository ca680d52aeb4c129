"""What there is to know of a data set before one learns from it, as text and as a picture."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_diffusion.data.stored.dataset import OfflineDataset
from sb3_diffusion.data.stored.scores import normalized_score
from sb3_diffusion.printable import printable

from ..figures import COLOURS, value_axes

BINS = 40
MAX_PANELS = 12
"""Entries of the observations and of the actions that are drawn, each."""


def describe(dataset: OfflineDataset) -> list[str]:
    """
    :param dataset: The data
    :return: Lines of text
    """
    return [f"{name + ':':<26}{text}" for name, text in _facts(dataset)]


def _facts(dataset: OfflineDataset) -> Iterator[tuple[str, str]]:
    source, returns, lengths = dataset.source, dataset.recorded_returns, dataset.recorded_lengths
    yield "data set", printable(source.name)
    if source.path:
        yield "file", printable(source.path)
    yield "checksum (sha256)", str(dataset.identity()["checksum"])
    yield "environment", printable(source.env_id) if source.env_id else "unknown"
    yield "transitions", f"{len(dataset):,} in {dataset.n_episodes:,} episodes"
    yield "observations", f"{dataset.observation_space}"
    yield "actions", f"{dataset.action_space}"
    if len(returns):
        yield "complete episodes", f"{len(returns):,} with {int(lengths.sum()):,} steps"
        yield "returns", _spread(returns)
        yield "lengths", _spread(lengths)
        if source.reference is not None:
            scores = normalized_score(returns, dataset)
            yield f"scores ({source.reference.origin})", f"{scores.mean():.{1 if source.reference.scale == 100 else 3}f}"
    yield "rewards", _spread(dataset.rewards.numpy())
    terminated, truncated = (int(flags.sum()) for flags in (dataset.terminated, dataset.truncated))
    yield "flags", f"{terminated:,} terminated, {truncated:,} truncated"
    actions = dataset.actions.numpy()
    at_bound = (actions <= dataset.action_space.low.reshape(-1)) | (actions >= dataset.action_space.high.reshape(-1))
    yield "actions at a bound", f"{100 * at_bound.mean():.1f} %"
    for name, values in _tables(dataset):
        yield f"range of {name}", f"{values.min():.4g} to {values.max():.4g}"
        constant = np.flatnonzero(values.max(0) == values.min(0)) if values.ndim == 2 else np.empty(0)
        if len(constant):
            yield f"constant in {name}", f"entries {', '.join(map(str, constant[:20]))}"


def _tables(dataset: OfflineDataset) -> Iterator[tuple[str, np.ndarray]]:
    observations = dataset.observations
    if isinstance(observations, dict):
        yield from ((f"observations/{key}", table.numpy()) for key, table in observations.items())
    else:
        yield "observations", observations.numpy()
    yield "actions", dataset.actions.numpy()


def _spread(values: np.ndarray) -> str:
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return f"{mean:,.1f} +/- {deviation:,.1f} (from {values.min():,.1f} to {values.max():,.1f})"


def draw(dataset: OfflineDataset) -> Figure:
    """
    :param dataset: The data
    :return: Histograms of returns, lengths, rewards, and of the entries of observations and actions
    """
    panels: list[tuple[str, np.ndarray, str]] = [
        ("return of an episode", dataset.recorded_returns, "episodes"),
        ("length of an episode", dataset.recorded_lengths, "episodes"),
        ("reward", dataset.rewards.numpy(), "transitions"),
    ]
    panels = [panel for panel in panels if len(panel[1])]
    for name, table in _tables(dataset):
        if table.ndim == 2:
            entries = range(min(table.shape[1], MAX_PANELS))
            panels += [(f"{name}[{entry}]", table[:, entry], "transitions") for entry in entries]
        else:
            panels.append((name, table[:: max(1, len(table) // 1000)].reshape(-1), "numbers"))
    columns = 4
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.6 + 2.1 * rows), layout="constrained")
    for index, (name, values, counted) in enumerate(panels, start=1):
        _histogram(figure.add_subplot(rows, columns, index), name, values, counted)
    size = f"{len(dataset):,} transitions, {dataset.n_episodes:,} episodes"
    figure.suptitle(f"{printable(dataset.source.name)}: {size}", fontsize=11)
    return figure


def _histogram(axes: Axes, name: str, values: np.ndarray, counted: str) -> None:
    value_axes(axes, name, counted)
    low, high = float(values.min()), float(values.max())
    if low == high:  # a constant has no width
        low, high = low - 0.5, high + 0.5
    axes.hist(values, bins=BINS, range=(low, high), color=COLOURS["light"][0])
    axes.tick_params(labelsize=7)
