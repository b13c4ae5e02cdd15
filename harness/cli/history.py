"""`asrgate history`: how a figure changed over stored runs, as a table or as CSV."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asrgate.harness.cli import streams
from asrgate.harness.escape import csv_cell, visible
from asrgate.harness.report import context
from asrgate.harness.report.columns import percent
from asrgate.harness.report.history import METRICS, Point, Series, read_runs, series
from asrgate.harness.scenarios import registry

RESULTS = Path("results")
SHOWN_POINTS = 40  # of a sparkline: the newest
LEVELS, UNRANKED_MARK = "▁▂▃▄▅▆▇█", "×"
PLAIN_LEVELS, PLAIN_UNRANKED_MARK = "12345678", "x"  # for a terminal that cannot write those

CSV_COLUMNS = (
    *("series", "variant", "run_id", "started_at", "metric", "value", "wer_percent", "ranked", "reason"),
    *("model", "model_tensors_sha256", "model_sha256", "audio", "decoding"),
    *("machine", "normalizer", "scenario"),
)


def add_parser(subparsers: Any) -> None:
    """Add the `history` subcommand."""
    parser = subparsers.add_parser(
        "history",
        help="show how a figure changed over stored runs",
        description="Follow a figure over stored runs. Runs with a different checkpoint, audio, settings, "
        "host or normaliser form separate series. Points that are not ranked are marked.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="*",
        metavar="RUN",
        help="run.json files, their folders, or folders of such folders; default results",
    )
    parser.add_argument("--backend", metavar="NAME", help="only this backend, or only this variant")
    parser.add_argument(
        "--metric",
        choices=METRICS,
        default="rtfx",
        help=f"one of {', '.join(METRICS)}; default rtfx",
        metavar="NAME",
    )
    parser.add_argument("--format", choices=["table", "csv"], default="table", help="default table")
    parser.set_defaults(func=run_history, reads_records=True)


def run_history(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate history`."""
    runs = read_runs(arguments.runs or [RESULTS])
    found = series(runs, arguments.metric, arguments.backend)
    if arguments.format == "csv":
        streams.write(to_csv(found))
    else:
        print_series(found, Console())
    return 0


def to_csv(found: Sequence[Series]) -> str:
    """Return one line per point."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for one in found:
        beside = (
            one.model["name"],
            one.model["tensors_sha256"] or "",
            one.model["sha256"],
            context.audio(one.first),
            context.decoding(one.first),
            context.machine(one.first),
            one.first["scoring"]["normalizer"]["name"],
            registry.of(one.first).conditions(),
        )
        for point in one.points:
            texts = (one.variant, point.run_id, point.started_at, one.metric)
            wer = "" if point.wer_percent is None else f"{point.wer_percent:.10g}"
            verdict = (str(point.reason is None).lower(), csv_cell(point.reason or ""))
            figures = (f"{point.value:.10g}", wer)
            writer.writerow([one.group, *map(csv_cell, texts), *figures, *verdict, *map(csv_cell, beside)])
    return file.getvalue()


def print_series(found: Sequence[Series], console: Console) -> None:
    """Print one sparkline per series, below what its runs have in common."""
    is_plain = not _can_write(LEVELS + UNRANKED_MARK, console.encoding)
    levels = PLAIN_LEVELS if is_plain else LEVELS
    mark = PLAIN_UNRANKED_MARK if is_plain else UNRANKED_MARK
    for group in dict.fromkeys(one.group for one in found):
        members = [one for one in found if one.group == group]
        first = members[0].first
        metric = members[0].metric
        facts = Table.grid(padding=(0, 2))
        for label in (context.model, context.audio, context.decoding, context.machine):
            facts.add_row(Text(label.__name__, style="dim"), _text(label(first), console))
        if not registry.is_default(first):
            facts.add_row(Text("scenario", style="dim"), _text(registry.of(first).conditions(), console))
        console.print(facts)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("variant", overflow="fold")
        table.add_column("trend", no_wrap=True)
        for heading in ("runs", "first", "last", "change", "WER %"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in members:
            table.add_row(*(_text(cell, console) for cell in _cells(one, levels, mark)))
        console.print(table)
        console.print()
    legend = (
        f"first, last: {metric}, {METRICS[metric].meaning}; change: from the first to the last ranked run; "
        f"WER %: in the last run. {mark}: not ranked in that run."
    )
    console.print(_text(legend, console, "dim"))
    _print_unranked(found, console)


def _print_unranked(found: Sequence[Series], console: Console) -> None:
    """Say why the newest point of a series is not ranked; older reasons are in the CSV."""
    for one in found:
        last = one.points[-1]
        if last.reason is not None:
            console.print(_text(f"{one.variant} in {last.run_id} is not ranked: {last.reason}", console))


def _cells(one: Series, levels: str, mark: str) -> Iterator[str]:
    write = METRICS[one.metric].write
    first, last = one.points[0], one.points[-1]
    ranked = [point.value for point in one.points if point.reason is None]
    yield one.variant
    yield sparkline(one.points, levels, mark)
    yield str(len(one.points))
    for point in (first, last):
        yield write(point.value) + (f" {mark}" if point.reason is not None else "")
    # of ranked points only, because others did different work
    yield f"{ranked[-1] / ranked[0] - 1:+.1%}" if len(ranked) > 1 and ranked[0] else ""
    yield percent(last.wer_percent) or "unknown"


def sparkline(points: Sequence[Point], levels: str = LEVELS, mark: str = UNRANKED_MARK) -> str:
    """Return one character for each of the newest SHOWN_POINTS: its height, or the mark if it is not ranked.

    The scale runs from the lowest to the highest ranked point; if all are equal they are drawn in the middle.
    """
    shown = points[-SHOWN_POINTS:]
    ranked = [point.value for point in shown if point.reason is None]
    low, high = (min(ranked), max(ranked)) if ranked else (0.0, 0.0)
    span = high - low

    def level(value: float) -> str:
        share = (value - low) / span if span else 0.5
        return levels[min(int(share * len(levels)), len(levels) - 1)]

    return "".join(mark if point.reason is not None else level(point.value) for point in shown)


def _can_write(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _text(text: str, console: Console, style: str = "") -> Text:
    encoding = console.encoding
    return Text(visible(text).encode(encoding, "backslashreplace").decode(encoding), style=style)
