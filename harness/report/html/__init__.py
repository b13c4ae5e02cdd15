"""A run as one self-contained HTML file: tables, charts, every clip's errors and, on request, audio."""

from asrgate.harness.report.html.page import SIBLINGS, render

__all__ = ["SIBLINGS", "render"]
