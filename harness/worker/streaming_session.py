"""The worker's half of the streaming scenario: chunks as the parent hands them over, texts as they come.

A backend that streams is given the chunks and says the text so far whenever it likes. For any other one it is
emulated: whenever the engine is free and more audio has come, it transcribes all audio so far anew. Samples
that have not been spoken yet are not in this process:

    {"event": "next"}   -> {"do": "chunk", "is_last"} with the next chunk, once it has been spoken
    {"event": "spoken"} -> the same, at once, with all that has been spoken since: it may be nothing
    {"event": "partial", "text"}: what the engine says so far; no reply
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from asrgate.harness.worker.messages import Channel


class Feed(Iterator[np.ndarray]):
    """Chunks of a clip, read-only, each of which comes once its last sample has been spoken."""

    def __init__(self, channel: Channel):
        """Take chunks from the parent at the other end of the channel."""
        self._channel = channel
        self._chunks: list[np.ndarray] = []
        self._is_over = False

    @property
    def heard(self) -> np.ndarray:
        """All samples handed over so far, read-only."""
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, dtype=np.float32)
        samples.setflags(write=False)
        return samples

    def __next__(self) -> np.ndarray:
        if self._is_over:
            raise StopIteration
        return self._ask("next")

    def take_spoken(self) -> None:
        """Take all further chunks that have been spoken, without waiting."""
        if not self._is_over:
            self._ask("spoken")

    def say(self, text: str) -> None:
        """Tell the parent the text so far."""
        self._channel.send({"event": "partial", "text": text})

    def _ask(self, event: str) -> np.ndarray:
        self._channel.send({"event": event})
        reply = self._channel.receive()
        (chunk,) = reply["clips"]
        self._is_over = reply["is_last"]
        self._chunks.append(chunk)
        return chunk


def emulated(transcribe: Callable[[np.ndarray], Any], feed: Feed) -> Iterator[Any]:
    """Yield what an engine without streaming says of the audio so far, whenever it is free."""
    for _ in feed:
        feed.take_spoken()
        yield transcribe(feed.heard)


def listen(answers: Iterator[Any], feed: Feed, finished: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Take the answers of a stream to its end, pass on each as it comes, and return the last one.

    Args:
        answers: Transcripts of the text so far, made while they are asked for.
        finished: copies a Transcript into plain values, as asrgate.harness.worker.child does.

    Raises:
        TypeError: the answers are no finished Transcripts, or there is none.
    """
    last: dict[str, Any] | None = None
    for transcript in answers:
        last = finished(transcript)
        feed.say(last["text"])
    if last is None:
        raise TypeError("stream() gave no Transcript; its last one is the answer, if only with an empty text")
    return last
