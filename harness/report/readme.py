"""Results tables for a README, generated from stored runs and written between two marker comments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from asrgate.backends.base import AsrgateError
from asrgate.harness import record
from asrgate.harness.escape import markdown
from asrgate.harness.record_types import Run
from asrgate.harness.report import answers, context
from asrgate.harness.report.markdown import answer, part_table, tables_by_model
from asrgate.harness.report.rows import RANKED, UNRANKED, rows
from asrgate.harness.scenarios import registry

MAIN = 3  # importance of the columns for which a README has room


class MarkerError(AsrgateError):
    """A file cannot be updated: its markers are missing, repeated or in the wrong order."""


def readme_table(run: Run, names_place: bool = True, signed: str | None = None) -> str:
    """Return the table of a run's ranked rows and, below it, one line about how they were measured.

    Rows that are not ranked are named below the table with their reasons; leaving them out silently would
    hide what was tried. Without `names_place` the line leaves out model and machine. `signed` says who
    signed the run.
    """
    built = rows(run)
    ranked = [row for row in built if row["group"] == RANKED]
    unranked = [row for row in built if row["group"] == UNRANKED]
    parts = [
        tables_by_model(run, ranked, MAIN) if ranked else "No row passed the gate.",
        *answer(run),
        _context_line(run, names_place, signed),
    ]
    parts += [f"Not ranked: {markdown(row['variant'])}: {markdown(row['reason'])}." for row in unranked]
    return "\n\n".join(parts)


def readme_tables(runs: Sequence[Run], signed: Mapping[str, str] | None = None) -> str:
    """Return the tables of several runs under one heading for each model and machine, and their fronts.

    Args:
        signed: id of a run -> who signed it.
    """
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((context.model(run), context.machine(run)), []).append(run)
    parts = []
    for (model, machine), members in groups.items():
        parts.append(f"**{markdown(model)}** on {markdown(machine)}")
        parts += [
            readme_table(run, names_place=False, signed=(signed or {}).get(run["run_id"])) for run in members
        ]
    for front in answers.of_runs(runs):
        parts += [f"**{front.title}.** {markdown(front.note)}", part_table(front)]
    return "\n\n".join(parts)


def update_between_markers(path: Path, text: str, name: str) -> None:
    """Replace the text between `<!-- asrgate:NAME -->` and `<!-- /asrgate:NAME -->` in a file.

    Raises:
        MarkerError: the file does not have each marker once, the opening one first.
        RecordError: the file cannot be written.
    """
    try:
        before = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise MarkerError(f"cannot read {path}: {why}") from error
    project = "asrbench" if f"<!-- asrbench:{name} -->" in before else "asrgate"  # its name in version 0.1
    opening, closing = f"<!-- {project}:{name} -->", f"<!-- /{project}:{name} -->"
    once = before.count(opening) == before.count(closing) == 1
    if not once or before.index(opening) > before.index(closing):
        raise MarkerError(
            f"{path} must have `{opening}` and after it `{closing}`, once each; "
            f"it has {_found(before)}. Add these two lines where the tables belong"
        )
    start, end = before.index(opening) + len(opening), before.index(closing)
    record.write_text(path, f"{before[:start]}\n{text.strip()}\n{before[end:]}")


def _context_line(run: Run, names_place: bool, signed: str | None) -> str:
    facts = [context.scenario(run)] if not registry.is_default(run) else []
    facts += [context.audio(run), context.decoding(run)]
    if names_place:
        facts = [context.model(run), *facts, context.machine(run)]
    facts.append(f"normaliser {run['scoring']['normalizer']['name']}")
    facts += [f"audit: {told}" for told in context.audit(run).values()]
    facts += [told for told in (context.digest(run), signed) if told]
    facts.append(f"run {run['run_id']}")
    return markdown("; ".join(facts)) + "."


def _found(text: str) -> str:
    return ", ".join(re.findall(r"<!-- /?asr(?:gate|bench):\S+ -->", text)) or "no such markers"
