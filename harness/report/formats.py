"""The table of formats in which a run can be written: our own, then those of other packages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

from asrgate import old_names
from asrgate.backends import child_process, temporary
from asrgate.backends.base import AsrgateError, did_you_mean
from asrgate.harness import record
from asrgate.harness.record_types import Run
from asrgate.harness.report import complete, frames, html, markdown, tables

ENTRY_POINT_GROUP = "asrgate.reports"  # name -> a function from a run to text
LIMIT_SECONDS = 300.0  # for another package's format

FORMATS: dict[str, Callable[[Run], str]] = {
    "html": html.render,
    "md": markdown.render,
    "complete": complete.render,
    "csv": tables.summary,
    "samples-csv": tables.samples,
    "slices-csv": tables.by_slice,
    "json": record.dumps,
}
BINARY: dict[str, Callable[[Run], bytes]] = {  # these go to files only
    "parquet": lambda run: frames.parquet(frames.of_rows([run])),
    "samples-parquet": lambda run: frames.parquet(frames.of_samples([run])),
}
ENDINGS = {  # of file names, longest first
    "samples.parquet": "samples-parquet",
    "samples.csv": "samples-csv",
    "slices.csv": "slices-csv",
    "complete.md": "complete",
    ".csv": "csv",
    ".html": "html",
    ".json": "json",
    ".markdown": "md",
    ".md": "md",
    ".parquet": "parquet",
}


class FormatError(AsrgateError):
    """No format has that name or ending, or another package's format fails; the message says which."""


def names() -> list[str]:
    """Names of all formats: our own, then those of other packages."""
    return [*FORMATS, *BINARY, *(name for name in _plugins() if name not in (*FORMATS, *BINARY))]


def render(run: Run, name: str, denied: Sequence[Path] = ()) -> str:
    """Return the run in the format called `name`.

    Another package's format runs in a process of its own, see worker/format_process.py.

    Args:
        denied: files and folders that another package's format can neither read nor change, where the system
            can see to that: the stored run.

    Raises:
        FormatError: no format has that name, it is not text, or another package's format fails.
    """
    if name in FORMATS:
        return FORMATS[name](run)
    if name in BINARY:
        raise FormatError(f"{name} is not text: name a file with --output, such as run.parquet")
    plugin = _plugins().get(name)
    if plugin is None:
        raise FormatError(
            f"no report format is called {name!r}.{did_you_mean(name, names())} "
            f"Available: {', '.join(names())}"
        )
    answer = _answer(plugin.value, run, denied)
    if "text" not in answer:
        raise FormatError(f"the report format {name!r} of {plugin.value} {answer['failed']}")
    return answer["text"]


def _answer(target: str, run: Run, denied: Sequence[Path]) -> dict[str, str]:
    """Have another package's format carried out; return {"text"} or {"failed": what happened}."""
    with temporary.folder() as private:
        request = {
            "target": target,
            "path": [place for place in sys.path if place],
            "denied": [str(path.absolute()) for path in denied],
            "private": str(private),
            "run": run,
        }
        process = subprocess.Popen(
            child_process.command("asrgate.harness.worker.format_process"),
            env=child_process.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(json.dumps(request).encode(), timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {LIMIT_SECONDS:g} s"}
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(said)
        for name in ("text", "failed"):
            if isinstance(answer, dict) and isinstance(text := answer.get(name), str):
                return {name: text.encode("utf-8", "backslashreplace").decode()}
    return {"failed": f"ended its process with exit status {process.returncode}"}


def write(run: Run, name: str, path: Path, denied: Sequence[Path] = ()) -> None:
    """Write the run into a file, atomically, in the format called `name`.

    Args:
        denied: as `render`.

    Raises:
        FormatError: as `render`.
        ParquetMissing: the format needs a library that is not installed.
        RecordError: the file cannot be written.
    """
    if name in BINARY:
        record.write_bytes(path, BINARY[name](run))
    else:
        record.write_text(path, render(run, name, denied))


def format_of(path: Path) -> str:
    """Return the format chosen by a file name's ending; the ending of another package's format is its name.

    Raises:
        FormatError: the ending is unknown.
        ParquetMissing: the format needs a library that is not installed.
    """
    for ending, name in ENDINGS.items():
        if path.name.lower().endswith(ending):
            if name in BINARY:
                frames.require_parquet()  # before anything is measured
            return name
    plugins = [name for name in _plugins() if name not in (*FORMATS, *BINARY)]
    for name in sorted(plugins, key=len, reverse=True):
        if path.name.lower().endswith(f".{name}"):
            return name
    endings = [*ENDINGS, *(f".{name}" for name in plugins)]
    raise FormatError(f"cannot tell the format of {path} from its name; use one of {', '.join(endings)}")


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


def _plugins() -> dict[str, EntryPoint]:
    return old_names.points(ENTRY_POINT_GROUP)
