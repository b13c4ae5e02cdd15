"""The parent's side of one worker process: starts it, sends requests, and describes how it died."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from asrgate.backends import Variant, child_process, temporary
from asrgate.backends.base import BEYOND_END_SECONDS, SAMPLE_RATE_HZ, Checkpoint, Settings
from asrgate.harness.worker import messages
from asrgate.harness.worker.messages import Channel, Ended, MessageError, Samples
from asrgate.harness.worker.process_tree import ProcessTree
from asrgate.harness.worker.spoken import Spoken

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

    def __init__(
        self,
        message: str,
        unavailable: bool = False,
        remedy: str | None = None,
        killed_by: str | None = None,
    ):
        super().__init__(message)
        self.unavailable = unavailable
        self.remedy = remedy
        self.killed_by = killed_by  # name of the signal that ended the worker, if one did


class Worker:
    """One engine in one process, which is paused when it is not its turn."""

    def __init__(
        self,
        variant: Variant,
        log_path: Path,
        threads: int,
        timeout_seconds: float,
        quote_log: bool = True,
        denied: Sequence[Path] = (),
    ):
        """Start the process.

        Args:
            quote_log: may messages quote what the engine printed? It may have printed what it heard.
            denied: files and folders that the engine must neither read nor write, where the system can see
                to that: the manifest, the clips and their texts, the results.
        """
        self.variant = variant
        self.timeout_seconds = timeout_seconds
        self._log_path = log_path
        self._quote_log = quote_log
        ours, theirs = socket.socketpair()
        environment = child_process.environment()
        inductor = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"  # torch's own default
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(inductor))  # its TMPDIR goes with the worker
        # in one folder of all workers: none can look into another's, and what is left of them is found by it
        self._private = environment["TMPDIR"] = tempfile.mkdtemp(dir=temporary.of_process())
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
        self._cores: list[int] | None = None  # that the worker may use; None: it is not pinned
        if cores is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self._process.pid, cores)
                self._cores = cores
        theirs.close()
        pidfd = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else -1
        self._channel = Channel(ours, lambda: self._process.poll() is not None, pidfd)
        self._paused = False
        self.isolation: dict[str, Any] | None = None  # as the worker said before any engine code ran
        self._tree = ProcessTree(self._process.pid)
        self._usage = _Usage()
        self._denied = [str(path.absolute()) for path in denied]
        self._denied.append(str(temporary.of_process()))

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
        """Shut the worker in and load the engine; return the times of both, and applied_settings.

        Args:
            said: called with each line that the backend logs to backends.base.LOAD_LOG while it loads; if
                None, lines are printed to stderr.

        Raises:
            WorkerError: the backend refused, or the worker died or hung.
        """
        try:
            return self._load(checkpoint, settings, said)
        finally:
            self._usage = _Usage(self._tree.cpu_seconds(), time.monotonic())

    def _load(
        self, checkpoint: Checkpoint, settings: Settings, said: Callable[[str], None] | None
    ) -> dict[str, Any]:
        self._send(do="isolate", denied=self._denied, private=self._private)
        reply = self._expect("isolated", "shutting itself in")
        with self._parsing("shutting itself in"):
            self.isolation = messages.isolation(reply.get("isolation"))
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
            text = messages.error_text(reply.get("text"))
            if said is None:
                print(f"{self.variant}: {text}", file=sys.stderr)
            else:
                said(text)
        if reply["event"] == "refused":
            raise _refusal(reply)
        with self._parsing("loading"):
            return {
                "import_seconds": messages.seconds(reply.get("import_seconds"), "importing"),
                "load_seconds": messages.seconds(reply.get("load_seconds"), "loading"),
                "applied_settings": messages.settings(reply.get("applied_settings")),
            }

    def call(self, samples: np.ndarray, language: str, what: str) -> dict[str, Any]:
        """Have one clip transcribed; return the answer with its times and the late work.

        Args:
            samples: float32, shape (samples,), mono, 16 kHz.
            what: how messages name the clip.

        Raises:
            WorkerError: the worker died or hung. An engine's exception is an answer with `error` set.
        """
        return self._prepared([samples], language, what)

    def call_words(self, samples: np.ndarray, language: str, what: str) -> dict[str, Any]:
        """As `call`, by the engine's `transcribe_words`; the answer has its `words`, see messages.words.

        Raises:
            WorkerError: the worker died or hung, or a word has no time of this clip.
        """
        with Samples([samples]) as ready:
            self._send(do="prepare")
            self._expect("ready", what)
            start = time.perf_counter_ns()
            self._send(ready, do="words", language=language)
            reply = self._expect("answer", what)
            wall_seconds = (time.perf_counter_ns() - start) * 1e-9
        with self._parsing(what):
            answer = messages.answer(reply)
            last_seconds = len(samples) / SAMPLE_RATE_HZ + BEYOND_END_SECONDS
            words = messages.words(reply, last_seconds) if answer["error"] is None else []
        self.settle(what)
        return answer | {"words": words, "wall_seconds": wall_seconds}

    def call_batch(self, clips: Sequence[np.ndarray], language: str, what: str) -> list[dict[str, Any]]:
        """Have clips transcribed together; return one answer per clip, each with its even share of the times.

        A batch that failed is one failed answer per clip. Stages are left out: a batch shares them.

        Args:
            clips: each one's samples, as `call` takes them.
            what: how messages name the batch.

        Raises:
            WorkerError: the worker died or hung.
        """
        whole = self._prepared(clips, language, what, together=True)
        times = {name: value for name, value in whole.items() if name.endswith("_seconds")}
        shares = {n: None if t is None else t / len(clips) for n, t in times.items() if n != "stage_seconds"}
        failed = {"text": None, "tokens": None, "error": whole["error"]}
        answers = whole.get("answers") or [failed] * len(clips)
        return [answer | shares | {"stage_seconds": {}} for answer in answers]

    def request(self, ready: Samples, language: str, what: str) -> dict[str, Any]:
        """As `call`, in a session of many calls: no garbage is collected before, late work is not waited for.

        The garbage collector runs as in any server. `settle` looks for late work when there is time.

        Args:
            ready: one clip, made ready before its turn: that would take up to some ms of the session.

        Raises:
            WorkerError: the worker died or hung.
        """
        return self._timed(ready, language, what, together=False) | {"late_work_seconds": None}

    def settle(self, what: str) -> float:
        """Wait until the worker is idle; return for how many seconds it worked on after its last answer.

        Raises:
            WorkerError: the worker died or hung.
        """
        self._send(do="settle")
        reply = self._expect("settled", what)
        with self._parsing(what):
            return messages.seconds(reply.get("late_work_seconds"), "late work")

    def _prepared(
        self, clips: Sequence[np.ndarray], language: str, what: str, together: bool = False
    ) -> dict[str, Any]:
        with Samples(clips) as ready:
            self._send(do="prepare")
            self._expect("ready", what)
            answer = self._timed(ready, language, what, together)
        return answer | {"late_work_seconds": self.settle(what)}

    def _timed(self, ready: Samples, language: str, what: str, together: bool) -> dict[str, Any]:
        """Hand over clips and wait for their answer. The time between is the call's; no other clock is."""
        cpu_seconds = self._tree.cpu_seconds()
        start = time.perf_counter_ns()
        self._send(ready, do="batch" if together else "call", language=language)
        reply = self._expect("answer", what, most_bytes=messages.LARGEST_BYTES * len(ready.counts))
        wall_seconds = (time.perf_counter_ns() - start) * 1e-9
        cpu_seconds = self._tree.cpu_seconds() - cpu_seconds
        self._usage.add_call(wall_seconds, cpu_seconds)
        with self._parsing(what):
            if together and reply.get("error") is None:
                answers = reply.get("answers")
                if not isinstance(answers, list) or len(answers) != len(ready.counts):
                    raise MessageError(f"answers that are not one for each of {len(ready.counts)} clips")
                found: dict[str, Any] = {
                    "answers": [messages.answer(each) for each in answers],
                    "error": None,
                }
            else:
                found = messages.answer(reply)
            return found | _times(reply, wall_seconds, cpu_seconds)

    def stream(
        self, samples: np.ndarray, language: str, what: str, chunk_seconds: float, is_paced: bool
    ) -> dict[str, Any]:
        """As `call`, the clip handed over in chunks; what comes later is not in the worker before.

        Args:
            is_paced: a chunk is handed over when its last sample would have been spoken, not at once.

        Returns:
            the answer, and `partials`: the texts before it, each with `seconds` since the first sample,
            `audio_seconds` handed over by then, and `text`; `first_text_seconds`, None where no text came;
            `final_latency_seconds` from the end of the audio to the end of the stream; `busy_seconds`, in
            which the engine did not wait for audio. All are the parent's times.

        Raises:
            WorkerError: the worker died or hung.
        """
        self._send(do="prepare")
        self._expect("ready", what)
        cpu_seconds = self._tree.cpu_seconds()
        feed = Spoken(samples, chunk_seconds, is_paced)
        self._send(do="stream", language=language)
        while (reply := self._receive(what))["event"] != "answer":
            with self._parsing(what):
                if reply["event"] == "partial":
                    feed.heard(messages.clean_text(reply.get("text"), "the text"))
                elif reply["event"] in ("next", "spoken"):
                    chunk = feed.next_chunk(all_so_far=reply["event"] == "spoken")
                    with Samples([chunk]) as ready:
                        self._send(ready, do="chunk", is_last=feed.is_over)
                else:
                    raise MessageError(f"{reply['event']!r} in a stream")
        wall_seconds = feed.now_seconds
        cpu_seconds = self._tree.cpu_seconds() - cpu_seconds
        self._usage.add_call(wall_seconds, cpu_seconds)
        with self._parsing(what):
            answer = messages.answer(reply) | _times(reply, wall_seconds, cpu_seconds)
        if answer["error"] is None:
            if not feed.is_over:
                answer |= {"text": None, "tokens": None, "error": feed.complaint()}
            else:
                answer |= feed.figures(wall_seconds, answer["text"])
        return answer | {"late_work_seconds": self.settle(what)}

    def resources(self) -> dict[str, Any]:
        """Return the worker's peaks and totals so far.

        What it used outside its calls, since it was loaded, is the parent's own count:
        `outside_cpu_seconds` of the worker and all that it started, in `outside_wall_seconds` in which it was
        not paused, beside `calls` that took `calls_cpu_seconds`.
        """
        usage = self._usage.as_dict(self._tree.cpu_seconds(), time.monotonic())
        self._send(do="resources")
        what = "reporting its resources"
        reply = self._expect("resources", what)
        with self._parsing(what):
            source = reply.get("energy_source")
            return {
                "peak_rss_bytes": messages.count(reply.get("peak_rss_bytes"), "memory"),
                "peak_vram_allocator_bytes": messages.count(reply.get("peak_vram_allocator_bytes"), "memory"),
                "energy_joules": messages.optional_seconds(reply.get("energy_joules"), "energy"),
                "energy_source": None
                if source is None
                else messages.clean_text(source, "energy's source", 200),
                **usage,
            }

    def examine(self, method: str, samples: np.ndarray, what: str, **arguments: Any) -> dict[str, Any]:
        """Call one of the methods that worker.introspect knows on the backend; return its answer.

        Raises:
            WorkerError: the backend raised, or the worker died or hung.
        """
        with Samples([samples]) as ready:
            self._send(ready, do="examine", method=method, **arguments)
        reply = self._expect("examined", what)
        if reply.get("error") is not None:
            raise _refusal(reply)
        return reply

    def pause(self) -> None:
        """Stop the process and all that it started until resume(): only one worker may use the machine.

        Raises:
            WorkerError: one of its threads may use other cores than it was given.
        """
        if not self._paused:
            self._tree.pause()
            self._paused = True
            self._usage.paused(time.monotonic())
            others = set() if self._cores is None else self._tree.affinity() - set(self._cores)
            if others:
                raise WorkerError(
                    f"it may use the cores {_numbers(others)} although it was given only "
                    f"{_numbers(self._cores or [])} (--threads); its times would be those of more cores"
                )

    def resume(self) -> None:
        """Let a paused process continue."""
        if self._paused:
            self._tree.resume()
            self._paused = False
            self._usage.resumed(time.monotonic())

    def stop(self) -> None:
        """End the process and every child it started. Safe to call at any time, more than once."""
        self._channel.close()
        self._tree.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        shutil.rmtree(self._private, ignore_errors=True)

    def _last_words(self, characters: int = 300) -> str:
        """Return the last line that the worker printed, or "" if it printed nothing."""
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[-1][-characters:] if lines else ""
        return ""

    def _send(self, clips: Samples | None = None, **message: Any) -> None:
        try:
            self._channel.send(message, clips)
        except OSError as error:
            raise self._death("starting a call") from error

    def _expect(self, event: str, what: str, most_bytes: int = messages.LARGEST_BYTES) -> dict[str, Any]:
        reply = self._receive(what, most_bytes)
        if reply["event"] != event:
            with self._parsing(what):
                raise MessageError(f"{reply['event']!r} where {event!r} was due")
        return reply

    def _receive(self, what: str, most_bytes: int = messages.LARGEST_BYTES) -> dict[str, Any]:
        """Return the next message; what breaks the protocol ends the worker."""
        with self._parsing(what):
            try:
                message = self._channel.receive(self.timeout_seconds, most_bytes)
            except TimeoutError as error:
                self.stop()
                raise WorkerError(
                    f"no answer within {self.timeout_seconds:g} s while {what}; stopped "
                    "(--timeout raises the limit)"
                ) from error
            except (Ended, OSError) as error:
                raise self._death(what) from error
            messages.event_of(message)
            return message

    @contextlib.contextmanager
    def _parsing(self, what: str) -> Iterator[None]:
        """Make a row's error of what breaks the protocol."""
        try:
            yield
        except MessageError as error:
            self.stop()
            raise WorkerError(f"the worker sent {error} while {what}") from error

    def _death(self, what: str) -> WorkerError:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return WorkerError(f"the worker closed its connection while {what}")
        said = self._last_words() if self._quote_log else ""
        last_words = f"; it last printed: {said}" if said else ""
        if code >= 0:
            return WorkerError(f"the worker exited with code {code} while {what}{last_words}")
        name = signal.Signals(-code).name
        why = {
            "SIGKILL": ": something killed it, most often the system because memory ran out",
            "SIGABRT": ": it called abort()",
            "SIGSEGV": ": it crashed on a bad memory access",
        }.get(name, "")
        return WorkerError(f"the worker was killed by {name} while {what}{why}{last_words}", killed_by=name)


