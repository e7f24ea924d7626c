"""Sphinx configuration: pages in Markdown, figures made while building, nothing from a network."""

import sys
from pathlib import Path

import torch

from sharpness._version import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))
torch.set_num_threads(1)  # more only wait for each other in networks as small as the gallery's

project, author, release = "sharpness", "the sharpness developers", __version__
project_copyright = "the sharpness developers, Apache-2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    # ours, in docs/extensions
    "commands",
    "mathml",
    "offline",
    "records",
]
exclude_patterns = ["_build", "gallery"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = "sharpness"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style, pygments_dark_style = "friendly", "github-dark"

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": r"/plot_",
    "image_srcset": ["2x"],
    "capture_repr": (),
    "abort_on_example_error": True,
    "run_stale_examples": True,  # a claim rests on the library too, not on its page alone
    "download_all_examples": False,
    "show_signature": False,
    "backreferences_dir": None,
    # Its page of computation times loads scripts and styles from three networks of others.
    "write_computation_times": False,
}
