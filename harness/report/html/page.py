"""Assembles the page: the template, its style and script, and the tables, charts and data of one run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrgate.harness.corpus import augment
from asrgate.harness.corpus.fields import LENGTH
from asrgate.harness.escape import visible
from asrgate.harness.record import reference_name
from asrgate.harness.record_types import Run
from asrgate.harness.report import answers, columns, context, parts
from asrgate.harness.report.columns import Column
from asrgate.harness.report.html import charts, clips, matrix, trend
from asrgate.harness.report.html.drawing import Chart
from asrgate.harness.report.html.svg import PALETTE
from asrgate.harness.report.rows import RANKED, UNAVAILABLE, UNRANKED, Row, by_model, rows, without_model
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import RTFX
from asrgate.harness.scoring import slices

if TYPE_CHECKING:
    from asrgate.harness.report.history import Series

FOLDER = Path(__file__).parent
PICTURES = (
    "quality-speed",
    "rate-latency",
    "latency-steadiness",
)  # of which the first stands beside the ranking
DRAWN = {LENGTH: "by-length", augment.FIELD: "noise"}  # fields whose slices are drawn too -> the chart's name
HINTED = 6  # values of a field that are named while its section is closed
IS_NAME = re.compile(r"^[^@]+-[^@]*@[^@]+/")  # a variant's, which a line could break at a hyphen
SIBLINGS = (
    "run.json",
    "samples.csv",
    "summary.csv",
    "report.md",
)  # next to it in a run's folder


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
    models = list(by_model(run, measured))
    for n, row in enumerate(measured):
        row["series"] = n if models == [""] else models.index(row["model"])
    data = clips.collect(run, measured)
    script = _asset("page.js")
    sliced = _sliced(run) if measured else {}
    drawn = charts.draw(run, measured, sliced)
    return _template().render(
        run=run,
        title=f"asrgate {run['run_id']}",
        headline=context.headline(run),
        scenario="" if registry.is_default(run) else context.scenario(run),
        facts=[(label, text) for label, text in context.describe(run).items() if text],
        warnings=context.warnings(run),
        groups=_groups(run, measured),
        tables=_tables(measured, registry.of(run).order == RTFX),
        slices=[_slices_section(run, field, found, measured, drawn) for field, found in sliced.items()],
        answers=answers.lines(run),
        answer_parts=answers.parts(run),
        quality_parts=parts.of_quality(run) if measured else [],
        times_parts=parts.of_times(run) if measured else [],
        unavailable=_by_cause([row for row in built if row["group"] == UNAVAILABLE]),
        measured=measured,
        series=[n if n < len(PALETTE) else "other" for n in (row["series"] for row in measured)],
        charts=drawn,
        trend=_trend(history, measured),
        steps_points=[f"{step:g}" for step in matrix.STEPS_POINTS],
        steps_ratio=[f"{step:g}" for step in matrix.STEPS_RATIO],
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
        has_ranked=any(row["group"] == RANKED for row in measured),
        name_of=without_model if "models" in run else lambda row: row["variant"],
        references={reference_name(run, result) for result in run["results"]},
        legend=_legend(measured),
        picture=next((drawn[name] for name in PICTURES if name in drawn), None),
        rank_meaning=columns.rank(registry.of(run).order.by).meaning,
    )


def _sliced(run: Run) -> dict[str, list[slices.Slice]]:
    """Return field -> its slices: those of every format, and those that are drawn."""
    fields = [*slices.chosen(run), *(field for field in DRAWN if field in slices.automatic(run))]
    return {field: slices.rows(run, [field]) for field in dict.fromkeys(fields)}


def _slices_section(
    run: Run,
    field: str,
    found: Sequence[slices.Slice],
    measured: Sequence[Row],
    drawn: Mapping[str, Chart],
) -> dict[str, Any]:
    values = list(dict.fromkeys(each["value"] for each in found))
    references = {result["variant"]: reference_name(run, result) for result in run["results"]}
    return {
        "field": field,
        "hint": ", ".join(values[:HINTED]) + (f" and {more} more" if (more := len(values[HINTED:])) else ""),
        "title": f"By {field}",
        "note": parts.slice_note(run, field),
        "values": list({each["value"]: each["clips"] for each in found}.items()),
        "matrices": matrix.build(found, measured, references),
        "chart": drawn.get(DRAWN[field]) if field in DRAWN else None,
    }


def _trend(history: Sequence[Series], measured: Sequence[Row]) -> Chart | None:
    return trend.chart(history, {row["variant"]: n for n, row in enumerate(measured)}) if history else None


def _by_cause(unavailable: Sequence[Row]) -> list[tuple[list[str], str, str]]:
    """Return variants, reason and remedy, once for each reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in unavailable:
        found.setdefault((row["reason"], row["remedy"] or "–"), []).append(row["variant"])
    return [(variants, why, remedy) for (why, remedy), variants in found.items()]


def _named(text: str) -> Any:
    """Return a sentence as HTML in which variants' names are not broken at their hyphens."""
    from markupsafe import Markup, escape

    whole = Markup('<span class="whole">{}</span>')
    words = visible(text).split(" ")
    return Markup(" ").join(whole.format(word) if IS_NAME.search(word) else escape(word) for word in words)


def _pieces(name: str) -> list[str]:
    """Return the parts of a variant's name between which it may be broken into lines."""
    return re.split(r"(?=[@/ ])", visible(name))


def _groups(run: Run, measured: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the sections of tables, with their kind: ranked rows and others, below the names of models."""
    found: list[tuple[str, list[Row]]] = []
    for model, rows_of_model in by_model(run, measured).items():
        found += [("model", rows_of_model[:1])] if model else []
        for group in (RANKED, UNRANKED):
            members = [row for row in rows_of_model if row["group"] == group]
            found += [(group, members)] if members else []
    return found


def _tables(measured: Sequence[Row], is_by_rtfx: bool) -> dict[str, dict[str, Any]]:
    """Return the main table and the detailed ones by name, all with the WER.

    A column's importance says which go first where the page is narrow; 0 stays.
    """
    found = {}
    for name, title, group in (
        ("main", "Ranking", columns.FIGURES),
        ("quality", "Quality in detail", columns.QUALITY),
        ("times", "Time in detail", columns.TIMES),
    ):
        shown = columns.shown(group, measured)
        if not is_by_rtfx:  # then it may go where the page is narrow
            shown = [
                replace(column, importance=min(column.importance, 9)) if column.heading == "RTFx" else column
                for column in shown
            ]
        if name != "main":
            shown = [replace(column, importance=1) for column in shown]  # the last first
        found[name] = {
            "name": name,
            "title": title,
            "columns": [columns.WER, *shown],
            "is_main": name == "main",
        }
    return found if measured else {}


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
    environment.filters |= {"visible": visible, "pieces": _pieces, "named": _named}
    return environment.from_string(_asset("page.html"))
