"""Seconds by stage within one `transcribe` call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class StageClock:
    """Adds up the time spent in wrapped functions during a measured call; the remaining time is "decode"."""

    def __init__(self, synchronize: Callable[[], None]):
        """`synchronize` must block until the device is idle, so that a stage is charged with its own work."""
        self.seconds: dict[str, float] = {}
        self._synchronize = synchronize

    def timed(self, stage: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function wrapped so that its time is added to `stage`."""

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            self._synchronize()
            start = perf_counter_ns()
            result = function(*args, **kwargs)
            self._synchronize()
            self.seconds[stage] = self.seconds.get(stage, 0.0) + (perf_counter_ns() - start) / 1e9
            return result

        return wrapper

    @contextmanager
    def call(self) -> Iterator[None]:
        """Measure one call: reset the seconds, then count the time outside all stages as "decode"."""
        self.seconds = {}
        start = perf_counter_ns()
        yield
        self._synchronize()
        self.seconds["decode"] = (perf_counter_ns() - start) / 1e9 - sum(self.seconds.values())
