"""A run as a table in the terminal, fitted to its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import Box
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from asrgate.backends.base import how_to_fix
from asrgate.harness.column import fitting
from asrgate.harness.escape import visible
from asrgate.harness.record_types import Run
from asrgate.harness.report import answers, columns, context, parts
from asrgate.harness.report.columns import Column
from asrgate.harness.report.parts import Part
from asrgate.harness.report.rows import RANKED, UNAVAILABLE, UNRANKED, Row, by_model, rows
from asrgate.harness.scenarios import registry

RULES = Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")  # below the heading and below the ranked rows
SPARE = (  # least first
    *("median s", "audio s", "version", "RTFx 95 % CI", "CER %", "WER 95 % CI", "clips"),
    *("points 95 % CI", "times 95 % CI"),
)
BESIDE = (
    *("model", "scenario", "audio", "decoding", "rounds", "machine", "scoring", "gate", "audit"),
    *("word times", "record"),
)


def print_table(run: Run, console: Console, with_confusions: bool = False, signed: str | None = None) -> None:
    """Print what was measured and how, the table, and the reasons why rows are not ranked.

    Columns that do not fit are left out, the least important first, but never the WER or whether a row is
    ranked. With `with_confusions`, the word pairs that cost each variant most come last. `signed` says who
    signed the run.
    """
    built = rows(run)
    measured = [row for row in built if row["group"] != UNAVAILABLE]
    facts = context.describe(run)
    if signed:
        facts["record"] += f"; {signed}"
    grid = Table.grid(padding=(0, 2))
    for label in BESIDE:
        if label not in facts or (label == "scenario" and registry.is_default(run)):
            continue
        grid.add_row(Text(label, style="dim"), _text(facts[label], console))
    console.print(grid)
    if measured:
        groups = by_model(run, measured)
        shown = _fitting(measured, groups, console)
        console.print()
        console.print(_table(shown, groups, console))
        console.print()
        _print_legend(shown, run, console)
    _print_reasons([row for row in built if row["group"] == UNRANKED], console)
    _print_unavailable([row for row in built if row["group"] == UNAVAILABLE], run, console)
    if measured:
        confusions = parts.confusions(run) if with_confusions else []
        for part in [*answers.parts(run), *parts.parts(run, only_asked=True), *confusions]:
            _print_part(part, console)
    for warning in context.warnings(run):
        console.print(_text(f"Warning: {warning}", console, "yellow"))
    _print_answer(run, console)


def _print_answer(run: Run, console: Console) -> None:
    found = answers.lines(run)
    if found:
        console.print()
        grid = Table.grid(padding=(0, 2))
        for question, answer in found:
            grid.add_row(Text(question, style="bold"), _text(answer, console))
        console.print(grid)


def _fitting(measured: Sequence[Row], groups: Mapping[str, Sequence[Row]], console: Console) -> list[Column]:
    """Return the columns that fit the console's width, in order."""
    variant = columns.VARIANT if "" in groups else columns.OF_MODEL
    all_of_them = [columns.RANK, variant, columns.WER, *columns.shown(columns.FIGURES, measured)]
    return fitting(all_of_them, console, lambda shown: _table(shown, groups, console))


def _table(shown: Sequence[Column], groups: Mapping[str, Sequence[Row]], console: Console) -> Table:
    """Return the table of all rows, those of several models below their model's name."""
    table = Table(box=RULES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown:
        table.add_column(
            column.heading,
            justify="right" if column.is_number else "left",
            overflow="fold",
            no_wrap=column not in (columns.VARIANT, columns.OF_MODEL),
        )
    for model, members in groups.items():
        if model:
            table.add_row("", _text(model, console, "bold"))
        for row, following in zip(members, [*members[1:], None], strict=True):
            is_last = following is None if model else following is not None and following["group"] != RANKED
            cells = [
                _text("-" if c is columns.RANK and row["rank"] is None else c.cell(row), console)
                for c in shown
            ]
            ends = is_last and (bool(model) or row["group"] == RANKED)
            table.add_row(*cells, style=None if row["group"] == RANKED else "dim", end_section=ends)
    return table


def _print_legend(shown: Sequence[Column], run: Run, console: Console) -> None:
    told = [columns.rank(registry.of(run).order.by), *shown[1:]]
    legend = "; ".join(
        f"{c.heading}: {c.meaning}" for c in told if c not in (columns.VARIANT, columns.OF_MODEL)
    )
    console.print(_text(f"{legend}.", console, "dim"))
    if not any(result["gate"]["ranked"] for result in run["results"]):
        console.print(
            Text("No row passed the gate, so no engine here can be called faster at equal quality.")
        )


def _print_reasons(unranked: Sequence[Row], console: Console) -> None:
    if unranked:
        _print_list("Not ranked:", [f"{r['variant']}: {r['reason']}{_remedy(r)}" for r in unranked], console)


def _print_unavailable(unavailable: Sequence[Row], run: Run, console: Console) -> None:
    """Say what the machine lacks, once per cause; of variants that nobody named only how many they are."""
    refused = [row for row in unavailable if row["model"] is not None and "models" in run]
    if refused:
        _print_list("Not measured:", _by_cause(refused), console)
    unavailable = [row for row in unavailable if row not in refused]
    if not unavailable:
        return
    count = f"{len(unavailable)} variant{'s' if len(unavailable) > 1 else ''}"
    if not any(word.startswith("--backends") for word in run["command"]):
        console.print(
            _text(f"Not measured: {count} that this machine cannot run; see `asrgate list`.", console)
        )
        return
    _print_list("Not available on this machine:", _by_cause(unavailable), console)


def _by_cause(unavailable: Sequence[Row]) -> list[str]:
    causes: dict[str, list[str]] = {}
    for row in unavailable:
        causes.setdefault(f"{row['reason']}{_remedy(row)}", []).append(row["variant"])
    return [f"{', '.join(variants)}: {cause}" for cause, variants in causes.items()]


def _remedy(row: Row) -> str:
    return how_to_fix(row["remedy"])


def _print_list(title: str, lines: Sequence[str], console: Console) -> None:
    console.print(Text(title, style="bold"))
    for line in lines:
        console.print(Padding(_text(line, console), (0, 0, 0, 2), expand=False))


def _print_part(part: Part, console: Console) -> None:
    console.print(Text(f"\n{visible(part.title)}:", style="bold"))
    kept = list(range(len(part.headings)))
    unlimited = console.options.update(max_width=10_000)
    while True:
        table = Table(box=RULES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for n in kept:
            table.add_column(
                part.headings[n], justify="right" if n in part.numbers else "left", overflow="fold"
            )
        for row in part.rows:
            table.add_row(*(_text(row[n], console) for n in kept))
        spare = [n for n in kept if part.headings[n] in SPARE]
        if Measurement.get(console, unlimited, table).maximum <= console.width or not spare:
            break
        kept.remove(min(spare, key=lambda n: SPARE.index(part.headings[n])))
    console.print(table)
    console.print(_text(part.note, console, "dim"))


def _text(text: str, console: Console, style: str = "") -> Text:
    """Return text that is never parsed as markup and that the console's encoding can represent."""
    encoding = console.encoding
    return Text(visible(text).encode(encoding, "backslashreplace").decode(encoding), style=style)
