"""A run as one HTML file that needs nothing else: tables, charts, every clip's errors, audio if asked."""

from asrgate.harness.report.html.page import SIBLINGS, render

__all__ = ["SIBLINGS", "render"]
