"""Judges a variant that worked in both runs: compares its speed, its errors and whether it is ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from asrgate.harness.escape import MOST_OF_REASON, cut
from asrgate.harness.metrics import mann_whitney
from asrgate.harness.record_types import GateVerdict, Result
from asrgate.harness.regression import changes
from asrgate.harness.regression.changes import TextChange, TimeChange, WordChange

SPIKES_RISE = 0.05  # increase in the share of spikes above which a note is added


@dataclass(frozen=True)
class Limits:
    """The limits of what passes. Times are ratios NEW over BASE; `max_wer_increase` is a fraction."""

    max_slowdown: float = 1.05
    max_shared_slowdown: float = 1.15
    max_wer_increase: float = 0.005
    alpha: float = 0.002


@dataclass(frozen=True)
class Row:
    """The verdict on one variant.

    Attributes:
        verdict: "regression", "better", "same", "unclear" (it may be slower, but there are too few rounds or
            times vary too much to tell) or "new" (not in BASE).
        reasons: why it is a regression, better or unclear.
        notes: what else a reader should know.
        texts, words, time: None if there was nothing to compare.
    """

    variant: str
    verdict: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()
    texts: TextChange | None = None
    words: WordChange | None = None
    time: TimeChange | None = None


def judge(
    base: Result,
    new: Result,
    *,
    texts: TextChange,
    words: WordChange | None,
    time: TimeChange | None,
    limits: Limits,
    all_slower: bool,
    busy: float | None,
) -> Row:
    """Return the verdict on a variant that worked in both runs.

    Args:
        base, new: its results.
        texts, words, time: what changed; see harness/regression/changes.py.
        limits: the limits of what passes.
        all_slower: whether every backend is slower by the clock than the shared limit allows.
        busy: the share of the processor that other programs used in NEW, if it was large.
    """
    remarks = _Remarks()
    _judge_gate(base["gate"], new["gate"], remarks)
    _judge_texts(texts, remarks)
    if words is not None:
        _judge_words(words, texts, limits, remarks)
    if time is None:
        remarks.notes.append("its time was not compared: no clip was answered in every round of both runs")
    else:
        _judge_time(time, limits, all_slower, busy, remarks)
    verdict, reasons = next(
        (name, said)
        for name, said in (
            ("regression", remarks.worse),
            ("better", remarks.better),
            ("unclear", remarks.unclear),
            ("same", []),
        )
        if said or name == "same"
    )
    if verdict != "unclear":
        remarks.notes += remarks.unclear
    return Row(
        new["variant"],
        verdict,
        reasons=tuple(reasons),
        notes=tuple(remarks.notes),
        texts=texts,
        words=words,
        time=time,
    )


@dataclass
class _Remarks:
    worse: list[str] = field(default_factory=list)
    better: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _judge_gate(base: GateVerdict, new: GateVerdict, remarks: _Remarks) -> None:
    if base["ranked"] and not new["ranked"]:
        remarks.worse.append(f"it was ranked and no longer is: {_why(new)}")
    elif new["ranked"] and not base["ranked"]:
        remarks.better.append("it is ranked now")
    elif not new["ranked"]:
        remarks.notes.append(f"it is ranked in neither run: {_why(new)}")


def _why(verdict: GateVerdict) -> str:
    return "; ".join(cut(reason, MOST_OF_REASON) for reason in verdict["reasons"])


def _judge_texts(texts: TextChange, remarks: _Remarks) -> None:
    if texts.changed:
        remarks.notes.append(
            f"the text of {len(texts.changed)} of {texts.compared} clips changed: "
            f"{_names(texts.changed, limit=5)}"
        )
    if texts.unstable:
        remarks.notes.append(f"the text now differs between rounds: {_names(texts.unstable, limit=5)}")


def _judge_words(words: WordChange, texts: TextChange, limits: Limits, remarks: _Remarks) -> None:
    """Judge the increase on these clips itself; its interval says whether other speech would show it too.

    Only if decoding is random can the increase be chance; then the interval must also exclude zero.
    """
    if abs(words.difference) <= limits.max_wer_increase + 1e-12:
        return
    said = (
        f"WER went from {words.base:.2%} to {words.new:.2%}, {100 * words.difference:+.2f} points"
        f"{_points(words.interval)}"
    )
    if words.difference < 0:
        remarks.better.append(said)
    elif texts.deterministic or words.interval is None or words.interval[0] > 0:
        remarks.worse.append(f"{said}; allowed: {100 * limits.max_wer_increase:.2f}")
    else:
        remarks.notes.append(f"{said}; its texts differ between rounds, so this may be due to chance")


def _judge_time(
    time: TimeChange, limits: Limits, all_slower: bool, busy: float | None, remarks: _Remarks
) -> None:
    said = _time_in_words(time)
    clear = time.p_value < limits.alpha
    # A variant that takes no longer by the clock is not called slower because others became faster.
    half = 1 + (limits.max_slowdown - 1) / 2
    slower = time.ratio > limits.max_slowdown and time.clock_ratio > half
    faster = time.ratio < 1 / limits.max_slowdown and time.clock_ratio < 1 / half
    uncut_slower = time.uncut_ratio > limits.max_slowdown and time.uncut_clock_ratio > half
    # While other programs run the clock alone proves nothing, but a comparison with other backends does.
    excuse = "" if busy is None else f", while other programs used {busy:.0%} of the processor"
    by_clock = remarks.worse if busy is None else remarks.unclear
    judged = by_clock if time.machine is None else remarks.worse
    if slower and clear:
        judged.append(
            f"it takes {said}{excuse if time.machine is None else ''}; allowed: {limits.max_slowdown:.2f}"
        )
    elif uncut_slower and time.uncut_p_value < limits.alpha:
        judged.append(
            f"it takes {time.uncut_ratio:.2f} times as long in all (p = {time.uncut_p_value:.2g}) because of "
            f"calls far above their clip's median; allowed: {limits.max_slowdown:.2f}"
        )
    elif all_slower:
        by_clock.append(
            f"it takes {time.clock_ratio:.2f} times as long by the clock, and every other backend is slower "
            f"too{excuse} (allowed for all together: {limits.max_shared_slowdown:.2f}): the machine became "
            "slower, or something they share did"
        )
    elif faster and clear:
        remarks.better.append(f"takes {said}")
    elif slower or faster:
        doubtful = remarks.unclear if slower else remarks.notes
        doubtful.append(f"it seems to take {said}, but that is not significant at alpha {limits.alpha:g}")
    if time.smallest_p_value >= limits.alpha:
        remarks.unclear.append(
            f"too few rounds to call anything slower: {time.base_rounds} and {time.new_rounds} can at best "
            f"give p = {time.smallest_p_value:.2g}, which is not below {limits.alpha:g}; "
            f"run both with --rounds {mann_whitney.rounds_needed(limits.alpha)} or more"
        )
    elif time.interval is not None and time.interval[1] / time.ratio > 1 + 2 * (limits.max_slowdown - 1):
        remarks.unclear.append(
            f"its times vary so much that a slowdown of {time.interval[1] / time.ratio - 1:.0%} might not "
            "have been detected; measure on a quieter machine, or with more rounds"
        )
    if time.new_spikes > time.base_spikes + SPIKES_RISE:
        remarks.notes.append(
            f"{time.new_spikes:.0%} of its calls take more than {changes.SPIKE:g} times their clip's median "
            f"({time.base_spikes:.0%} before)"
        )


def _time_in_words(time: TimeChange) -> str:
    interval = "" if time.interval is None else f"{time.interval[0]:.2f} to {time.interval[1]:.2f}, "
    words = f"{time.ratio:.2f} times as long ({interval}p = {time.p_value:.2g})"
    if time.machine is not None:
        words += (
            f", {time.clock_ratio:.2f} by the clock while {_names(time.others)} took {time.machine:.2f} times"
        )
    stages = [f"{stage} {ratio:.2f}" for stage, ratio in sorted(time.stages.items(), key=lambda s: -s[1])]
    return f"{words}; by stage {', '.join(stages)}" if stages else words


def _points(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"


def _names(names: Sequence[str], limit: int = 2) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
