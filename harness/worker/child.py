"""The child process that holds one engine, times its calls and answers its parent in JSON messages.

Started by asrgate.harness.worker.client as `python -m asrgate.harness.worker.child FD`, where FD is one
end of a socket pair.
Messages are JSON objects. The parent asks for one thing at a time:

    {"do": "load", ...}                 -> any number of {"event": "said", "text"}, then
                                           {"event": "loaded", ...} or {"event": "refused", ...}
    {"do": "call", "audio", "language"} -> {"event": "ready"}, then on {"do": "go"}:
                                           {"event": "answer", ...}, then {"event": "settled", ...}
    {"do": "batch", "audios", "language"} -> the same; the answer holds "answers", one a clip
    {"do": "serve", "audios", "languages", "arrivals_seconds", "limit_seconds"}
                                        -> {"event": "ready"}, then on {"do": "go"} the events of
                                           asrgate.harness.worker.server_session, and {"event": "over"}
    {"do": "stream", "audio", "language", "chunk_seconds", "is_paced"}
                                        -> as call; and what scenarios.streaming_session adds
    {"do": "resources"}                 -> {"event": "resources", ...}
    {"do": "examine", "method", ...}    -> {"event": "examined", ...}, see asrgate.harness.worker.introspect

Nothing here decides what a figure means: raw values go to the parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Bound before any engine is imported, so that replacing time.perf_counter_ns cannot change the clock.
_clock_ns = time.perf_counter_ns

NANOSECONDS = 1e-9


def main() -> None:
    """Serve the parent until it closes the connection."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends its workers
    connection = Connection(int(sys.argv[1]))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(connection)


def _serve(connection: Connection) -> None:
    engine = None
    while True:
        message = _receive(connection)
        match message["do"]:
            case "load":
                try:
                    with _passing_on(connection):
                        engine = _Engine(message)
                    reply = {"event": "loaded", **engine.load_report}
                except BaseException as error:
                    reply = {"event": "refused", **_describe(error)}
                _send(connection, reply)
            case "call" | "batch":
                assert engine is not None
                together = message["do"] == "batch"
                paths = message["audios"] if together else [message["audio"]]
                audios = [_read_audio(path) for path in paths]
                engine.prepare()
                _send(connection, {"event": "ready"})
                assert _receive(connection)["do"] == "go"
                answer = (engine.call_batch if together else engine.call)(
                    audios if together else audios[0], message["language"]
                )
                _send(connection, {"event": "answer", **answer})
                _send(connection, {"event": "settled", "late_work_seconds": engine.late_work_seconds()})
            case "serve":
                assert engine is not None
                known = {path: _read_audio(path) for path in dict.fromkeys(message["audios"])}
                gc.collect()
                _send(connection, {"event": "ready"})
                assert _receive(connection)["do"] == "go"
                engine.serve(message, known, lambda event: _send(connection, event))
                _send(connection, {"event": "over"})
            case "stream":
                assert engine is not None
                audio = _read_audio(message["audio"])
                engine.prepare()
                _send(connection, {"event": "ready"})
                assert _receive(connection)["do"] == "go"
                _send(connection, {"event": "answer", **engine.stream(message, audio)})
                _send(connection, {"event": "settled", "late_work_seconds": engine.late_work_seconds()})
            case "resources":
                assert engine is not None
                _send(connection, {"event": "resources", **engine.resources()})
            case "examine":
                assert engine is not None
                try:
                    from asrgate.harness.worker import introspect

                    reply = introspect.answer(engine.backend, message, _read_audio(message["audio"]))
                except Exception as error:
                    reply = _describe(error)
                _send(connection, {"event": "examined", **reply})


