"""A race on one clip, replayed from a record: every variant's measured call, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asrgate.backends.base import AsrgateError
from asrgate.harness.escape import MOST_OF_REASON, cut, visible
from asrgate.harness.metrics.word_errors import first_answers, is_timed
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import Run, Sample
from asrgate.harness.report import context
from asrgate.harness.report.columns import figure, percent
from asrgate.harness.report.rows import RANKED, UNAVAILABLE, rows
from asrgate.harness.scenarios import registry

FRAMES_A_SECOND = 20
BAR_CELLS = 16
HOW = (
    "Each was measured alone, one after the other; here all start together{pace}. Engines return "
    "their text when they are done; here it appears evenly over the time it took."
)
NOT_STORED = "(text not stored)"


class RaceError(AsrgateError):
    """The record has no such race; the message says what it has."""


@dataclass(frozen=True)
class Lane:
    """One variant's answer to the clip.

    Attributes:
        seconds: median wall time of its calls; None if it gave no answer (`text` then says why).
        text: the first round's answer, or why there is none to show.
        wer_percent: for this clip; None if unknown.
        is_ranked: for the whole run, like the verdict.
    """

    variant: str
    seconds: float | None
    text: str
    rtfx: float | None
    wer_percent: float | None
    is_ranked: bool
    verdict: str


@dataclass(frozen=True)
class Race:
    """A clip and its lanes: first those that answered, ranked ones before others, then the rest."""

    clip: str
    audio_seconds: float
    reference: str | None
    lanes: Sequence[Lane]
    absent: Sequence[str]  # variants that this machine could not run, and why
    facts: Sequence[str]  # model, decoding and machine; a speed means nothing without them
    warnings: Sequence[str]  # what may have disturbed the times

    @property
    def seconds(self) -> float:
        """The time that the slowest took."""
        return max((lane.seconds for lane in self.lanes if lane.seconds is not None), default=0.0)


def race(run: Run, clip: str | None = None) -> Race:
    """Return the race on a clip of a run; by default on its longest of at most 30 s.

    Raises:
        RaceError: the run has no such clip, or no clips.
    """
    if not registry.of(run).times_clips:
        raise RaceError(
            f"run {run['run_id']} used the scenario {registry.of(run).name}: its times are not those of "
            f"single clips, so there is no race to show; choose a run of {registry.DEFAULT.name}"
        )
    clips = {entry["name"]: entry for entry in run["clips"]}
    if not clips or (clip is not None and clip not in clips):
        raise RaceError(f"run {run['run_id']} has no clip {clip!r}; it has {', '.join(clips) or 'none'}")
    short = [entry for entry in run["clips"] if entry["audio_seconds"] <= 30] or run["clips"]
    chosen = clips[clip] if clip is not None else max(short, key=lambda entry: entry["audio_seconds"])
    results = {result["variant"]: result for result in run["results"]}
    lanes, absent = [], []
    for row in rows(run):
        if row["group"] == UNAVAILABLE:
            absent.append(f"{row['variant']}: {row['reason']}")
            continue
        result = results[row["variant"]]
        calls = [sample for sample in result["samples"] if sample["clip"] == chosen["name"]]
        walls = [s["wall_seconds"] for s in calls if is_timed(s) and s["wall_seconds"]]
        first = first_answers(result).get(chosen["name"])
        counted = next((e for e in errors_of(result) if e["clip"] == chosen["name"]), None)
        wer = None if counted is None else counted["wer"]
        is_ranked = row["group"] == RANKED
        has_answer = bool(walls) and first is not None
        error = (
            next((s["error"] for s in calls if s["error"]), None) or row["reason"] or "it was not measured"
        )
        error = cut(error, MOST_OF_REASON)
        seconds = statistics.median(walls) if has_answer else None
        lanes.append(
            Lane(
                variant=row["variant"],
                seconds=seconds,
                text=_said(first) if has_answer else f"no answer: {error}",
                rtfx=None if seconds is None else chosen["audio_seconds"] / seconds,
                wer_percent=None if wer is None else 100 * wer,
                is_ranked=is_ranked,
                verdict=f"rank {row['rank']}" if is_ranked else f"not ranked: {row['reason']}",
            )
        )
    return Race(
        clip=chosen["name"],
        audio_seconds=chosen["audio_seconds"],
        reference=chosen["reference"],
        lanes=sorted(lanes, key=lambda lane: lane.seconds is None),
        absent=absent,
        facts=(context.model(run), context.decoding(run), context.machine(run)),
        warnings=context.warnings(run),
    )


def _said(sample: Sample | None) -> str:
    text = None if sample is None else sample["text"]
    return NOT_STORED if text is None else cut(text)


def show(
    shown: Race,
    console: Console,
    speed: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the race: live on a terminal, at `speed` times the true speed; elsewhere one line per finish."""
    if not console.is_terminal:
        _print_lines(shown, console)
        return
    start = clock()
    with Live(frame(shown, 0.0, speed, console), console=console, auto_refresh=False) as live:
        elapsed = 0.0
        while elapsed < shown.seconds:
            sleep(1 / FRAMES_A_SECOND)
            elapsed = min((clock() - start) * speed, shown.seconds)
            live.update(frame(shown, elapsed, speed, console), refresh=True)


