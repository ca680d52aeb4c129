"""
How much memory learning from a million transitions takes: ``python docs/memory.py``.

Every method learns in a process of its own, with its defaults, through all its stages, from random transitions of the sizes of
Hopper. What counts is the largest resident size of the process with its data and libraries. Of support actions
the first ``--drawn`` states' are drawn by the network, which would need hours for all on one core; random numbers take the
places of the others. Rows go to ``docs/data/memory.csv``; those of methods that are measured again are replaced.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rows import Rows

from sb3_diffusion import OfflineDataset
from sb3_diffusion.core.behavior.support import DrawsSupport
from sb3_diffusion.taxonomy import available_methods, get_method
from zoo.provenance import git_commit
from zoo.speed.subject import peak_memory, silence

OUTPUT = Path(__file__).resolve().parent / "data" / "memory.csv"
FIELDS = ("libraries", "with_data", "peak", "support", "transitions", "updates", "seconds", "commit")
OBSERVATION_DIM, ACTION_DIM = 11, 3
EPISODE = 1_000


def data_of(n: int) -> OfflineDataset:
    """
    :param n: Number of transitions
    :return: Random ones, in episodes of a thousand
    """
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        rng.normal(size=(n, OBSERVATION_DIM)).astype(np.float32),
        rng.uniform(-1.0, 1.0, size=(n, ACTION_DIM)).astype(np.float32),
        rng.normal(size=n).astype(np.float32),
        np.arange(1, n + 1) % EPISODE == 0,
        action_space=spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32),
    )


def abbreviated(pieces: Callable[[], Iterator[th.Tensor]], n_states: int, n_drawn: int) -> Iterator[th.Tensor]:
    """
    :param pieces: Draws the actions of all states, a piece after the other
    :param n_states: Number of states
    :param n_drawn: How many states' actions are drawn at least
    :return: These, and random ones of the same sizes for the others
    """
    done = 0
    for piece in pieces():
        done += len(piece)
        yield piece
        if done >= n_drawn:
            break
    while done < n_states:
        more = min(len(piece), n_states - done)
        done += more
        yield 2.0 * th.rand(more, *piece.shape[1:]) - 1.0


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """
    :param name: Name of a method
    :param args: Command line
    :return: Its row; sizes in MiB
    """
    th.set_num_threads(1)
    begin, libraries = time.monotonic(), peak_memory("cpu")
    dataset = data_of(args.transitions)
    with_data = peak_memory("cpu")
    method = get_method(name).load()
    model = method(next(iter(method.policy_aliases)), None, dataset=dataset, batch_size=args.batch_size, device="cpu", seed=0)
    silence(model)
    if isinstance(model, DrawsSupport):
        pieces = partial(abbreviated, model._support_pieces, len(dataset.states), args.drawn)
        model._support_pieces = pieces  # type: ignore[method-assign]
    model.learn_offline(args.updates)
    return {
        "algorithm": name,
        "libraries": round(libraries),
        "with_data": round(with_data),
        "peak": round(peak_memory("cpu")),
        "support": model.n_support if isinstance(model, DrawsSupport) else "",
        "transitions": args.transitions,
        "updates": args.updates,
        "seconds": round(time.monotonic() - begin),
        "commit": (git_commit() or "unknown")[:7],
    }


def main() -> None:
    """Measure one method after the other."""
    names = [method.zoo_name for method in available_methods() if method.setting == "offline"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algo", nargs="+", choices=names, default=names)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--updates", type=int, default=300, help="of all stages together")
    parser.add_argument("--drawn", type=int, default=5_000, help="states whose support actions the network draws")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    results = Rows(args.output, ["algorithm"], FIELDS)
    for name in args.algo:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure, name, args).result()
        results.put(row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
