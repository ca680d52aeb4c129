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
    **dict.fromkeys(
        ["kernels", "files", "numeric", "names", "printable", "clock", "tensor_names", "signature", "processes"], 0
    ),
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


MOST_FILES = 12
DRAWERS = {"utils", "misc", "common", "helpers", "tools"}


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
        ("generative", "sb3_diffusion.networks.backbones.mlp.MLP"),
        ("core", "sb3_diffusion.q_guidance.qsm.QSM"),
        ("q_guidance", "sb3_diffusion.weighted_matching.sdac.SDAC"),
        ("core", "sb3_diffusion.QSM"),
        ("envs", "rl_zoo3.utils"),
    ],
)
def test_upward_imports_are_found(source: str, imported: str) -> None:
    assert violation(source, imported)


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """
    Module -> modules of the package that it imports anywhere: at the top, for type checkers only, or within a function. That
    importing a module runs the ``__init__`` of its folders does not count.
    """
    modules = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in modules.items():
        names = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
        # `from a import b` is the module a.b, or something in the module a
        graph[module] = {name if name in modules else name.rpartition(".")[0] for name in names} & modules.keys() - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, first module first and last; empty if there is none."""
    done: set[str] = set()

    def follow(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(graph[module]):
            if found := follow(imported, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := follow(module, []))), [])


def test_no_circle() -> None:
    assert not (found := circle(import_graph(ROOT, PACKAGE))), " -> ".join(found)


@pytest.mark.parametrize(
    "back",
    [
        "from pack.a import x",
        "import pack.a",
        "from pack import a",
        "if TYPE_CHECKING:\n    from pack.a import X",
        "def f():\n    from pack.a import x",
        "from pack import x",  # by way of the package's own file
    ],
)
def test_circles_are_found(back: str, tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    files = {"__init__": "from pack.a import x", "a": "from pack.b import y", "b": "import ast", "c": "from pack.b import z"}
    for name, text in files.items():
        (tmp_path / "pack" / f"{name}.py").write_text(text)
    assert circle(import_graph(tmp_path, "pack")) == []
    (tmp_path / "pack" / "b.py").write_text(back)
    found = circle(import_graph(tmp_path, "pack"))
    assert found[0] == found[-1] and {"pack.a", "pack.b"} <= set(found)


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_drawer(room: Path) -> None:
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    assert len(modules) <= MOST_FILES, f"{len(modules)} modules: make two folders of it whose names say what is inside"
    assert not DRAWERS & {*modules, room.name}


def test_the_tests_have_the_same_rooms() -> None:
    rooms = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [room for room in rooms if not ((ROOT / PACKAGE / room).is_dir() or (ROOT / room).is_dir())]


def test_package_import_is_light() -> None:
    code = f"import sys, sb3_diffusion, sb3_diffusion.envs; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
