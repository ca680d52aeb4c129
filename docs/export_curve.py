"""
Turn the evaluations of training runs into the csv files of the documentation, and say in ``results.json`` how they came about.

    python docs/export_curve.py --commit 1a2b3c4 logs/qsm/Pendulum-v1_1 logs/qsm/Pendulum-v1_2

Everything is read from what the training saved: algorithm and environment from the folder, seed, budget and evaluation from
its command line, and from its settings how many particles and so on it had where these differ from the method's default entry.
Run it on the machine of the trainings, whose name it notes.
"""

import argparse
import csv
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo.provenance import cpu_name
from zoo.training.options.settings import hyperparameter_file
from zoo.training.runs.text_files import read_yaml

DATA = Path(__file__).parent / "data"
PRICES = {"n_particles": "{} particles", "batch_size": "batches of {}", "diffusion_steps": "{} diffusion steps"}
"""Settings that decide what a run costs, and how to name them."""


def read_saved(run: Path, name: str) -> dict[str, Any]:
    """
    :param run: Folder of the run, ``<logs>/<algo>/<env>_<number>``
    :param name: ``"args.yml"`` or ``"config.yml"``
    :return: Its content
    """
    (path,) = run.glob(f"*/{name}")
    return read_yaml(path)


def reductions(config: dict[str, Any], algo: str) -> str:
    """
    :param config: Settings of a run
    :param algo: Name of the algorithm on the command line
    :return: What makes the run cheaper than the default settings, in words
    """
    default = yaml.safe_load(hyperparameter_file(algo).read_text(encoding="utf-8"))["default"]
    flat, usual = ({**settings, **settings.get("policy_kwargs", {})} for settings in (config, default))
    changed = [key for key in PRICES if key in flat and flat[key] != usual[key]]
    return ", ".join(f"{PRICES[key].format(flat[key])} instead of {usual[key]}" for key in changed)


def command(run: Path) -> str:
    """The command of a run without this machine's interpreter and folders, and with a place for the seed."""
    (path,) = run.glob("*/command.txt")
    words = shlex.split(path.read_text(encoding="utf-8"))[1:]
    for option, length in (("-f", 2), ("--log-folder", 2)):
        if option in words:
            del words[words.index(option) : words.index(option) + length]
    words[words.index("--seed") + 1] = "{seed}"
    return " ".join(["python", *(word if word == "{seed}" else shlex.quote(word) for word in words)])


def describe(run: Path, commit: str) -> dict[str, Any]:
    """
    :param run: Folder of the run
    :param commit: Commit that it was made with
    :return: Its entry of ``results.json``
    """
    args, config = read_saved(run, "args.yml"), read_saved(run, "config.yml")
    algo = run.parent.name
    budget = f"{args['n_timesteps']:,} environment steps, of which the first {config['learning_starts']:,} random; "
    cheaper = reductions(config, algo)
    return {
        "seeds": [args["seed"]],
        "budget": f"{budget}settings of hyperparams/{algo}.yml" + f" ({cheaper})" * bool(cheaper),
        "protocol": f"{args['eval_episodes']} deterministic episodes every {args['eval_freq']:,} steps",
        "command": command(run),
        "commit": commit,
        "machine": f"{args['num_threads']} thread(s) of {os.cpu_count()} cores, {cpu_name()}",
    }


def read_commits(entry: dict[str, Any]) -> dict[int, str]:
    """
    :param entry: Entry of ``results.json``
    :return: The commit of each seed
    """
    groups = re.findall(r"(\w+) \(seeds? ([^)]+)\)", entry["commit"])
    if not groups:
        return dict.fromkeys(entry["seeds"], entry["commit"])
    return {int(seed): commit for commit, seeds in groups for seed in re.findall(r"\d+", seeds)}


def write_commits(commits: dict[int, str]) -> str:
    """
    :param commits: The commit of each seed
    :return: The same in words, such as ``1a2b3c4 (seed 0), 5d6e7f8 (seeds 1 and 2)``
    """
    groups: dict[str, list[str]] = {}
    for seed, commit in sorted(commits.items()):
        groups.setdefault(commit, []).append(str(seed))
    if len(groups) == 1:
        return next(iter(groups))
    return ", ".join(f"{commit} (seed{'s' * (len(seeds) > 1)} {' and '.join(seeds)})" for commit, seeds in groups.items())


def export(run: Path, commit: str) -> Path:
    """
    :param run: Folder of the run
    :param commit: Commit that it was made with
    :return: The csv file
    :raises ValueError: if the run has no seed, or its conditions are not those of the entry's other seeds
    """
    entry = describe(run, commit)
    (seed,) = entry["seeds"]
    if seed is None or seed < 0:
        raise ValueError(f"{run} was not started with --seed.")
    name = f"{run.parent.name}-{run.name.rpartition('_')[0]}"
    entries = json.loads((DATA / "results.json").read_text(encoding="utf-8"))
    known = entries.get(name, entry)
    if different := [key for key in entry if key not in ("seeds", "commit") and known.get(key) != entry[key]]:
        raise ValueError(f"{run} differs from the other runs of {name} in {', '.join(different)}; remove its entry first.")
    commits = {**read_commits(known), seed: commit}
    entries[name] = {**entry, "seeds": sorted(commits), "commit": write_commits(commits)}

    target = DATA / "curves" / f"{name}-seed{seed}.csv"
    with np.load(run / "evaluations.npz") as evaluations:
        timesteps, results = evaluations["timesteps"], evaluations["results"]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["timesteps", "mean_reward", "std_reward", "n_episodes"])
        for step, returns in zip(timesteps, results, strict=True):
            writer.writerow([int(step), f"{returns.mean():.2f}", f"{returns.std():.2f}", len(returns)])
    (DATA / "results.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path, help="folder of a training run")
    parser.add_argument("--commit", required=True, help="commit that the runs were made with")
    options = parser.parse_args()
    for folder in options.run:
        print(export(folder, options.commit))
