"""What the shared suites have to know of a method. It stands in the method's own test file, as ``CASE``."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sb3_diffusion.taxonomy import METHODS, Method, algorithm_name

ROOT = Path(__file__).resolve().parents[1]
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class MethodCase:
    """
    Everything but the operation counts may be left out where the method needs nothing special.

    :param tiny: Arguments that make the method cheap
    :param tiny_policy: Arguments of its policy without which a fresh actor does not depend on the observation
    :param with_targets: Arguments with which it has target critics
    :param every_update: Arguments with which the rare parts of its update happen at every update
    :param learns_with: Arguments with which 1,500 steps are enough for a task of one step
    :param critic_width: Width of the first layer of its critics
    :param wrong_arguments: Arguments that it has to refuse, and what the message has to contain
    :param operation_counts: Upper bounds; ``python -m tests.test_operation_counts <name>`` prints them
    """

    tiny: Arguments = field(default_factory=dict)
    tiny_policy: Arguments = field(default_factory=dict)
    with_targets: Arguments = field(default_factory=dict)
    every_update: Arguments = field(default_factory=dict)
    learns_with: Arguments = field(default_factory=dict)
    critic_width: int = 256
    wrong_arguments: Sequence[tuple[Arguments, list[str]]] = ()
    operation_counts: Mapping[str, int] = field(default_factory=dict)


def file_of(method: Method) -> Path:
    """Where the tests of a method are."""
    return ROOT / "tests" / method.guidance / f"test_{method.zoo_name}.py"


def case(method: Method) -> MethodCase:
    """The case of a method; a test that needs it fails with a sentence where there is none."""
    path = file_of(method)
    if not path.is_file():
        pytest.fail(
            f"write {path.relative_to(ROOT)}, the tests of {method.name}, with its CASE (docs: contributing)", pytrace=False
        )
    found = getattr(importlib.import_module(f"tests.{method.guidance}.{path.stem}"), "CASE", None)
    if not isinstance(found, MethodCase):
        pytest.fail(f"write CASE = MethodCase(...) in {path.relative_to(ROOT)} (docs: contributing)", pytrace=False)
    return found


@cache
def case_of(algorithm: type) -> MethodCase:
    """The case of a class of ours, or of the one that it derives from."""
    methods = {method.zoo_name: method for method in METHODS}
    names = [algorithm_name(base) for base in algorithm.__mro__]
    return next((case(methods[name]) for name in names if name in methods), MethodCase())


def wrong_arguments(methods: Sequence[Method]) -> list[tuple[Method, Arguments, list[str]]]:
    """Parameters of a test; a missing file is found while tests run and not while they are collected."""
    there = [method for method in methods if file_of(method).is_file()]
    return [(method, *wrong) for method in there for wrong in case(method).wrong_arguments]
