"""
Formulas as MathML, converted while the pages are built: nothing has to be downloaded or run to read them.

A formula that cannot be converted is a warning, hence an error of the build. Browsers draw MathML with a mathematical font.
Not every system has one, so that the pages bring their own, STIX Two Math, which is found in the package ziamath.
"""

import html
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

FONT = "STIXTwoMath-Regular.ttf"

logger = logging.getLogger(__name__)
converter = LatexToMathML(fancy_error=False)


def to_mathml(node: nodes.math | nodes.math_block) -> str:
    """
    :param node: A formula
    :return: The formula as MathML, or as it was written if that fails
    """
    latex = node.astext().strip()
    try:
        return converter.convert_with_local_state(latex, displaystyle=isinstance(node, nodes.math_block))
    except LatexError as error:
        logger.warning("this formula cannot be converted to MathML (%s): %s", error, latex, location=node)
        return f"<code>{html.escape(latex)}</code>"


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula in a line of text."""
    translator.body.append(f'{translator.starttag(node, "span", "", CLASS="math")}{to_mathml(node)}</span>')
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula that stands alone, with its number if it is referred to."""
    translator.body.append(translator.starttag(node, "div", "", CLASS="math"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(f"{to_mathml(node)}</div>\n")
    raise nodes.SkipNode


def copy_font(app: Sphinx, exception: Exception | None) -> None:
    """Handler of the end of a build: put the font beside the style sheet that names it."""
    if exception is None and app.builder.format == "html":
        package = importlib.util.find_spec("ziamath")
        assert package is not None and package.origin is not None
        shutil.copyfile(Path(package.origin).with_name("fonts") / FONT, Path(app.outdir, "_static", FONT))


def setup(app: Sphinx) -> dict[str, Any]:
    """Entry point of the extension."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("build-finished", copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
