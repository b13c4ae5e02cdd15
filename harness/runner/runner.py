"""Runs a plan: one worker a variant, rounds interleaved, raw samples into a record saved as it grows."""

from __future__ import annotations

import contextlib
import datetime
import secrets
import shutil
import signal
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asrgate.backends import Variant
from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness import record
from asrgate.harness.corpus.audio import dithered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.corpus.sample_cache import Decoded
from asrgate.harness.metrics import normalizers
from asrgate.harness.runner import dispatch, journal, resume, warm_up
from asrgate.harness.runner.cluster import coordinator
from asrgate.harness.runner.plan import RAY, Plan, blank_record, now
from asrgate.harness.runner.progress import Progress
from asrgate.harness.scenarios import registry, server
from asrgate.harness.scoring import cache_probes, gate, machines, score, timed_samples
from asrgate.harness.worker import meters, process_tree
from asrgate.harness.worker.client import Worker, WorkerError

WARMUP_SECONDS = 30.0  # one whole window
WARMUP_SEED = 1_000_000  # added to the run's
COMPANION_SEED = 2_000_000  # added to the probes': none of them has it
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
        kept: what the journal holds of a run that is gone on with; it must be of the same plan.

    The record is saved to `folder`/run.json after every round, so that whatever ends the run early leaves
    what was measured. A failing engine becomes an error in its own row. Ctrl-C, SIGTERM or SIGHUP ends the
    run with a record marked as interrupted.

    Raises:
        RecordError: the record cannot be written (disk full, folder not writable).
    """
    return _Session(plan, run_id, folder, progress, kept).run()


class _Session:
    def __init__(
        self, plan: Plan, run_id: str, folder: Path, progress: Progress, kept: journal.Kept | None = None
    ):
        self.plan = plan
        self.folder = folder
        self.progress = progress
        self.workers: dict[str, Worker] = {}
        self.record = blank_record(plan, run_id)
        self.rows = {row["variant"]: row for row in self.record["results"]}
        self.sitting = len(kept.sittings) if kept else 0
        self.failed = set(kept.failures) if kept else set()
        # a server's latencies are those of whole sessions: half a one is nothing to go on with
        self.journal = self._begin(kept) if plan.texts and plan.server is None else None
        self.done = resume.restore(self.record, kept) if kept else set()
        self.normalize = normalizers.normalizer(plan.normalizer)
        self.server: server.Server | None = None  # of the server scenario, once its clips are decoded

    def run(self) -> record.Run:
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        is_local = self.plan.executor != RAY  # actors' processes are Ray's to keep and to end
        before = process_tree.own_children()
        with process_tree.subreaper() if is_local else contextlib.nullcontext():
            try:
                with _termination_as_interrupt():
                    if is_local:
                        self._measure(logs)
                    else:
                        self._measure_on_cluster()
                    self.record["complete"] = True
            except KeyboardInterrupt:
                self.record["interrupted"] = "stopped by the user (Ctrl-C or a termination signal)"
            finally:
                # From here on a second Ctrl-C must not lose what the first one saved.
                with _interrupts_ignored():
                    for worker in self.workers.values():
                        worker.stop()
                    if is_local:
                        process_tree.kill_strays(before)
                    self.progress.close()
                    self._finish()
        if not self.plan.texts:
            shutil.rmtree(logs, ignore_errors=True)  # engines may print what they heard
        for log in logs.glob("*.log"):
            if log.stat().st_size == 0:
                log.unlink()
        with contextlib.suppress(OSError):
            logs.rmdir()
        return self.record

    def _measure(self, logs: Path) -> None:
        self.progress.note(f"preparing {len(self.plan.clips)} clips")
        audio = Decoded(self.plan.clips)
        warmup = self._warmup_clip(audio)
        for variant in self.plan.variants:
            if str(variant) not in self.failed:
                self._start(variant, logs, warmup)
        strangers = meters.foreign_gpu_pids([worker.pid for worker in self.workers.values()])
        if strangers and any(worker.variant.device == "cuda" for worker in self.workers.values()):
            pids = ", ".join(map(str, strangers))
            self.record["warnings"].append(f"other processes are using the GPU ({pids}): times are disturbed")
        self._save()
        seed = secrets.randbits(32)  # now that the engines are loaded, so that none of them can know it
        copies = cache_probes.prepare(self.plan.clips, audio, seed)
        if self.plan.server is not None:
            self.server = server.Server(
                self.plan.server, self.plan.clips, audio, self.plan.seed, self.progress.stage
            )
        in_round = len(audio) if self.plan.server is None else self.plan.server.requests
        calls = len(self.workers) * (self.plan.rounds * in_round + 2 * len(copies))
        self.progress.start(calls)
        names = [str(variant) for variant in self.plan.variants]
        finished = {entry["round"] for entry in self.record["rounds"]}
        self.progress.advance(len(self.done))
        for number in sorted(set(range(self.plan.rounds)) - finished):
            shift = number % max(len(names), 1)
            order = [name for name in names[shift:] + names[:shift] if name in self.workers]
            self._round(number, order, audio)
            self._save()
        for name in names:
            with self._turn(name, "checking its answers") as worker:
                if worker is not None:
                    self.progress.stage(name, "checking for cached and late answers")
                    prober = dispatch.prober(self.plan, worker, copies, audio, seed + COMPANION_SEED)
                    found = cache_probes.run(prober, copies, self.normalize)
                    self.progress.advance(2 * len(copies))
                    self.rows[name]["integrity"] = {"probes": found}
                    self._collect_resources(worker)

    def _start(self, variant: Variant, logs: Path, warmup: np.ndarray) -> None:
        name = str(variant)
        row = self.rows[name]
        self.progress.note(f"loading {name}")
        log = logs / f"{name.replace('/', '_')}.log"
        plan = self.plan
        worker = self.workers[name] = Worker(
            variant,
            log,
            plan.settings.threads,
            plan.timeout_seconds,
            quote_log=plan.texts,
            denied=[*plan.denied, self.folder],
        )
        with self._turn(name, "loading"):
            warm_up.load(
                worker,
                plan.checkpoint,
                plan.settings,
                warmup,
                self._language(),
                plan.warmup,
                said=lambda text: self.progress.note(f"{name}: {text}"),
                row=row,
            )
            row["status"], row["error"] = "ok", None

    def _measure_on_cluster(self) -> None:
        warmup = self._warmup_clip(Decoded(self.plan.clips, kept_bytes=0))
        keeping = coordinator.Keeping(
            plan=self.plan,
            record=self.record,
            progress=self.progress,
            failed=self.failed,
            done=self.done,
            warmup=warmup,
            language=self._language(),
            answered=self._answered,
            failure=self._failed,
            round_over=self._round_over,
            noted=lambda kind, value: None if self.journal is None else self.journal.add(kind, value),
            save=self._save,
        )
        coordinator.measure(keeping)

    def _round(self, number: int, order: list[str], audio: Mapping[str, np.ndarray]) -> None:
        load = meters.LoadMonitor([worker.pid for worker in self.workers.values()])
        for name in order:
            with self._turn(name, "measuring") as worker:
                if worker is None:
                    continue
                if self.server is not None:
                    sessions = self.rows[name]["sessions"]
                    for request in self.server.measure(worker, number, sessions.append):
                        self._answered(name, number, request.clip, request.answer, request.timing)
                    continue
                for place, batch in enumerate(registry.batches(self.plan.clips, worker.variant)):
                    missing = [c for c in batch.clips if (name, number, c.name) not in self.done]
                    if not missing:
                        continue
                    self.progress.stage(name, f"round {number + 1}/{self.plan.rounds}", missing[0].name)
                    what = f"answering clip {', '.join(clip.name for clip in batch.clips)}"
                    answers = dispatch.call(self.plan, worker, batch, audio, what)
                    for clip, answer in zip(batch.clips, answers, strict=True):
                        if clip not in missing:
                            continue
                        beside = dispatch.beside(self.plan, place, answer)
                        self._answered(name, number, clip, answer, beside)
        self._round_over({"round": number, "order": order, **load.finish()})

    def _round_over(self, entry: dict[str, Any]) -> None:
        entry = entry | self._of_sitting()
        self.record["rounds"].append(entry)
        if self.journal is not None:
            self.journal.add("round", entry)
            self.journal.sync()

    def _begin(self, kept: journal.Kept | None) -> journal.Journal:
        opened = journal.Journal(self.folder, kept.size_bytes if kept else 0)
        if kept is None:
            head = {name: self.record[name] for name in ("run_id", "started_at")}
            plan = resume.fingerprint(self.record)
            opened.add("plan", plan, journal_version=journal.VERSION, argv=self.plan.command[1:], **head)
        opened.add("sitting", {name: self.record[name] for name in ("host", "versions")})
        opened.sync()
        return opened

    def _answered(
        self, name: str, number: int, clip: Clip, answer: dict[str, Any], beside: dict[str, Any]
    ) -> None:
        """Keep an answer as a sample, with what the scenario or the executor tells beside."""
        sample = _sample(clip, number, answer) | beside
        if self.journal is not None:
            self.journal.add("sample", sample | {"sitting": self.sitting}, variant=name)
        self.rows[name]["samples"].append(sample | self._of_sitting())
        self.progress.answered(name, clip.name, number, answer["wall_seconds"], answer["error"])

    def _of_sitting(self) -> dict[str, int]:
        return {"sitting": self.sitting} if "sittings" in self.record else {}

    @contextlib.contextmanager
    def _turn(self, name: str, doing: str) -> Iterator[Worker | None]:
        """Give one worker the machine; a WorkerError inside becomes its row's error and ends the worker."""
        worker = self.workers.get(name)
        if worker is None:
            yield None
            return
        before = process_tree.own_children()
        worker.resume()
        try:
            yield worker
            worker.pause()
            strays = process_tree.kill_strays([*before, worker.pid])
            if strays:
                raise WorkerError(
                    f"processes that it had sent away while {doing} would have gone on beside the others "
                    f"({len(strays)} of them); stopped"
                )
        except WorkerError as error:
            worker.stop()
            process_tree.kill_strays(before)
            del self.workers[name]
            self._failed(name, doing, error)

    def _failed(self, name: str, doing: str, error: WorkerError) -> None:
        self.failed.add(name)
        row = self.rows[name]
        row["status"] = "unavailable" if error.unavailable else "error"
        row["error"], row["remedy"] = str(error), error.remedy
        if self.journal is not None:
            failure = {name: row[name] for name in ("status", "error", "remedy")}
            self.journal.add("failure", failure, variant=row["variant"])
        self.progress.failed(name, doing, str(error))

    def _warmup_clip(self, audio: Mapping[str, np.ndarray]) -> np.ndarray:
        """Speech-like sound that is none of the clips: nothing learned from it helps a measured call."""
        middle = sorted(self.plan.clips, key=lambda clip: clip.audio_seconds)[len(self.plan.clips) // 2]
        samples = audio[middle.name][: int(WARMUP_SECONDS * SAMPLE_RATE_HZ)]
        return dithered(np.ascontiguousarray(samples[::-1]), self.plan.seed + WARMUP_SEED)

    def _language(self) -> str:
        return self.plan.settings.language or self.plan.clips[0].language

    def _collect_resources(self, worker: Worker) -> None:
        row = self.rows[str(worker.variant)]
        found = worker.resources()
        row["resources"].update(found)
        row["resources"]["peak_vram_process_bytes"] = meters.process_vram_bytes(worker.pid)

    def _save(self) -> None:
        stored = self.record if self.plan.texts else record.without_texts(self.record)
        # integrity is filled only when its last part is known
        record.write(_without_partial_integrity(stored), self.folder / "run.json")

    def _finish(self) -> None:
        if "sittings" in self.record:
            self.record["sittings"][-1]["finished_at"] = now()
            timed_samples.settle(self.record)
        machines.settle(self.record)
        for row in self.record["results"]:
            if row["integrity"] is not None:
                row["integrity"] = cache_probes.summarise(
                    row["integrity"]["probes"],
                    [sample for sample in row["samples"] if sample.get("timed", True)],
                )
            spent = [s["cpu_seconds"] for s in row["samples"] if s["cpu_seconds"] is not None]
            row["resources"]["cpu_seconds"] = sum(spent) if spent else None
        self.record["warnings"] += list(_disturbances(self.record))
        self.record["finished_at"] = now()
        score.score(self.record, self.plan.normalizer, also=self.plan.also_normalizers)
        gate.judge(self.record)
        self._save()
        if self.journal is None:
            return
        if self.record["complete"]:
            self.journal.remove()
        else:
            self.journal.sync()
            self.journal.close()


def _sample(clip: Clip, number: int, answer: dict[str, Any]) -> dict[str, Any]:
    text, tokens = answer["text"], answer["tokens"]
    return {
        "clip": clip.name,
        "round": number,
        "wall_seconds": answer["wall_seconds"],
        "worker_seconds": answer["worker_seconds"],
        "cpu_seconds": answer["cpu_seconds"],
        "late_work_seconds": answer["late_work_seconds"],
        "stage_seconds": answer["stage_seconds"],
        "text": text,
        "text_sha256": None if text is None else record.text_sha256(text),
        "text_words": None,
        "tokens": tokens,
        "token_count": None if tokens is None else len(tokens),
        "error": answer["error"],
    }


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
                f"between {'requests' if 'sessions' in row else 'rounds'} (interquartile range over median)"
            )


def _without_partial_integrity(run: record.Run) -> record.Run:
    rows = [
        row | {"integrity": None} if row["integrity"] and len(row["integrity"]) < 3 else row
        for row in run["results"]
    ]
    return run | {"results": rows}


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup has the run outlive its terminal
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
