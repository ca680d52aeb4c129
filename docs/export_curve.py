"""
Turn the evaluations of a training run into the csv file of the documentation.

    python docs/export_curve.py logs/qsm/Pendulum-v1_1

Algorithm and environment come from the folder, the seed from the command line that rl-zoo3 saved with the run.
"""

import argparse
import csv
import re
from pathlib import Path

import numpy as np

CURVES = Path(__file__).parent / "data" / "curves"


def seed_of(run: Path) -> int:
    """
    :param run: Folder of the run
    :return: The seed that was given on the command line
    """
    (args_file,) = run.glob("*/args.yml")
    found = re.search(r"^ *- - seed\n *- (\d+)$", args_file.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{args_file} does not name a seed; train with --seed.")
    return int(found.group(1))


def export(run: Path) -> Path:
    """
    :param run: Folder of the run, ``<logs>/<algo>/<env>_<number>``
    :return: The csv file
    """
    environment = run.name.rpartition("_")[0]
    target = CURVES / f"{run.parent.name}-{environment}-seed{seed_of(run)}.csv"
    with np.load(run / "evaluations.npz") as evaluations:
        timesteps, results = evaluations["timesteps"], evaluations["results"]
    CURVES.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["timesteps", "mean_reward", "std_reward", "n_episodes"])
        for step, returns in zip(timesteps, results, strict=True):
            writer.writerow([int(step), f"{returns.mean():.2f}", f"{returns.std():.2f}", len(returns)])
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="+", type=Path, help="folder of a training run")
    for folder in parser.parse_args().run:
        print(export(folder))
