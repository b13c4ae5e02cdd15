"""How a figure changed over stored runs; each series has only comparable runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrgate.backends.base import AsrgateError, did_you_mean
from asrgate.harness import record
from asrgate.harness.record_types import CheckpointRecord, Run
from asrgate.harness.regression import preconditions
from asrgate.harness.report.columns import figure, percent
from asrgate.harness.report.rows import RANKED, UNAVAILABLE, Row, rows
from asrgate.harness.scoring import verify


class HistoryError(AsrgateError):
    """There is no such history; the message says what exists."""


@dataclass(frozen=True)
class Metric:
    """A figure that can be followed; `value` returns None if a row lacks it."""

    meaning: str
    value: Callable[[Row], float | None]
    write: Callable[[float | None], str] = figure


METRICS = {
    "rtfx": Metric("audio seconds per processing second: higher is faster", lambda row: row["rtfx"]),
    "wer": Metric("word errors per 100 reference words", lambda row: row["wer_percent"], percent),
    "cer": Metric("character errors per 100 characters", lambda row: row["cer_percent"], percent),
    "latency": Metric(
        "median latency in seconds, of a clip or as the scenario counts it",
        lambda row: row["latency_median_seconds"],
    ),
    "p90": Metric("90th percentile of that latency", lambda row: row["latency_p90_seconds"]),
    "tokens": Metric("tokens per processing second", lambda row: row["tokens_per_second"]),
    "load": Metric("seconds from checkpoint to ready", lambda row: row["load_seconds"]),
    "rss": Metric(
        "peak memory of the process, MiB",
        lambda row: None if row["peak_rss_bytes"] is None else row["peak_rss_bytes"] / 2**20,
    ),
}


@dataclass(frozen=True)
class Point:
    """One run's figure for one variant. `reason` says why it is not ranked, or is None if it is."""

    run_id: str
    started_at: str
    value: float
    wer_percent: float | None
    reason: str | None


@dataclass(frozen=True)
class Series:
    """One variant over runs of one checkpoint, audio, decoding, gate, host and normaliser.

    `first` is the earliest of those runs; `group` numbers the groups of comparable runs, from 1.
    """

    group: int
    variant: str
    metric: str
    first: Run
    model: CheckpointRecord
    points: Sequence[Point]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Return the runs at the paths, earliest first, each run id once.

    If a record cannot be read, that is an error if the record was named, and a line on stderr if it was found
    in a named folder.

    Raises:
        RecordError: a named path is not a record.
        HistoryError: there are no runs.
    """
    found: dict[str, Run] = {}
    for path in paths:
        if path.is_dir() and not (path / "run.json").exists():
            for file in sorted(path.glob("*/run.json")):
                try:
                    run = verify.read(file)
                    rows(run)
                except record.RecordError as error:
                    print(f"asrgate: left out: {error}", file=sys.stderr)
                    continue
                except record.DOCTORED as error:
                    print(f"asrgate: left out: {file}: {record.doctored(error)}", file=sys.stderr)
                    continue
                found[run["run_id"]] = run
        else:
            run = verify.read(path)
            found[run["run_id"]] = run
    if not found:
        raise HistoryError(
            f"no runs are stored in {', '.join(map(str, paths))}; store one with `asrgate run`, "
            "or name run.json files, their folders, or a folder of such folders"
        )
    return sorted(found.values(), key=lambda run: (run["started_at"], run["run_id"]))


def series(runs: Sequence[Run], metric: str = "rtfx", backend: str | None = None) -> list[Series]:
    """Return one series for each variant of each group of comparable runs.

    Args:
        runs: earliest first.
        metric: one of METRICS.
        backend: only that backend, or that variant (`name@device/precision`).

    Raises:
        HistoryError: no stored run has that backend or that figure.
    """
    found = [one for number, group in enumerate(_groups(runs), 1) for one in _of_group(number, group, metric)]
    if backend is not None:
        names = sorted({name for one in found for name in (one.variant.partition("@")[0], one.variant)})
        found = [one for one in found if backend in (one.variant, one.variant.partition("@")[0])]
        if not found:
            raise HistoryError(
                f"no stored run has {backend!r}.{did_you_mean(backend, names)} "
                f"Stored: {', '.join(names) or 'none'}"
            )
    if not found:
        raise HistoryError(f"no stored run has the figure {metric}; choose one of {', '.join(METRICS)}")
    return found


def comparable_with(run: Run, past: Sequence[Run], metric: str = "rtfx") -> list[Series]:
    """Return the series of runs comparable with `run`, including `run` itself."""
    runs = {other["run_id"]: other for other in past if _is_comparable(run, other)} | {run["run_id"]: run}
    ordered = sorted(runs.values(), key=lambda other: (other["started_at"], other["run_id"]))
    return list(_of_group(1, ordered, metric))


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if _is_comparable(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def _is_comparable(base: Run, other: Run) -> bool:
    """Whether both measured the same thing; an incomplete run counts too, and its rows say so themselves."""
    return all(difference.kind == "incomplete" for difference in preconditions.differences(base, other))


def _of_group(number: int, group: Sequence[Run], metric: str) -> Iterator[Series]:
    points: dict[str, list[Point]] = {}
    models: dict[str, CheckpointRecord] = {}
    for run in group:
        models |= {result["variant"]: record.model_of(run, result) for result in run["results"]}
        for row in rows(run):
            value = METRICS[metric].value(row)
            if row["group"] == UNAVAILABLE or value is None:
                continue
            reason = None if row["group"] == RANKED else row["reason"]
            point = Point(run["run_id"], run["started_at"], value, row["wer_percent"], reason)
            points.setdefault(row["variant"], []).append(point)
    for variant, found in points.items():
        yield Series(number, variant, metric, group[0], models[variant], found)
