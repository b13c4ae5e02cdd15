"""The parent's half of the streaming scenario: a clip handed over in chunks, texts as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness.worker.messages import MessageError

MOST_PARTIALS = 100_000


class Spoken:
    """A clip while it is spoken: which samples may be handed over, and when what was heard of them."""

    def __init__(
        self,
        samples: np.ndarray,
        chunk_seconds: float,
        is_paced: bool,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Begin to speak.

        Args:
            samples: float32, shape (samples,), mono, 16 kHz.
            is_paced: False: all of it has been spoken already.
            clock_ns, sleep: as time.perf_counter_ns and time.sleep.
        """
        self._clock_ns = clock_ns
        self._sleep = sleep
        self._samples = samples
        self._chunk = max(1, round(chunk_seconds * SAMPLE_RATE_HZ))
        self._is_paced = is_paced
        self._taken = 0
        self._waited_seconds = 0.0
        self._partials: list[dict[str, Any]] = []
        self._start_ns = clock_ns()

    @property
    def now_seconds(self) -> float:
        """Time since the first sample."""
        return (self._clock_ns() - self._start_ns) * 1e-9

    @property
    def is_over(self) -> bool:
        """Whether the whole clip has been handed over."""
        return self._taken == len(self._samples)

    def next_chunk(self, all_so_far: bool) -> np.ndarray:
        """Return the next chunk when it is spoken; or at once all that is, which may be nothing."""
        start = self._taken
        if not all_so_far and not self.is_over:
            began = self.now_seconds
            while (ahead := self._due_seconds() - self.now_seconds) > 0:
                self._sleep(ahead)
            self._waited_seconds += max(0.0, self.now_seconds - began)
            self._taken = self._next_end()
        while all_so_far and not self.is_over and self._due_seconds() <= self.now_seconds:
            self._taken = self._next_end()
        return self._samples[start : self._taken]

    def heard(self, text: str) -> None:
        """Note a text of the audio so far."""
        if len(self._partials) >= MOST_PARTIALS:
            raise MessageError(f"more than {MOST_PARTIALS:,} partial texts")
        entry = {"seconds": self.now_seconds, "audio_seconds": self._taken / SAMPLE_RATE_HZ, "text": text}
        self._partials.append(entry)

    def figures(self, end_seconds: float, last: str) -> dict[str, Any]:
        """Return what the record keeps of a stream beside its answer."""
        texts = [(partial["seconds"], partial["text"]) for partial in self._partials] + [(end_seconds, last)]
        return {
            "partials": self._partials[:-1],  # the last one is the answer
            "first_text_seconds": next((seconds for seconds, text in texts if text.strip()), None),
            "final_latency_seconds": max(0.0, end_seconds - len(self._samples) / SAMPLE_RATE_HZ),
            "busy_seconds": max(0.0, end_seconds - self._waited_seconds),
        }

    def complaint(self) -> str:
        """Say that the engine did not take all of the audio."""
        return f"stream() ended after it had taken {self._taken / SAMPLE_RATE_HZ:.1f} s of the audio, not all"

    def _next_end(self) -> int:
        return min(self._taken + self._chunk, len(self._samples))

    def _due_seconds(self) -> float:
        return self._next_end() / SAMPLE_RATE_HZ if self._is_paced else 0.0
