"""Rows of several models against each other: by errors, speed and memory together.

Within a model the gate makes quality equal and speed ranks. Between models both differ, so a row is on a
front unless another is better in both, and it is called beaten only if it is so beyond the intervals of both
differences. Only ranked rows take part. The intervals are paired: of the same resampled clips for errors, of
the same rounds for speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from asrgate.harness.metrics import bootstrap
from asrgate.harness.metrics.word_errors import errors
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import Across, Answer, Beaten, FrontPlace, Result, Run
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import RTFX
from asrgate.harness.scoring import round_ratios

FASTEST_WITHIN, SMALLEST_WITHIN = 0.01, 0.02  # of the best WER: what an answer may cost in errors
MOST_ACCURATE, FASTEST, SMALLEST = "most accurate", "fastest", "smallest"


def settle(run: Run) -> None:
    """Fill `across` of a scored and judged run of several models, or of one whose answer is limited."""
    settings = run["settings"]
    if "models" not in run and "max_rtf" not in settings and "max_memory_bytes" not in settings:
        run.pop("across", None)
        return
    rows = ranked(run)
    pairs = _Pairs(run, rows)
    best, fastest, smallest = _chosen(run, rows)
    found: Across = {
        "front": list(_front(pairs, front(run))),
        "memory_front": list(_front(pairs, memory_front(run))),
        "beaten": list(_beaten(run, pairs)),
        "answers": [],
    }
    candidates = [row for row in rows if _fits(run, row)]
    if best is not None:
        wer = wer_of(best)
        near = [row for row in candidates if wer_of(row) <= wer + FASTEST_WITHIN + 1e-12]
        alike = [row["variant"] for row in candidates if row is not best and pairs.may_be_equal(row, best)]
        found["answers"].append(_answer(MOST_ACCURATE, best, best, pairs, alike))
        if fastest is not None:
            alike = [row["variant"] for row in near if row is not fastest and _is_as_fast(run, fastest, row)]
            found["answers"].append(_answer(FASTEST, fastest, best, pairs, alike))
        if smallest is not None:
            found["answers"].append(_answer(SMALLEST, smallest, best, pairs, []))
    run["across"] = found


def front(run: Run) -> list[Result]:
    """Return the ranked rows that no other beats in errors and speed, the fastest first."""
    order = registry.of(run).order
    rows = [row for row in ranked(run) if order.figure(row) is not None]
    return [rows[n] for n in pareto_front([(order.sort_key(row), wer_of(row)) for row in rows])]


def memory_front(run: Run) -> list[Result]:
    """Return the ranked rows that no other beats in errors and memory, the smallest first."""
    rows = [row for row in ranked(run) if memory_bytes(row) is not None]
    return [rows[n] for n in pareto_front([(memory_bytes(row) or 0, wer_of(row)) for row in rows])]


def chosen(run: Run) -> list[Result]:
    """Return the rows that the answers name, in their order."""
    return [row for row in _chosen(run, ranked(run)) if row is not None]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of points that no other point beats in one figure without losing in the other.

    Lower is better in both. In the order of the first figure; equal points are all kept.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    found: list[int] = []
    for i in order:
        best = points[found[-1]] if found else None
        if best is None or points[i][1] < best[1] or points[i] == best:
            found.append(i)
    return found


def memory_bytes(result: Result) -> int | None:
    """Return a row's peak memory, that of the device included; None if unknown, or on a server."""
    used = result["resources"]
    if used["peak_rss_bytes"] is None:
        return None
    device = used["peak_vram_process_bytes"] or used["peak_vram_allocator_bytes"] or 0
    return used["peak_rss_bytes"] + device


def ranked(run: Run) -> list[Result]:
    """Return the ranked rows."""
    return [
        row
        for row in run["results"]
        if row["gate"]["ranked"] and row["wer"] is not None and row["wer"]["wer"] is not None
    ]


def wer_of(row: Result) -> float:
    """Return a ranked row's WER."""
    wer = None if row["wer"] is None else row["wer"]["wer"]
    assert wer is not None  # of ranked rows
    return wer


def _fits(run: Run, row: Result) -> bool:
    """Whether a row keeps the limits that were asked for; one whose figure is unknown does not."""
    settings = run["settings"]
    rtf, memory = None if row["rtfx"] is None else row["rtfx"]["rtf"], memory_bytes(row)
    is_quick = "max_rtf" not in settings or (rtf is not None and rtf <= settings["max_rtf"])
    is_small = "max_memory_bytes" not in settings or (
        memory is not None and memory <= settings["max_memory_bytes"]
    )
    return is_quick and is_small


