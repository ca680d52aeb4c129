"""What importing the package costs, and which way its imports point (docs: contributing)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sb3_diffusion.taxonomy import FAMILIES, METHODS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sb3_diffusion"
HEAVY = ("rl_zoo3", "optuna", "huggingface_hub", "mujoco", "matplotlib", "pandas", "dm_control", "shimmy", "zoo")

# An import may only point to a lower floor or stay within its own folder.
FLOORS = {
    **dict.fromkeys(["kernels", "numeric", "names", "printable"], 0),
    **dict.fromkeys(["generative", "data"], 1),
    **dict.fromkeys(["taxonomy", "networks", "envs"], 2),
    "policies": 3,
    "checkpoints": 4,
    "core": 5,
    **dict.fromkeys(FAMILIES, 6),
    "__init__": 7,
}
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Absolute names of what a file imports; ``from a import b`` gives ``a.b``, since ``b`` may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: the package uses absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


def violation(source: str, imported: str) -> str | None:
    """Why a file of folder ``source`` must not import ``imported``; None if it may."""
    top, _, rest = imported.partition(".")
    if top in ("zoo", "sb3_diffusion_zoo", "rl_zoo3"):
        return "the package must not know the zoo"
    if top != PACKAGE:
        return None
    target = rest.partition(".")[0] if rest.partition(".")[0] in FLOORS else "__init__"
    if target == source or FLOORS[target] < FLOORS[source]:
        return None
    return f"{source} (floor {FLOORS[source]}) must not import {target} (floor {FLOORS[target]})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    reasons = [f"{name}: {reason}" for name in imported_modules(tree) if (reason := violation(folder(path), name))]
    assert not reasons, "\n".join(reasons)


@pytest.mark.parametrize("path", [p for p in FILES if folder(p) not in ("taxonomy", "__init__", *FAMILIES)], ids=str)
def test_lower_floors_name_no_algorithm(path: Path) -> None:
    names = {method.class_name for method in METHODS}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & names


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("generative", "sb3_diffusion.networks.mlp.MLP"),
        ("core", "sb3_diffusion.q_guidance.qsm.QSM"),
        ("q_guidance", "sb3_diffusion.weighted_matching.sdac.SDAC"),
        ("core", "sb3_diffusion.QSM"),
        ("envs", "rl_zoo3.utils"),
    ],
)
def test_upward_imports_are_found(source: str, imported: str) -> None:
    assert violation(source, imported)


def test_package_import_is_light() -> None:
    code = f"import sys, sb3_diffusion, sb3_diffusion.envs; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
