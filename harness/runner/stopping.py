"""`--rounds auto`: rounds by need, until the speed ratios are known well enough or time is up."""

from __future__ import annotations

from dataclasses import dataclass

from asrgate.harness.record import is_of_engine, reference_of
from asrgate.harness.record_types import Result, RoundsRule, Run, Stopped
from asrgate.harness.scoring import round_ratios

BUDGET_SECONDS = 120.0


@dataclass(frozen=True)
class Stopping:
    """When a run has enough rounds.

    Attributes:
        least, most: rounds.
        within: half the width of the 95 % interval of a speed ratio, as a fraction of it, that is enough.
        budget_seconds: of the whole run; beyond the least, no round is begun with which it would take longer.
    """

    least: int = 3
    most: int = 15
    within: float = 0.03
    budget_seconds: float = BUDGET_SECONDS

    def rule(self) -> RoundsRule:
        """Return what the record keeps of it."""
        return {
            "least": self.least,
            "most": self.most,
            "within": self.within,
            "budget_seconds": self.budget_seconds,
        }

    def reason(self, run: Run, seconds: float, other_seconds: float = 0.0) -> Stopped | None:
        """Return why no further round is needed, None if one is.

        Args:
            run: with the samples of whole rounds.
            seconds: that measuring them has taken.
            other_seconds: that the run takes besides: loading before them, checks after them.
        """
        done = len(run["rounds"])
        if done < self.least:
            return None
        wide = [result["variant"] for result in run["results"] if self._is_wide(run, result)]
        if not wide:
            return {"reason": "precise", "wide": []}
        if done >= self.most:
            return {"reason": "most", "wide": wide}
        if seconds * (done + 1) / done + other_seconds > self.budget_seconds:
            return {"reason": "budget", "wide": wide}
        return None

    def _is_wide(self, run: Run, result: Result) -> bool:
        if result["status"] != "ok":
            return False
        found = round_ratios.over_reference(run, result)
        if is_of_engine(run, result):  # over any reference: there is none with its model
            references = (reference_of(run, other) for other in run["results"])
            reference = next((row for row in references if row is not None and row["status"] == "ok"), None)
            found = None if reference is None else round_ratios.between(run, result, reference)
        width = None if found is None else found.half_width
        return width is None or width > self.within
