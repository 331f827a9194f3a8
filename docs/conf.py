"""Settings of the site. Build it with `make docs`."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]
os.environ["TQDM_DISABLE"] = "1"  # progress bars are no part of a page

import inventories  # noqa: E402
from sphinx_gallery.sorting import FileNameSortKey  # noqa: E402

project = "manifold-constraints"
author = "the manifold-constraints authors"
copyright = author  # noqa: A001
release = metadata.version("manifold-constraints")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "mathml",
    "docstrings",
    "drawings",
    "figures",
]
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py", "gallery/**/*.zip", "sg_execution_times.rst"]
nitpicky = True
# Every name of this library must be found; those of others are links where `inventories` has them.
nitpick_ignore_regex = [
    ("py:.*", r"(?!manifolds|constraints).*"),
    ("py:class", r"constraints\.(constrain\.M|solve\.problem\.\w+)"),
]
suppress_warnings = ["config.cache"]  # settings that are functions

smartquotes_action = "D"  # dashes, but not quotes, which are to be copied
html_theme = "furo"
html_title = "manifold-constraints"
html_theme_options = {"light_css_variables": {"color-code-background": "#f6f8fa"}}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 120
autosummary_generate = False

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

intersphinx_mapping = inventories.mapping(HERE / "_build" / "inventories")

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "tutorials"),
    "gallery_dirs": "gallery",
    "filename_pattern": r"/\d\d_",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "capture_repr": (),  # what is printed, and nothing else
    "matplotlib_animations": False,
    "min_reported_time": 3600,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
}
