"""The streaming scenario: clips spoken into an engine in real time, and how soon and how steadily text comes.

Stability is the unstable partial word ratio of Shangguan et al. 2020 ("Analyzing the Quality and Stability of
a Streaming End-to-End On-Device Speech Recognizer", https://arxiv.org/abs/2006.01416): words of partial texts
that a later text took back, over the words of the final texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from asrgate.backends.base import AsrgateError
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics import bootstrap
from asrgate.harness.metrics.word_errors import Texts, is_timed, ratio
from asrgate.harness.record import Run
from asrgate.harness.scenarios import registry
from asrgate.harness.worker.client import Worker

CHUNK_SECONDS = 1.0
SHORTEST_CHUNK_SECONDS, LONGEST_CHUNK_SECONDS = 0.01, 30.0


class StreamingError(AsrgateError):
    """Clips cannot be streamed as asked; the message says why and what to do."""


def chunk_seconds(asked: float | None) -> float:
    """Return how much audio is handed over at a time.

    Raises:
        StreamingError: it is out of bounds.
    """
    found = CHUNK_SECONDS if asked is None else asked
    if not SHORTEST_CHUNK_SECONDS <= found <= LONGEST_CHUNK_SECONDS:
        raise StreamingError(
            f"--chunk-seconds is {found:g}; it must be between {SHORTEST_CHUNK_SECONDS:g} and "
            f"{LONGEST_CHUNK_SECONDS:g}"
        )
    return found


def call(worker: Worker, clip: Clip, samples: np.ndarray, chunk: float, what: str) -> dict[str, Any]:
    """Have a clip streamed in real time; return the answer as Worker.stream.

    Raises:
        WorkerError: as Worker.call.
    """
    return worker.stream(samples, clip.language, what, chunk, is_paced=True)


def beside(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sample has for the scenario: of a stream that failed, nulls."""
    return {name: answer.get(name) for name in registry.STREAM_FIELDS} | {
        "partials": answer.get("partials", [])
    }


class Prober:
    """Answers integrity's single calls by streams that do not wait for the audio: the same way in."""

    def __init__(self, worker: Worker, chunk: float):
        self._worker = worker
        self._chunk = chunk

    def ask(self, clip: Clip, samples: np.ndarray, is_copy: bool, what: str) -> dict[str, Any]:
        """As Worker.stream."""
        return self._worker.stream(samples, clip.language, what, self._chunk, is_paced=False)


def figures(run: Run, result: Mapping[str, Any], texts: Texts) -> dict[str, Any] | None:
    """Return a result's `streaming`; None when no stream was answered.

    Args:
        texts: the run's, under the normaliser that judges: what it makes alike was not taken back.
    """
    timed = [s for s in result["samples"] if is_timed(s) and s.get("final_latency_seconds") is not None]
    if not timed:
        return None
    firsts = [s["first_text_seconds"] for s in timed if s["first_text_seconds"] is not None]
    median, p90 = bootstrap.percentiles(firsts, [50, 90]) if firsts else (None, None)
    unstable = words = 0
    for sample in timed:
        said = [*(partial["text"] for partial in sample["partials"]), sample["text"]]
        spoken = [texts.normalised(text, sample["clip"]).split() for text in said]
        unstable += unstable_words(spoken)
        words += len(spoken[-1])
    return {
        "first_text_median_seconds": median,
        "first_text_p90_seconds": p90,
        "unstable_partial_word_ratio": ratio(unstable, words),
        "partials": sum(len(sample["partials"]) for sample in timed),
        "busy_fraction": ratio(
            sum(sample["busy_seconds"] for sample in timed), sum(sample["wall_seconds"] for sample in timed)
        ),
    }


def unstable_words(texts: list[list[str]]) -> int:
    """Return how many words of texts that follow each other the next text took back.

    A word is taken back if it, or any before it, is not in its place in the next text.
    """
    found = 0
    for text, following in itertools.pairwise(texts):
        kept = 0
        while kept < min(len(text), len(following)) and text[kept] == following[kept]:
            kept += 1
        found += len(text) - kept
    return found


def latencies(result: Mapping[str, Any]) -> list[float]:
    """Return the seconds from the end of the audio to the final text, of each stream that was answered."""
    return [
        s["final_latency_seconds"]
        for s in result["samples"]
        if is_timed(s) and s.get("final_latency_seconds") is not None
    ]
