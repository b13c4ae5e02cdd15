"""Reads a stored run only if its figures and its verdict follow from its samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

from asrgate.harness import record
from asrgate.harness.metrics.word_errors import errors, ratio, timed
from asrgate.harness.record import DOCTORED, RecordError, doctored, errors_of
from asrgate.harness.record_types import Across, Result, Run
from asrgate.harness.scenarios import registry
from asrgate.harness.scoring import across, gate, signature

TOLERANCE = 1e-9  # relative: sums of floats in another order differ by less


def read(path: Path) -> Run:
    """Read a stored run as record.read does, and derive its figures again.

    Texts are not scored again: their normaliser may be another version by now. What follows from the word
    counts and the times must be what the record says, and the gate must judge it alike.

    Raises:
        RecordError: as record.read, something in the record does not follow from the rest of it, or it is
            not what the signature beside it signs.
    """
    run = agreeing(path)
    signature.check(path)
    return run


def agreeing(path: Path) -> Run:
    """As `read`, whatever signature lies beside the run."""
    run = record.read(path)
    try:
        difference = next(differences(run), None)
    except DOCTORED as error:
        raise RecordError(f"{path}: {doctored(error)}") from error
    if difference is not None:
        raise RecordError(
            f"{path} does not agree with its own samples: {difference}; it was changed after asrgate wrote "
            "it. Measure again, or derive it anew with `asrgate rescore` if it was stored with texts"
        )
    return run


def differences(run: Run) -> Iterator[str]:
    """Say what in a run does not follow from its samples and word counts.

    Of a run that was killed, nothing has been derived yet, and no row is ranked.
    """
    if run["finished_at"] is None and not any(result["gate"]["ranked"] for result in run["results"]):
        return
    for result in run["results"]:
        for what, stated, found in _figures(run, result):
            if not _is_same(stated, found):
                yield f"{result['variant']} has {what} {_written(stated)}, but {_written(found)} follows"
    again = copy.copy(run)
    again["results"] = [copy.copy(result) for result in run["results"]]  # of which judging fills the gate
    gate.judge(again)
    pairs = list(zip(run["results"], again["results"], strict=True))
    pairs.sort(key=lambda pair: pair[1]["gate"]["ranked"])  # one that must not be ranked moves the others
    for before, after in pairs:
        said, judged = before["gate"], after["gate"]
        if (said["ranked"], said["rank"]) != (judged["ranked"], judged["rank"]):
            why = f" ({'; '.join(judged['reasons'])})" if judged["reasons"] else ""
            yield f"{before['variant']} is {_place(before)}, but must be {_place(after)}{why}"
    if "across" in run:
        yield from _across(run, run["across"])


def _across(run: Run, stated: Across) -> Iterator[str]:
    """Compare what is said of all models together, but for what the bootstrap tells."""
    for what, said, found in (
        ("on the front", [place["variant"] for place in stated["front"]], across.front(run)),
        ("on the front of memory", [p["variant"] for p in stated["memory_front"]], across.memory_front(run)),
        ("named by the answers", [answer["variant"] for answer in stated["answers"]], across.chosen(run)),
    ):
        names = [row["variant"] for row in found]
        if said != names:
            yield f"{', '.join(said) or 'no row'} is {what}, but {', '.join(names) or 'no row'} must be"


def _figures(run: Run, result: Result) -> Iterator[tuple[str, float | None, float | None]]:
    """Yield name, stated and derived value of each figure that the gate or a table uses."""
    wer = result["wer"]
    if wer is not None:
        counted = errors_of(result)
        words = sum(entry["reference_words"] for entry in counted)
        yield "a WER of", wer["wer"], ratio(sum(map(errors, counted)), words)
    scenario = registry.of(run)
    speed = scenario.speed(run, timed(result))
    stated = result["rtfx"]
    yield "an RTFx of", None if stated is None else stated["rtfx"], None if speed is None else speed["rtfx"]
    latency, seconds = result["latency"], scenario.latencies(result)
    shortest = None if latency is None else latency["min_seconds"]
    yield "a shortest latency of", shortest, min(seconds, default=None)


def _is_same(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return stated is found
    return math.isclose(stated, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _written(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"


def _place(result: Result) -> str:
    return f"rank {result['gate']['rank']}" if result["gate"]["ranked"] else "unranked"
