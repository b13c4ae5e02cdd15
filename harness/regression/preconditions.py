"""What two runs must have in common to be compared, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asrgate.harness import record
from asrgate.harness.record_types import CheckpointRecord, Run
from asrgate.harness.regression import changes
from asrgate.harness.scenarios import registry
from asrgate.harness.scoring import machines

KINDS = ("checkpoint", "audio", "settings", "host", "normalizer", "incomplete", "killed")
# Signals that a process raises itself when it crashes; any other comes from outside.
CRASHES = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
GATE_SETTINGS = ("reference", "wer_tolerance", "max_wer", "length_tolerance")


@dataclass(frozen=True)
class Difference:
    """A difference that makes two runs not comparable.

    `kind` is one of KINDS, or "scenario", which cannot be ignored: such times measure different things.
    """

    kind: str
    what: str


def differences(base: Run, new: Run) -> list[Difference]:
    """List the differences that make two runs not comparable."""
    return [Difference(kind, what) for kind, what in _differences(base, new)]


def _differences(base: Run, new: Run) -> Iterator[tuple[str, str]]:
    for name, run in (("BASE", base), ("NEW", new)):
        if not run["complete"]:
            yield "incomplete", f"{name} is not complete: {run['interrupted'] or 'it was cut short'}"
        for result in run["results"]:
            if result.get("killed_by", CRASHES[0]) not in CRASHES:
                yield (
                    "killed",
                    f"something killed {result['variant']} in {name} ({result['killed_by']}); what did so, "
                    "or the memory that ran out, may have slowed the others too",
                )
    one, other = record.models(base), record.models(new)
    if not (_are_among(one, other) and _are_among(other, one)):
        yield "checkpoint", " in BASE; NEW has ".join(_listed(found) for found in (one, other))
    same = len(changes.common_clips(base, new))
    if not same == len(base["clips"]) == len(new["clips"]):
        yield (
            "audio",
            f"{len(base['clips'])} clips in BASE and {len(new['clips'])} in NEW; {same} of them have the "
            "same name, samples, language and reference text",
        )
    before, after = registry.of(base).conditions(), registry.of(new).conditions()
    if before != after:
        yield "scenario", f"{before} in BASE, {after} in NEW"
    asked = [
        run["settings"]["decoding"] | {k: v for k, v in run["settings"].items() if k in GATE_SETTINGS}
        for run in (base, new)
    ]
    for name, (before, after) in changed(*asked).items():
        yield "settings", f"{name} is {before!r} in BASE, {after!r} in NEW"
    for name, (before, after) in changed(*(_hardware(run) for run in (base, new))).items():
        yield "host", f"{name} is {before!r} in BASE, {after!r} in NEW"
    generations = [run["host"].get("cpu_generation") for run in (base, new)]
    if None not in generations and generations[0] != generations[1]:
        yield "host", "the processor is of {} in BASE, of {} in NEW, whatever its name".format(*generations)
    if base["scoring"]["normalizer"] != new["scoring"]["normalizer"]:
        yield (
            "normalizer",
            " in BASE; NEW has ".join(
                "{name} {version} ({sha256:.12}…)".format(**run["scoring"]["normalizer"])
                for run in (base, new)
            ),
        )


def _are_among(some: Sequence[CheckpointRecord], others: Sequence[CheckpointRecord]) -> bool:
    return all(any(record.is_same_model(model, other) for other in others) for model in some)


def _listed(models: Sequence[CheckpointRecord]) -> str:
    return ", ".join("{} ({} {:.12}…)".format(model["name"], *record.model_digest(model)) for model in models)


def _hardware(run: Run) -> dict[str, Any]:
    """Return what makes two hosts comparable: their class if recorded, or else processor and devices."""
    host = run["host"]
    if host.get("host_class"):
        return {"host_class": host["host_class"], "engines at once": machines.engines_at_once(run)}
    return {name: host.get(name) for name in ("cpu", "physical_cores", "gpus")}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two mappings: name -> (before, after), None where absent."""
    return {
        name: (before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    }