def _chosen(run: Run, rows: Sequence[Result]) -> tuple[Result | None, Result | None, Result | None]:
    order = registry.of(run).order
    candidates = [row for row in rows if _fits(run, row) and order.figure(row) is not None]
    if not candidates:
        return None, None, None
    best = min(candidates, key=lambda row: (wer_of(row), order.sort_key(row)))
    fast = [row for row in candidates if wer_of(row) <= wer_of(best) + FASTEST_WITHIN + 1e-12]
    near = [row for row in candidates if wer_of(row) <= wer_of(best) + SMALLEST_WITHIN + 1e-12]
    small = [row for row in near if memory_bytes(row) is not None]
    return (
        best,
        min(fast, key=order.sort_key),
        min(small, key=lambda row: (memory_bytes(row) or 0, order.sort_key(row)), default=None),
    )


@dataclass
class _Pairs:
    """Paired differences in WER between rows: all over the same resamples of the clips."""

    run: Run
    rows: Sequence[Result]
    _sums: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [clip["name"] for clip in self.run["clips"]]
        columns = {"": {clip["name"]: clip["reference_words"] or 0 for clip in self.run["clips"]}}
        for row in self.rows:
            columns[row["variant"]] = {entry["clip"]: errors(entry) for entry in errors_of(row)}
        values = np.array([[of.get(name, 0) for of in columns.values()] for name in names], dtype=np.float64)
        asked = self.run["scoring"]["bootstrap"]
        if np.count_nonzero(values[:, :1]) > 1:
            found = bootstrap.resampled_sums(values, asked["replicates"], asked["seed"])
            self._sums = dict(zip(columns, found.T, strict=True))

    def interval(self, row: Result, other: Result) -> bootstrap.Interval | None:
        """Return the interval of a row's WER minus another's; None with fewer than two clips."""
        if not self._sums:
            return None
        return bootstrap.ratio_interval(
            self._sums[row["variant"]] - self._sums[other["variant"]], self._sums[""]
        )

    def may_be_equal(self, row: Result, other: Result) -> bool:
        """Whether the clips cannot tell two rows' errors apart."""
        found = self.interval(row, other)
        return found is None or found[0] <= 0 <= found[1]


def _front(pairs: _Pairs, rows: Sequence[Result]) -> Iterator[FrontPlace]:
    if rows:
        yield {"variant": rows[0]["variant"], "wer_difference": None, "interval": None}
    for before, row in pairwise(rows):
        interval = pairs.interval(row, before)
        yield {
            "variant": row["variant"],
            "wer_difference": wer_of(row) - wer_of(before),
            "interval": None if interval is None else list(interval),
        }


def _beaten(run: Run, pairs: _Pairs) -> Iterator[Beaten]:
    """Yield the rows that others beat in both figures beyond their intervals, by the fastest of these."""
    order = registry.of(run).order
    if order != RTFX:
        return  # nothing says how sure such figures of speed are
    for row in pairs.rows:
        winners: list[Beaten] = []
        for other in pairs.rows:
            if wer_of(other) >= wer_of(row) or order.sort_key(other) >= order.sort_key(row):
                continue
            difference, speed = pairs.interval(row, other), round_ratios.between(run, other, row)
            if difference is None or speed is None or speed.interval is None:
                continue
            if difference[0] > 0 and speed.interval[0] > 1:
                winners.append(
                    {
                        "variant": row["variant"],
                        "by": other["variant"],
                        "wer_difference": wer_of(row) - wer_of(other),
                        "interval": list(difference),
                        "speed_ratio": speed.ratio,
                        "speed_interval": list(speed.interval),
                    }
                )
        if winners:
            yield max(winners, key=lambda beaten: beaten["speed_ratio"])


def _is_as_fast(run: Run, fastest: Result, row: Result) -> bool:
    """Whether the rounds cannot tell the speeds of two rows apart."""
    if registry.of(run).order != RTFX:
        return False
    found = round_ratios.between(run, fastest, row)
    return found is None or found.interval is None or found.interval[0] <= 1


def _answer(question: str, row: Result, best: Result, pairs: _Pairs, alike: list[str]) -> Answer:
    interval = None if row is best else pairs.interval(row, best)
    return {
        "question": question,
        "variant": row["variant"],
        "wer_difference": wer_of(row) - wer_of(best),
        "interval": None if interval is None else list(interval),
        "alike": alike,
    }
