"""The table of formats a run can be written in."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from backends.base import AsrbenchError
from harness import record
from harness.record import Run
from harness.report import complete, html, markdown, tables

FORMATS: dict[str, Callable[[Run], str]] = {
    "html": html.render,
    "md": markdown.render,
    "complete": complete.render,
    "csv": tables.summary,
    "samples-csv": tables.samples,
    "json": record.dumps,
}
ENDINGS = {  # of file names, the longest first
    "samples.csv": "samples-csv",
    "complete.md": "complete",
    ".csv": "csv",
    ".html": "html",
    ".json": "json",
    ".markdown": "md",
    ".md": "md",
}


class FormatError(AsrbenchError):
    """No format has that name or ending; the message lists the ones there are."""


def render(run: Run, name: str) -> str:
    """Return the run in the format called `name`.

    Raises:
        FormatError: no format is called so.
    """
    if name not in FORMATS:
        close = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise FormatError(f"no report format is called {name!r}.{hint} Available: {', '.join(FORMATS)}")
    return FORMATS[name](run)


def format_of(path: Path) -> str:
    """Return the name of the format that a file name asks for.

    Raises:
        FormatError: its ending is none that is known.
    """
    for ending, name in ENDINGS.items():
        if path.name.lower().endswith(ending):
            return name
    raise FormatError(f"cannot tell the format of {path} from its name; use one of {', '.join(ENDINGS)}")


def write_all(run: Run, folder: Path) -> None:
    """Write run.json, samples.csv, summary.csv, report.md and report.html into a folder, each atomically.

    Raises:
        RecordError: the record is not valid, or a file cannot be written.
    """
    record.write(run, folder / "run.json")
    for file, name in (("samples.csv", "samples-csv"), ("summary.csv", "csv"), ("report.md", "md")):
        record.write_text(folder / file, render(run, name))
    page = html.render(run, raw_data={name: name for name in html.SIBLINGS})
    record.write_text(folder / "report.html", page)
