"""What a scenario is: how clips are handed to an engine, and what is measured, ranked and reported of it."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from asrgate.backends import Variant
from asrgate.backends.base import AsrgateError
from asrgate.harness.column import Column
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.corpus.sample_cache import Altered
from asrgate.harness.metrics.word_errors import Texts, ratio
from asrgate.harness.record_types import Result, Run, Sample, Speed
from asrgate.harness.worker.client import Worker


class ScenarioError(AsrgateError):
    """A run cannot be made in the scenario as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Order:
    """What results are ranked by.

    Attributes:
        by: in words.
        part, name: where a result has the figure: result[part][name].
    """

    by: str
    part: str
    name: str
    is_higher_better: bool = False

    def figure(self, result: Result) -> float | None:
        """Return a result's figure, None if it has none."""
        parts: Mapping[str, Any] = result
        found: float | None = (parts.get(self.part) or {}).get(self.name)
        return found

    def sort_key(self, result: Result) -> float:
        """Return what sorts results, the best first; the result must have the figure."""
        found = self.figure(result)
        assert found is not None
        return -found if self.is_higher_better else found


RTFX = Order("RTFx", "rtfx", "rtfx", is_higher_better=True)


class Answered(NamedTuple):
    """One clip's answer, and the fields that its sample has in this scenario alone."""

    clip: Clip
    answer: dict[str, Any]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Load:
    """What is handed to engines in a run.

    Attributes:
        audio: clip name -> its samples, float32, shape (samples,), 16 kHz.
        rounds: None if they are as many as turn out to be needed.
        seed: the run's.
        audio_seed: of altered copies, drawn after the engines were loaded.
        stage: is told a variant, what it is doing, and with which clip.
    """

    clips: Sequence[Clip]
    audio: Mapping[str, np.ndarray]
    rounds: int | None
    seed: int
    audio_seed: int
    stage: Callable[[str, str, str], None]

    def name_of(self, number: int) -> str:
        """Return a round in words."""
        return f"round {number + 1}" if self.rounds is None else f"round {number + 1}/{self.rounds}"

    def of_round(self, number: int) -> Mapping[str, np.ndarray]:
        """Return the audio of a round: from the second one on, altered copies, the same for all engines.

        So no engine is ever given the same samples twice, and none gains by keeping its answers.
        """
        return Altered(self.audio, [self.audio_seed, number]) if number else self.audio


class Prober(Protocol):
    """Asks a worker for clips and for copies of them, in the way in which clips are measured."""

    def ask(self, clip: Clip, samples: np.ndarray, is_copy: bool, what: str) -> dict[str, Any]:
        """Have samples answered, those of the clip or of a copy of it; return the answer as Worker.call."""
        ...


class LoadGenerator(ABC):
    """Hands the clips of one run to its workers, as MLPerf's load generator does.

    Attributes:
        calls: answers that a round has.
        can_mix_in: other recordings can be asked for between the answers of a round.
    """

    calls: int
    can_mix_in = False

    @abstractmethod
    def measure(
        self, worker: Worker, number: int, is_done: Callable[[Clip], bool], result: Result
    ) -> Iterator[Answered]:
        """Have a worker answer the clips of one round.

        Args:
            number: of the round, from 0.
            is_done: whether the round has a clip's answer already, from a run that was cut off.
            result: the worker's entry in the record; what a scenario keeps beside samples is added to it.

        Raises:
            WorkerError: the worker died or hung.
        """

    @abstractmethod
    def prober(self, worker: Worker, probed: set[str], seed: int) -> Prober:
        """Return what asks a worker for copies of the clips named; `seed` is for further copies."""


