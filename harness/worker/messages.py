"""Messages between the parent and a worker: how they travel, and the one way in for what a worker says.

A message is a JSON object, with samples of audio beside it where it hands over a clip. The worker is the
engine's process and may send anything; the parent takes from it finite numbers, clean and bounded texts, and
nothing else. Whatever breaks that is a MessageError in words: one row's error, never the run's end.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from asrgate.harness.worker.sandbox import Isolation

if TYPE_CHECKING:  # importing it starts threads, before which a worker must have shut itself in
    import numpy as np

LARGEST_BYTES = 8 << 20  # of a message to the parent: an hour's transcript with its tokens is 1 MiB
LARGEST_TEXT = 1_000_000  # characters of one answer
LARGEST_ERROR = 10_000
LARGEST_NAME = 200
MOST_TOKENS = 1_000_000
MOST_ENTRIES = 200  # of stages, of settings
DEEPEST = 8  # levels of a setting's value
LONGEST_SECONDS = 1e7
MOST_WORDS = 200_000  # of one answer: 20 hours of speech
HEADER = struct.Struct(">II")  # bytes of JSON, bytes of samples that follow them
SAMPLE, SAMPLE_BYTES = "<f4", 4
WATCH_SECONDS = 0.5  # between looks at a process that no file descriptor tells of
MEMORY_FILES = hasattr(os, "memfd_create") and hasattr(socket, "send_fds")


class MessageError(Exception):
    """What came is no message of the protocol; the text says what it is."""


class Ended(Exception):
    """The other side closed the connection, or its process ended."""


class Channel:
    """One end of the socket between parent and worker."""

    def __init__(self, connection: socket.socket, ended: Callable[[], bool] | None = None, pidfd: int = -1):
        """Take over a connected stream socket.

        Args:
            ended: tells whether the other side's process has ended, whoever may still hold its socket.
            pidfd: a file descriptor that is readable from then on, -1: there is none.
        """
        self._socket = connection
        self._ended = ended
        self._pidfd = pidfd
        self._received = b""
        self._descriptor = -1  # of the memory file that came with a message

    def close(self) -> None:
        """Close the socket. Safe to call more than once."""
        self._socket.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def send(self, message: Mapping[str, Any], clips: Samples | None = None) -> None:
        """Send a message, and hand over clips with it.

        Raises:
            OSError: the other side is gone.
        """
        body = json.dumps(message if clips is None else {**message, "clips": clips.counts}).encode()
        inline = b"" if clips is None else clips.inline
        whole = HEADER.pack(len(body), len(inline)) + body + inline
        if clips is not None and clips.descriptor >= 0:
            whole = whole[socket.send_fds(self._socket, [whole], [clips.descriptor]) :]
        self._socket.sendall(whole)

    def await_soon(self, seconds: float) -> None:
        """Wait for the next message without sleeping, for so long at most: being woken up takes 0.1 ms."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not select.select([self._socket], [], [], 0)[0]:
            pass

    def receive(
        self, timeout_seconds: float | None = None, most_bytes: int = LARGEST_BYTES
    ) -> dict[str, Any]:
        """Return the next message; in its `clips`, arrays of samples that nothing can write to.

        Args:
            timeout_seconds: until the whole message must be there; None: for ever.

        Raises:
            TimeoutError: it was not, whether or not it was begun.
            Ended: the other side is gone, and has sent no further whole message.
            MessageError: what came is no JSON object, or larger than `most_bytes`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        json_bytes, sample_bytes = HEADER.unpack(self._take(HEADER.size, deadline))
        if json_bytes + sample_bytes > most_bytes:
            raise MessageError(f"a message of {json_bytes + sample_bytes:,} bytes, more than {most_bytes:,}")
        body = self._take(json_bytes, deadline)
        inline = self._take(sample_bytes, deadline)
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"what is not JSON: {type(error).__name__}") from error
        if not isinstance(message, dict):
            raise MessageError(f"a {type(message).__name__} where an object was due")
        if "clips" in message and self._ended is None:  # a worker has none to hand over
            message["clips"] = self._clips(message["clips"], inline)
        return message

    def _clips(self, counts: Sequence[int], inline: bytes) -> list[np.ndarray]:
        """Return the clips of a message from the parent, which is trusted to describe them rightly."""
        import numpy as np

        buffer: Any = inline
        if self._descriptor >= 0:
            size = sum(counts) * SAMPLE_BYTES
            # private, though nobody writes: before Linux 6.7 sealed memory could not be mapped as shared
            private = {"flags": mmap.MAP_PRIVATE, "prot": mmap.PROT_READ}
            buffer = mmap.mmap(self._descriptor, size, **private) if size else b""
            os.close(self._descriptor)
            self._descriptor = -1
        whole = np.frombuffer(buffer, dtype=SAMPLE)
        ends = itertools.accumulate(counts)
        return [whole[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def _take(self, count: int, deadline: float | None) -> bytes:
        """Return the next `count` bytes."""
        parts, missing = [], count
        while missing:
            if not self._received:
                self._wait(deadline)
                self._received = self._read()
            part, self._received = self._received[:missing], self._received[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _read(self) -> bytes:
        try:
            if not MEMORY_FILES or self._ended is not None:  # the parent takes no file from a worker
                received = self._socket.recv(1 << 16)
            else:
                received, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 16, 1)
                if descriptors:
                    (self._descriptor,) = descriptors
        except ConnectionError as error:
            raise Ended from error
        if not received:
            raise Ended
        return received

    def _wait(self, deadline: float | None) -> None:
        """Wait until there is something to read."""
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            watched: list[Any] = [self._socket, *([self._pidfd] if self._pidfd >= 0 else [])]
            must_look = self._ended is not None and self._pidfd < 0
            limits = [limit for limit in (left, WATCH_SECONDS if must_look else None) if limit is not None]
            readable, _, _ = select.select(watched, [], [], min(limits, default=None))
            if self._socket in readable:
                return
            if readable or (must_look and self._ended is not None and self._ended()):
                # what it sent before its end is still there
                if select.select([self._socket], [], [], 0)[0]:
                    return
                raise Ended


class Samples:
    """Clips on their way to a worker: in memory of their own that nobody can change or find.

    On Linux one sealed memory file without a name for all clips of a message, so that handing them over takes
    as long for an hour of audio as for a second; elsewhere the bytes themselves follow the message. Use it in
    a `with` statement: at its end the memory is let go of; a worker that was handed it keeps it.

    Attributes:
        counts: samples of each clip.
        descriptor: of the memory file, -1: there is none.
        inline: the bytes where there is none.
    """

    def __init__(self, clips: Sequence[np.ndarray]):
        """Take a copy of clips, each float32, shape (samples,)."""
        import numpy as np

        self.counts = [len(samples) for samples in clips]
        self.descriptor, self.inline = -1, b""
        copies = (np.ascontiguousarray(samples, dtype=SAMPLE).tobytes() for samples in clips)
        if not MEMORY_FILES:
            self.inline = b"".join(copies)
            return
        import fcntl

        self.descriptor = os.memfd_create("clips", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        for copy in copies:
            view = memoryview(copy)
            while view:
                view = view[os.write(self.descriptor, view) :]
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def event_of(message: Mapping[str, Any]) -> str:
    """Return a message's `event`.

    Raises:
        MessageError: it has none.
    """
    event = message.get("event")
    if not isinstance(event, str):
        raise MessageError("a message that names no event")
    return event


def answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an "answer" of one clip holds, checked: `text`, `tokens`, `stage_seconds`, `error`, and
    `language` if one was detected.

    Raises:
        MessageError: one of them is not what it must be.
    """
    error = message.get("error")
    text = message.get("text")
    tokens = message.get("tokens")
    if error is None and text is None:
        raise MessageError("an answer with neither text nor error")
    if tokens is not None:
        if not isinstance(tokens, list) or len(tokens) > MOST_TOKENS:
            raise MessageError("tokens that are no list, or too many")
        if not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
            raise MessageError("tokens that are no token ids")
    stages = message.get("stage_seconds", {})
    if not isinstance(stages, dict) or len(stages) > MOST_ENTRIES:
        raise MessageError("stages that are no object, or too many")
    detected = message.get("language")
    if detected is not None:
        detected = clean_text(detected, "the language", LARGEST_NAME)
    return {
        **({} if detected is None else {"language": detected}),
        "text": None if text is None else clean_text(text, "the text", LARGEST_TEXT),
        "tokens": tokens,
        "stage_seconds": {
            clean_text(name, "a stage's name", LARGEST_NAME): seconds(value, f"stage {name[:50]!r}")
            for name, value in stages.items()
        },
        "error": None if error is None else error_text(error),
    }


