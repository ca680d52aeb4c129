"""What a benchmark reports: its conditions, medians, ratios, tables, and one file of several commands."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import stable_baselines3 as sb3
import torch as th

import sb3_diffusion
from sb3_diffusion import kernels

from ..provenance import cpu_name
from .subject import LATENCY_BATCHES

COMPARED = {
    "updates_per_second": "updates/s",
    "cpu_ms_per_update": "processor time per update (ms)",
    **{f"action_ms_{n}": f"action, {n} obs (ms)" for n in LATENCY_BATCHES},
}
UNCOMPARED = ("algo", "timeout", "max_load", "pinned_to_cores")  # may differ between reports that are merged


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """
    What the figures depend on.

    :param args: Command line
    """
    info: dict[str, Any] = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    info |= {"threads": args.threads, "kernels": kernels.load_kernels() is not None}
    if th.device(args.device).type == "cuda":
        info["gpu"] = th.cuda.get_device_name()
    packages = {"sb3_diffusion": sb3_diffusion, "stable_baselines3": sb3, "torch": th, "numpy": np, "gymnasium": gym}
    info["versions"] = {name: package.__version__ for name, package in packages.items()}
    return info


def summarize(turns: list[dict[str, Any]], once: dict[str, float]) -> dict[str, Any]:
    """
    :param turns: Result of every turn
    :param once: What was measured once
    """
    shares = [once["gflop_per_update"] * turn["updates_per_second"] / turn["ceiling_gflops"] for turn in turns]
    return {**medians(turns), **once, "share_of_ceiling": median(shares), "turns": turns}


def medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """
    :param turns: Result of every turn
    :return: Median of every quantity that all turns have
    """
    keys = [key for key in turns[0] if all(turn.get(key) is not None for turn in turns)]
    return {key: median(turn[key] for turn in turns) for key in keys}


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """
    :param ours: Result of every turn
    :param theirs: Result of the other implementation in the same turns
    :return: Its medians, and how many times as fast ours is: ratio of every turn, their median and range
    """
    speedups: dict[str, dict[str, Any]] = {}
    for key in COMPARED:
        if all(turn.get(key) for turn in (*ours, *theirs)):
            ratios = [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]
            if key != "updates_per_second":  # a time
                ratios = [1 / ratio for ratio in ratios]
            speedups[key] = {"median": median(ratios), "min": min(ratios), "max": max(ratios), "turns": ratios}
    return {**medians(theirs), "speedups": speedups, "turns": theirs}


def table(results: dict[str, dict[str, Any]]) -> str:
    """
    :param results: Result of :meth:`Contest.run`
    :return: Markdown table
    """
    header = ["algorithm", "updates/s", "ms/update", *(f"action, {n} obs (ms)" for n in LATENCY_BATCHES)]
    header += ["GFLOP/update", "share of ceiling", "peak MiB"]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    for name, result in results.items():
        updates = result["updates_per_second"]
        cells = [name, f"{updates:.1f}", f"{1000 / updates:.2f}"]
        cells += [f"{result[f'action_ms_{n}']:.2f}" for n in LATENCY_BATCHES]
        cells += [f"{result['gflop_per_update']:.2f}", f"{100 * result['share_of_ceiling']:.0f} %"]
        cells += [f"{result['peak_memory_mib']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_table(results: dict[str, dict[str, Any]]) -> str:
    """
    :param results: Result of :meth:`Contest.run`
    :return: Markdown table of what was measured on both sides
    """
    lines = [
        "| algorithm | quantity | ours | theirs | times as fast | range |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        for key, speedup in result.get("against", {}).get("speedups", {}).items():
            values = f"{result[key]:.4g} | {result['against'][key]:.4g}"
            ratios = f"{speedup['median']:.2f} | {speedup['min']:.2f} to {speedup['max']:.2f}"
            lines.append(f"| {name} | {COMPARED[key]} | {values} | {ratios} |")
    return "\n".join(lines)


def merge(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    """
    Add the other algorithms of an earlier report.

    :param path: The earlier report, which need not exist
    :param report: A report
    :return: Both in one
    :raises SystemExit: If something else than the algorithms differs between the two
    """
    if not path.is_file():
        return report
    old = json.loads(path.read_text(encoding="utf-8"))
    for part in ("machine", "settings", "against"):
        ours, theirs = report.get(part) or {}, old.get(part) or {}
        different = [key for key in {**theirs, **ours} if key not in UNCOMPARED and theirs.get(key) != ours.get(key)]
        if different:
            sys.exit(f"{path} was measured with another {part} ({', '.join(different)}), choose another --output")
    results = {**old["results"], **report["results"]}
    return {**report, "settings": {**report["settings"], "algo": list(results)}, "results": results}
