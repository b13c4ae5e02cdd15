"""Reports of a run: one row builder, one file per format, and a table of them (`formats.FORMATS`).

To add a format, write a file with a function from a run to text and add a line to that table; another package
declares an entry point in the group `asrgate.reports` instead.
"""

from asrgate.harness.report.console import print_table
from asrgate.harness.report.formats import FORMATS, format_of, render, write, write_all
from asrgate.harness.report.readme import readme_table, readme_tables, update_between_markers
from asrgate.harness.report.rows import rows

__all__ = [
    "FORMATS",
    "format_of",
    "print_table",
    "readme_table",
    "readme_tables",
    "render",
    "rows",
    "update_between_markers",
    "write",
    "write_all",
]
