"""Sphinx configuration. Build with ``make doc``; every warning is an error."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

project = "sb3_diffusion"
author = "The sb3_diffusion contributors"
project_copyright = author
release = version = (DOCS.parent / "sb3_diffusion" / "version.txt").read_text(encoding="utf-8").strip()

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    # ours, in docs/_ext
    "bandit_table",
    "benchmark_results",
    "common_parameters",
    "comparison",
    "gallery",
    "grids_table",
    "mathml",
    "pretrained_table",
    "results_table",
    "results_overview",
    "shares_table",
    "scaling",
    "self_contained",
    "speed_table",
    "taxonomy_table",
]
exclude_patterns = ["_build", "data", "algorithms/_*"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
# a "keep what the source says" signature: defaults such as 1_000_000 stay readable
autodoc_preserve_defaults = True

copybutton_exclude = ".linenos, .gp, .go"

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"sb3_diffusion {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b6ea8"},
    "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6"},
}
