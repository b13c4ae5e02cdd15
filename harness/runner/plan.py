"""What a run is to do, and the record it starts from."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from asrgate.backends import Variant
from asrgate.backends.base import Checkpoint, ModelIdentity, Settings
from asrgate.harness import record
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics import normalizers
from asrgate.harness.record_types import CheckpointRecord, Result, Run, RunSettings
from asrgate.harness.runner.stopping import Stopping
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import Scenario
from asrgate.harness.worker import environment

LOCAL, RAY = "local", "ray"  # executors: workers of this process, or actors of a cluster


@dataclass(frozen=True)
class Plan:
    """What a run is to do, everything resolved and checked.

    `unavailable` holds variants that this machine cannot run, with the reason and the remedy. `models` are
    the checkpoints of a run of several by the names that its variants have; `checkpoint` is the first.
    `identities` says of those that engines bring along by which backend, and what it declares.
    """

    variants: Sequence[Variant]
    unavailable: Sequence[tuple[Variant, str, str | None]]
    checkpoint: Checkpoint
    settings: Settings
    clips: Sequence[Clip]
    reference: str
    rounds: int = 7  # the most, if there is a rule when to stop
    stopping: Stopping | None = None
    warmup: int = 2
    timeout_seconds: float = 600.0
    device: str = "auto"
    wer_tolerance: float = 0.01
    max_wer: float = 0.5
    max_rtf: float | None = None
    max_memory_bytes: int | None = None
    length_tolerance: float = 0.1
    seed: int = 0
    texts: bool = True
    normalizer: str = "whisper"
    also_normalizers: Sequence[str] = ()
    slices: Sequence[str] = ()
    keywords: Sequence[str] = ()
    sample: int | None = None
    augment: Sequence[str] = ()
    scenario: Scenario = field(default_factory=registry.DEFAULT)
    models: Mapping[str, Checkpoint] = field(default_factory=dict)
    identities: Mapping[str, tuple[str, ModelIdentity]] = field(default_factory=dict)
    executor: str = LOCAL
    most_workers: int | None = None
    audit: bool = False
    word_timestamps: bool = False
    denied: Sequence[Path] = ()  # what engines must not read or write, see Worker
    command: Sequence[str] = field(default_factory=list)

    @property
    def certain_rounds(self) -> int:
        """How many rounds there are at least."""
        return self.rounds if self.stopping is None else self.stopping.least

    def checkpoint_of(self, variant: Variant) -> Checkpoint:
        """Return what a variant's engine is to load."""
        return self.models[variant.model] if variant.model else self.checkpoint


def blank_record(plan: Plan, run_id: str) -> Run:
    """Return the record of a run that has not begun: everything known before, a blank row a variant."""
    refusals = {str(variant): (reason, remedy) for variant, reason, remedy in plan.unavailable}
    variants = [*plan.variants, *(variant for variant, _, _ in plan.unavailable)]
    run: Run = {
        "schema_version": record.SCHEMA_VERSION,
        "run_id": run_id,
        "started_at": now(),
        "finished_at": None,
        "complete": False,
        "interrupted": None,
        "command": [_as_text(part) for part in plan.command],
        "host": environment.describe(),
        "versions": environment.versions(),
        "settings": _settings(plan),
        "checkpoint": _checkpoint(plan.checkpoint, plan.checkpoint.name),
        "scoring": {
            "normalizer": normalizers.identify(plan.normalizer),
            "bootstrap": {"replicates": 0, "seed": plan.seed, "level": 0.95},
        },
        "clips": [
            {
                "name": clip.name,
                "audio_filepath": _as_text(clip.path.name),
                "audio_seconds": clip.audio_seconds,
                "sha256": clip.sha256,
                "language": clip.language,
                "reference": clip.reference,
                "reference_sha256": None if clip.reference is None else record.text_sha256(clip.reference),
                "reference_words": None,
                "tags": dict(clip.tags),
                **cast(
                    Any, {} if clip.is_language_told or not clip.is_detected else {"language_told": False}
                ),
            }
            for clip in plan.clips
        ],
        "rounds": [],
        "warnings": [],
        "results": [
            _blank_row(variant, plan.scenario, *refusals.get(str(variant), (None, None)))
            for variant in variants
        ],
    }
    if plan.models:
        run["models"] = [_checkpoint(checkpoint, name) for name, checkpoint in plan.models.items()]
        for model in run["models"]:
            if model["name"] in plan.identities:
                backend, identity = plan.identities[model["name"]]
                model["identity"] = {
                    "backend": backend,
                    "revision": identity.revision,
                    "languages": list(identity.languages),
                    "licence": identity.licence,
                }
                if identity.server:
                    model["identity"]["server"] = identity.server
    if plan.executor == RAY:
        run["hosts"], run["retries"] = [], []
    return run


