"""The columns of tables: heading, meaning, and how a row's figure is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from asrgate.harness.column import Column, Row, count, figure, interval, mebibytes, percent
from asrgate.harness.report.rows import without_model
from asrgate.harness.scenarios import registry


def _kilojoules(value: float | None) -> str:
    return figure(None if value is None else value / 1000)


RANK = Column("#", "rank among rows of equal quality", lambda r: count(r["rank"]))
VARIANT = Column("variant", "backend@device/precision", lambda r: r["variant"], is_number=False)
OF_MODEL = replace(VARIANT, cell=without_model)  # below the name of the model
WER = Column(
    "WER %",
    "word errors per 100 reference words, over the whole set",
    lambda r: percent(r["wer_percent"]) or "unknown",
)


def _of_scenarios(kind: str) -> list[Column]:
    """Return the columns that each scenario declares as `kind`; empty in the rows of the others.

    The same figure of a result means something different in each, so each has its own column of it.
    """
    return [
        replace(column, cell=_only_in(scenario.name, column))
        for scenario in registry.BUILTIN.values()
        for column in getattr(scenario, kind)
    ]


def _only_in(scenario: str, column: Column) -> Callable[[Row], str]:
    return lambda row: column.cell(row) if row["scenario"] == scenario else ""


CER = Column(
    "CER %",
    "character errors per 100 reference characters",
    lambda r: percent(r["cer_percent"]),
)

FIGURES = (  # figures of speed and cost, in the order shown, after that of texts without spaces
    replace(CER, cell=lambda r: CER.cell(r) if r["cer_is_headline"] else "", importance=11),
    *_of_scenarios("leading_columns"),
    Column(
        "95 % CI",
        "bootstrap interval of the WER, over clips",
        lambda r: interval(r["wer_low_percent"], r["wer_high_percent"], percent),
        importance=9,
    ),
    Column(
        "lang ID %",
        "language identification: of the clips whose language the manifest names, those detected rightly",
        lambda r: percent(r["language_id_percent"]),
        importance=9,
    ),
    Column(
        "keywords %",
        "keyword recall: of the keywords said, those written",
        lambda r: percent(r["keyword_recall_percent"]),
        importance=8,
    ),
    Column(
        "word start s",
        "mean and 95th percentile of how far the starts of words are from the manifest's, over words that "
        "answer and reference share; asked for after the rounds, so no speed contains it",
        lambda r: _offset(r, "start"),
        importance=8,
    ),
    Column("word end s", "the same of the ends of words", lambda r: _offset(r, "end"), importance=7),
    Column(
        "RTFx",
        "audio seconds per processing second: higher is faster",
        lambda r: figure(r["rtfx"]),
        importance=10,
    ),
    Column(
        "RTFx 95 % CI",
        "bootstrap interval of the RTFx, over clips; offline, over rounds",
        lambda r: interval(r["rtfx_low"], r["rtfx_high"]),
        importance=4,
    ),
    Column("speed-up", "RTFx over the reference backend's", lambda r: figure(r["speedup"]), importance=8),
    Column(
        "speed-up 95 % CI",
        "interval of the speed-up, over rounds; with fewer than three, over clips",
        lambda r: interval(r["speedup_low"], r["speedup_high"]),
        importance=4,
    ),
    *_of_scenarios("columns"),
    Column("tok/s", "tokens per processing second", lambda r: figure(r["tokens_per_second"]), importance=2),
    Column("load s", "seconds from checkpoint to ready", lambda r: figure(r["load_seconds"]), importance=3),
    Column("RSS MiB", "peak memory of the process", lambda r: mebibytes(r["peak_rss_bytes"]), importance=5),
    Column(
        "VRAM MiB",
        "peak device memory of the process, or of torch's allocator if only that is known",
        lambda r: mebibytes(_vram(r)),
        importance=5,
    ),
    Column(
        "kJ/h",
        "energy per hour of audio, of the whole device or package",
        lambda r: _kilojoules(r["energy_joules_per_audio_hour"]),
        importance=1,
    ),
)

QUALITY = (
    replace(CER, cell=lambda r: "" if r["cer_is_headline"] else CER.cell(r)),
    Column(
        "second WER %",
        "WER under the second normaliser, which the line on scoring names",
        lambda r: percent(r["second_wer_percent"]),
    ),
    Column(
        "formatted WER %",
        "WER in which case and punctuation count",
        lambda r: percent(r["formatted_wer_percent"]),
    ),
    Column("S", "substituted words", lambda r: count(r["substitutions"])),
    Column("D", "deleted words", lambda r: count(r["deletions"])),
    Column("I", "inserted words", lambda r: count(r["insertions"])),
    Column(
        "exact",
        "clips without any error, out of those with a reference text",
        lambda r: _of(r, "exact_clips", "scored_clips"),
    ),
    Column(
        "same text",
        "clips whose text is identical to the reference backend's",
        lambda r: _of(r, "same_text_clips", "compared_clips"),
    ),
    Column("WER points", "WER minus the reference backend's", lambda r: percent(r["wer_difference_points"])),
    Column(
        "95 % CI",
        "paired bootstrap interval of that difference",
        lambda r: interval(r["wer_difference_low_points"], r["wer_difference_high_points"], percent),
    ),
    Column(
        "P(worse)",
        "share of resamples with more errors than the reference backend",
        lambda r: figure(r["probability_worse"]),
    ),
    Column(
        "P(different)",
        "one minus the two-sided p-value of the difference",
        lambda r: figure(r["probability_different"]),
    ),
    Column("length", "words over the reference backend's", lambda r: figure(r["length_ratio"])),
    Column(
        "words timed",
        "words whose times are compared, of those that the manifest has times of",
        lambda r: _of(r, "timed_words", "timed_reference_words"),
    ),
    Column("unstable", "clips whose text differs between rounds", lambda r: count(r["unstable_clips"])),
)

TIMES = (
    Column("calls", "answered calls", lambda r: count(r["samples"])),
    *_of_scenarios("detail_columns"),
    Column(
        "log-mel s", "median seconds computing the features", lambda r: figure(r["log_mel_median_seconds"])
    ),
    Column("encode s", "median seconds in the encoder", lambda r: figure(r["encode_median_seconds"])),
    Column("decode s", "median seconds in the decoder", lambda r: figure(r["decode_median_seconds"])),
    Column("import s", "seconds importing the engine", lambda r: figure(r["import_seconds"])),
    Column(
        "first call s",
        "seconds of the first call on the warm-up clip",
        lambda r: figure(r["first_call_seconds"]),
    ),
    Column(
        "warm call s", "seconds of the last call on the same clip", lambda r: figure(r["warm_call_seconds"])
    ),
    Column(
        "word times ×",
        "time of the calls that gave word times over that of usual calls",
        lambda r: figure(r["word_times_over_call"]),
    ),
    Column("CPU s", "processor seconds of all measured calls", lambda r: figure(r["cpu_seconds"])),
)


def _offset(row: Row, side: str) -> str:
    if row["gives_word_times"] is False:
        return "none"
    mean, high = (row[f"word_{side}_{name}"] for name in ("mean_seconds", "p95_seconds"))
    return "" if mean is None else f"{mean:.2f}, {high:.2f}"


def rank(by: str) -> Column:
    """Return the rank column, whose meaning says what it ranks by."""
    return replace(RANK, meaning=f"rank by {by} among rows of equal quality")


def shown(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Return the columns that are not empty for at least one row."""
    return [column for column in columns if any(column.cell(row) for row in rows)]


def _vram(row: Row) -> int | None:
    measured = row["peak_vram_process_bytes"]
    return row["peak_vram_allocator_bytes"] if measured is None else measured


def _of(row: Row, count: str, total: str) -> str:
    return "" if row[count] is None else f"{row[count]}/{row[total]}"
