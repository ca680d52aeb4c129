"""
Check that the pages need no other host: scripts, style sheets, fonts, pictures and videos come with them.

Links that a reader may follow are another matter. What is found is a warning, hence an error of the build.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

ELSEWHERE = r"(?:https?:)?//"
LOADING = (
    # a link element loads what it names unless it only states a relation
    re.compile(
        rf"<link\b(?![^>]*\brel=[\"']?(?:canonical|author|license|next|prev)\b)[^>]*\bhref=[\"']?{ELSEWHERE}[^>]*>", re.I
    ),
    re.compile(
        rf"<(?:script|img|iframe|video|audio|source|track|embed|object|input)\b[^>]*"
        rf"\b(?:src|srcset|poster|data)=[\"']?{ELSEWHERE}[^>]*>",
        re.I,
    ),
    re.compile(rf"@import\s+(?:url\()?[\"']?{ELSEWHERE}[^;]*", re.I),
    re.compile(rf"url\(\s*[\"']?{ELSEWHERE}[^)]*\)", re.I),
)

logger = logging.getLogger(__name__)


def loaded_from_elsewhere(text: str) -> list[str]:
    """
    :param text: A page or a style sheet
    :return: The places that make a browser load something from another host
    """
    return [match[0] for pattern in LOADING for match in pattern.finditer(text)]


def check_folder(folder: Path) -> Iterator[tuple[Path, str]]:
    """
    :param folder: Built pages
    :return: File and place
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css", ".svg"):
            yield from ((path, place) for place in loaded_from_elsewhere(path.read_text(encoding="utf-8")))


def check(app: Sphinx, exception: Exception | None) -> None:
    """Handler of the end of a build."""
    if exception is None and app.builder.format == "html":
        for path, place in check_folder(Path(app.outdir)):
            logger.warning("%s loads something from another host: %s", path.relative_to(app.outdir), place[:200])


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
