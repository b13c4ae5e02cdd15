"""The parent's side of one worker process: starts it, sends requests, and describes how it died."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from asrgate.backends import Variant, child_process
from asrgate.backends.base import Checkpoint, Settings

# Every thread pool that an engine may have is set to the same number of threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)

# Idle threads of these pools spin for longer than a short call takes, in case another task comes. That looks
# like work that continues after the call, and it takes the processor from the engine's other pools.
SPIN_VARIABLES = {
    "KMP_BLOCKTIME": "10",  # Intel's OpenMP, in ms; its default is 200
    "OPENBLAS_THREAD_TIMEOUT": "22",  # numpy's OpenBLAS, 2**22 ticks are 1 to 2 ms; its default is 100 ms
}


class WorkerError(Exception):
    """The worker refused, hung or died; the message becomes the row's `error`."""

    def __init__(self, message: str, unavailable: bool = False, remedy: str | None = None):
        super().__init__(message)
        self.unavailable = unavailable
        self.remedy = remedy


class Worker:
    """One engine in one process, which is paused when it is not its turn."""

    def __init__(
        self, variant: Variant, log_path: Path, threads: int, timeout_seconds: float, quote_log: bool = True
    ):
        """Start the process.

        Args:
            quote_log: whether messages may quote what the engine printed, which may include what it heard.
        """
        self.variant = variant
        self.timeout_seconds = timeout_seconds
        self._log_path = log_path
        self._quote_log = quote_log
        ours, theirs = socket.socketpair()
        environment = child_process.environment()
        environment.update(TOKENIZERS_PARALLELISM="false", PYTHONUNBUFFERED="1")
        environment.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        for name, value in SPIN_VARIABLES.items():
            environment.setdefault(name, value)
        cores = pinned_cores(threads)
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                child_process.command("asrgate.harness.worker.child", theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=log,  # an engine's output must not reach the user's stdout, which may be JSON
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C reaches only the parent; the whole group can be killed
            )
        if cores is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self._process.pid, cores)
        theirs.close()
        self._connection = Connection(ours.detach())
        self._paused = False

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def load(
        self, checkpoint: Checkpoint, settings: Settings, said: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        """Load the engine; return import_seconds, load_seconds and applied_settings.

        Args:
            said: called with each line that the backend logs to backends.base.LOAD_LOG while it loads; if
                None, lines are printed to stderr.

        Raises:
            WorkerError: the backend refused, or the worker died or hung.
        """
        spec = asdict(checkpoint) | {"path": str(checkpoint.path), "dimensions": dict(checkpoint.dimensions)}
        self._send(
            do="load",
            backend=self.variant.backend,
            device=self.variant.device,
            precision=self.variant.precision,
            checkpoint=spec,
            settings=settings.as_dict(),
        )
        while (reply := self._receive("loading"))["event"] == "said":
            if said is None:
                print(f"{self.variant}: {reply['text']}", file=sys.stderr)
            else:
                said(reply["text"])
        if reply["event"] == "refused":
            raise WorkerError(reply["error"], reply["unavailable"], reply["remedy"])
        return reply

    def call(self, audio: Path, language: str, what: str) -> dict[str, Any]:
        """Transcribe one clip; return the answer with the times of both clocks and the late work.

        Args:
            audio: .npy file of float32 samples.
            what: how messages name the clip.

        Raises:
            WorkerError: the worker died or hung. An engine's exception is an answer with `error` set.
        """
        return self._timed(what, do="call", audio=str(audio), language=language)

    def call_batch(self, audios: Sequence[Path], language: str, what: str) -> list[dict[str, Any]]:
        """Transcribe clips together; return one answer per clip, each with an equal share of the times.

        If a batch fails, each clip gets a failed answer. Stages are left out, because a batch shares them.

        Args:
            audios: .npy files of float32 samples.
            what: how messages name the batch.

        Raises:
            WorkerError: the worker died or hung.
        """
        whole = self._timed(what, do="batch", audios=[str(path) for path in audios], language=language)
        times = {name: value for name, value in whole.items() if name.endswith("_seconds")}
        shares = {n: None if t is None else t / len(audios) for n, t in times.items() if n != "stage_seconds"}
        failed = {"text": None, "tokens": None, "error": whole["error"]}
        answers = whole.get("answers") or [failed] * len(audios)
        return [answer | shares | {"stage_seconds": {}} for answer in answers]

    def events(
        self, what: str, waiting_seconds: float, **message: Any
    ) -> Iterator[tuple[float, dict[str, Any]]]:
        """Run a session; yield each of its events with the seconds since its start on our clock.

        Args:
            what: how messages name the session.
            waiting_seconds: how long it may be silent beyond the timeout of a call because nothing is due.
            message: the request to asrgate.harness.worker.child.

        Raises:
            WorkerError: the worker died or hung.
        """
        self._send(**message)
        self._receive(what)
        start = time.perf_counter_ns()
        self._send(do="go")
        while (event := self._receive(what, waiting_seconds))["event"] != "over":
            yield (time.perf_counter_ns() - start) * 1e-9, event

    def stream(
        self, audio: Path, language: str, what: str, chunk_seconds: float, audio_seconds: float | None
    ) -> dict[str, Any]:
        """As `call`, but in chunks; the answer has what streaming_session.listen adds.

        Args:
            audio_seconds: length of the clip, which takes that long to speak; None to hand it over at once.

        Raises:
            WorkerError: the worker died or hung.
        """
        return self._timed(
            what,
            waiting_seconds=audio_seconds or 0.0,
            do="stream",
            audio=str(audio),
            language=language,
            chunk_seconds=chunk_seconds,
            is_paced=audio_seconds is not None,
        )

    def _timed(self, what: str, waiting_seconds: float = 0.0, **message: Any) -> dict[str, Any]:
        self._send(**message)
        self._receive(what)
        start = time.perf_counter_ns()
        self._send(do="go")
        answer = self._receive(what, waiting_seconds)
        answer["roundtrip_seconds"] = (time.perf_counter_ns() - start) * 1e-9
        answer["late_work_seconds"] = self._receive(what)["late_work_seconds"]
        return answer

    def resources(self) -> dict[str, Any]:
        """Return the worker's peaks and totals so far."""
        self._send(do="resources")
        return self._receive("reporting its resources")

    def examine(self, method: str, audio: Path, what: str, **arguments: Any) -> dict[str, Any]:
        """Call one of the methods that worker.introspect knows on the backend; return its answer.

        Raises:
            WorkerError: the backend raised, or the worker died or hung.
        """
        self._send(do="examine", method=method, audio=str(audio), **arguments)
        reply = self._receive(what)
        if reply["error"] is not None:
            raise WorkerError(reply["error"], reply["unavailable"], reply["remedy"])
        return reply

    def pause(self) -> None:
        """Stop the process until resume(), so that only the worker whose turn it is uses the machine."""
        if not self._paused:
            self._signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Let a paused process continue."""
        if self._paused:
            self._signal(signal.SIGCONT)
            self._paused = False

    def stop(self) -> None:
        """End the process and every child that it started. Safe to call at any time and repeatedly."""
        self._connection.close()
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)

    def _last_words(self, characters: int = 300) -> str:
        """Return the last line that the worker printed, or "" if it printed nothing."""
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[-1][-characters:] if lines else ""
        return ""

    def _send(self, **message: Any) -> None:
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError as error:
            raise WorkerError(self._death("starting a call")) from error

    def _receive(self, what: str, waiting_seconds: float = 0.0) -> dict[str, Any]:
        """Return the next message; it may take `waiting_seconds` longer than the timeout."""
        try:
            if not self._connection.poll(self.timeout_seconds + waiting_seconds):
                self.stop()
                raise WorkerError(
                    f"no answer within {self.timeout_seconds:g} s while {what}, so it was stopped "
                    "(raise the limit with --timeout)"
                )
            message = json.loads(self._connection.recv_bytes(), parse_constant=float)
        except (EOFError, OSError) as error:
            raise WorkerError(self._death(what)) from error
        for name, value in _durations(message):
            # One impossible figure must only cost its own row, not make the record invalid.
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise WorkerError(f"the worker reported {value!r} seconds for {name} while {what}")
        return message

    def _death(self, what: str) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return f"the worker closed its connection while {what}"
        said = self._last_words() if self._quote_log else ""
        last_words = f"; it last printed: {said}" if said else ""
        if code >= 0:
            return f"the worker exited with code {code} while {what}{last_words}"
        name = signal.Signals(-code).name
        why = {
            "SIGKILL": ": something killed it, most often the system because memory ran out",
            "SIGABRT": ": it called abort()",
            "SIGSEGV": ": it crashed on a bad memory access",
        }.get(name, "")
        return f"the worker was killed by {name} while {what}{why}{last_words}"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _durations(message: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in message.items():
        if name.endswith("_seconds") and name != "stage_seconds":
            yield name.removesuffix("_seconds"), value
    yield from message.get("stage_seconds", {}).items()


def default_threads() -> int:
    """Return the number of physical cores that this process may use."""
    allowed = _allowed_cores()
    if allowed is None:
        return psutil.cpu_count(logical=False) or 1
    return max(1, len(set(_siblings(allowed).values())))


def pinned_cores(threads: int) -> list[int] | None:
    """Return the cores to pin a worker to, one per physical core first; None if pinning is not supported."""
    allowed = _allowed_cores()
    if allowed is None:
        return None
    siblings = _siblings(allowed)
    rank: dict[str, int] = {}
    ordered: list[tuple[int, int]] = []
    for core in allowed:
        nth = rank[siblings[core]] = rank.get(siblings[core], -1) + 1
        ordered.append((nth, core))
    return [core for _, core in sorted(ordered)][:threads]


def _allowed_cores() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _siblings(cores: Sequence[int]) -> Mapping[int, str]:
    """Map each logical core to a name for its physical core."""
    found = {}
    for core in cores:
        path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            found[core] = path.read_text().strip()
        except OSError:
            found[core] = str(core)
    return found
