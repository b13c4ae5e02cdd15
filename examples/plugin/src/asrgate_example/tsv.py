"""The report format `tsv`: the rows of a run, tab-separated, to be pasted into a spreadsheet."""

from __future__ import annotations

from typing import Any

from asrgate.harness.report import rows

COLUMNS = ("rank", "variant", "wer_percent", "rtfx", "reason")


def render(run: dict[str, Any]) -> str:
    """Return the run's rows as text; `run` follows asrgate's run.schema.json and is a copy of the record.

    `asrgate.harness.report.rows` builds the same rows for every format, so that formats cannot disagree.
    """
    lines = [COLUMNS, *([_cell(row[name]) for name in COLUMNS] for row in rows(run))]
    return "".join("\t".join(line) + "\n" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
