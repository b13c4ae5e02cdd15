"""The worker's half of the streaming scenario: a clip is fed in chunks as if spoken, and texts come back.

A backend that streams is given the chunks and yields the text so far whenever it likes. For any other backend
streaming is emulated: whenever the engine is free and more audio has come, it transcribes all audio so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ


class Feed(Iterator[np.ndarray]):
    """Chunks of a clip, read-only; each is available once its last sample has been spoken.

    Attributes:
        waited_seconds: time spent waiting for chunks.
    """

    def __init__(
        self,
        audio: np.ndarray,
        chunk_seconds: float,
        is_paced: bool,
        clock_ns: Callable[[], int],
        sleep: Callable[[float], None],
    ):
        """Start speaking.

        Args:
            audio: float32, shape (samples,), mono, 16 kHz.
            is_paced: False if all of it counts as already spoken.
            clock_ns, sleep: like time.perf_counter_ns and time.sleep.
        """
        self._audio = audio
        self._chunk = max(1, round(chunk_seconds * SAMPLE_RATE_HZ))
        self._is_paced = is_paced
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._taken = 0
        self._start_ns = clock_ns()
        self.waited_seconds = 0.0

    @property
    def now_seconds(self) -> float:
        """Time since the first sample."""
        return (self._clock_ns() - self._start_ns) * 1e-9

    @property
    def taken_seconds(self) -> float:
        """The seconds of the clip that have been handed over."""
        return self._taken / SAMPLE_RATE_HZ

    @property
    def is_over(self) -> bool:
        """Whether the whole clip has been handed over."""
        return self._taken == len(self._audio)

    @property
    def heard(self) -> np.ndarray:
        """All samples handed over so far, read-only."""
        return self._copy(0)

    def __next__(self) -> np.ndarray:
        if self.is_over:
            raise StopIteration
        began = self.now_seconds
        while (ahead := self._due_seconds() - self.now_seconds) > 0:
            self._sleep(ahead)
        self.waited_seconds += max(0.0, self.now_seconds - began)
        start, self._taken = self._taken, self._next_end()
        return self._copy(start)

    def take_spoken(self) -> None:
        """Take all further chunks that have been spoken, without waiting."""
        while not self.is_over and self._due_seconds() <= self.now_seconds:
            self._taken = self._next_end()

    def _copy(self, start: int) -> np.ndarray:
        samples = self._audio[
            start : self._taken
        ].copy()  # a view would expose samples that are not yet spoken
        samples.setflags(write=False)
        return samples

    def _next_end(self) -> int:
        return min(self._taken + self._chunk, len(self._audio))

    def _due_seconds(self) -> float:
        return self._next_end() / SAMPLE_RATE_HZ if self._is_paced else 0.0


def emulated(transcribe: Callable[[np.ndarray], Any], feed: Feed) -> Iterator[Any]:
    """Yield an engine's transcripts of the audio so far, whenever it is free."""
    for _ in feed:
        feed.take_spoken()
        yield transcribe(feed.heard)


def listen(answers: Iterator[Any], feed: Feed, finished: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Take the answers of a stream until it ends; return the last one, with the times of the others.

    Args:
        answers: Transcripts of the text so far, made on demand.
        finished: copies a Transcript into plain values, as asrgate.harness.worker.child does.

    Returns:
        the last answer; `partials`, the earlier ones, each with `seconds` since the first sample,
        `audio_seconds` taken by then, and `text`; `first_text_seconds`, None if no text came;
        `final_latency_seconds` from the end of the audio to the end of the stream; `busy_seconds`, the time
        not spent waiting for audio.

    Raises:
        TypeError: the answers are not finished Transcripts, or do not follow the protocol.
    """
    said: list[dict[str, Any]] = []
    last: dict[str, Any] | None = None
    first_text_seconds: float | None = None
    for transcript in answers:
        last = finished(transcript)
        seconds = feed.now_seconds
        said.append({"seconds": seconds, "audio_seconds": feed.taken_seconds, "text": last["text"]})
        if first_text_seconds is None and last["text"].strip():
            first_text_seconds = seconds
    end = feed.now_seconds
    if last is None:
        raise TypeError(
            "stream() yielded no Transcript; the last one is the answer, even if its text is empty"
        )
    if not feed.is_over:
        raise TypeError(f"stream() ended after it had taken only {feed.taken_seconds:.1f} s of the audio")
    return {
        **last,
        "partials": said[:-1],
        "first_text_seconds": first_text_seconds,
        "final_latency_seconds": max(0.0, end - feed.taken_seconds),
        "busy_seconds": max(0.0, end - feed.waited_seconds),
    }
