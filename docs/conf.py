"""Sphinx configuration."""

import qscore

project = "qscore"
author = "The qscore developers"
copyright = author
release = version = qscore.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc", "myst_parser"]
autosummary_generate = True
numpydoc_show_class_members = False
autodoc_typehints = "none"
exclude_patterns = ["_build"]
html_theme = "pydata_sphinx_theme"
html_title = "qscore"
html_theme_options = {"show_prev_next": False}