def words(message: Mapping[str, Any], last_seconds: float) -> list[tuple[str, float, float]]:
    """Return the words of an answer: each one's text, start and end in seconds, as `base.Word` has them.

    Raises:
        MessageError: they are no such list, or one is said at no time from 0 to `last_seconds`.
    """
    given = message.get("words")
    if not isinstance(given, list) or len(given) > MOST_WORDS:
        raise MessageError("words that are no list, or too many")
    found = []
    for word in given:
        if not isinstance(word, list) or len(word) != 3:
            raise MessageError(f"{_shown(word)} as a word with its times")
        text = clean_text(word[0], "a word", LARGEST_ERROR)
        if any(isinstance(time, bool) or not isinstance(time, (int, float)) for time in word[1:]):
            raise MessageError(f"{_shown(word[1:])} as the times of a word")
        start, end = word[1:]
        if not 0 <= start <= end <= last_seconds:  # NaN is not either
            raise MessageError(
                f"a word said from {_shown(start)} to {_shown(end)} s, where 0 to {last_seconds:.2f} s can be"
            )
        found.append((text, float(start), float(end)))
    return found


def seconds(value: Any, what: str) -> float:
    """Return a duration.

    Raises:
        MessageError: it is no finite number from 0 on.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MessageError(f"{_shown(value)} as the seconds of {what}")
    if not 0 <= value <= LONGEST_SECONDS:  # NaN is not either
        raise MessageError(f"{_shown(value)} as the seconds of {what}")
    return float(value)


def optional_seconds(value: Any, what: str) -> float | None:
    """As `seconds`; None stays None."""
    return None if value is None else seconds(value, what)


def count(value: Any, what: str) -> int | None:
    """Return a number of bytes or the like; None stays None.

    Raises:
        MessageError: it is no whole number from 0 on.
    """
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise MessageError(f"{_shown(value)} as {what}")
    return value


def clean_text(value: Any, what: str, most: int = LARGEST_TEXT) -> str:
    """Return a text.

    Raises:
        MessageError: it is none, is longer than `most` characters, or holds a lone surrogate.
    """
    if not isinstance(value, str):
        raise MessageError(f"{_shown(value)} as {what}")
    if len(value) > most:
        raise MessageError(f"{len(value):,} characters as {what}, more than {most:,}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise MessageError(f"what is no Unicode text as {what}") from error
    return value


def error_text(value: Any) -> str:
    """Return an engine's error as a text that can be shown: cut, and with odd characters made visible."""
    text = value if isinstance(value, str) else _shown(value)
    if len(text) > LARGEST_ERROR:
        text = f"{text[:LARGEST_ERROR]}… ({len(text):,} characters)"
    return text.encode("utf-8", "backslashreplace").decode()


