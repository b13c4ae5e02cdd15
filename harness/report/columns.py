"""The columns of tables: heading, meaning, and how a row's figure is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from asrgate.harness.report.rows import Row
from asrgate.harness.scenarios import registry


@dataclass(frozen=True)
class Column:
    """One column; `cell` returns "" if the row has no such figure."""

    heading: str
    meaning: str
    cell: Callable[[Row], str]
    is_number: bool = True
    importance: int = 0  # on a narrow terminal the least important are dropped first; 0 is never dropped


def figure(value: float | None) -> str:
    """Write a figure with three significant digits, or more if they come before the decimal point."""
    if value is None:
        return ""
    if value != 0 and abs(value) < 0.1:
        return f"{value:#.2g}"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{decimals}f}"


def interval(low: float | None, high: float | None, write: Callable[[float], str] = figure) -> str:
    """Write an interval as `low to high`."""
    return "" if low is None or high is None else f"{write(low)} to {write(high)}"


def percent(value: float | None) -> str:
    """Write percent with two decimals."""
    return "" if value is None else f"{value:.2f}"


def mebibytes(value: int | None) -> str:
    """Write bytes as whole MiB."""
    return "" if value is None else f"{value / 2**20:.0f}"


def _latency_of(name: str, of_scenario: str) -> Callable[[Row], str]:
    """Latency means something different in each scenario, so each has its own columns."""
    return lambda row: figure(row[name]) if row["scenario"] == of_scenario else ""


def _kilojoules(value: float | None) -> str:
    return figure(None if value is None else value / 1000)


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


RANK = Column("#", "rank among rows of equal quality", lambda r: _count(r["rank"]))
VARIANT = Column("variant", "backend@device/precision", lambda r: r["variant"], is_number=False)
WER = Column(
    "WER %",
    "word errors per 100 reference words, over the whole set",
    lambda r: percent(r["wer_percent"]) or "unknown",
)

_SERVER = (
    Column(
        "max req/s",
        "the highest rate found at which 99 of 100 requests are answered within the limit",
        lambda r: figure(r["max_rate_per_second"]),
        importance=10,
    ),
    Column(
        "median s",
        "median seconds from a request's arrival to its answer, including waiting",
        _latency_of("latency_median_seconds", registry.SERVER),
        importance=7,
    ),
    Column(
        "p90 s",
        "90th percentile of the seconds from arrival to answer",
        _latency_of("latency_p90_seconds", registry.SERVER),
        importance=6,
    ),
    Column(
        "p99 s",
        "99th percentile of the seconds from arrival to answer, including waiting",
        _latency_of("latency_p99_seconds", registry.SERVER),
        importance=10,
    ),
    Column("req/s", "requests answered per second", lambda r: figure(r["achieved_per_second"]), importance=8),
    Column(
        "busy %",
        "share of the time during which a request was being answered",
        lambda r: "" if r["utilisation"] is None else f"{100 * r['utilisation']:.0f}",
        importance=7,
    ),
    Column(
        "queue",
        "the most requests that were waiting when another arrived",
        lambda r: _count(r["largest_queue"]),
        importance=6,
    ),
)

_STREAMING = (
    Column(
        "streams",
        "native: the engine takes audio while it is spoken; emulated: whenever it is free, it transcribes "
        "all audio so far again",
        lambda r: "" if r["is_emulated"] is None else "emulated" if r["is_emulated"] else "native",
        is_number=False,
        importance=10,
    ),
    Column(
        "final s",
        "median seconds from the end of the audio to the final text",
        _latency_of("latency_median_seconds", registry.STREAMING),
        importance=10,
    ),
    Column(
        "final p90 s",
        "90th percentile of that",
        _latency_of("latency_p90_seconds", registry.STREAMING),
        importance=5,
    ),
    Column(
        "first text s",
        "median seconds from the first sample of the audio to the first word shown",
        lambda r: figure(r["first_text_median_seconds"]),
        importance=9,
    ),
    Column(
        "UPWR",
        "unstable partial word ratio: words shown and taken back, per word of the final texts",
        lambda r: figure(r["unstable_partial_word_ratio"]),
        importance=9,
    ),
    Column(
        "partials",
        "texts shown before the final ones",
        lambda r: _count(r["partials"]),
        importance=3,
    ),
    Column(
        "at work %",
        "share of the time during which the engine was not waiting for audio",
        lambda r: "" if r["busy_fraction"] is None else f"{100 * r['busy_fraction']:.0f}",
        importance=6,
    ),
)

CER = Column(
    "CER %",
    "character errors per 100 reference characters",
    lambda r: percent(r["cer_percent"]),
)

FIGURES = (  # figures of speed and cost, in the order shown, after that of texts without spaces
    replace(CER, cell=lambda r: CER.cell(r) if r["cer_is_headline"] else "", importance=11),
    Column(
        "batch",
        "most clips handed over in one call; (single): the engine takes only one at a time",
        lambda r: _count(r["batch_size"]) + (" (single)" if r["takes_batches"] is False else ""),
        importance=10,
    ),
    Column(
        "95 % CI",
        "bootstrap interval of the WER, over clips",
        lambda r: interval(r["wer_low_percent"], r["wer_high_percent"], percent),
        importance=9,
    ),
    Column(
        "keywords %",
        "keyword recall: of the keywords said, those written",
        lambda r: percent(r["keyword_recall_percent"]),
        importance=8,
    ),
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
        "median s",
        "median seconds per clip",
        _latency_of("latency_median_seconds", registry.SINGLE_STREAM),
        importance=7,
    ),
    Column(
        "p90 s",
        "90th percentile of the seconds per clip",
        _latency_of("latency_p90_seconds", registry.SINGLE_STREAM),
        importance=6,
    ),
    *_SERVER,
    *_STREAMING,
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
    Column("S", "substituted words", lambda r: _count(r["substitutions"])),
    Column("D", "deleted words", lambda r: _count(r["deletions"])),
    Column("I", "inserted words", lambda r: _count(r["insertions"])),
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
    Column("unstable", "clips whose text differs between rounds", lambda r: _count(r["unstable_clips"])),
)

TIMES = (
    Column("calls", "answered calls", lambda r: _count(r["samples"])),
    Column("min s", "quickest call", _latency_of("latency_min_seconds", registry.SINGLE_STREAM)),
    Column(
        "IQR s",
        "interquartile range over all calls, with clips of all lengths together",
        _latency_of("latency_iqr_seconds", registry.SINGLE_STREAM),
    ),
    Column("p99 s", "99th percentile", _latency_of("latency_p99_seconds", registry.SINGLE_STREAM)),
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
    Column("CPU s", "processor seconds of all measured calls", lambda r: figure(r["cpu_seconds"])),
)


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
