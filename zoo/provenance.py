"""Where a number comes from: releases of the libraries, commit of this repository, and the processor."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("sb3_diffusion", "stable-baselines3", "rl-zoo3", "torch", "gymnasium", "numpy", "mujoco", "dm-control", "shimmy")
ROOT = Path(__file__).resolve().parents[1]


def package_versions() -> dict[str, str]:
    """Releases of Python and of the libraries that a return depends on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def git_commit() -> str | None:
    """Commit of the clone that this file is in, if it is one."""
    if not (ROOT / ".git").exists():
        return None
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}{' with local changes' if changed else ''}"


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
