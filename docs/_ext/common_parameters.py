"""
Show the common parameters in the documentation of every algorithm and policy.

The docstring of a class describes its own arguments and refers to its parent class for the others. A reader of the web
page wants one complete list, so that the missing entries are taken from the parents, in the order of the signature.
"""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from sb3_diffusion.core.off_policy import OffPolicyDiffusion
from sb3_diffusion.core.on_policy import OnPolicyDiffusion
from sb3_diffusion.policies.actor_critic import ActorCritic

ROOTS = (OffPolicyDiffusion, OnPolicyDiffusion, ActorCritic)
FIELD = re.compile(r":param (\w+):")


def split_parameters(lines: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """
    Separate the text of a docstring from its ``:param name:`` entries.

    :param lines: Lines of the docstring; all that follows the first entry belongs to the entries
    :return: Lines before the first entry, and the lines of each entry
    """
    text: list[str] = []
    entries: dict[str, list[str]] = {}
    current = text
    for line in lines:
        if match := FIELD.match(line):
            current = entries.setdefault(match[1], [])
        current.append(line)
    return text, entries


def merge_parameters(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Handler of autodoc's event for docstrings; replaces the ``kwargs`` entry by the entries of the parent classes."""
    root = next((root for root in ROOTS if what == "class" and issubclass(obj, root)), None)
    if root is None:
        return
    text, own = split_parameters(lines)
    entries: dict[str, list[str]] = {}
    for parent in reversed(obj.__mro__[1:]):
        if issubclass(parent, root):
            entries |= split_parameters(inspect.cleandoc(parent.__doc__ or "").splitlines())[1]
    entries |= own
    lines[:] = text
    for key, parameter in inspect.signature(obj).parameters.items():
        lines += entries.get(key, [])
        if key in root.__annotations__:
            # Sphinx would show the type of the attribute of that name
            lines.append(f":type {key}: {stringify_annotation(parameter.annotation, 'smart')}")


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.connect("autodoc-process-docstring", merge_parameters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
