"""A figure in a page, drawn while the page is read."""

import os
from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from page_figure import INKS
from sphinx.environment import BuildEnvironment


def figure_node(env: BuildEnvironment, name: str, alt: str, draw: Callable[[str, Path], None]) -> nodes.figure:
    """
    :param env: What knows the page that is read
    :param name: Name of the figure's files
    :param alt: What it shows, in words
    :param draw: Draws it in a colour scheme of the pages, into a file
    :return: The figure, once for each colour scheme
    """
    figure = nodes.figure(classes=["learning-curve"])
    page = Path(env.doc2path(env.docname)).resolve()
    for scheme in INKS:
        path = Path(env.app.doctreedir) / "figures" / f"{name}-{scheme}.svg"
        draw(scheme, path)
        # Sphinx wants a path relative to the page, also outside the source folder
        uri = Path(os.path.relpath(path.resolve(), page.parent)).as_posix()
        figure += nodes.image(uri=uri, alt=alt, classes=[f"only-{scheme}"])
    return figure