def frame(shown: Race, elapsed: float, speed: float, console: Console) -> Group:
    """Return the view at `elapsed` seconds of measured time after the start."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column("variant", no_wrap=True)
    table.add_column("")
    for heading in ("seconds", "RTFx", "WER %"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict of the gate", ratio=1)
    for lane in shown.lanes:
        seconds = lane.seconds
        is_over = seconds is None or elapsed >= seconds
        share = 1.0 if seconds is None or is_over else elapsed / seconds
        style = "" if lane.is_ranked or not is_over else "dim"
        bar = ProgressBar(1.0, share, width=BAR_CELLS, finished_style="green" if lane.is_ranked else "red")
        cells = [_text(lane.variant, console, f"bold {style}")]
        figures = _figures(lane) if is_over else (f"{elapsed:.2f}", "", "")
        verdict = lane.verdict if is_over else "running"
        colour = "green" if lane.is_ranked else "red"
        table.add_row(
            *cells,
            Text("") if seconds is None else bar,
            *(_text(cell, console, style) for cell in figures),
            _text(verdict, console, colour if is_over else "dim"),
        )
    texts = Table.grid(padding=(0, 2))
    for lane in shown.lanes:
        words = lane.text.split()
        share = 1.0 if lane.seconds is None else min(1.0, elapsed / lane.seconds)
        texts.add_row(
            _text(lane.variant, console, "dim"),
            _text(" ".join(words[: int(share * len(words) + 1e-9)]), console, "" if lane.seconds else "red"),
        )
    return Group(*_head(shown, speed, console), table, Text(""), texts, *_foot(shown, console))


def _head(shown: Race, speed: float, console: Console) -> list[Text]:
    pace = ", at true speed" if speed == 1 else f", {speed:g} times as fast as measured"
    return [
        _text(f"{shown.clip}, {shown.audio_seconds:.1f} s of audio; {'; '.join(shown.facts)}", console),
        _text(HOW.format(pace=pace), console, "dim"),
        Text(""),
    ]


def _foot(shown: Race, console: Console) -> list[Text]:
    lines = [_text(f"not on this machine: {text}", console, "dim") for text in shown.absent]
    lines += [_text(f"Warning: {text}", console, "yellow") for text in shown.warnings]
    if shown.reference is not None:
        said = f"what is said: {shown.reference or '(nothing)'}"
        lines = [Text(""), _text(said, console), *lines]
    return lines


def _print_lines(shown: Race, console: Console) -> None:
    console.print(_head(shown, 1.0, console)[0], soft_wrap=True)
    console.print("Each was measured alone, one after the other. Fastest first:", soft_wrap=True)
    for lane in sorted(shown.lanes, key=lambda lane: (lane.seconds is None, lane.seconds or 0.0)):
        seconds, rtfx, wer = _figures(lane)
        figures = "" if lane.seconds is None else f"{seconds} s, RTFx {rtfx}, WER {wer} %, "
        told = f"{lane.variant}: {figures}{lane.verdict}; {lane.text}"
        console.print(_text(told, console), soft_wrap=True)
    for foot in _foot(shown, console):
        if foot.plain:
            console.print(foot, soft_wrap=True)


def _figures(lane: Lane) -> tuple[str, str, str]:
    if lane.seconds is None:
        return "", "", ""
    return f"{lane.seconds:.2f}", figure(lane.rtfx), percent(lane.wer_percent) or "unknown"


def _text(text: str, console: Console, style: str = "") -> Text:
    encoding = console.encoding
    return Text(visible(text).encode(encoding, "backslashreplace").decode(encoding), style=style)