@dataclass
class _Usage:
    """What a worker used since it was loaded, in its calls and outside them."""

    cpu_seconds_before: float = 0.0  # of the worker's tree, when it was loaded
    awake_since: float = 0.0  # by time.monotonic()
    awake_seconds: float = 0.0  # in turns that are over
    calls: int = 0
    calls_wall_seconds: float = 0.0
    calls_cpu_seconds: float = 0.0

    def add_call(self, wall_seconds: float, cpu_seconds: float) -> None:
        self.calls += 1
        self.calls_wall_seconds += wall_seconds
        self.calls_cpu_seconds += cpu_seconds

    def paused(self, now: float) -> None:
        self.awake_seconds += now - self.awake_since

    def resumed(self, now: float) -> None:
        self.awake_since = now

    def as_dict(self, cpu_seconds: float, now: float) -> dict[str, float]:
        """Return the record's figures, of a worker that is not paused."""
        awake_seconds = self.awake_seconds + now - self.awake_since
        return {
            "calls": self.calls,
            "calls_cpu_seconds": self.calls_cpu_seconds,
            "outside_cpu_seconds": max(0.0, cpu_seconds - self.cpu_seconds_before - self.calls_cpu_seconds),
            "outside_wall_seconds": max(0.0, awake_seconds - self.calls_wall_seconds),
        }


def _numbers(cores: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(cores)))


def _times(reply: Mapping[str, Any], wall_seconds: float, cpu_seconds: float) -> dict[str, Any]:
    return {
        "wall_seconds": wall_seconds,
        "worker_seconds": messages.seconds(reply.get("worker_seconds"), "its own clock"),
        "cpu_seconds": cpu_seconds,
    }


def _refusal(reply: Mapping[str, Any]) -> WorkerError:
    remedy = reply.get("remedy")
    return WorkerError(
        messages.error_text(reply.get("error")),
        reply.get("unavailable") is True,
        None if remedy is None else messages.error_text(remedy),
    )


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
