"""Sphinx's settings; `sphinx-build -W docs docs/_build` makes the site."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from sse import __version__  # found by the line above, installed or not

project = "flask-sse-relay"
author = "The flask-sse-relay contributors"
copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "docs.generated"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {version}"
html_extra_path: list[str] = []

# Links such as deployment.md#gunicorn.
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# Warnings are errors in CI, a name that does not exist included.
nitpicky = False
