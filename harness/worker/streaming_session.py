"""The worker's half of the streaming scenario: a clip fed in chunks as if spoken, texts as they come.

A backend that streams is given the chunks and says the text so far whenever it likes. For any other one it is
emulated: whenever the engine is free and more audio has come, it transcribes all audio so far anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ


class Feed(Iterator[np.ndarray]):
    """Chunks of a clip, read-only; the next one is there once its last sample has been spoken.

    Attributes:
        waited_seconds: time in which whoever asked for a chunk waited for it.
    """

    def __init__(
        self,
        audio: np.ndarray,
        chunk_seconds: float,
        is_paced: bool,
        clock_ns: Callable[[], int],
        sleep: Callable[[float], None],
    ):
        """Begin to speak.

        Args:
            audio: float32, shape (samples,), mono, 16 kHz.
            is_paced: False: all of it has been spoken already.
            clock_ns, sleep: as time.perf_counter_ns and time.sleep.
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
        """How much of the clip has been handed over."""
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
        ].copy()  # through a view what is not yet spoken could be seen
        samples.setflags(write=False)
        return samples

    def _next_end(self) -> int:
        return min(self._taken + self._chunk, len(self._audio))

    def _due_seconds(self) -> float:
        return self._next_end() / SAMPLE_RATE_HZ if self._is_paced else 0.0


def emulated(transcribe: Callable[[np.ndarray], Any], feed: Feed) -> Iterator[Any]:
    """Yield what an engine without streaming says of the audio so far, whenever it is free."""
    for _ in feed:
        feed.take_spoken()
        yield transcribe(feed.heard)


def listen(answers: Iterator[Any], feed: Feed, finished: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Take the answers of a stream to its end; return the last one, with when the others came.

    Args:
        answers: Transcripts of the text so far, made while they are asked for.
        finished: copies a Transcript into plain values, as asrgate.harness.worker.child does.

    Returns:
        the last answer, and `partials`: what came before it, each with `seconds` since the first sample,
        `audio_seconds` taken by then, and `text`; `first_text_seconds`, None where no text came;
        `final_latency_seconds` from the end of the audio to the end of the stream; `busy_seconds`, in which
        nobody waited for audio.

    Raises:
        TypeError: the answers are no finished Transcripts, or do not follow the protocol.
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
        raise TypeError("stream() gave no Transcript; its last one is the answer, if only with an empty text")
    if not feed.is_over:
        raise TypeError(f"stream() ended after it had taken {feed.taken_seconds:.1f} s of the audio, not all")
    return {
        **last,
        "partials": said[:-1],
        "first_text_seconds": first_text_seconds,
        "final_latency_seconds": max(0.0, end - feed.taken_seconds),
        "busy_seconds": max(0.0, end - feed.waited_seconds),
    }
