"""A run of several sittings: whose times count, and what a reader must know about the others.

A sitting is one process that measured; `asrgate run --resume` adds one. Texts, the gate's coverage and WER
use the samples of all sittings. Times from different sittings do not form one distribution: the machine may
have been warmer, busier or a different one. Every figure of speed and latency comes from the one sitting with
the most complete rounds. Samples of the others are kept with `timed` false.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from asrgate.harness.record import Run


def settle(run: Run) -> None:
    """Choose the sitting whose times count, mark the others' samples, and say so in the run's warnings.

    This sets `host` and `versions` to those of that sitting. A run of one sitting is left unchanged.
    """
    sittings = run.get("sittings")
    if not sittings:
        return
    chosen = _choice(run)
    for result in run["results"]:
        for sample in result["samples"]:
            sample["timed"] = sample["sitting"] == chosen
        if (
            chosen != len(sittings) - 1
        ):  # a worker's meters count from its start, so they belong to the last sitting
            result["resources"].update(energy_joules=None, energy_source=None)
    for sitting in sittings:
        sitting["timed"] = sitting["number"] == chosen
    run["host"], run["versions"] = sittings[chosen]["host"], sittings[chosen]["versions"]
    rounds = max((n for (_, sitting), n in _complete_rounds(run).items() if sitting == chosen), default=0)
    run["warnings"] += [
        f"measured in {len(sittings)} sittings: speed and latency come from sitting {chosen + 1} alone "
        f"({rounds} of {run['settings']['rounds']} rounds); texts and WER come from all",
        *_changes(sittings),
    ]


def complete_rounds(run: Run, result: Mapping[str, Any]) -> int | None:
    """Return how many complete rounds a row's timed samples cover; None in a run of one sitting."""
    if not run.get("sittings"):
        return None
    (chosen,) = [sitting["number"] for sitting in run["sittings"] if sitting["timed"]]
    return _complete_rounds(run)[result["variant"], chosen]


def _choice(run: Run) -> int:
    """Choose one sitting for all rows, so that they were interleaved: most complete rounds, then samples."""
    whole, samples = Counter[int](), Counter[int]()
    for (_, sitting), rounds in _complete_rounds(run).items():
        whole[sitting] += rounds
    for result in run["results"]:
        samples.update(sample["sitting"] for sample in result["samples"])
    numbers = [sitting["number"] for sitting in run["sittings"]]
    return max(numbers, key=lambda number: (whole[number], samples[number], number))


def _complete_rounds(run: Run) -> Counter[tuple[str, int]]:
    """Count, by variant and sitting, the rounds in which every clip was measured in that sitting."""
    found: Counter[tuple[str, int]] = Counter()
    for result in run["results"]:
        asked = Counter((sample["round"], sample["sitting"]) for sample in result["samples"])
        for (_, sitting), clips in asked.items():
            found[result["variant"], sitting] += clips == len(run["clips"])
    return found


def _changes(sittings: list[dict[str, Any]]) -> Iterator[str]:
    first = sittings[0]
    for sitting in sittings[1:]:
        changed = [
            f"{name.replace('_', ' ')} {first[part].get(name)!s} then, {sitting[part].get(name)!s} now"
            for part in ("host", "versions")
            for name in sorted({*first[part], *sitting[part]} - {"min_frequency_hz", "max_frequency_hz"})
            if first[part].get(name) != sitting[part].get(name)
        ]
        if changed:
            yield (
                f"the machine or the software changed between sitting 1 and sitting {sitting['number'] + 1}: "
                + "; ".join(changed)
            )
