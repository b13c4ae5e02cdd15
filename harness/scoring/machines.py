"""A run on many machines: where each sample was taken, whose times count, and what a reader must know.

Texts, the gate's coverage and WER use the samples of all machines. Times from different kinds of machine do
not form one distribution. So every figure of speed and latency comes from the one kind (`host_class`) with
the most samples, the same for all rows. Samples from other kinds are kept with `timed` false and shown
separately. All variants answer a clip at the same actor, so their times cover the same clips and machines.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asrgate.harness.metrics.word_errors import is_answered
from asrgate.harness.record_types import Result, Run

USAGE = ("calls", "calls_cpu_seconds", "outside_cpu_seconds", "outside_wall_seconds")  # see Worker.resources


def settle(run: Run) -> None:
    """Choose the kind of machine whose times count, mark the others' samples, and say so in the warnings.

    This sets `host` and `versions` to those of its first machine. A run on one machine is left unchanged.
    Call it after timed_samples.settle: a sample counts only if its attempt counts too.
    """
    hosts = run.get("hosts")
    if not hosts:
        return
    kinds = class_of(run)
    chosen = choice(run)
    for result in run["results"]:
        for sample in result["samples"]:
            sample["timed"] = sample.get("timed", True) and kinds[sample["host"]] == chosen
    used = {sample["host"] for result in run["results"] for sample in result["samples"] if sample["timed"]}
    for entry in hosts:
        entry["timed"] = entry["number"] in used
    first = next((entry for entry in hosts if entry["timed"]), hosts[0])
    run["host"], run["versions"] = first["host"], first["versions"]
    run["warnings"] += _warnings(run, chosen)


def class_of(run: Run) -> dict[int, str]:
    """Return host number -> its kind."""
    return {entry["number"]: str(entry["host"]["host_class"]) for entry in run["hosts"]}


def choice(run: Run) -> str:
    """Return the kind of machine with the most samples in the attempt that counts; the first one if tied."""
    kinds = class_of(run)
    samples = Counter(dict.fromkeys(kinds.values(), 0))
    for result in run["results"]:
        samples.update(kinds[s["host"]] for s in result["samples"] if s.get("timed", True))
    return samples.most_common(1)[0][0]


def engines_at_once(run: Run) -> int:
    """Return the most engines that were busy at once on a machine whose times count: 1 without a cluster."""
    return max((entry["actors"] for entry in run.get("hosts", []) if entry.get("timed", True)), default=1)


def lost_calls(run: Run) -> int:
    """Return how often an actor was lost while it had a clip, which then went to another actor."""
    return sum(len(entry["clips"]) for entry in run.get("retries", []))


def rows(run: Run) -> list[dict[str, Any]]:
    """Return one row for each kind of machine and variant with samples there: where it ran, how fast.

    Samples from an attempt whose times do not count are left out. The first kind is the one that counts.
    """
    if not run.get("hosts"):
        return []
    kinds, audio = class_of(run), {clip["name"]: clip["audio_seconds"] for clip in run["clips"]}
    chosen = next((kinds[entry["number"]] for entry in run["hosts"] if entry.get("timed")), None)
    attempt = next((s["number"] for s in run.get("attempts", []) if s.get("timed")), None)
    found = []
    for kind in sorted(set(kinds.values()), key=lambda kind: (kind != chosen, kind)):
        for result in run["results"]:
            samples = [
                sample
                for sample in result["samples"]
                if kinds[sample["host"]] == kind
                and is_answered(sample)
                and (attempt is None or sample["attempt"] == attempt)
            ]
            if samples:
                walls = [sample["wall_seconds"] for sample in samples]
                found.append(
                    {
                        "host_class": kind,
                        "variant": result["variant"],
                        "is_ranked": result["gate"]["ranked"],
                        "is_timed": kind == chosen,
                        "machines": len({sample["host"] for sample in samples}),
                        "calls": len(samples),
                        "audio_seconds": sum(audio[sample["clip"]] for sample in samples),
                        "rtfx": sum(audio[sample["clip"]] for sample in samples) / sum(walls)
                        if sum(walls)
                        else None,
                        "latency_median_seconds": statistics.median(walls),
                    }
                )
    return found


def _warnings(run: Run, chosen: str) -> Iterator[str]:
    samples = [sample for result in run["results"] for sample in result["samples"]]
    kinds = set(class_of(run).values())
    if len(kinds) > 1:
        yield (
            f"measured on {len(kinds)} kinds of machine: speed and latency come from {chosen} alone "
            f"({sum(sample['timed'] for sample in samples)} of {len(samples)} calls); texts and WER "
            "come from all"
        )
    at_once = engines_at_once(run)
    if at_once > 1:
        yield (
            f"up to {at_once} engines were busy at once on one machine: they shared its memory and caches, "
            "so times are those of a fully loaded machine"
        )
    lost = lost_calls(run)
    if lost:
        yield (
            f"{lost} calls were lost with their process or machine and repeated at another actor "
            f"({len(run['retries'])} losses); no figure includes the lost calls"
        )


def resources(run: Run, result: Result, of_actors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row's resources from those of its actors: the largest peaks, and sums of the others.

    Energy is unknown if an actor was lost with its count, if actors share the meter of one machine, or if the
    times of some machines do not count but their energy would.

    Args:
        of_actors: the resources of every actor that measured; {} for one that was lost.
    """

    def largest(name: str) -> int | None:
        return max((actor[name] for actor in of_actors if actor.get(name) is not None), default=None)

    def total(name: str) -> float | None:
        known = [actor[name] for actor in of_actors if actor.get(name) is not None]
        return sum(known) if known else None

    joules = [actor.get("energy_joules") for actor in of_actors]
    shares_meter = result["device"] != "cuda" and any(entry["actors"] > 1 for entry in run["hosts"])
    is_alike = len(set(class_of(run).values())) == 1
    is_known = bool(joules) and None not in joules and not shares_meter and is_alike
    return {
        "peak_rss_bytes": largest("peak_rss_bytes"),
        "peak_vram_process_bytes": largest("peak_vram_process_bytes"),
        "peak_vram_allocator_bytes": largest("peak_vram_allocator_bytes"),
        "energy_joules": sum(j for j in joules if j is not None) if is_known else None,
        "energy_source": of_actors[0].get("energy_source") if is_known and of_actors else None,
        **{name: total(name) for name in USAGE},
    }
