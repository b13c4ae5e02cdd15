"""Scenarios, by the names of MLPerf's load generator: how clips are handed to an engine, in which batches.

`single-stream` hands over one clip at a time and waits. `offline` has all clips at once and hands them
over in batches; its figure is throughput, and a clip has no latency of its own (Reddi et al. 2020,
"MLPerf Inference Benchmark", section III). `server` has clips arrive by chance at a rate, and their waiting
counts: harness/scenarios/server_options.py. `streaming`, which MLPerf has not, feeds each clip in real time:
harness/scenarios/streaming.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import WINDOW_SECONDS, AsrgateError, BackendUnavailable
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.record import Run

SINGLE_STREAM, OFFLINE, SERVER, STREAMING = "single-stream", "offline", "server", "streaming"
NAMES = (SINGLE_STREAM, OFFLINE, SERVER, STREAMING)
ROUNDS = {SINGLE_STREAM: 7, OFFLINE: 7, SERVER: 1, STREAMING: 1}  # by default: the last two take their time
OPTIONS = {  # arguments of one scenario alone, as argparse names them -> the scenario
    "batch_sizes": OFFLINE,
    **dict.fromkeys(("rate", "find_max_rate", "p99", "server_requests", "server_seconds"), SERVER),
    "chunk_seconds": STREAMING,
}
SERVER_FIELDS = (
    "request",
    "arrival_seconds",
    "start_seconds",
    "finish_seconds",
)  # of samples
STREAM_FIELDS = ("first_text_seconds", "final_latency_seconds", "busy_seconds")
BATCH_SIZES = (1, 4, 8)
LARGEST_BATCH = 4096


class ScenarioError(AsrgateError):
    """What is asked does not go with the scenario; the message says what does."""


@dataclass(frozen=True)
class BatchVariant(Variant):
    """A variant that is given `batch_size` clips a call; at 1 it is called, and named, as in a single stream.

    `takes_batches` says whether the backend has `transcribe_batch`; one without it has size 1 only.
    """

    batch_size: int = 1
    takes_batches: bool = False

    def __str__(self) -> str:
        name = f"{self.backend}@{self.device}/{self.precision}"
        return name if self.batch_size == 1 else f"{name} batch {self.batch_size}"


@dataclass(frozen=True)
class Batch:
    """Clips of one call; `together`: by transcribe_batch, else a single one by transcribe."""

    clips: Sequence[Clip]
    together: bool


def of(run: Run) -> str:
    """Return the scenario of a record; those from before there were several are single streams."""
    return str(run["settings"].get("scenario", SINGLE_STREAM))


def times_clips(run: Run) -> bool:
    """Whether each sample's wall time is the time that its clip takes: speed can be told clip by clip."""
    return of(run) == SINGLE_STREAM


def conditions(run: Run) -> str:
    """Return in words how the clips of a run were handed over: runs that differ in it are never compared."""
    terms, chunk = run["settings"].get("server"), run["settings"].get("chunk_seconds")
    if chunk is not None:
        return f"{of(run)} in chunks of {chunk:g} s"
    if terms is None:
        return of(run)
    rate, limit = terms["rate_per_second"], terms["p99_seconds"]
    asked = f"at {rate:g} requests/s" if rate is not None else f"for the highest rate with p99 of {limit:g} s"
    return f"{of(run)} {asked}, {terms['requests']} requests"


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


def check(arguments: argparse.Namespace) -> None:
    """Raise ScenarioError if an argument of one scenario is given with another."""
    for name, scenario in OPTIONS.items():
        if scenario != arguments.scenario and getattr(arguments, name) not in (None, False):
            raise ScenarioError(
                f"--{name.replace('_', '-')} works only with --scenario {scenario}, not {arguments.scenario}"
            )


def variants(asked: Sequence[Variant], scenario: str, sizes: Sequence[int], reference: str) -> list[Variant]:
    """Return what is measured in a scenario: offline, each variant at each batch size it can take.

    A backend without `transcribe_batch` is measured at size 1 alone. The reference always has size 1 too: the
    gate compares with its answers to single clips.
    """
    if scenario != OFFLINE:
        return list(asked)
    found: list[Variant] = []
    for variant in asked:
        place = (variant.backend, variant.device, variant.precision)
        takes_batches = backends.describe(variant.backend).takes_batches
        own = sizes if takes_batches else (1,)
        if str(variant) == reference and 1 not in own:
            own = (1, *own)
        found += [BatchVariant(*place, batch_size=size, takes_batches=takes_batches) for size in own]
    return found


def batches(clips: Sequence[Clip], variant: Variant) -> list[Batch]:
    """Return the calls of one round: every clip once.

    The longest clips come first, so that those of a batch are of like length. Clips of different languages
    never share a batch. Clips of more than one window are asked for alone, after the others: their sequential
    decoding has no other window to share a batch with.
    """
    size = variant.batch_size if isinstance(variant, BatchVariant) else 1
    if size == 1:
        return [Batch([clip], together=False) for clip in clips]
    found = []
    for language in dict.fromkeys(clip.language for clip in clips):
        short = [c for c in clips if c.language == language and c.audio_seconds <= WINDOW_SECONDS]
        short.sort(key=lambda clip: -clip.audio_seconds)
        found += [Batch(short[i : i + size], together=True) for i in range(0, len(short), size)]
    return found + [Batch([c], together=False) for c in clips if c.audio_seconds > WINDOW_SECONDS]


def row_fields(variant: Variant, scenario: str) -> dict[str, Any]:
    """Return what a row of the record has for its scenario alone: nothing in a single stream."""
    if scenario == SERVER:
        return {"sessions": [], "server": None}
    if scenario == STREAMING:
        try:
            streams = backends.describe(variant.backend).streams
        except BackendUnavailable:  # the row says so
            streams = False
        return {"is_emulated": not streams, "streaming": None}
    if not isinstance(variant, BatchVariant):
        return {}
    return {"batch_size": variant.batch_size, "takes_batches": variant.takes_batches}
