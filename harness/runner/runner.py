"""Runs a plan: an executor measures rounds that are interleaved, and the record is saved as it grows."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asrgate.harness import record
from asrgate.harness.runner import audit, journal, signals, so_far
from asrgate.harness.runner.cluster.coordinator import ClusterExecutor
from asrgate.harness.runner.executor import Executor
from asrgate.harness.runner.local_executor import LocalExecutor
from asrgate.harness.runner.plan import RAY, Plan, now
from asrgate.harness.runner.progress import Progress
from asrgate.harness.runner.run_state import RunState
from asrgate.harness.scoring import across, cache_probes, gate, machines, score, timed_samples

BUSY_FRACTION = 0.10  # of all cores, used by processes that are not the run's: worth a warning
SPREAD_LIMIT = 0.15  # interquartile range over median of a clip's times across rounds: worth a warning


def new_run_id() -> str:
    """Return a name that sorts by time and that two runs started in one second do not share."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def run(
    plan: Plan, run_id: str, folder: Path, progress: Progress, kept: journal.Kept | None = None
) -> record.Run:
    """Measure every variant of the plan; return the scored and gated record.

    Args:
        kept: what the journal has of a run that is resumed; it must be of the same plan.

    The record is saved to `folder`/run.json after every round, so that whatever ends the run early leaves
    what was measured. A failing engine becomes an error in its own row. Ctrl-C, or a signal of
    `signals.ending`, ends the run with a record marked as interrupted.

    Raises:
        RecordError: the record cannot be written (disk full, folder not writable).
    """
    state = RunState(plan, run_id, folder, progress, kept)
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    executor = ClusterExecutor(state) if plan.executor == RAY else LocalExecutor(state, logs)
    try:
        with signals.as_interrupts():
            _measure(state, executor)
            if plan.word_timestamps:
                executor.time_words()
            if plan.audit:
                executor.close()  # an engine beside the audited one would take memory
                audit.run(state, logs)
            state.record["complete"] = True
    except KeyboardInterrupt:
        state.record["interrupted"] = "stopped by the user (Ctrl-C or a termination signal)"
    finally:
        # From here on a second Ctrl-C must not lose what the first one saved.
        with signals.ignored():
            executor.close()
            progress.close()
            _finish(state)
            _tidy(logs, keep=plan.texts)
    return state.record


def _measure(state: RunState, executor: Executor) -> None:
    started = time.monotonic()
    executor.load()
    state.save()
    variants = len(state.names)
    plan, run, figures = state.plan, state.record, so_far.Figures(state.record, state.plan.normalizer)
    state.progress.start(variants * (plan.certain_rounds * executor.calls + executor.probe_calls))
    state.progress.advance(state.samples_done)
    began = time.monotonic()
    for measured, number in enumerate(state.rounds_left):
        if run["rounds"]:
            seconds = time.monotonic() - began
            checks = seconds / max(measured, 1) * executor.probe_calls / executor.calls
            stopped = plan.stopping and plan.stopping.reason(run, seconds, began - started + checks)
            if stopped:
                run["stopped"] = stopped
                break
            state.progress.figures(len(run["rounds"]), figures.rows)
        if number >= plan.certain_rounds:
            state.progress.more(len(state.names) * (executor.calls + 1))  # and a splice
        order = state.order(number)
        load = executor.round(number, order)
        state.round_over(
            {
                "round": number,
                "order": order,
                "load_average_1min": load["load_average_1min"],
                "foreign_cpu_fraction": load["foreign_cpu_fraction"],
            }
        )
    run["settings"]["rounds"] = len(run["rounds"])
    executor.check()


def _finish(state: RunState) -> None:
    """Derive everything that follows from the samples, and write the record."""
    run, plan = state.record, state.plan
    if "attempts" in run:
        run["attempts"][-1]["finished_at"] = now()
        timed_samples.settle(run)
    machines.settle(run)
    for result in run["results"]:
        if result["integrity"] is not None:
            result["integrity"] = cache_probes.summarise(
                result["integrity"]["probes"],
                [sample for sample in result["samples"] if sample.get("timed", True)],
            )
        spent = [s["cpu_seconds"] for s in result["samples"] if s["cpu_seconds"] is not None]
        result["resources"]["cpu_seconds"] = sum(spent) if spent else None
    run["warnings"] += list(_disturbances(run))
    run["finished_at"] = now()
    score.score(run, plan.normalizer, also=plan.also_normalizers)
    gate.judge(run)
    across.settle(run)
    state.close()


def _tidy(logs: Path, keep: bool) -> None:
    """Remove logs in which there is nothing; all of them unless texts are kept: engines may print texts."""
    if not keep:
        shutil.rmtree(logs, ignore_errors=True)
    for log in logs.glob("*.log"):
        if log.stat().st_size == 0:
            log.unlink()
    with contextlib.suppress(OSError):
        logs.rmdir()


def _disturbances(run: record.Run) -> Iterator[str]:
    """Say in words what may have disturbed the timing."""
    busy = [r["foreign_cpu_fraction"] for r in run["rounds"] if r["foreign_cpu_fraction"] is not None]
    if busy and max(busy) > BUSY_FRACTION:
        yield f"other programs used up to {max(busy):.0%} of the processor: times are disturbed"
    for row in run["results"]:
        tries = [sum(stage.startswith("retry_") for stage in s["stage_seconds"]) for s in row["samples"]]
        if any(tries):
            yield (
                f"{row['variant']}: {sum(map(bool, tries))} of {len(tries)} answers needed retries, "
                f"{sum(tries)} in all; their times include the waiting"
            )
        times: dict[str, list[float]] = {}
        for sample in row["samples"]:
            if sample["error"] is None and sample.get("timed", True):
                times.setdefault(sample["clip"], []).append(sample["wall_seconds"])
        spreads = [
            (np.percentile(values, 75) - np.percentile(values, 25)) / statistics.median(values)
            for values in times.values()
            if len(values) >= 3
        ]
        if spreads and statistics.median(spreads) > SPREAD_LIMIT:
            yield (
                f"{row['variant']}: times of the same clip vary by {statistics.median(spreads):.0%} "
                "(interquartile range over median)"
            )
