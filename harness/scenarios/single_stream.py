"""The single-stream scenario: one clip at a time, the next one when the answer is there.

As MLPerf's scenario of that name (Reddi et al. 2020, "MLPerf Inference Benchmark", section III).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from asrgate.harness.column import Column, of
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics.word_errors import timed
from asrgate.harness.record_types import Result, Run
from asrgate.harness.scenarios.batches import BatchGenerator
from asrgate.harness.scenarios.scenario import Load, LoadGenerator, Scenario


class SingleStream(Scenario):
    """One clip at a time: the only scenario in which a call's time is that of its clip."""

    name = "single-stream"
    times_clips = True
    adapts_rounds = True
    is_distributable = True
    detects_language = True
    latency = ("seconds per call", "all measured calls")
    columns = (
        Column("median s", "median seconds per clip", of("latency_median_seconds"), importance=7),
        Column("p90 s", "90th percentile of the seconds per clip", of("latency_p90_seconds"), importance=6),
    )
    detail_columns = (
        Column("min s", "quickest call", of("latency_min_seconds")),
        Column(
            "IQR s",
            "interquartile range over all calls, with clips of all lengths together",
            of("latency_iqr_seconds"),
        ),
        Column("p99 s", "99th percentile", of("latency_p99_seconds")),
    )

    @classmethod
    def from_arguments(
        cls, arguments: argparse.Namespace, clips: Sequence[Clip], rounds: int
    ) -> SingleStream:
        """As Scenario; it has no options."""
        return cls()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SingleStream:
        """As Scenario; it has no settings."""
        return cls()

    def describe(self, run: Run) -> str:
        """As Scenario."""
        return f"{self.name}: one clip at a time"

    def load_generator(self, load: Load) -> LoadGenerator:
        """As Scenario."""
        return BatchGenerator(load)

    def latencies(self, result: Result) -> list[float]:
        """Return the wall seconds of each call."""
        return [sample["wall_seconds"] for sample in timed(result)]
