"""A run of several attempts: whose times count, and what a reader must know about the others.

A attempt is one process that measured; `asrgate run --resume` adds one. Texts, the gate's coverage and WER
use the samples of all attempts. Times from different attempts do not form one distribution: the machine may
have been warmer, busier or a different one. Every figure of speed and latency comes from the one attempt with
the most complete rounds. Samples of the others are kept with `timed` false.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from asrgate.harness.record_types import Attempt, Result, Run


def settle(run: Run) -> None:
    """Choose the attempt whose times count, mark the others' samples, and say so in the run's warnings.

    This sets `host` and `versions` to those of that attempt. A run of one attempt is left unchanged.
    """
    attempts = run.get("attempts")
    if not attempts:
        return
    chosen = _choice(run)
    for result in run["results"]:
        for sample in result["samples"]:
            sample["timed"] = sample["attempt"] == chosen
        if chosen != len(attempts) - 1:  # a worker's meters count from its start: they are the last attempt's
            result["resources"]["energy_joules"] = result["resources"]["energy_source"] = None
    for attempt in attempts:
        attempt["timed"] = attempt["number"] == chosen
    run["host"], run["versions"] = attempts[chosen]["host"], attempts[chosen]["versions"]
    rounds = max((n for (_, attempt), n in _complete_rounds(run).items() if attempt == chosen), default=0)
    run["warnings"] += [
        f"measured in {len(attempts)} attempts: speed and latency come from attempt {chosen + 1} alone "
        f"({rounds} of {run['settings']['rounds']} rounds); texts and WER come from all",
        *_changes(attempts),
    ]


def complete_rounds(run: Run, result: Result) -> int | None:
    """Return how many complete rounds a row's timed samples cover; None in a run of one attempt."""
    if not run.get("attempts"):
        return None
    (chosen,) = [attempt["number"] for attempt in run["attempts"] if attempt["timed"]]
    return _complete_rounds(run)[result["variant"], chosen]


def _choice(run: Run) -> int:
    """Choose one attempt for all rows, so that they were interleaved: most complete rounds, then samples."""
    whole, samples = Counter[int](), Counter[int]()
    for (_, attempt), rounds in _complete_rounds(run).items():
        whole[attempt] += rounds
    for result in run["results"]:
        samples.update(sample["attempt"] for sample in result["samples"])
    numbers = [attempt["number"] for attempt in run["attempts"]]
    return max(numbers, key=lambda number: (whole[number], samples[number], number))


def _complete_rounds(run: Run) -> Counter[tuple[str, int]]:
    """Count, by variant and attempt, the rounds in which every clip was measured in that attempt."""
    found: Counter[tuple[str, int]] = Counter()
    for result in run["results"]:
        asked = Counter((sample["round"], sample["attempt"]) for sample in result["samples"])
        for (_, attempt), clips in asked.items():
            found[result["variant"], attempt] += clips == len(run["clips"])
    return found


def _changes(attempts: list[Attempt]) -> Iterator[str]:
    first = attempts[0]
    for attempt in attempts[1:]:
        changed = [
            f"{name.replace('_', ' ')} {first[part].get(name)!s} then, {attempt[part].get(name)!s} now"
            for part in ("host", "versions")
            for name in sorted({*first[part], *attempt[part]} - {"min_frequency_hz", "max_frequency_hz"})
            if first[part].get(name) != attempt[part].get(name)
        ]
        if changed:
            yield (
                f"the machine or the software changed between attempt 1 and attempt {attempt['number'] + 1}: "
                + "; ".join(changed)
            )
