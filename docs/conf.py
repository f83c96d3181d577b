"""Configuration of the documentation's site: Sphinx, MyST Markdown and Furo."""

import re
from pathlib import Path

_SOURCE = (Path(__file__).resolve().parents[1] / "dfer_deploy" / "__init__.py").read_text(encoding="utf-8")
_VERSION = re.search(r'^__version__ = "(.+)"$', _SOURCE, re.MULTILINE)
if _VERSION is None:
    raise ValueError("dfer_deploy/__init__.py does not define __version__")

project = "dfer-deploy"
author = "the dfer-deploy authors"
release = version = _VERSION.group(1)

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
nitpicky = False

html_theme = "furo"
html_title = f"dfer-deploy {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
# Pages must look the same without a network.
html_show_sphinx = False