class Scenario(ABC):
    """A scenario as asked for in one run.

    Attributes:
        name: in `--scenario` and in records.
        default_rounds: rounds unless `--rounds` says otherwise.
        adapts_rounds: the number of rounds may follow from what they show, where `--rounds` names none.
        options: arguments of the scenario alone, as argparse names them.
        row_fields: what a result has in this scenario alone, and its row in reports too.
        sample_fields: figures that a sample has in this scenario alone.
        figures: where results have the scenario's own figures, and their names there.
        times_clips: the wall time of a sample is the time that its clip takes.
        idles: an engine is awake between calls, until the next request arrives.
        speed_is_over_clips: the interval of the speed is that of resampled clips.
        has_rounds: rounds are alike, so that runs can be compared round by round.
        is_resumable: samples count one by one, so a run that was cut off can be resumed.
        is_distributable: the machines of a cluster can share the clips.
        detects_language: engines may be left to detect the language of each clip.
        latency: what the seconds of a latency measure, and what is counted; None if there are none.
        leading_columns: columns shown first.
        columns, detail_columns: the scenario's own among the figures, and among the times in detail.
    """

    name: ClassVar[str]
    default_rounds: ClassVar[int] = 7
    adapts_rounds: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = ()
    row_fields: ClassVar[tuple[str, ...]] = ()
    sample_fields: ClassVar[tuple[str, ...]] = ()
    figures: ClassVar[tuple[str, tuple[str, ...]]] = ("", ())
    times_clips: ClassVar[bool] = False
    idles: ClassVar[bool] = False
    speed_is_over_clips: ClassVar[bool] = True
    has_rounds: ClassVar[bool] = True
    is_resumable: ClassVar[bool] = True
    is_distributable: ClassVar[bool] = False
    detects_language: ClassVar[bool] = False
    latency: ClassVar[tuple[str, str] | None] = None
    leading_columns: ClassVar[tuple[Column, ...]] = ()
    columns: ClassVar[tuple[Column, ...]] = ()
    detail_columns: ClassVar[tuple[Column, ...]] = ()

    # --- what is asked for

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add the scenario's own options, those that `options` names."""
        return

    @classmethod
    @abstractmethod
    def from_arguments(cls, arguments: argparse.Namespace, clips: Sequence[Clip], rounds: int) -> Scenario:
        """Return the scenario as the arguments of `asrgate run` ask for it.

        Raises:
            ScenarioError: they contradict each other or the clips.
        """

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Scenario:
        """Return the scenario of a record's `settings`."""

    def settings(self) -> dict[str, Any]:
        """Return what the record's `settings` have for this scenario beside its name."""
        return {}

    def conditions(self) -> str:
        """Return in words how clips are handed over: runs that differ in it are never compared."""
        return self.name

    @abstractmethod
    def describe(self, run: Run) -> str:
        """Return in one sentence how clips are handed over, and what figures then mean."""

    # --- what is measured

    def variants(self, asked: Sequence[Variant], reference: str) -> list[Variant]:
        """Return the variants to measure for those asked for."""
        return list(asked)

    def blank_result(self, variant: Variant) -> dict[str, Any]:
        """Return what a variant's result has in this scenario alone, before anything is measured."""
        return {}

    @abstractmethod
    def load_generator(self, load: Load) -> LoadGenerator:
        """Return what hands the clips over."""

    # --- what follows from the samples

    @property
    def order(self) -> Order:
        """What results are ranked by."""
        return RTFX

    def speed(self, run: Run, answered: Sequence[Sample]) -> Speed | None:
        """Return a result's `rtfx` from its timed samples, None if the scenario or the samples give none.

        Here audio seconds over wall seconds, over all calls. Where `speed_is_over_clips`, the bootstrap adds
        its interval.
        """
        audio = {clip["name"]: clip["audio_seconds"] for clip in run["clips"]}
        wall_seconds = sum(sample["wall_seconds"] for sample in answered)
        if not wall_seconds:
            return None
        audio_seconds = sum(audio[sample["clip"]] for sample in answered)
        counted = [sample for sample in answered if sample["token_count"] is not None]
        return {
            "rtfx": audio_seconds / wall_seconds,
            "rtf": wall_seconds / audio_seconds,
            "interval": None,
            "audio_seconds": audio_seconds,
            "wall_seconds": wall_seconds,
            "tokens_per_second": ratio(
                sum(sample["token_count"] or 0 for sample in counted),
                sum(sample["wall_seconds"] for sample in counted),
            ),
        }

    def add_figures(self, run: Run, result: Result, texts: Texts) -> None:
        """Fill the figures that a result has in this scenario alone.

        Args:
            texts: the run's, under the normaliser that judges.
        """
        return

    def latencies(self, result: Result) -> list[float]:
        """Return the seconds of each timed sample that was answered, as `latency` says what they measure."""
        return []

    def faults(self, result: Result) -> Iterator[str]:
        """Say why a result's times are no property of the engine."""
        return iter(())
