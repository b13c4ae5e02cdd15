"""Tables for parts of a run, built once for every format: slices, machines, normalisers, hallucinations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asrgate.harness.corpus.fields import LENGTH
from asrgate.harness.metrics import hallucination, readings
from asrgate.harness.record_types import AlsoScored, NormalizerRecord, Run
from asrgate.harness.report.columns import figure, interval, percent
from asrgate.harness.scoring import machines, slices


@dataclass(frozen=True)
class Part:
    """One table as text: `rows` has a text for each heading; `numbers` are the columns that hold figures."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int]


def parts(run: Run, only_asked: bool = False) -> list[Part]:
    """Return the tables for which the run has data, in the order in which reports show them.

    With `only_asked`, the slices that reports show for every run are left out, because a terminal is small.
    """
    fields = slices.chosen(run)
    if only_asked and not run["settings"].get("slices"):
        fields = [field for field in fields if field not in (LENGTH, "lang", hallucination.FIELD)]
    sessions, pairs = ([], []) if only_asked else (_sessions(run), confusions(run))
    beside = [*_machines(run), *_normalizers(run), *_hallucinations(run)]
    return [*sessions, *_slices(run, fields), *beside, *pairs]


def of_times(run: Run) -> list[Part]:
    """Return the tables of times, for a format that shows slices in another way."""
    return [*_sessions(run), *_machines(run)]


def of_quality(run: Run) -> list[Part]:
    """Return the tables of texts, for a format that shows slices in another way."""
    return [*_normalizers(run), *_hallucinations(run), *confusions(run)]


_SLICE_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("clips", lambda row: str(row["clips"])),
    ("audio s", lambda row: figure(row["audio_seconds"])),
    ("WER %", lambda row: percent(row["wer_percent"]) or "unknown"),
    ("WER 95 % CI", lambda row: interval(row["wer_low_percent"], row["wer_high_percent"], percent)),
    ("CER %", lambda row: percent(row["cer_percent"])),
    ("RTFx", lambda row: figure(row["rtfx"])),
    ("RTFx 95 % CI", lambda row: interval(row["rtfx_low"], row["rtfx_high"])),
    ("median s", lambda row: figure(row["latency_median_seconds"])),
)
_SLICE_NOTES = {
    LENGTH: "Whisper pads every window to 30 s, so short clips cost more per second of audio. ",
    "lang": "In Chinese, Japanese and others written without spaces, characters count as words. ",
    "snr_db": "Noise was mixed in at these signal-to-noise ratios in dB. ",
}


def slice_note(run: Run, field: str) -> str:
    """Say what a reader of the slices by a field must know."""
    return (
        f"{_SLICE_NOTES.get(field, '')}{_normalizer(run['scoring']['normalizer'])}. Intervals by resampling "
        "the slice's clips; none where fewer than two count."
    )


def _slices(run: Run, fields: Sequence[str]) -> list[Part]:
    found = []
    for field in fields:
        rows = slices.rows(run, [field])
        body = [[row["value"], _named(row), *(cell(row) for _, cell in _SLICE_COLUMNS)] for row in rows]
        headings = [field, "variant", *(name for name, _ in _SLICE_COLUMNS)]
        note = slice_note(run, field)
        found.append(Part(f"By {field}", note, *_shown(headings, body, first_figure=2)))
    return found


def _named(row: dict[str, Any]) -> str:
    return row["variant"] if row["is_ranked"] else f"{row['variant']} (not ranked)"


def _machines(run: Run) -> list[Part]:
    rows = machines.rows(run)
    if not rows:
        return []
    body = [
        [
            row["host_class"],
            _named(row),
            str(row["machines"]),
            str(row["calls"]),
            figure(row["audio_seconds"]),
            figure(row["rtfx"]),
            figure(row["latency_median_seconds"]),
            "" if row["is_timed"] else "no",
        ]
        for row in rows
    ]
    headings = ["machine", "variant", "machines", "calls", "audio s", "RTFx", "median s", "counts"]
    lost = machines.lost_calls(run)
    note = (
        "Times of different machines are never mixed: all other speed figures are from the kind that comes "
        "first. "
        f"Calls lost with a machine and repeated elsewhere: {lost}."
    )
    return [Part("By machine", note, *_shown(headings, body, first_figure=2))]


