"""The rooms of the zoo: an import points down, nothing goes round in a circle, no room is a drawer, no text is run."""

import ast
from collections.abc import Iterator

import pytest

from .processes import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "zoo").rglob("*.py")
}
FLOORS = {
    "zoo.training.environments": 1,
    "zoo.training.options": 2,
    "zoo.training.runs": 3,
    "zoo.training.tuning": 4,
    "zoo.training": 5,
    "zoo.speed": 5,
    "zoo.datasets": 5,
    "zoo.toys": 5,
    "zoo.hub": 5,
    "zoo.benchmarking": 6,
}
COMMANDS = 7
GROUND = ("zoo.figures", "zoo.lease", "zoo.provenance")
"""What every room may use; the other files beside the rooms are commands, which use all of them."""

MOST_FILES = 12


def room(module: str) -> str:
    return module if module in FLOORS else module.rpartition(".")[0]


def floor(module: str) -> int:
    return FLOORS.get(room(module), 0 if module in GROUND else COMMANDS)


def imports(module: str) -> Iterator[str]:
    """Modules of the zoo that a module imports, wherever in its text."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            inside = [f"{name}.{alias.name}" for alias in node.names if f"{name}.{alias.name}" in MODULES]
            yield from inside or [name] * (name in MODULES)


def problem(module: str, other: str) -> str | None:
    """What is wrong with an import, if anything."""
    if room(module) == room(other) and room(module) in FLOORS:
        return None
    if floor(other) == COMMANDS and floor(module) < COMMANDS:
        return f"{module} is no command and imports one, {other}"
    if floor(other) > floor(module):
        return f"{module} imports {other}, which is above it"
    return f"{module} imports {other} from a room beside it" if floor(other) == floor(module) < COMMANDS else None


def test_an_import_points_down() -> None:
    problems = [problem(module, other) for module in MODULES for other in imports(module)]
    assert not [text for text in problems if text]


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("zoo.training.options.settings", "zoo.training.runs.folders"),
        ("zoo.training.runs.folders", "zoo.training.manager"),
        ("zoo.speed.report", "zoo.training.manager"),
        ("zoo.lease", "zoo.figures"),
        ("zoo.hub.client", "zoo.enjoy"),
    ],
)
def test_the_rule_can_fail(module: str, other: str) -> None:
    assert problem(module, other)


def test_no_circle() -> None:
    graph = {module: {other for other in imports(module) if other != module} for module in MODULES}
    while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph


def test_no_drawer() -> None:
    for folder in {path.parent for path in MODULES.values()}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= MOST_FILES, folder
        assert not {"utils.py", "misc.py", "common.py"} & set(files), folder


def test_no_text_is_run() -> None:
    for module, path in MODULES.items():
        called = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        assert not {"eval", "exec"} & {function.id for function in called if isinstance(function, ast.Name)}, module


def test_the_tests_have_the_same_rooms() -> None:
    folders = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests" / "zoo").rglob("*") if path.is_dir()}
    assert not [folder for folder in folders if folder.name != "__pycache__" and not (ROOT / folder).is_dir()]
