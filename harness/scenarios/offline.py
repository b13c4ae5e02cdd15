"""The offline scenario: all clips at once, in batches; its figure is throughput.

As MLPerf's scenario of that name (Reddi et al. 2020, "MLPerf Inference Benchmark", section III). A clip has
no latency of its own: a batch's time belongs to the batch.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asrgate import backends
from asrgate.backends import Variant
from asrgate.harness.column import Column, Row, count
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics import bootstrap
from asrgate.harness.record_types import Run, Sample, Speed
from asrgate.harness.scenarios.batches import BatchGenerator, BatchVariant
from asrgate.harness.scenarios.scenario import Load, LoadGenerator, Scenario

BATCH_SIZES = (1, 4, 8)
LARGEST_BATCH = 4096


def batch_sizes(text: str) -> tuple[int, ...]:
    """Return the sizes that an argument `1,4,8` lists, each once, in its order."""
    sizes = []
    for part in text.split(","):
        if not part.strip().isdecimal() or not 1 <= int(part) <= LARGEST_BATCH:
            raise argparse.ArgumentTypeError(
                f"must be whole numbers from 1 to {LARGEST_BATCH} separated by commas, not {text!r}"
            )
        sizes.append(int(part))
    return tuple(dict.fromkeys(sizes))


def _batch_cell(row: Row) -> str:
    return count(row["batch_size"]) + (" (single)" if row["takes_batches"] is False else "")


class Offline(Scenario):
    """All clips at once, in batches of some sizes, each of which is a result of its own."""

    name = "offline"
    options = ("batch_sizes",)
    row_fields = ("batch_size", "takes_batches")
    sample_fields = ("batch",)
    speed_is_over_clips = False  # it is over rounds
    leading_columns = (
        Column(
            "batch",
            "most clips handed over in one call; (single): the engine takes only one at a time",
            _batch_cell,
            importance=10,
        ),
    )

    def __init__(self, sizes: Sequence[int] = BATCH_SIZES):
        """Ask for batches of these sizes."""
        self.batch_sizes = tuple(sizes)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """As Scenario."""
        group = parser.add_argument_group("--scenario offline: all clips at once, for throughput")
        group.add_argument(
            "--batch-sizes",
            type=batch_sizes,
            metavar="1,4,8",
            help="clips per call; each size is a separate row (default 1,4,8)",
        )

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, clips: Sequence[Clip], rounds: int) -> Offline:
        """As Scenario."""
        return cls(arguments.batch_sizes or BATCH_SIZES)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Offline:
        """As Scenario."""
        return cls(settings.get("batch_sizes", ()))

    def settings(self) -> dict[str, Any]:
        """As Scenario."""
        return {"batch_sizes": list(self.batch_sizes)}

    def describe(self, run: Run) -> str:
        """As Scenario."""
        return (
            f"{self.name}: all clips at once, in batches of {', '.join(map(str, self.batch_sizes))}; RTFx is "
            "throughput, the median over rounds; clips over 30 s one at a time"
        )

    def variants(self, asked: Sequence[Variant], reference: str) -> list[Variant]:
        """Return each variant at each batch size it can take.

        A backend without `transcribe_batch` is measured at size 1 alone. The reference always has size 1 too:
        the gate compares with its answers to single clips.
        """
        found: list[Variant] = []
        for variant in asked:
            takes_batches = backends.describe(variant.backend).takes_batches
            sizes = self.batch_sizes if takes_batches else (1,)
            if variant.without_model == reference and 1 not in sizes:
                sizes = (1, *sizes)
            parts = (variant.backend, variant.device, variant.precision)
            found += [
                BatchVariant(*parts, model=variant.model, batch_size=n, takes_batches=takes_batches)
                for n in sizes
            ]
        return found

    def blank_result(self, variant: Variant) -> dict[str, Any]:
        """As Scenario; of a variant that cannot run, nothing."""
        if not isinstance(variant, BatchVariant):
            return {}
        return {"batch_size": variant.batch_size, "takes_batches": variant.takes_batches}

    def load_generator(self, load: Load) -> LoadGenerator:
        """As Scenario."""
        return BatchGenerator(load, lambda number: {"batch": number})

    def speed(self, run: Run, answered: Sequence[Sample]) -> Speed | None:
        """Return the audio seconds of a round over its wall seconds, the median over rounds.

        Only rounds in which every clip was answered count: a round that lacks some clips did other work. The
        interval is the bootstrap interval of the median over rounds; None with one round. All sums are over
        these rounds.
        """
        audio = {clip["name"]: clip["audio_seconds"] for clip in run["clips"]}
        rounds: dict[int, list[Sample]] = {}
        for sample in answered:
            rounds.setdefault(sample["round"], []).append(sample)
        whole = [of_round for _, of_round in sorted(rounds.items()) if len(of_round) == len(audio)]
        walls = [sum(sample["wall_seconds"] for sample in of_round) for of_round in whole]
        if not whole or not all(walls):
            return None
        found = [sum(audio.values()) / wall for wall in walls]
        median = statistics.median(found)
        counted = [s for of_round in whole for s in of_round if s["token_count"] is not None]
        counted_seconds = sum(sample["wall_seconds"] for sample in counted)
        return {
            "rtfx": median,
            "rtf": 1 / median,
            "interval": _interval(found, run["settings"]["seed"]),
            "audio_seconds": sum(audio.values()) * len(whole),
            "wall_seconds": sum(walls),
            "tokens_per_second": sum(s["token_count"] or 0 for s in counted) / counted_seconds
            if counted
            else None,
        }


def _interval(values: Sequence[float], seed: int) -> list[float] | None:
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).choice(values, (bootstrap.REPLICATES, len(values)))
    tail = (1 - bootstrap.LEVEL) / 2
    return np.quantile(np.median(drawn, axis=1), [tail, 1 - tail]).tolist()
