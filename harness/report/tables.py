"""A run as comma-separated values: one line per variant, or one line per measured call."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from asrgate.harness import record
from asrgate.harness.escape import csv_cell
from asrgate.harness.record_types import CheckpointRecord, Run
from asrgate.harness.report import context
from asrgate.harness.report.rows import rows
from asrgate.harness.scenarios import registry
from asrgate.harness.scoring import slices

SAMPLE_COLUMNS = (
    "wall_seconds",
    "worker_seconds",
    "cpu_seconds",
    "late_work_seconds",
    "text_words",
    "token_count",
    "error",
    "text_sha256",
    "text",
)
OF_SCENARIOS = [name for scenario in registry.BUILTIN.values() for name in scenario.sample_fields]
STAGES = ("log_mel", "encode", "decode")


def summary(run: Run) -> str:
    """Return one line per variant with all its figures and, on each line, how they were measured."""
    lines = summary_lines(run)
    return _write(list(lines[0]) if lines else ["variant", *_beside(run)], lines)


def summary_lines(run: Run) -> list[dict[str, Any]]:
    """Return the lines of `summary` with their values as they are."""
    known = {model["name"]: model for model in record.models(run)}
    lines = []
    for row in rows(run):
        model = known.get(row.pop("model"))
        lines.append(row | _beside(run, model))
    return lines


def _beside(run: Run, model: CheckpointRecord | None = None) -> dict[str, Any]:
    return {
        "run_id": run["run_id"],
        "model": None if model is None else model["name"],
        "model_tensors_sha256": None if model is None else model["tensors_sha256"],
        "model_sha256": None if model is None else model["sha256"],
        "decoding": context.decoding(run),
        "machine": context.machine(run),
        "normalizer": run["scoring"]["normalizer"]["name"],
    }


def samples(run: Run) -> str:
    """Return one line per measured call of every variant."""
    fixed = ["variant", "round", "clip", "attempt", "timed", "host", "batch_size"]
    fixed += [*OF_SCENARIOS, "audio_seconds"]
    names = [*fixed, *(f"{stage}_seconds" for stage in STAGES), *SAMPLE_COLUMNS]
    return _write(names, sample_lines(run))


def sample_lines(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the lines of `samples` with their values as they are."""
    clips = {clip["name"]: clip for clip in run["clips"]}
    for result in run["results"]:
        for sample in result["samples"]:
            parts: Mapping[str, Any] = sample
            line = {
                "variant": result["variant"],
                "round": sample["round"],
                "clip": sample["clip"],
                "attempt": sample.get("attempt", 0),
                "timed": sample.get("timed", True),
                "host": sample.get("host"),
                "batch_size": result.get("batch_size"),
                **{name: parts.get(name) for name in OF_SCENARIOS},
                "audio_seconds": clips[sample["clip"]]["audio_seconds"],
                **{name: parts[name] for name in SAMPLE_COLUMNS},
            }
            yield line | {f"{stage}_seconds": sample["stage_seconds"].get(stage) for stage in STAGES}


def by_slice(run: Run) -> str:
    """Return one line for each field, value and variant of the run's slices."""
    beside = {
        "run_id": run["run_id"],
        "normalizer": run["scoring"]["normalizer"]["name"],
        "normalizer_version": run["scoring"]["normalizer"]["version"],
    }
    lines = [row | beside for row in slices.rows(run)]
    return _write(list(lines[0]) if lines else ["field", "value", "variant", *beside], lines)


def _write(names: Sequence[str], lines: Iterable[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for line in lines:
        writer.writerow([_cell(line[name]) for name in names])
    return file.getvalue()


def _cell(value: Any) -> Any:
    """Make texts safe; numbers stay numbers, without the last digits, which are rounding noise."""
    if isinstance(value, str):
        return csv_cell(value)
    return f"{value:.10g}" if isinstance(value, float) else value
