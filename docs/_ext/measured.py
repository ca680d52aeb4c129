"""Measurements that are kept in ``docs/data`` and shown by a directive."""

import json
from pathlib import Path
from typing import Any

from sphinx.util.docutils import SphinxDirective


def measured(directive: SphinxDirective, name: str) -> dict[str, Any]:
    """
    :param directive: What shows them; its page is written again when they change
    :param name: Name of a file of ``docs/data``
    :return: Its content
    :raises docutils.parsers.rst.DirectiveError: If there is none of this name
    """
    path = Path(directive.env.srcdir, "data", name)
    directive.env.note_dependency(str(path))
    if not path.is_file():
        raise directive.error(f"{directive.name}: data/{name} does not exist")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
