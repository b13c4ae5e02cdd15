"""Reports of a run: one row builder, one file a format, one table (`formats.FORMATS`) that names them.

To add a format, write one file with a function from a run to its text and add its line to that table;
another package declares the entry point group `asrgate.reports` instead.
"""

from asrgate.harness.report.console import print_table
from asrgate.harness.report.formats import FORMATS, format_of, render, write_all
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
    "write_all",
]
