"""The streaming scenario: clips spoken into an engine in real time, and how soon and how steadily text comes.

MLPerf has no such scenario. Stability is the unstable partial word ratio of Shangguan et al. 2020 ("Analyzing
the Quality and Stability of a Streaming End-to-End On-Device Speech Recognizer",
https://arxiv.org/abs/2006.01416): words of partial texts that a later text took back, over the words of the
final texts.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import BackendUnavailable
from asrgate.harness.argument_types import positive
from asrgate.harness.column import Column, Row, count, of, whole_percent
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics import bootstrap
from asrgate.harness.metrics.word_errors import Texts, ratio, timed
from asrgate.harness.record_types import Result, Run, Sample, Speed
from asrgate.harness.scenarios.scenario import (
    Answered,
    Load,
    LoadGenerator,
    Order,
    Prober,
    Scenario,
    ScenarioError,
)
from asrgate.harness.worker.client import Worker

CHUNK_SECONDS = 1.0
SHORTEST_CHUNK_SECONDS, LONGEST_CHUNK_SECONDS = 0.01, 30.0
FIGURES_OF_STREAMS = ("first_text_seconds", "final_latency_seconds", "busy_seconds")


def _streams_cell(row: Row) -> str:
    return "" if row["is_emulated"] is None else "emulated" if row["is_emulated"] else "native"


class Streaming(Scenario):
    """Clips in real time, in chunks of some length."""

    name = "streaming"
    default_rounds = 1  # a round lasts as long as its audio
    options = ("chunk_seconds",)
    row_fields = ("is_emulated",)
    sample_fields = FIGURES_OF_STREAMS
    figures = (
        "streaming",
        (
            *("first_text_median_seconds", "first_text_p90_seconds", "unstable_partial_word_ratio"),
            *("partials", "busy_fraction"),
        ),
    )
    has_rounds = False
    latency = ("seconds from the end of the audio to the final text", "all measured streams")
    columns = (
        Column(
            "streams",
            "native: the engine takes audio while it is spoken; emulated: whenever it is free, it "
            "transcribes all audio so far again",
            _streams_cell,
            is_number=False,
            importance=9,
        ),
        Column(
            "final s",
            "median seconds from the end of the audio to the final text",
            of("latency_median_seconds"),
            importance=10,
        ),
        Column("final p90 s", "90th percentile of that", of("latency_p90_seconds"), importance=5),
        Column(
            "first text s",
            "median seconds from the first sample of the audio to the first word shown",
            of("first_text_median_seconds"),
            importance=9,
        ),
        Column(
            "UPWR",
            "unstable partial word ratio: words shown and taken back, per word of the final texts",
            of("unstable_partial_word_ratio"),
            importance=9,
        ),
        Column("partials", "texts shown before the final ones", of("partials", count), importance=3),
        Column(
            "at work %",
            "share of the time during which the engine was not waiting for audio",
            of("busy_fraction", whole_percent),
            importance=6,
        ),
    )

    def __init__(self, chunk_seconds: float = CHUNK_SECONDS):
        """Ask for chunks of so many seconds.

        Raises:
            ScenarioError: they are out of bounds.
        """
        if not SHORTEST_CHUNK_SECONDS <= chunk_seconds <= LONGEST_CHUNK_SECONDS:
            raise ScenarioError(
                f"--chunk-seconds is {chunk_seconds:g}; it must be between {SHORTEST_CHUNK_SECONDS:g} and "
                f"{LONGEST_CHUNK_SECONDS:g}"
            )
        self.chunk_seconds = chunk_seconds

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """As Scenario."""
        group = parser.add_argument_group("--scenario streaming: clips are fed in real time")
        group.add_argument(
            "--chunk-seconds",
            type=positive,
            metavar="S",
            help=f"seconds of audio handed over at a time (default {CHUNK_SECONDS:g})",
        )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, clips: Sequence[Clip], rounds: int) -> Streaming:
        """As Scenario."""
        return cls(CHUNK_SECONDS if arguments.chunk_seconds is None else arguments.chunk_seconds)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Streaming:
        """As Scenario."""
        return cls(settings["chunk_seconds"])

    def settings(self) -> dict[str, Any]:
        """As Scenario."""
        return {"chunk_seconds": self.chunk_seconds}

    def conditions(self) -> str:
        """As Scenario."""
        return f"{self.name} in chunks of {self.chunk_seconds:g} s"

    def describe(self, run: Run) -> str:
        """As Scenario."""
        return (
            f"{self.name}: clips are fed in real time, in chunks of {self.chunk_seconds:g} s; emulated: an "
            "engine without streaming transcribes all audio so far whenever it is free; ranked by "
            f"{self.order.by}"
        )

    def blank_result(self, variant: Variant) -> dict[str, Any]:
        """As Scenario."""
        try:
            streams = backends.describe(variant.backend).streams
        except BackendUnavailable:  # the result says so
            streams = False
        return {"is_emulated": not streams, "streaming": None}

    def load_generator(self, load: Load) -> LoadGenerator:
        """As Scenario."""
        return StreamGenerator(load, self.chunk_seconds)

    @property
    def order(self) -> Order:
        """The median final latency."""
        return Order("median final latency", "latency", "median_seconds")

    def speed(self, run: Run, answered: Sequence[Sample]) -> Speed | None:
        """Return None: the audio sets the pace."""
        return None

    def add_figures(self, run: Run, result: Result, texts: Texts) -> None:
        """Fill `streaming`; None when no stream was answered. What the normaliser makes alike is kept."""
        result["streaming"] = None
        streams = _streamed(result)
        if not streams:
            return
        firsts = [s["first_text_seconds"] for s in streams if s["first_text_seconds"] is not None]
        median, p90 = bootstrap.percentiles(firsts, [50, 90]) if firsts else (None, None)
        unstable = words = 0
        for sample in streams:
            said = [*(partial["text"] for partial in sample["partials"]), sample["text"]]
            spoken = [texts.normalised(text or "", sample["clip"]).split() for text in said]
            unstable += unstable_words(spoken)
            words += len(spoken[-1])
        result["streaming"] = {
            "first_text_median_seconds": median,
            "first_text_p90_seconds": p90,
            "unstable_partial_word_ratio": ratio(unstable, words),
            "partials": sum(len(sample["partials"]) for sample in streams),
            "busy_fraction": ratio(
                sum(sample["busy_seconds"] or 0.0 for sample in streams),
                sum(sample["wall_seconds"] for sample in streams),
            ),
        }

    def latencies(self, result: Result) -> list[float]:
        """Return the seconds from the end of the audio to the final text of each answered stream."""
        return [s["final_latency_seconds"] or 0.0 for s in _streamed(result)]


class StreamGenerator(LoadGenerator):
    """Has each clip spoken to its end before the next one begins."""

    def __init__(self, load: Load, chunk_seconds: float):
        """Prepare to hand over clips in chunks."""
        self.calls = len(load.clips)
        self._load = load
        self._chunk_seconds = chunk_seconds

    def measure(
        self, worker: Worker, number: int, is_done: Callable[[Clip], bool], result: Result
    ) -> Iterator[Answered]:
        """As LoadGenerator."""
        load, audio = self._load, self._load.of_round(number)
        for clip in load.clips:
            if is_done(clip):
                continue
            load.stage(str(worker.variant), load.name_of(number), clip.name)
            what = f"answering clip {clip.name}"
            samples = audio[clip.name]
            answer = worker.stream(samples, clip.call_language, what, self._chunk_seconds, is_paced=True)
            fields = {name: answer.get(name) for name in FIGURES_OF_STREAMS}  # of one that failed, nulls
            yield Answered(clip, answer, fields | {"partials": answer.get("partials", [])})

    def prober(self, worker: Worker, probed: set[str], seed: int) -> Prober:
        """As LoadGenerator."""
        return StreamProber(worker, self._chunk_seconds)


class StreamProber:
    """Probes a worker by streams that do not wait for the audio: the way in is the same."""

    def __init__(self, worker: Worker, chunk_seconds: float):
        """Prepare to probe one worker."""
        self._worker = worker
        self._chunk_seconds = chunk_seconds

    def ask(self, clip: Clip, samples: np.ndarray, is_copy: bool, what: str) -> dict[str, Any]:
        """As Worker.stream."""
        return self._worker.stream(samples, clip.call_language, what, self._chunk_seconds, is_paced=False)


def _streamed(result: Result) -> list[Sample]:
    return [s for s in timed(result) if s.get("final_latency_seconds") is not None]


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
