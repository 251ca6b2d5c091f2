"""Results into one self-contained HTML page."""

from evalspec.report.page import render, render_index

__all__ = ["render", "render_index"]
