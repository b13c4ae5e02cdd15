"""Compares a run with an earlier one: from two records to a verdict on each backend, nothing else.

Reading, printing and exit codes are in harness/cli/compare.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from asrgate.backends.base import AsrgateError
from asrgate.harness import record
from asrgate.harness.escape import MOST_OF_REASON, cut, visible
from asrgate.harness.record_types import Result, Run
from asrgate.harness.regression import changes
from asrgate.harness.regression.changes import TimeChange
from asrgate.harness.regression.preconditions import Difference, changed, differences
from asrgate.harness.regression.verdict import Limits, Row, judge
from asrgate.harness.scenarios import registry

BUSY_FRACTION = 0.10  # of all cores, used by other programs; above it, the clock alone proves nothing


class NotComparable(AsrgateError):
    """The two runs are not comparable; the message lists what differs and how to compare them anyway."""


@dataclass(frozen=True)
class Comparison:
    """All verdicts of NEW against BASE.

    `allowed` are differences that the user asked to ignore. `versions` are changed versions, deliberate or
    not: name -> (BASE, NEW). `warnings` concern the comparison as a whole.
    """

    base_run: str
    new_run: str
    limits: Limits
    clips: int
    rows: tuple[Row, ...]
    allowed: tuple[Difference, ...] = ()
    versions: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def regressed(self) -> list[Row]:
        """The rows that are regressions."""
        return [row for row in self.rows if row.verdict == "regression"]


def compare(base: Run, new: Run, limits: Limits, allow: Sequence[str] = ()) -> Comparison:
    """Compare two scored and judged runs. Texts are not needed: hashes and counts suffice.

    Args:
        base, new: validated records.
        limits: the limits of what passes.
        allow: kinds of differences (of KINDS) to ignore.

    Raises:
        NotComparable: they differ in something else, or have nothing in common.
    """
    for run in (base, new):
        if not registry.of(run).has_rounds:
            raise NotComparable(
                f"run {run['run_id']} used the scenario {registry.of(run).name}: its latencies belong to "
                "whole sessions, not to separate rounds, so nothing can be called a regression; "
                "`asrgate history --metric latency` shows such runs side by side"
            )
    found = differences(base, new)
    for difference in found:
        if difference.kind == "scenario":
            raise NotComparable(
                f"the runs {base['run_id']} and {new['run_id']} used different scenarios "
                f"({difference.what}), so their times are not comparable; measure both in one scenario"
            )
    refused = [difference for difference in found if difference.kind not in allow]
    if refused:
        lines = "\n".join(f"  {d.kind}: {visible(d.what)}" for d in refused)
        kinds = ",".join(dict.fromkeys(d.kind for d in refused))
        raise NotComparable(
            f"the runs {base['run_id']} and {new['run_id']} are not comparable:\n{lines}\n"
            f"measure both in the same way, or pass --allow {kinds} to compare them anyway"
        )
    clips = changes.common_clips(base, new)
    before = {_name_in(new, base, result): result for result in base["results"]}
    after = {result["variant"]: result for result in new["results"]}
    working = [name for name, result in before.items() if result["status"] == "ok"]
    if not clips or not working:
        lacking = "no clip in common" if working else "no backend that worked in BASE"
        raise NotComparable(f"the runs {base['run_id']} and {new['run_id']} have {lacking}")
    rows = tuple(_rows(before, after, clips, limits, _busy(new)))
    return Comparison(
        base_run=base["run_id"],
        new_run=new["run_id"],
        limits=limits,
        clips=len(clips),
        rows=rows,
        allowed=tuple(found),
        versions=changed(base["versions"], new["versions"]),
        warnings=(
            *_drift(rows, limits),
            *(f"BASE: {warning}" for warning in base["warnings"]),
            *(f"NEW: {warning}" for warning in new["warnings"]),
        ),
    )


def _name_in(new: Run, base: Run, result: Result) -> str:
    """Return the name that a row of BASE has in NEW: there its model may be one of several, or have another.

    With one model each, a row is the same under the same name even if models differ: that was allowed.
    """
    plain, model = record.without_model(result), record.model_of(base, result)
    has_one = "models" not in base and "models" not in new
    for other in new["results"]:
        is_same = has_one or record.is_same_model(model, record.model_of(new, other))
        if is_same and record.without_model(other) == plain:
            return other["variant"]
    is_taken = any(other["variant"] == result["variant"] for other in new["results"])
    return f"{result['variant']} ({record.model_digest(model)[1]:.8}…)" if is_taken else result["variant"]


def _rows(
    before: Mapping[str, Result],
    after: Mapping[str, Result],
    clips: Sequence[str],
    limits: Limits,
    busy: float | None,
) -> Iterator[Row]:
    both = [name for name in before if _works(before[name]) and name in after and _works(after[name])]
    texts = {name: changes.compare_texts(before[name], after[name], clips) for name in both}
    rounds = {name: changes.rounds(before[name], after[name], clips) for name in both}
    measured = {name: found for name, found in rounds.items() if found is not None}
    times = {}
    for name, own in measured.items():
        # Other variants of the same backend share its code, and a variant whose texts changed does different
        # work, so neither says anything about the machine.
        others = {
            n: r
            for n, r in measured.items()
            if after[n]["backend"] != after[name]["backend"] and not texts[n].changed
        }
        stages = changes.compare_stages(before[name], after[name], clips)
        times[name] = changes.compare_times(own, others, stages)
    all_slower = _all_slower(list(times.values()), limits)
    for name, result in before.items():
        if name in both:
            words = changes.compare_words(result, after[name], clips)
            yield judge(
                result,
                after[name],
                texts=texts[name],
                words=words,
                time=times.get(name),
                limits=limits,
                all_slower=all_slower,
                busy=busy,
            )
        elif _works(result):
            yield Row(name, "regression", (_lost(after.get(name)),))
        elif name in after and _works(after[name]):
            yield Row(name, "better", (f"works now; in BASE: {result['error'] or result['status']}",))
        else:
            yield Row(name, "same", (), ("works in neither run",))
    for name, result in after.items():
        if name not in before:
            yield Row(
                name,
                "new",
                (),
                ("not in BASE, so there is nothing to compare with",) if _works(result) else (),
            )


def _busy(run: Run) -> float | None:
    """Return the share of the processor that other programs used during the run, None if it was small."""
    shares = [r["foreign_cpu_fraction"] for r in run["rounds"] if r["foreign_cpu_fraction"] is not None]
    return statistics.median(shares) if shares and statistics.median(shares) > BUSY_FRACTION else None


def _all_slower(times: Sequence[TimeChange], limits: Limits) -> bool:
    """Whether even the least affected backend is clearly slower by the clock, beyond the shared limit."""
    return len(times) > 1 and all(
        time.clock_ratio > max(limits.max_shared_slowdown, limits.max_slowdown)
        and time.clock_p_value < limits.alpha
        for time in times
    )


def _drift(rows: Sequence[Row], limits: Limits) -> Iterator[str]:
    """Warn if all backends changed together: the machine is a more likely cause than each of them."""
    ratios = [row.time.clock_ratio for row in rows if row.time is not None]
    if len(ratios) > 1 and (min(ratios) > limits.max_slowdown or max(ratios) < 1 / limits.max_slowdown):
        yield (
            f"all backends together took {statistics.median(ratios):.2f} times as long as in BASE: the "
            "machine changed, or something they share; each is judged by its change relative to the others"
        )


def _works(result: Result) -> bool:
    return bool(result["status"] == "ok")


def _lost(result: Result | None) -> str:
    if result is None:
        return "is missing from NEW"
    why = cut(result["error"] or "no reason recorded", MOST_OF_REASON)
    return f"worked in BASE, now {result['status']}: {why}"
