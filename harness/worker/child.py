"""The child process that holds one engine, calls it and answers its parent in messages.

Started by asrgate.harness.worker.client as `python -m asrgate.harness.worker.child FD`, where FD is one
end of a socket pair. The parent asks for one thing at a time (see asrgate.harness.worker.messages):

    {"do": "isolate", "denied", "private"} -> {"event": "isolated", ...}, see sandbox.Isolation
    {"do": "load", ...}          -> any number of {"event": "said", "text"}, then
                                    {"event": "loaded", ...} or {"event": "refused", ...}
    {"do": "prepare"}            -> {"event": "ready"}: what would disturb the next call is done
    {"do": "call", "language"}   with one clip -> {"event": "answer", ...}
    {"do": "words", "language"}  with one clip -> {"event": "answer", "words", ...}, where it has
                                    `transcribe_words`
    {"do": "batch", "language"}  with clips -> {"event": "answer", "answers": one per clip, ...}
    {"do": "stream", "language"} -> the events of asrgate.harness.worker.streaming_session, then
                                    {"event": "answer", ...}
    {"do": "settle"}             -> {"event": "settled", "late_work_seconds"}
    {"do": "resources"}          -> {"event": "resources", ...}
    {"do": "examine", "method", ...} with one clip -> {"event": "examined", ...}, see introspect

The clips come with the call, inside the parent's clock, and are nowhere before. Nothing here decides what a
figure means: raw values go to the parent, which believes none of its times.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asrgate import lifeline
from asrgate.harness.worker import process_tree, sandbox
from asrgate.harness.worker.messages import Channel, Ended

# Bound before any engine is imported, so that replacing time.perf_counter_ns cannot change the clock.
_clock_ns = time.perf_counter_ns

NANOSECONDS = 1e-9
SPIN_SECONDS = 0.002
MOST_BYTES = (1 << 31) - 1  # what the parent sends is trusted; without memory files it holds the clips


def main() -> None:
    """Serve the parent until it closes the connection."""
    lifeline.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it ends its workers
    process_tree.become_subreaper()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(Ended, BrokenPipeError, ConnectionResetError):
        _serve(channel)


def _serve(channel: Channel) -> None:
    engine: _Engine | None = None
    while True:
        message = channel.receive(most_bytes=MOST_BYTES)
        if message["do"] == "isolate":
            isolation = sandbox.apply(message["denied"], message["private"])
            reply: dict[str, Any] = {"event": "isolated", "isolation": isolation.as_dict()}
        elif message["do"] == "load":
            engine, reply = _loaded(channel, message)
        else:
            assert engine is not None
            reply = engine.carry_out(message, channel)
        channel.send(reply)
        if reply["event"] == "ready":  # the call follows, and its clock will run by then
            channel.await_soon(SPIN_SECONDS)


def _loaded(channel: Channel, message: dict[str, Any]) -> tuple[_Engine | None, dict[str, Any]]:
    try:
        with _passing_on(channel):
            engine = _Engine(message)
    except BaseException as error:
        return None, {"event": "refused", **_describe(error)}
    return engine, {"event": "loaded", **engine.load_report}


@contextlib.contextmanager
def _passing_on(channel: Channel) -> Iterator[None]:
    """Tell the user what a backend logs while it loads: a long compilation, for instance."""
    from asrgate.backends.base import LOAD_LOG

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            channel.send({"event": "said", "text": record.getMessage()})

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

        # what has come with the engine is not gone through again before each call
        gc.collect()
        gc.freeze()
        self._late_work = meters.LateWorkDetector()
        self._energy = meters.EnergyMeter(device)
        self._joules: float | None = 0.0
        self._is_prepared = False
        self.load_report = {
            "import_seconds": (imported - started) * NANOSECONDS,
            "load_seconds": (loaded - imported) * NANOSECONDS,
            # through JSON and back: what is recorded is a plain copy, not the backend's own object
            "applied_settings": json.loads(json.dumps(dict(self.backend.applied_settings))),
        }

    def carry_out(self, message: dict[str, Any], channel: Channel) -> dict[str, Any]:
        """Do what a message asks; return the reply."""
        language, clips = message.get("language", ""), message.get("clips", [])
        match message["do"]:
            case "prepare":
                gc.collect()
                gc.disable()  # a collection inside the clock would be charged to whichever call it hits
                self._late_work.before()
                self._is_prepared = True
                reply: dict[str, Any] = {"event": "ready"}
            case "call":
                reply = self._measured(lambda: _finished(self.backend.transcribe(clips[0], language)))
            case "words":
                reply = self._measured(lambda: _with_words(self.backend.transcribe_words(clips[0], language)))
            case "batch":
                reply = self._measured(
                    lambda: _all_finished(self.backend.transcribe_batch(clips, language), len(clips))
                )
            case "stream":
                reply = self._measured(lambda: self._streamed(channel, language))
            case "settle":
                gc.enable()
                reply = {"event": "settled", "late_work_seconds": self._late_work_seconds()}
            case "resources":
                reply = {"event": "resources", **self._resources()}
            case "examine":
                reply = {"event": "examined", **self._examined(message, clips[0])}
            case unknown:
                raise ValueError(f"nothing is called {unknown!r}")
        return reply

    def _streamed(self, channel: Channel, language: str) -> dict[str, Any]:
        """Have a clip streamed as it comes; emulated where the backend has no `stream`."""
        from asrgate.harness.worker import streaming_session

        feed = streaming_session.Feed(channel)
        if hasattr(self.backend, "stream"):
            answers = self.backend.stream((chunk for chunk in feed), language)
        else:
            answers = streaming_session.emulated(lambda heard: self.backend.transcribe(heard, language), feed)
        return streaming_session.listen(iter(answers), feed, _finished)

    def _examined(self, message: dict[str, Any], clip: Any) -> dict[str, Any]:
        try:
            from asrgate.harness.worker import introspect

            return introspect.answer(self.backend, message, clip)
        except Exception as error:
            return _describe(error)

    def _measured(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if not self._is_prepared:
            self._late_work.before()
        self._is_prepared = False
        joules = self._energy.read_joules()
        start = _clock_ns()
        try:
            answer = work()
            self.backend.synchronize()
        except Exception as error:
            answer = {"text": None, "tokens": None, "stage_seconds": {}, **_describe(error)}
        end = _clock_ns()
        self._add_joules(joules)
        return {
            "event": "answer",
            **answer,
            "worker_seconds": (end - start) * NANOSECONDS,
        }

    def _late_work_seconds(self) -> float:
        """Wait until the process is idle; return for how long it was not after the last call."""
        start = _clock_ns()
        self.backend.synchronize()
        drained = (_clock_ns() - start) * NANOSECONDS
        return max(drained if drained > 0.005 else 0.0, self._late_work.after())

    def _resources(self) -> dict[str, Any]:
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
        "text": _visible(transcript.text),
        "tokens": None if tokens is None else [int(token) for token in tokens],
        "stage_seconds": {str(name): float(value) for name, value in transcript.stage_seconds.items()},
        "language": None if transcript.language is None else str(transcript.language),
        "error": None,
    }


def _with_words(transcript: Any) -> dict[str, Any]:
    """Copy a Transcript and its words.

    Raises:
        TypeError: as `_finished`, or it has no words.
    """
    finished = _finished(transcript)
    if not isinstance(transcript.words, (list, tuple)):
        raise TypeError(
            f"transcribe_words() returned words that are a {type(transcript.words).__name__}, not a list"
        )
    words = [(_visible(str(text)), float(start), float(end)) for text, start, end in transcript.words]
    return {**finished, "words": words}


def _visible(text: str) -> str:
    """Return a text in which a lone surrogate, which is no text, is visible rather than fails later."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


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


if __name__ == "__main__":
    main()
