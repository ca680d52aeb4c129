"""
Stands in for ``zoo/train.py`` where the real one would take too long: the same command line and files, no training.

Behaviour comes with ``-params``: ``crash:2`` fails at the first two starts, ``short:1`` ends before the budget, ``wait:1``
waits until there is a file ``go`` in the folder of the cell, ``resume:1`` leaves a folder that can be resumed when it crashes.
Every start is a line in the file ``starts``; ``pid`` is the number of the process.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import yaml


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--algo", "--env", "--resume", "--num-threads", "--device", "--n-eval-envs", "-f"):
        parser.add_argument(option)
    for option in ("--seed", "-n", "--eval-freq", "--eval-episodes"):
        parser.add_argument(option, type=int)
    parser.add_argument("-params", nargs="+", default=[])
    args = parser.parse_args()
    if args.resume:
        folder = Path(args.resume)
        (settings,) = folder.glob("*/args.yml")
        vars(args).update(yaml.safe_load(settings.read_text(encoding="utf-8")))
    else:
        folder = Path(args.f, args.algo, f"{args.env}_1")
        settings = folder / args.env / "args.yml"
    cell = folder.parents[2]
    (cell / "pid").write_text(str(os.getpid()), encoding="utf-8")
    behaviour = dict(word.split(":") for word in args.params)
    with (cell / "starts").open("a", encoding="utf-8") as file:
        file.write("resumed\n" if args.resume else "new\n")
    n_starts = len((cell / "starts").read_text(encoding="utf-8").splitlines())

    settings.parent.mkdir(parents=True, exist_ok=True)
    if "resume" in behaviour:
        names = ("algo", "env", "seed", "n", "eval_freq", "eval_episodes", "params")
        content = {"resume_freq": 10, **{name: getattr(args, name) for name in names}}
        settings.write_text(yaml.safe_dump(content), encoding="utf-8")
        settings.with_name("config.yml").write_text("{}\n", encoding="utf-8")
    while "wait" in behaviour and not (cell / "go").exists():
        time.sleep(0.05)
    if n_starts <= int(behaviour.get("crash", 0)):
        print("the last words <script>")
        return 3

    rng = np.random.default_rng(args.seed)
    steps = np.arange(args.eval_freq, args.n + 1, args.eval_freq)
    shape = (len(steps), args.eval_episodes)
    lengths = np.full(shape, 10)
    np.savez(folder / "evaluations.npz", timesteps=steps, results=rng.normal(100.0, 10.0, shape), ep_lengths=lengths)
    final = {
        "timesteps": args.n // 2 if "short" in behaviour else args.n,
        "budget": args.n,
        "deterministic": True,
        "returns": rng.normal(100.0, 10.0, args.eval_episodes).tolist(),
        "lengths": [10] * args.eval_episodes,
    }
    (folder / "final_evaluation.json").write_text(json.dumps(final), encoding="utf-8")
    (settings.parent / "finished.json").write_text("{}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
