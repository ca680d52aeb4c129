"""
Add the scores that published agents lack: ``python zoo/hub/add_scores.py zoo/pretrained/*``.

Agents of earlier versions were not scored with fresh noise. They get this score, with the episodes, environments and seed of
their first score, in ``results.json`` and on the card. Scores that are there stay as they are, unless they are of fewer
episodes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: make the folder that contains the package importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    __package__ = ".".join(Path(__file__).resolve().parts[-3:-1])

from sb3_diffusion.files import write_atomically

from ..training.options.command_line import CommandParser, whole_number
from ..training.options.errors import mistakes
from ..training.options.registry import check_environment, register_algorithms

PROG = "add_scores.py"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = CommandParser(prog=PROG, description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="agents in the layout of the Hub")
    parser.add_argument(
        "--n-eval-episodes", type=whole_number(1), help="episodes of what is scored (default: those of the first score)"
    )
    parser.add_argument("--device", default="cpu", help="PyTorch device (default: cpu)")
    return parser.parse_args()


def add_scores(folder: Path, commit: str | None, n_eval_episodes: int | None = None, device: str = "cpu") -> list[str]:
    """
    :param folder: Agent in the layout of the Hub
    :param commit: What is written as the commit of the new scores
    :param n_eval_episodes: Episodes of a new score, ``None`` for those of the first score
    :param device: PyTorch device
    :return: The scores that were added, in words
    :raises ValueError: If the folder has no agent that can be loaded without running code, or no card with scores
    """
    from .model_card import with_scores  # the imports below take seconds, and wrong options are found before
    from .publication import evaluate, protocols_of, versions
    from .published import PublishedAgent
    from .repository import read_results

    results = read_results(folder)
    if not results.get("evaluations"):
        raise ValueError(f"{folder}/results.json has no scores to add to; publish the agent anew (zoo/push_to_hub.py).")
    check_environment(results["env_id"])  # which registers those of other packages, and names of data
    agent = PublishedAgent(folder, results["env_id"], results["algorithm"])
    protocols = protocols_of(agent)
    known: dict[Any, dict[str, Any]] = {}
    for entry in results["evaluations"]:  # before there were two kinds of noise, it was the agent's own
        own = protocols[0].noise if entry["is_deterministic"] else None
        known[entry["is_deterministic"], entry.get("evaluation_noise", own)] = entry
    like, added = results["evaluations"][0], []
    n = n_eval_episodes or like["n_eval_episodes"]
    for protocol in protocols:
        there = known.get(tuple(protocol))
        if there is not None and (there is like or there["n_eval_episodes"] >= n):  # the first score is the agent's own
            continue
        how = {"n_eval_episodes": n, "n_envs": like["n_envs"], "seed": like["seed"], "device": device}
        score = evaluate(agent, **protocol._asdict(), **how)
        known[tuple(protocol)] = {**score, "commit": commit, "versions": versions(results["env_id"])}
        added.append(f"{score['mean_reward']:.2f} +/- {score['std_reward']:.2f} over {protocol.episodes(n)}")
    if added:
        noise = {} if protocols[0].noise is None else {"evaluation_noise": protocols[0].noise}
        known[tuple(protocols[0])] = known[tuple(protocols[0])] | noise
        results["evaluations"] = [known[tuple(protocol)] for protocol in protocols]
        card = folder / "README.md"
        page = with_scores(card.read_text(encoding="utf-8"), results)
        write_atomically(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
        write_atomically(card, page.encode())
    return added


def main() -> None:
    """Add them to one agent after the other."""
    args = parse_arguments()
    with mistakes(PROG, args.traceback):
        from sb3_diffusion.envs import quiet_mujoco  # takes seconds

        from ..provenance import git_commit

        quiet_mujoco()
        register_algorithms()
        commit = git_commit()  # before the first file is changed
        for folder in args.folders:
            added = add_scores(folder, commit, args.n_eval_episodes, args.device)
            print(f"{folder.name}: {'; '.join(added) or 'nothing to add'}", flush=True)


if __name__ == "__main__":
    main()