def settings(value: Any) -> dict[str, Any]:
    """Return `applied_settings`, checked: an object of plain values.

    Raises:
        MessageError: it is none, or too large.
    """
    if not isinstance(value, dict) or len(value) > MOST_ENTRIES:
        raise MessageError("applied_settings that are no object, or too many")
    digest = value.get("checkpoint_sha256")
    if digest is not None and not isinstance(digest, str):
        raise MessageError(f"{_shown(digest)} as checkpoint_sha256")
    return {
        clean_text(name, "a setting's name", LARGEST_NAME): _plain(item, f"setting {name[:50]!r}", DEEPEST)
        for name, item in value.items()
    }


def isolation(value: Any) -> dict[str, Any]:
    """Return what a worker, before any engine code, says it is kept from: see sandbox.Isolation.

    Raises:
        MessageError: it is something else.
    """
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Isolation)}:
        raise MessageError("no isolation")
    found = {name: _plain(item, f"isolation {name}", 0) for name, item in value.items()}
    if found["level"] not in ("landlock", "none") or type(found["abi"]) not in (int, type(None)):
        raise MessageError("an odd isolation")
    if any(type(found[name]) is not bool for name in ("files", "signals", "memory")):
        raise MessageError("an odd isolation")
    return found


def _plain(value: Any, what: str, levels: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean_text(value, what, LARGEST_ERROR)
    if isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise MessageError(f"{what} too large a number")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MessageError(f"{value!r} in {what}")
        return value
    if levels == 0 or len(value) > MOST_ENTRIES:
        raise MessageError(f"{what} too large a value")
    if isinstance(value, list):
        return [_plain(item, what, levels - 1) for item in value]
    return {
        clean_text(name, what, LARGEST_NAME): _plain(item, what, levels - 1) for name, item in value.items()
    }


def _shown(value: Any) -> str:
    with contextlib.suppress(ValueError):  # a whole number of more digits than Python prints
        text = repr(value)
        return (text if len(text) <= 60 else f"{text[:60]}…").encode("utf-8", "backslashreplace").decode()
    return f"a very large {type(value).__name__}"
