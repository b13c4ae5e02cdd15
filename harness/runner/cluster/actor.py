"""One actor of a cluster: a share of one machine, with a worker per variant, one of them busy at a time.

An actor lives in a process of its own, started by runner.cluster.connect; it measures with the same workers,
in turns, as a run on one machine does. Nothing here knows how it is reached. Everything it is given and
gives back is plain data.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np

from asrgate.backends import Variant
from asrgate.backends.base import Checkpoint, Settings
from asrgate.backends.checkpoints.cache import cache_dir, locked, temporary_beside
from asrgate.backends.checkpoints.catalog import CheckpointError
from asrgate.backends.checkpoints.sha256 import file_sha256, hash_now
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.corpus.sample_cache import Altered
from asrgate.harness.metrics import normalizers
from asrgate.harness.runner import warm_up
from asrgate.harness.runner.cluster import node_slot
from asrgate.harness.scenarios.batches import CallProber
from asrgate.harness.scoring import cache_probes
from asrgate.harness.worker import client, environment, meters
from asrgate.harness.worker.client import Worker, WorkerError

LOAD_FIGURES = ("import_seconds", "load_seconds", "first_call_seconds", "warm_call_seconds")
# What an actor asks for before it can do what it was asked to.
LACKS_WEIGHTS, LACKS_AUDIO, LACKS_ENGINES = "weights", "audio", "engines"


@dataclass(frozen=True)
class Job:
    """What every actor of a run is to measure with.

    Attributes:
        warmup: float32 samples, shape (samples,), of the warm-up clip.
        warmup_calls: how often each engine answers it.
        models: of a run of several, by the names that its variants have; empty if `checkpoint` is all.
        language: of the warm-up clip.
        quote_log: may messages quote what an engine printed?
        denied: what engines must not read or write, where it is on the actor's machine too.
    """

    variants: Sequence[Variant]
    checkpoint: Checkpoint
    settings: Settings
    timeout_seconds: float
    warmup: np.ndarray
    warmup_calls: int
    language: str
    normalizer: str
    quote_log: bool
    models: Mapping[str, Checkpoint] = field(default_factory=dict)
    denied: Sequence[Path] = ()

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """What engines load, by the models of variants."""
        return self.models or {"": self.checkpoint}


class Actor:
    """The engines of a run on a share of one machine. Methods return `lacks` where something is missing."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._workers: dict[str, Worker] = {}
        self._is_open = False
        self._facts: dict[str, Any] | None = None
        self._lock: IO[str] | None = None
        self._folder = Path()
        self._cores: list[int] | None = None

    def begin(self, job: Job) -> dict[str, Any]:
        """Take the job and a share of the machine; return what that is.

        Returns:
            `machine`, the same for actors of one machine (never recorded: it holds a name); `host` and
            `versions` as in the record; `shares_cores`, whether the machine has no cores left to this actor.

        Raises:
            OSError: the folder for temporary files cannot be written.
        """
        self._job = job
        if self._facts is None:
            found = {
                "host": environment.describe(),
                "versions": environment.versions(),
                "machine": node_slot.machine(),
            }
            self._lock, self._folder, number = node_slot.claim(Path(tempfile.gettempdir()))
            self._cores = node_slot.own_cores(number, job.settings.threads)
            is_known = client.pinned_cores(1) is not None
            self._facts = found | {"shares_cores": is_known and self._cores is None}
        return self._facts

    def open(self, names: Sequence[str], *weights: np.ndarray) -> dict[str, Any]:
        """Load and warm up the engines of the variants named.

        Args:
            weights: bytes of each checkpoint's file in the job's order, uint8, shape (bytes,), if the machine
                lacks a file.

        Returns:
            `lacks`, or `pids` of this process and its workers, `loads` (variant -> applied_settings and
            load, as far as it came) and `failures` (variant -> see `_failure`).

        Raises:
            CheckpointError: `weights` are not the run's.
        """
        job = self._job
        if job is None:
            return {"lacks": LACKS_ENGINES}
        here: dict[str, Checkpoint] = {}
        for (model, wanted), sent in zip_longest(job.checkpoints.items(), weights):
            found = wanted if wanted.is_of_engine else _on_this_machine(wanted, sent)
            if found is None:
                return {"lacks": LACKS_WEIGHTS}
            here[model] = found
        self._stop()
        loads: dict[str, Any] = {}
        failures: dict[str, dict[str, Any]] = {}
        for number, variant in enumerate(job.variants):
            name = str(variant)
            if name not in names:
                continue
            log = self._folder / f"{number}.log"
            with node_slot.pinned(self._cores):
                self._workers[name] = Worker(
                    variant, log, job.settings.threads, job.timeout_seconds, job.quote_log, denied=job.denied
                )
            loads[name] = {"applied_settings": None, "isolation": None, "load": dict.fromkeys(LOAD_FIGURES)}
            with self._turn(name, failures) as worker:
                warm_up.load(
                    worker,
                    here[variant.model],
                    job.settings,
                    job.warmup,
                    job.language,
                    job.warmup_calls,
                    said=lambda _: None,
                    row=loads[name],
                )
        self._is_open = True
        return {"pids": self._pids(), "loads": loads, "failures": failures}

    def measure(
        self,
        order: Sequence[str],
        clips: Sequence[Clip],
        neighbours: Sequence[int],
        seed: tuple[int, int],
        samples: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """Have every variant answer all clips once, one variant after the other.

        Args:
            order: of the variants.
            neighbours: processes of the run's other actors on this machine.
            seed: of altered copies, and the number of the round; the first round has the clips themselves.
            samples: clip name -> its samples, if the machine lacks the files.

        Returns:
            `lacks`, or `answers` (variant -> one a clip, fewer if it failed), `failures`, `load` as
            probes.LoadMonitor gives it and `wall_seconds`, the time it is of.

        Raises:
            AudioError: a file is not what it was when the run began.
        """
        if not self._is_open:
            return {"lacks": LACKS_ENGINES}
        if samples is None and not all(clip.path.exists() for clip in clips):
            return {"lacks": LACKS_AUDIO}
        answers: dict[str, list[dict[str, Any]]] = {}
        failures: dict[str, dict[str, Any]] = {}
        heard: Mapping[str, np.ndarray] = {
            clip.name: clip.samples() if samples is None else samples[clip.name] for clip in clips
        }
        if seed[1]:
            heard = dict(Altered(heard, seed))
        started = time.monotonic()
        load = meters.LoadMonitor([*self._pids(), *neighbours])
        for name in order:
            if name not in self._workers:
                continue  # it failed here before, and the answer that says so is on its way
            answers[name] = []
            with self._turn(name, failures) as worker:
                for clip in clips:
                    what = f"answering clip {clip.name}"
                    answers[name].append(worker.call(heard[clip.name], clip.call_language, what))
        return {
            "answers": answers,
            "failures": failures,
            "load": load.finish(),
            "wall_seconds": time.monotonic() - started,
        }

    def probe(self, names: Sequence[str], copies: Sequence[cache_probes.Probe]) -> dict[str, Any]:
        """Put the probes to each variant; return `probes` (variant -> record entries) and `failures`.

        Each clip is answered once more before: it may have been measured at another actor, and only what
        an engine was given can be in its cache.
        """
        if self._job is None or not self._is_open:
            return {"lacks": LACKS_ENGINES}
        found: dict[str, Any] = {}
        failures: dict[str, dict[str, Any]] = {}
        normalize = normalizers.normalizer(self._job.normalizer)
        for name in names:
            if name not in self._workers:
                continue
            with self._turn(name, failures) as worker:
                for copy in copies:
                    worker.call(copy.seen, copy.clip.call_language, f"answering clip {copy.clip.name}")
                found[name] = cache_probes.run(CallProber(worker), copies, normalize)
        return {"probes": found, "failures": failures}

    def resources(self) -> dict[str, Any]:
        """Return `resources` (variant -> as in the record, of this actor) and `failures`."""
        found: dict[str, Any] = {}
        failures: dict[str, dict[str, Any]] = {}
        for name in list(self._workers):
            with self._turn(name, failures) as worker:
                told = worker.resources()
                found[name] = told | {"peak_vram_process_bytes": meters.process_vram_bytes(worker.pid)}
        return {"resources": found, "failures": failures}

    def close(self) -> None:
        """End the workers and leave nothing on the machine's disk."""
        self._stop()
        if self._lock is not None:
            node_slot.empty(self._folder)
            self._lock.close()
            self._lock = self._facts = None

    def _stop(self) -> None:
        self._is_open = False
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def _pids(self) -> list[int]:
        return [os.getpid(), *(worker.pid for worker in self._workers.values())]

    @contextlib.contextmanager
    def _turn(self, name: str, failures: dict[str, dict[str, Any]]) -> Iterator[Worker]:
        """Give one worker the actor; a WorkerError inside is put into `failures` and ends the worker."""
        worker = self._workers[name]
        worker.resume()
        try:
            yield worker
            worker.pause()
        except WorkerError as error:
            failures[name] = _failure(error)
            worker.stop()
            del self._workers[name]


def _failure(error: WorkerError) -> dict[str, Any]:
    """Return a WorkerError as the arguments of another."""
    return {
        "message": str(error),
        "unavailable": error.unavailable,
        "remedy": error.remedy,
        "killed_by": error.killed_by,
    }


def _on_this_machine(wanted: Checkpoint, weights: np.ndarray | None) -> Checkpoint | None:
    """Return the checkpoint where its file is here: at its path, in the cache, or now written from `weights`.

    Raises:
        CheckpointError: `weights` are not its bytes, or cannot be written.
    """
    cached = cache_dir() / "weights" / f"{wanted.sha256}.pt"
    for path in (wanted.path, cached):
        if path.is_file() and file_sha256(path) == wanted.sha256:
            return replace(wanted, path=path)
    if weights is None:
        return None
    with locked(cached):
        temporary = temporary_beside(cached)
        try:
            weights.tofile(temporary)
            if hash_now(temporary) != wanted.sha256:
                raise CheckpointError(f"the weights that were sent are not those of {wanted.name}; run again")
            os.replace(temporary, cached)
        except OSError as error:
            raise CheckpointError(f"cannot write {cached}: {error.strerror}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return replace(wanted, path=cached)
