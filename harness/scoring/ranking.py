"""By what the rows of each scenario are ranked: unlike scenarios have no common rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from asrgate.harness.record import Run
from asrgate.harness.scenarios import registry


@dataclass(frozen=True)
class Order:
    """What ranks: `by` in words; `figure` of a result, None where it has none."""

    by: str
    figure: Callable[[Mapping[str, Any]], float | None]
    is_higher_better: bool = False

    def place(self, result: Mapping[str, Any]) -> float:
        """Return what sorts results, the best first; the result must have the figure."""
        found = self.figure(result)
        assert found is not None
        return -found if self.is_higher_better else found


def order(run: Run) -> Order:
    """Return what the rows of a run are ranked by."""
    if registry.of(run) == registry.SERVER:
        if run["settings"]["server"]["rate_per_second"] is None:
            return Order("the highest rate that meets the limit", _of("server", "max_rate_per_second"), True)
        return Order("p99 latency", _of("latency", "p99_seconds"))
    if registry.of(run) == registry.STREAMING:
        return Order("median final latency", _of("latency", "median_seconds"))
    return Order("RTFx", _of("rtfx", "rtfx"), True)


def _of(part: str, name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda result: (result.get(part) or {}).get(name)
