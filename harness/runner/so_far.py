"""The figures of a run that is not over: after each round, before anything is judged."""

from __future__ import annotations

from typing import Any, cast

from asrgate.harness.column import Column, Row, interval, of, percent
from asrgate.harness.record_types import Result, Run, WordErrorRate
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import RTFX
from asrgate.harness.scoring import round_ratios, score

REPLICATES = 1000  # of the bootstrap: what is shown for a minute need not be exact
COLUMNS = (
    Column("variant", "backend@device/precision", of("variant", str), is_number=False),
    Column("WER %", "of the first round's texts", of("wer_percent", percent)),
    Column(
        "95 % CI",
        "bootstrap interval of the WER, over clips",
        lambda row: interval(row["wer_low_percent"], row["wer_high_percent"], percent),
        importance=1,
    ),
    Column("RTFx", "audio seconds per processing second", of("rtfx")),
    Column("speed-up", "RTFx over the reference's", of("speedup")),
    Column(
        "95 % CI",
        "interval of the speed-up: over clips at first, over rounds from the third on",
        lambda row: interval(row["speedup_low"], row["speedup_high"]),
    ),
)


class Figures:
    """The figures of a run as its record grows."""

    def __init__(self, run: Run, normalizer: str):
        """Remember the record, and the normaliser that judges."""
        self._run = run
        self._normalizer = normalizer
        self._errors: dict[str, WordErrorRate | None] | None = None

    def rows(self) -> list[Row]:
        """Return the figures of each variant still in the run, in the order of the record.

        They are named as in the rows of reports; what is not known is None. There are none in a scenario that
        is not ranked by RTFx.
        """
        if registry.of(self._run).order != RTFX:
            return []
        if self._errors is None:
            self._errors = self._count()
        return [self._row(result) for result in self._run["results"] if result["status"] == "ok"]

    def _count(self) -> dict[str, WordErrorRate | None]:
        """Score the texts of the first round, which are the ones that count in the end."""
        copied: Any = dict(self._run, warnings=[], clips=[dict(clip) for clip in self._run["clips"]])
        copied["results"] = [
            dict(result, integrity=None, samples=[dict(sample) for sample in result["samples"]])
            for result in self._run["results"]
        ]
        scored = cast(Run, copied)
        score.score(scored, self._normalizer, REPLICATES)
        return {result["variant"]: result["wer"] for result in scored["results"]}

    def _row(self, result: Result) -> Row:
        wer: Any = (self._errors or {}).get(result["variant"]) or {}
        answered = [sample for sample in result["samples"] if sample["error"] is None]
        speed = registry.of(self._run).speed(self._run, answered)
        ratio = round_ratios.over_reference(self._run, result)
        low, high = wer.get("interval") or (None, None)
        return {
            "variant": result["variant"],
            "wer_percent": _percent(wer.get("wer")),
            "wer_low_percent": _percent(low),
            "wer_high_percent": _percent(high),
            "rtfx": None if speed is None else speed["rtfx"],
            "speedup": None if ratio is None else ratio.ratio,
            "speedup_low": None if ratio is None or ratio.interval is None else ratio.interval[0],
            "speedup_high": None if ratio is None or ratio.interval is None else ratio.interval[1],
        }


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
