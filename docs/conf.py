"""Sphinx builds these pages with `sphinx-build -W docs DIRECTORY`; on their own they are plain Markdown."""

project = "vjplib"
author = "The vjplib authors"
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
myst_heading_anchors = 3