def _normalizers(run: Run) -> list[Part]:
    also = run["scoring"].get("also", [])
    if not also:
        return []
    main: AlsoScored = {
        "normalizer": run["scoring"]["normalizer"],
        "results": [
            {"variant": result["variant"], "wer": wer["wer"], "interval": wer["interval"], "cer": wer["cer"]}
            for result in run["results"]
            if (wer := result["wer"]) is not None
        ],
    }
    body = []
    for entry in (main, *also):
        for result in entry["results"]:
            low, high = result["interval"] or (None, None)
            body.append(
                [
                    entry["normalizer"]["name"],
                    entry["normalizer"]["version"],
                    result["variant"],
                    percent(_times_100(result["wer"])) or "unknown",
                    interval(_times_100(low), _times_100(high), percent),
                    percent(_times_100(result["cer"])),
                ]
            )
    headings = ["normaliser", "version", "variant", "WER %", "WER 95 % CI", "CER %"]
    note = f"The same texts under each; the gate uses {main['normalizer']['name']}."
    return [Part("By normaliser", note, *_shown(headings, body, first_figure=3))]


def _sessions(run: Run) -> list[Part]:
    """The sessions of a server scenario, in the order in which they were run."""
    body = [
        [
            result["variant"],
            f"{session['purpose']}, kept" if session["is_kept"] else session["purpose"],
            "all at once" if session["rate_per_second"] is None else figure(session["rate_per_second"]),
            f"{session['answered']}/{session['requests']}",
            figure(session["finish_seconds"]),
            figure(session["median_seconds"]),
            figure(session["p99_seconds"]),
            str(session["largest_queue"]),
            "" if session["is_within"] is None else "yes" if session["is_within"] else "no",
        ]
        for result in run["results"]
        for session in result.get("sessions", [])
    ]
    if not body:
        return []
    headings = [
        "variant",
        "session",
        "requests/s",
        "answered",
        "seconds",
        "median s",
        "p99 s",
        "queue",
        "kept limit",
    ]
    note = "Each was really run. The ranking uses those that are kept; the others led to them."
    return [Part("Sessions", note, *_shown(headings, body, first_figure=2))]


def confusions(run: Run) -> list[Part]:
    """The word pairs that cost each variant most, in one row; nothing for a run without texts."""
    body = [
        [result["variant"], ", ".join(f"{p['count']} × {readings.shown(p)}" for p in pairs)]
        for result in run["results"]
        if result["wer"] is not None and (pairs := result["wer"].get("confusions"))
    ]
    if not body:
        return []
    note = (
        "Said/heard, normalised, the ten most frequent; ∅ stands for no word. "
        f"{_normalizer(run['scoring']['normalizer'])}."
    )
    return [Part("Confusions", note, ["variant", "errors"], body, frozenset())]


def _hallucinations(run: Run) -> list[Part]:
    rows = hallucination.rows(run)
    if not rows:
        return []
    body = [
        [
            row["kind"],
            row["variant"],
            str(row["clips"]),
            figure(row["audio_seconds"]),
            figure(row["insertions_per_minute"]),
            "" if row["repeated_5grams"] is None else str(row["repeated_5grams"]),
            "" if row["silent_clips"] == 0 else f"{row['text_on_silence']}/{row['silent_clips']}",
        ]
        for row in rows
    ]
    headings = [
        "kind",
        "variant",
        "clips",
        "audio s",
        "ins/min",
        "5-gram repeats",
        "text on silence",
    ]
    note = (
        "ins/min: inserted words, which nobody said, per minute of audio; 5-gram repeats: five words in a "
        "row that repeat more often than in the reference; text on silence: clips without speech that got "
        f"words, of all such clips. {_normalizer(run['scoring']['normalizer'])}."
    )
    return [Part("Hallucination", note, *_shown(headings, body, first_figure=2))]


def _shown(
    headings: Sequence[str], body: Sequence[Sequence[str]], first_figure: int
) -> tuple[list[str], list[list[str]], frozenset[int]]:
    """Leave out columns that are empty for every row."""
    kept = [n for n in range(len(headings)) if any(row[n] for row in body)]
    numbers = frozenset(place for place, n in enumerate(kept) if n >= first_figure)
    return [headings[n] for n in kept], [[row[n] for n in kept] for row in body], numbers


def _normalizer(identity: NormalizerRecord) -> str:
    return f"Normaliser {identity['name']} {identity['version']}"


def _times_100(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