@contextlib.contextmanager
def _passing_on(connection: Connection) -> Iterator[None]:
    """Tell the user what a backend logs while it loads: a long compilation, for instance."""
    from asrgate.backends.base import LOAD_LOG

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _send(connection, {"event": "said", "text": record.getMessage()})

    logger, handler = logging.getLogger(LOAD_LOG), Handler(logging.INFO)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Engine:
    """A loaded backend and the meters around it."""

    def __init__(self, message: dict[str, Any]):
        started = _clock_ns()
        from asrgate import backends
        from asrgate.backends.base import REMOTE, Checkpoint, Settings

        backend_class = backends.load(message["backend"])
        device, precision = message["device"], message["precision"]
        self._is_remote = device == REMOTE
        backend_class.check(device, precision)
        for module in backend_class.imports:
            importlib.import_module(module)
        imported = _clock_ns()
        spec = dict(message["checkpoint"], path=Path(message["checkpoint"]["path"]))
        settings = Settings(**message["settings"])
        self.backend = backend_class.load(Checkpoint(**spec), device, precision, settings)
        self.backend.synchronize()
        loaded = _clock_ns()

        from asrgate.harness.worker import meters

        self._late_work = meters.LateWorkDetector()
        self._energy = meters.EnergyMeter(device)
        self._joules: float | None = 0.0
        self.load_report = {
            "import_seconds": (imported - started) * NANOSECONDS,
            "load_seconds": (loaded - imported) * NANOSECONDS,
            # through JSON and back: what is recorded is a plain copy, not the backend's own object
            "applied_settings": json.loads(json.dumps(dict(self.backend.applied_settings))),
        }

    def prepare(self) -> None:
        """Do what would disturb the next call before the parent's clock starts."""
        gc.collect()
        gc.disable()  # a collection inside the clock would be charged to whichever call it hits
        self._late_work.before()

    def call(self, audio: Any, language: str) -> dict[str, Any]:
        """Transcribe one clip, after prepare(), and return the answer with what it cost."""
        return self._measured(lambda: _finished(self.backend.transcribe(audio, language)))

    def call_batch(self, audios: list[Any], language: str) -> dict[str, Any]:
        """As `call`, for clips together; the answer's `answers` are one a clip, or it has an `error`."""
        return self._measured(
            lambda: _all_finished(self.backend.transcribe_batch(audios, language), len(audios))
        )

    def serve(
        self, message: dict[str, Any], known: dict[str, Any], report: Callable[[dict[str, Any]], None]
    ) -> None:
        """Answer the message's requests as they arrive, `known` being samples by path.

        The garbage collector runs as in any server: a session is many calls, and there is no pause in it.
        """
        from asrgate.harness.worker import server_session

        def call(request: int) -> dict[str, Any]:
            self._late_work.before()
            return self.call(known[message["audios"][request]], message["languages"][request])

        server_session.serve(
            message["arrivals_seconds"],
            message["limit_seconds"],
            call=call,
            report=report,
            late_work_seconds=self.late_work_seconds,
            clock_ns=_clock_ns,
            sleep=time.sleep,
        )

    def stream(self, message: dict[str, Any], audio: Any) -> dict[str, Any]:
        """Have a clip streamed, after prepare(); emulated where the backend has no `stream`."""
        from asrgate.harness.worker import streaming_session

        def work() -> dict[str, Any]:
            chunk, is_paced, language = message["chunk_seconds"], message["is_paced"], message["language"]
            feed = streaming_session.Feed(audio, chunk, is_paced, _clock_ns, time.sleep)
            if hasattr(self.backend, "stream"):
                answers = self.backend.stream((chunk for chunk in feed), language)
            else:
                answers = streaming_session.emulated(
                    lambda heard: self.backend.transcribe(heard, language), feed
                )
            return streaming_session.listen(iter(answers), feed, _finished)

        return self._measured(work)

    def _measured(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        from asrgate.harness.worker import meters

        try:
            joules = self._energy.read_joules()
            cpu_seconds = meters.process_cpu_seconds()
            self.backend.synchronize()
            start = _clock_ns()
            try:
                answer = work()
                self.backend.synchronize()
            except Exception as error:
                answer = {"text": None, "tokens": None, "stage_seconds": {}, **_describe(error)}
            end = _clock_ns()
            answer["wall_seconds"] = (end - start) * NANOSECONDS
            answer["cpu_seconds"] = meters.process_cpu_seconds() - cpu_seconds
            self._add_joules(joules)
        finally:
            gc.enable()
        return answer

    def late_work_seconds(self) -> float:
        """Wait until the process is idle; return for how long it was not after the last call."""
        start = _clock_ns()
        self.backend.synchronize()
        drained = (_clock_ns() - start) * NANOSECONDS
        return max(drained if drained > 0.005 else 0.0, self._late_work.after())

    def resources(self) -> dict[str, Any]:
        """Return the worker's peaks and totals so far."""
        from asrgate.harness.worker import meters

        return {
            "peak_rss_bytes": None if self._is_remote else meters.peak_rss_bytes(),
            "peak_vram_allocator_bytes": meters.torch_peak_allocated_bytes(),
            "energy_joules": self._joules,
            "energy_source": self._energy.source,
        }

    def _add_joules(self, before: float | None) -> None:
        after = self._energy.read_joules()
        if before is None or after is None or self._joules is None:
            self._joules = None
        else:
            self._joules += after - before


def _finished(transcript: Any) -> dict[str, Any]:
    """Copy a Transcript into plain values, inside the clock, so that nothing lazy is left for later.

    Raises:
        TypeError: it is not a Transcript of finished values, a lazy generator for instance.
    """
    from asrgate.backends.base import Transcript

    if not isinstance(transcript, Transcript):
        raise TypeError(f"transcribe() returned a {type(transcript).__name__}, not a Transcript")
    if type(transcript.text) is not str:
        raise TypeError(
            f"the text from transcribe() is a {type(transcript.text).__name__}; it must be a finished str"
        )
    tokens = transcript.tokens
    return {
        # a lone surrogate is no text: keep it visible rather than fail on it later
        "text": transcript.text.encode("utf-8", "backslashreplace").decode("utf-8"),
        "tokens": None if tokens is None else [int(token) for token in tokens],
        "stage_seconds": {str(name): float(value) for name, value in transcript.stage_seconds.items()},
        "error": None,
    }


def _all_finished(transcripts: Any, count: int) -> dict[str, Any]:
    """Copy a batch's Transcripts, as `_finished` does.

    Raises:
        TypeError: they are not `count` finished Transcripts.
    """
    if not isinstance(transcripts, (list, tuple)):
        raise TypeError(f"transcribe_batch() returned a {type(transcripts).__name__}, not a list or a tuple")
    if len(transcripts) != count:
        raise TypeError(f"transcribe_batch() returned {len(transcripts)} answers for {count} clips")
    return {
        "answers": [_finished(transcript) for transcript in transcripts],
        "stage_seconds": {},
        "error": None,
    }


def _describe(error: BaseException) -> dict[str, Any]:
    from asrgate.backends.base import AsrgateError, BackendUnavailable

    known = isinstance(error, AsrgateError)
    if not known:
        import traceback

        traceback.print_exc()  # to the worker's log, for whoever wrote the backend
    return {
        "error": str(error) if known else f"{type(error).__name__}: {error}",
        "unavailable": isinstance(error, BackendUnavailable),
        "remedy": getattr(error, "remedy", None),
    }


def _read_audio(path: str) -> Any:
    import numpy as np

    audio = np.load(path, allow_pickle=False)
    audio.setflags(write=False)  # an engine that changes its input would change the next one's
    return audio


def _receive(connection: Connection) -> dict[str, Any]:
    return json.loads(connection.recv_bytes())


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    main()
