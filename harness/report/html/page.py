"""Assembles the page: the template, its style and script, and the tables, charts and data of one run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report import columns, context, parts
from asrgate.harness.report.columns import Column
from asrgate.harness.report.html import charts, clips, trend
from asrgate.harness.report.html.drawing import Chart
from asrgate.harness.report.html.svg import PALETTE
from asrgate.harness.report.rows import RANKED, UNAVAILABLE, UNRANKED, Row, rows
from asrgate.harness.scenarios import registry

if TYPE_CHECKING:
    from asrgate.harness.report.history import Series

FOLDER = Path(__file__).parent
SIBLINGS = (
    "run.json",
    "samples.csv",
    "summary.csv",
    "report.md",
)  # next to it in a run's folder

LEADING = ("model", "audio", "decoding", "machine")  # facts shown above the ranking; the others are below it


def render(
    run: Run,
    audio: Mapping[str, bytes] | None = None,
    history: Sequence[Series] = (),
    raw_data: Mapping[str, str] | None = None,
) -> str:
    """Return the page.

    Args:
        audio: clip name -> an MP3 to embed; see asrgate.harness.report.html.audio.
        history: series of runs comparable with this one, drawn after the run's own charts.
        raw_data: name -> relative address of the files from which the figures come.
    """
    built = rows(run)
    measured = [row for row in built if row["group"] != UNAVAILABLE]
    data = clips.collect(run, measured)
    script = _asset("page.js")
    return _template().render(
        run=run,
        title=f"asrgate {run['run_id']}",
        facts=[(label, text) for label, text in context.describe(run).items() if text],
        warnings=context.warnings(run),
        groups=_groups(measured),
        tables=_tables(measured),
        parts=parts.parts(run) if measured else [],
        unavailable=[row for row in built if row["group"] == UNAVAILABLE],
        measured=measured,
        series=[n if n < len(PALETTE) else "other" for n in range(len(measured))],
        charts=_charts(run, measured, history),
        host=_pretty(run["host"]),
        settings=_pretty(run["settings"]),
        applied=[
            (result["variant"], _pretty(result["applied_settings"]))
            for result in run["results"]
            if result["applied_settings"]
        ],
        command=" ".join(run["command"]),
        note=data.note,
        index=clips.dumps(data.index | {"variants": [_variant(row) for row in measured]}),
        figures=[clips.dumps(figures) for figures in data.figures],
        texts=[clips.dumps(chunk) for chunk in data.texts],
        audio=clips.dumps({n: base64.b64encode(sound).decode() for n, sound in audio.items()})
        if audio
        else None,
        raw_data=raw_data or {},
        style=_asset("page.css"),
        script=script,
        script_hash=_base64(hashlib.sha256(script.encode()).digest()),
        is_ranked=lambda row: row["group"] == RANKED,
        legend=_legend(measured),
        rank_meaning=columns.rank(registry.of(run).order.by).meaning,
        leading=LEADING if registry.is_default(run) else (*LEADING, "scenario"),
    )


def _charts(run: Run, measured: Sequence[Row], history: Sequence[Series]) -> list[Chart]:
    found = charts.draw(run, measured)
    if history:
        found.append(trend.chart(history, {row["variant"]: n for n, row in enumerate(measured)}))
    return found


def _groups(measured: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    found = [(group, [row for row in measured if row["group"] == group]) for group in (RANKED, UNRANKED)]
    return [(group, members) for group, members in found if members]


def _tables(measured: Sequence[Row]) -> list[dict[str, Any]]:
    """The main table and the detailed ones, all with the WER."""
    if not measured:
        return []
    return [
        {
            "name": name,
            "title": title,
            "columns": [columns.WER, *columns.shown(group, measured)],
            "is_main": name == "main",
        }
        for name, title, group in (
            ("main", "Ranking", columns.FIGURES),
            ("quality", "Quality in detail", columns.QUALITY),
            ("times", "Time in detail", columns.TIMES),
        )
    ]


def _legend(measured: Sequence[Row]) -> list[Column]:
    groups = (columns.FIGURES, columns.QUALITY, columns.TIMES)
    found = [columns.WER, *(column for group in groups for column in columns.shown(group, measured))]
    return found if measured else []


def _variant(row: Row) -> list[Any]:
    return [visible(row["variant"]), row["rank"]]


def _pretty(value: Any) -> str:
    return visible_lines(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def visible_lines(text: str) -> str:
    """Return the text with its line ends kept and all other invisible characters escaped."""
    return "\n".join(visible(line) for line in text.split("\n"))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@cache
def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = visible
    return environment.from_string(_asset("page.html"))
