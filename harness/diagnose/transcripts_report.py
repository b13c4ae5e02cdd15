"""Writes compared outputs to the terminal, as Markdown and as JSON.

Texts come from engines: every format escapes them in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.box import Box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from asrgate.harness.diagnose.transcripts import Chunk, Difference, Divergence, Output, Outputs, Token
from asrgate.harness.escape import markdown, visible

SCHEMA_VERSION = 1
# History: 1 = first version.

NARROW_MARGIN = 1e-3  # logits; below it, float32 rounding over a whole encoder can change a choice
CONTEXT_WORDS = 8  # kept on each side of a difference
RULES = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
COLUMNS = Box("    \n  │ \n ─┼ \n  │ \n    \n    \n  │ \n    \n")

STYLES = {"substitute": "yellow", "insert": "green", "delete": "red"}
MARKS = {"substitute": ("~", "~"), "insert": ("{+", "+}"), "delete": ("[-", "-]")}  # as in wdiff


def as_json(found: Outputs) -> str:
    """Everything, as one strict JSON document."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(found)}
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def print_outputs(found: Outputs, console: Console, everything: bool) -> None:
    """Print the rates, then every clip that differs, with the reference on the left.

    Args:
        everything: also show clips that do not differ, and long equal passages in full.
    """
    console.print(_text(_headline(found), console))
    console.print()
    if found.outputs:
        table = Table(box=RULES, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for number, heading in enumerate(_headings(found)):
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
        for output in found.outputs:
            table.add_row(*(_text(cell, console) for cell in _cells(found, output)))
        console.print(table)
    for note in _notes(found):
        console.print(_text(note, console, "yellow"))
    has_colour = console.color_system is not None and not console.no_color
    shown = False
    for output in found.outputs:
        for answer in output.answers if everything else output.differences:
            shown = True
            _print_clip(found, output, answer, console, everything, has_colour)
    if shown and any(answer.words for output in found.outputs for answer in output.answers):
        console.print()
        console.print(_legend(has_colour))


def as_markdown(found: Outputs, everything: bool) -> str:
    """The same as a document: rates, then a section per clip with each variant next to the reference."""
    headings = _headings(found)
    lines = ["## asrgate: outputs compared", "", markdown(_headline(found)), ""]
    if found.outputs:
        lines += [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
        for output in found.outputs:
            lines.append(f"| {' | '.join(markdown(cell) for cell in _cells(found, output))} |")
    notes = [f"- {markdown(note)}" for note in _notes(found)]
    lines += ["", *notes] if notes else []
    for output in found.outputs:
        for answer in output.answers if everything else output.differences:
            lines += ["", f"### {markdown(answer.clip)}: {markdown(output.variant)}", ""]
            if answer.words is not None:
                left, right = (
                    "".join(_marked_up(answer.words, side, everything)) or "*(nothing)*" for side in (0, 1)
                )
                lines += [
                    f"| {markdown(found.reference)} | {markdown(output.variant)} |",
                    "|---|---|",
                    f"| {left} | {right} |",
                    "",
                ]
            lines += [f"- {markdown(line)}" for line in _facts(answer)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _headline(found: Outputs) -> str:
    count = f"{found.clips} clip{'' if found.clips == 1 else 's'}"
    return f"Run {found.run_id}, model {found.model}: each variant compared with {found.reference} on {count}"


def _headings(found: Outputs) -> list[str]:
    headings = ["variant", "same text", "same tokens"]
    if any(output.unanswered for output in found.outputs):
        headings.append("unanswered")
    if any(output.unstable for output in found.outputs):
        headings.append("unstable")
    return [*headings, f"margin < {NARROW_MARGIN:g}"] if found.has_margins else headings


def _cells(found: Outputs, output: Output) -> list[str]:
    headings = _headings(found)
    cells = [
        output.variant,
        _rate(output.same_text, output.clips),
        _rate(output.same_tokens, output.token_clips) if output.token_clips else "not known",
    ]
    if "unanswered" in headings:
        cells.append(str(len(output.unanswered)))
    if "unstable" in headings:
        cells.append(str(len(output.unstable)))
    if found.has_margins:
        parted = [answer.divergence for answer in output.differences if answer.divergence]
        narrow = sum(map(is_narrow, parted))
        cells.append(f"{narrow} of {len(parted)}" if parted else "-")
    return cells


def is_narrow(divergence: Divergence) -> bool:
    """Whether rounding explains the divergence: its margin is known and below NARROW_MARGIN."""
    decision = divergence.decision
    return decision is not None and decision.margin is not None and abs(decision.margin) < NARROW_MARGIN


def _rate(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "-"


def _notes(found: Outputs) -> Iterator[str]:
    yield from (f"Note: {remark}." for remark in found.remarks)
    for output in found.outputs:
        if output.unanswered:
            yield f"Note: {output.variant} did not answer {', '.join(output.unanswered)}."
        if output.unstable:
            clips = ", ".join(output.unstable)
            yield f"Note: in later rounds {output.variant} gave different answers for {clips}."


def _print_clip(
    found: Outputs, output: Output, answer: Difference, console: Console, everything: bool, has_colour: bool
) -> None:
    console.print()
    console.print(_text(f"{answer.clip} ({answer.audio_seconds:.1f} s)", console, "bold"))
    if answer.words is not None:
        table = Table(box=COLUMNS, show_edge=False, pad_edge=False, padding=(0, 1), expand=True)
        for variant in (found.reference, output.variant):
            table.add_column(_text(variant, console), header_style="dim", ratio=1, overflow="fold")
        table.add_row(*(_coloured(answer.words, side, everything, has_colour, console) for side in (0, 1)))
        console.print(table)
    else:
        console.print(Padding(_text(output.variant, console, "dim"), (0, 0, 0, 2), expand=False))
    for line in _facts(answer):
        console.print(Padding(_text(line, console), (0, 0, 0, 2), expand=False))


def _facts(answer: Difference) -> Iterator[str]:
    if answer.is_same:
        yield "the same text" + (" and tokens" if answer.same_tokens else "")
    elif answer.words is None:
        yield "a different text" if not answer.same_text else "the same text from different tokens"
    elif answer.same_text:
        yield "the same text from different tokens"
    elif all(chunk.kind == "equal" for chunk in answer.words):
        yield "the same words with different spaces"
    if answer.divergence is not None:
        yield _first_token(answer.divergence)
        yield from _margin(answer.divergence)


def _first_token(divergence: Divergence) -> str:
    there, here = map(_named, (divergence.reference, divergence.output))
    return f"first differing token, at index {divergence.index}: {there} in the reference, {here} here"


def _named(token: Token | None) -> str:
    if token is None:
        return "the end"
    return f"token {token.id}" if token.text is None else f"“{visible(token.text)}” ({token.id})"


def _margin(divergence: Divergence) -> Iterator[str]:
    decision = divergence.decision
    if divergence.undecided is not None:
        yield f"margin unknown: {divergence.undecided}"
    if decision is None:
        return
    where = f"window at {decision.window_start_seconds:.2f} s, step {decision.step}"
    if decision.margin is None:
        yield f"no margin: Whisper's rules forbid that token there ({where})"
        return
    width = "narrow enough for rounding" if is_narrow(divergence) else "too wide for float32's rounding"
    rule = "; text or timestamp, by the rule that sums the timestamps" if decision.timestamp_rule else ""
    yield f"the reference's margin there: {decision.margin:.2g} logits, {width} ({where}{rule})"


def _legend(has_colour: bool) -> Text:
    parts = []
    for kind, said in (("substitute", "other words"), ("delete", "left out"), ("insert", "put in")):
        before, after = ("", "") if has_colour else MARKS[kind]
        parts += [Text(f"{before}{said}{after}", style=STYLES[kind]), Text(", ", style="dim")]
    return Text("").join([Text("Words: ", style="dim"), *parts[:-1]])


def _coloured(
    words: Sequence[Chunk], side: int, everything: bool, has_colour: bool, console: Console
) -> Text:
    line = Text()
    for kind, text in _passages(words, side, everything):
        before, after = MARKS[kind] if kind in MARKS and not has_colour else ("", "")
        style = "dim" if kind == "elided" else STYLES.get(kind, "")
        line.append_text(_text(f"{before}{text}{after}", console, style))
        line.append(" ")
    line.rstrip()
    return line if line else Text("(nothing)", style="dim")


def _marked_up(words: Sequence[Chunk], side: int, everything: bool) -> Iterator[str]:
    tags = {"delete": "del", "insert": "ins"}
    for number, (kind, text) in enumerate(_passages(words, side, everything)):
        shown = markdown(text)
        tag = tags.get(kind)
        shown = f"<{tag}>{shown}</{tag}>" if tag else f"**{shown}**" if kind == "substitute" else shown
        yield f" {shown}" if number else shown


def _passages(words: Sequence[Chunk], side: int, everything: bool) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of one side (0 is the reference), with long equal passages shortened to "elided"."""
    last = len(words) - 1
    for number, chunk in enumerate(words):
        own = chunk.output if side else chunk.reference
        if not own:
            continue
        head = CONTEXT_WORDS if number > 0 else 0  # after a difference
        tail = CONTEXT_WORDS if number < last else 0  # before the next one
        hidden = len(own) - head - tail
        if chunk.kind != "equal" or everything or hidden <= 4 or len(words) == 1:
            yield chunk.kind, " ".join(own)
            continue
        if head:
            yield chunk.kind, " ".join(own[:head])
        yield "elided", f"… {hidden} words …"
        if tail:
            yield chunk.kind, " ".join(own[-tail:])


def _text(text: str, console: Console, style: str = "") -> Text:
    """Return text that is never parsed as markup and that the console's encoding can represent."""
    encoding = console.encoding
    return Text(visible(text).encode(encoding, "backslashreplace").decode(encoding), style=style)