def _checkpoint(checkpoint: Checkpoint, name: str) -> CheckpointRecord:
    return {
        "name": _as_text(name),
        "sha256": checkpoint.sha256,
        "tensors_sha256": checkpoint.tensors_sha256,
        "dimensions": dict(checkpoint.dimensions),
        "note": _as_text(checkpoint.note),
    }


def _settings(plan: Plan) -> RunSettings:
    found: RunSettings = {
        "decoding": plan.settings.as_dict(),
        "rounds": plan.rounds,
        "warmup": plan.warmup,
        "timeout_seconds": plan.timeout_seconds,
        "device": plan.device,
        "reference": plan.reference,
        "wer_tolerance": plan.wer_tolerance,
        "max_wer": plan.max_wer,
        "length_tolerance": plan.length_tolerance,
        "seed": plan.seed,
        "texts": plan.texts,
        "slices": list(plan.slices),
        "sample": plan.sample,
        "augment": list(plan.augment),
        "scenario": plan.scenario.name,
        "batch_sizes": [],
        **cast(Any, plan.scenario.settings()),
    }
    if plan.stopping is not None:
        found["rounds_rule"] = plan.stopping.rule()
    if plan.audit:
        found["audit"] = True
    if plan.word_timestamps:
        found["word_timestamps"] = True
    if plan.max_rtf is not None:
        found["max_rtf"] = plan.max_rtf
    if plan.max_memory_bytes is not None:
        found["max_memory_bytes"] = plan.max_memory_bytes
    if plan.keywords:
        found["keywords"] = list(plan.keywords)
    if plan.executor == RAY:
        found["executor"] = RAY
    return found


def _blank_row(variant: Variant, scenario: Scenario, refusal: str | None, remedy: str | None) -> Result:
    row: Result = {
        "variant": str(variant),
        "backend": variant.backend,
        "device": variant.device,
        "precision": variant.precision,
        **cast(Any, scenario.blank_result(variant)),
        "status": "unavailable" if refusal else "error",
        "error": refusal or "the run ended before this variant was measured",
        "remedy": remedy,
        "gate": {"ranked": False, "rank": None, "reasons": [refusal or "not judged yet"]},
        "applied_settings": None,
        "isolation": None,
        "load": {
            "import_seconds": None,
            "load_seconds": None,
            "first_call_seconds": None,
            "warm_call_seconds": None,
        },
        "resources": {
            "peak_rss_bytes": None,
            "peak_vram_process_bytes": None,
            "peak_vram_allocator_bytes": None,
            "cpu_seconds": None,
            "energy_joules": None,
            "energy_source": None,
        },
        "integrity": None,
        "wer": None,
        "rtfx": None,
        "latency": None,
        "samples": [],
    }
    if variant.model:
        row["model"] = variant.model
    return row


def _as_text(name: str) -> str:
    """Return a name as valid text: bytes of a path that are not UTF-8 become \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def now() -> str:
    """Return the time, ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
