"""A run as a Markdown page: what was measured and where, the ranked rows, then the others with reasons."""

from __future__ import annotations

from collections.abc import Sequence

from asrgate.harness.escape import markdown
from asrgate.harness.record_types import Run
from asrgate.harness.report import answers, columns, context
from asrgate.harness.report import parts as parts_of_run
from asrgate.harness.report.columns import Column
from asrgate.harness.report.rows import RANKED, UNAVAILABLE, UNRANKED, Row, by_model, rows
from asrgate.harness.scenarios import registry


def render(run: Run) -> str:
    """Return the whole page."""
    built = rows(run)
    ranked, unranked, unavailable = (
        [row for row in built if row["group"] == group] for group in (RANKED, UNRANKED, UNAVAILABLE)
    )
    measured = [row for row in built if row["group"] != UNAVAILABLE]
    parts = [f"# Run {markdown(run['run_id'])}", _facts(run), *_warnings(run)]
    parts += answer(run)
    parts += ["## Ranked", tables_by_model(run, ranked) if ranked else "No row passed the gate."]
    if unranked:
        parts += ["## Not ranked", _unranked(unranked)]
    if unavailable:
        parts += [
            "## Not measured" if "models" in run else "## Not available on this machine",
            _unavailable(unavailable),
        ]
    if measured:
        parts += ["## Quality", _detail(columns.QUALITY, measured)]
        parts += [
            "## Time in detail",
            _detail(columns.TIMES, measured),
        ]
        for part in [*answers.parts(run), *parts_of_run.parts(run)]:
            parts += [f"## {markdown(part.title)}", markdown(part.note), part_table(part)]
        parts += ["## Columns", _legend(run, measured)]
    return "\n\n".join(parts) + "\n"


def answer(run: Run) -> list[str]:
    """Return the lines of a run's answer as a list; nothing of a run of one model."""
    found = answers.lines(run)
    listed = "\n".join(f"- **{markdown(question)}**: {markdown(told)}" for question, told in found)
    return [listed] if found else []


def tables_by_model(run: Run, ranked: Sequence[Row], importance: int = 0) -> str:
    """Return `table`, or one for each model below its name."""
    parts = []
    for model, members in by_model(run, ranked).items():
        parts += [f"**{markdown(model)}**"] if model else []
        parts.append(table(members, importance, columns.OF_MODEL if model else columns.VARIANT))
    return "\n\n".join(parts)


def table(ranked: Sequence[Row], importance: int = 0, variant: Column = columns.VARIANT) -> str:
    """Return the table of ranked rows, with the columns of at least that importance."""
    figures = [c for c in columns.shown(columns.FIGURES, ranked) if c.importance >= importance]
    return grid([columns.RANK, variant, columns.WER, *figures], ranked)


def grid(shown: Sequence[Column], body: Sequence[Row]) -> str:
    """Return a Markdown table of the columns with every cell escaped."""
    lines = [
        _line([column.heading for column in shown]),
        _line(["---:" if column.is_number else "---" for column in shown], escaped=True),
        *(_line([column.cell(row) for column in shown]) for row in body),
    ]
    return "\n".join(lines)


def part_table(part: parts_of_run.Part) -> str:
    """Return a part's table."""
    rule = ["---:" if n in part.numbers else "---" for n in range(len(part.headings))]
    return "\n".join([_line(part.headings), _line(rule, escaped=True), *map(_line, part.rows)])


REASON = Column("not ranked because", "", lambda row: row["reason"] or "", is_number=False)
WHY = Column("why", "", lambda row: row["reason"] or "", is_number=False)
REMEDY = Column("how to fix it", "", lambda row: row["remedy"] or "", is_number=False)


def _unranked(unranked: Sequence[Row]) -> str:
    figures = columns.shown(columns.FIGURES, unranked)
    return grid([columns.VARIANT, columns.WER, *figures, REASON], unranked)


def _detail(group: Sequence[Column], measured: Sequence[Row]) -> str:
    return grid([columns.VARIANT, columns.WER, *columns.shown(group, measured)], measured)


def _unavailable(unavailable: Sequence[Row]) -> str:
    return grid([columns.VARIANT, WHY, REMEDY], unavailable)


def _facts(run: Run) -> str:
    facts = context.describe(run)
    lines = [_line([label, text]) for label, text in facts.items() if text]
    return "\n".join(["| | |", "|---|---|", *lines])


def _warnings(run: Run) -> list[str]:
    found = context.warnings(run)
    return ["\n".join(f"- **Warning:** {markdown(text)}" for text in found)] if found else []


def _legend(run: Run, measured: Sequence[Row]) -> str:
    used = [columns.rank(registry.of(run).order.by), columns.WER]
    for group in (columns.FIGURES, columns.QUALITY, columns.TIMES):
        used += columns.shown(group, measured)
    return "\n".join(f"- **{markdown(c.heading)}**: {markdown(c.meaning)}" for c in used)


def _line(cells: Sequence[str], escaped: bool = False) -> str:
    return f"| {' | '.join(cell if escaped else markdown(cell) for cell in cells)} |"
