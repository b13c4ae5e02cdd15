"""The gate: decides which rows may be ranked by speed, and gives the reasons for the others.

A row is ranked only if every clip was answered, its word error rate is within tolerance of the reference
backend's and below the ceiling, its output is as long as the reference's, it ran with the requested settings,
and its times are those of doing the work. The reference is the one with the row's model; an engine that
brings its own model along has none, and is held to the reference texts instead. Everything is judged from the
record alone, so a stored run can be judged again.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator

from asrgate.backends.base import MAY_BE_LACKING, OF_WHISPER, REMOTE
from asrgate.harness.metrics import language_id, word_errors
from asrgate.harness.record import is_of_engine, model_of, probes_of, reference_name, reference_of
from asrgate.harness.record_types import ProbeRecord, Result, RoundErrors, Run
from asrgate.harness.scenarios import registry
from asrgate.harness.scoring import timed_samples
from asrgate.harness.scoring.cache_probes import (
    LATER_OVER_FIRST_LIMIT,
    SPLICED_OVER_SEEN_LIMIT,
    UNSEEN_OVER_SEEN_LIMIT,
    later_over_first,
)

LATE_WORK_LIMIT = 0.05  # share of the measured time that may go on after calls have returned
# Of processor time outside calls an honest engine uses up to this much for each: threads spin for a while
# after their last task, and this package looks for late work in the worker. Where it waits for requests, idle
# threads may poll. docs/measuring.md has what was measured.
OUTSIDE_SECONDS_PER_CALL = 0.03
POLLING_CORES = 0.2
THREADS_LIMIT = 1.1  # cores that it keeps busy, over the threads that it was given
TICK_SECONDS = 0.01  # per call: processes that end are counted in the kernel's ticks
# Of an engine's words, against its own first answers to the same clips. The audio differs inaudibly between
# rounds, so hard recordings change the words of any engine: what the reference's own answers change in a
# round is allowed on top, once for errors and length and twice for changed words.
CHANGED_BETWEEN_ROUNDS_LIMIT = 0.1
# An engine with a model of its own has nobody to compare with either. Honest ones change 0 to 21 % of their
# words, and their errors by up to 1.4 deviations (docs/measuring.md).
CHANGED_OF_OWN_LIMIT = 0.3
CHANCE_DEVIATIONS = 3.0
CHANGED_OF_REFERENCE_LIMIT = 0.5  # the reference has nobody to compare with
FEW_WORDS = 2  # of all clips may change in any case: of few words, one is more than the limits allow
AUDIT_CHANGED_LIMIT = 0.25  # of an audit's words, beyond what it usually answers otherwise than the reference
AUDIT_EXCHANGED_LIMIT = 0.5  # of the reference's words must change where the checkpoint's do
CHANGED_WORDS_LIMIT = 0.5  # of a copy's words, against the clip's own answer
FEW_SPLICED_WORDS = 3
SPLICED_WORDS_LIMIT = 0.25  # of a splice's words, against the reference's answer; half of them may exceed it


def judge(run: Run) -> None:
    """Fill every result's `gate`: ranked or not, the reasons against it, its rank in the scenario's order.

    Rows of one model are ranked together: those of another are not of equal quality.
    """
    scenario = registry.of(run)
    order = scenario.order
    unfit: dict[str, bool] = {}  # reference -> whether it has faults of its own
    for result in run["results"]:
        reference = find_reference(run, result)
        if reference is not None and reference["variant"] not in unfit:
            unfit[reference["variant"]] = any(_own_faults(run, reference, reference))
        reasons = list(_own_faults(run, result, reference))
        is_own = is_of_engine(run, result)
        if result["status"] == "ok" and is_own:
            reasons += _own_differences(run, result)
        elif result["status"] == "ok" and result is not reference:
            if reference is None:
                reasons.append(
                    f"its quality was not checked: the reference {reference_name(run, result)} "
                    "is not in this run"
                )
            elif unfit[reference["variant"]]:
                reasons.append(f"the reference {reference['variant']} itself did not pass the gate")
            reasons += _differences(run, result, reference)
        if result["status"] == "ok":
            # a row without a speed figure is still valid as a reference
            reasons += scenario.faults(result)
            if not reasons and order.figure(result) is None:
                reasons.append(f"it has no {order.by}")
        result["gate"] = {"ranked": not reasons, "rank": None, "reasons": reasons}
    ranked = [result for result in run["results"] if result["gate"]["ranked"]]
    ranked.sort(key=order.sort_key)
    places: Counter[str | None] = Counter()
    for result in ranked:
        places[result.get("model")] += 1
        result["gate"]["rank"] = places[result.get("model")]


def find_reference(run: Run, result: Result) -> Result | None:
    """Return the reference's row with the result's model, or None if the run has none that finished."""
    found = reference_of(run, result)
    return found if found is not None and found["status"] == "ok" else None


def any_reference(run: Run) -> Result | None:
    """Return the reference's first row that finished, whatever its model."""
    return next((r for result in run["results"] if (r := find_reference(run, result)) is not None), None)


def _own_faults(run: Run, result: Result, reference: Result | None) -> Iterator[str]:
    """Yield the reasons that need no comparison with another row's answers."""
    if result["status"] != "ok":
        yield result["error"] or result["status"]
        return
    yield from _coverage(run, result)
    yield from _weights(run, result)
    yield from _settings(run, result)
    yield from _quality_ceiling(run, result)
    yield from _steadiness(run, result, reference, is_of_engine(run, result))
    yield from _processors(run, result)
    yield from _timing(run, result)
    yield from audit_faults(run, result, reference)


def _coverage(run: Run, result: Result) -> Iterator[str]:
    failed = {sample["clip"] for sample in result["samples"] if sample["error"] is not None}
    answered = {sample["clip"] for sample in result["samples"]} - failed
    missing = [clip["name"] for clip in run["clips"] if clip["name"] not in answered]
    if missing:
        first = next((s["error"] for s in result["samples"] if s["error"] is not None), None)
        why = f": {first}" if first else ""
        yield (
            f"answered {len(run['clips']) - len(missing)} of {len(run['clips'])} clips "
            f"(not {_listing(missing)}){why}"
        )
    expected = len(run["clips"]) * run["settings"]["rounds"]
    if not missing and len(result["samples"]) < expected:
        yield f"only {len(result['samples'])} of {expected} measurements were made"


def _settings(run: Run, result: Result) -> Iterator[str]:
    applied = result["applied_settings"] or {}
    asked = run["settings"]["decoding"]
    unsaid = [name for name in asked if name not in applied]
    if unsaid:
        values = ", ".join(repr(asked[name]) for name in unsaid)
        yield f"it does not say which {', '.join(unsaid)} it used (requested: {values})"
    lacking = applied.get("not_applied") or {}
    may_lack = OF_WHISPER if is_of_engine(run, result) else MAY_BE_LACKING
    if is_of_engine(run, result) and result["device"] == REMOTE:
        may_lack = (*may_lack, "threads")  # it is as fast as its server, whatever that has
    for name, value in asked.items():
        if name in may_lack and name in lacking and applied.get(name) is None:
            continue  # a warning of the reports; what it costs shows in the WER
        if name in applied and applied[name] != value:
            yield f"it ran with {name} {applied[name]!r}, but {value!r} was requested"
    unsaid = [s["clip"] for s in result["samples"] if word_errors.is_answered(s) and "language" not in s]
    if language_id.is_asked(run) and unsaid:
        yield f"it does not say which language it detected in {_listing(list(dict.fromkeys(unsaid)))}"


def _weights(run: Run, result: Result) -> Iterator[str]:
    """Check the weights of a backend that does not load the checkpoint itself; None if unknown to it."""
    applied = result["applied_settings"] or {}
    if "checkpoint_sha256" not in applied:
        if is_of_engine(run, result):
            yield "it does not say which weights it loaded (checkpoint_sha256)"
        return
    ran, asked = applied["checkpoint_sha256"], model_of(run, result)
    if ran is None:
        which = f"{asked['name']} ({asked['sha256']:.12}…)"
        yield f"its weights are unknown: nobody has stated that it runs {which}"
    elif ran not in (asked["sha256"], asked["tensors_sha256"]):
        yield f"it ran other weights ({ran:.12}…) than {asked['name']} ({asked['sha256']:.12}…)"


def _quality_ceiling(run: Run, result: Result) -> Iterator[str]:
    wer = _wer(result)
    ceiling = run["settings"]["max_wer"]
    if wer is None:
        yield "WER is unknown: no clip has a reference text with words"
    elif wer > ceiling:
        yield f"WER {wer:.1%} is above the ceiling of {ceiling:.0%}"
    elif (worst := _worst(result, lambda entry: (entry["wer"] or 0.0) - ceiling)) is not None:
        yield f"WER {worst['wer']:.1%} in round {worst['round'] + 1} is above the ceiling of {ceiling:.0%}"


def _steadiness(run: Run, result: Result, reference: Result | None, is_own: bool) -> Iterator[str]:
    """What sounds the same is the same text, whichever round it is asked for in."""

    def limit(entry: RoundErrors) -> float:
        if is_own:
            return CHANGED_OF_OWN_LIMIT
        if result is reference:
            return CHANGED_OF_REFERENCE_LIMIT
        allowed = 0.0 if reference is None else 2 * _shakiness(reference, entry)
        return max(CHANGED_BETWEEN_ROUNDS_LIMIT, _few_words(run, entry)) + allowed

    worst = _worst(result, lambda entry: (entry["changed_words"] or 0.0) - limit(entry))
    if worst is not None:
        yield (
            f"{worst['changed_words']:.0%} of its words changed between its first answers and round "
            f"{worst['round'] + 1} (allowed: {limit(worst):.0%})"
        )


def _shakiness(reference: Result, entry: RoundErrors) -> float:
    """Return the share of the reference's words that inaudible changes of the audio change in a round.

    If the reference lacks the round, it is the most that they change in any; in the first round none do.
    """
    changed = {other["round"]: other["changed_words"] or 0.0 for other in _rounds(reference)}
    return 0.0 if entry["round"] == 0 else changed.get(entry["round"], max(changed.values(), default=0.0))


def _few_words(run: Run, entry: RoundErrors) -> float:
    """Return which share of the run's words FEW_WORDS are; 0 in the first round, which states the WER."""
    words = sum(clip["reference_words"] or 0 for clip in run["clips"])
    return 0.0 if entry["round"] == 0 else FEW_WORDS / max(words, 1)


def _processors(run: Run, result: Result) -> Iterator[str]:
    """An engine may keep as many cores busy as it was given threads."""
    threads = run["settings"]["decoding"].get("threads")
    timed = [s for s in word_errors.timed(result) if s["cpu_seconds"] is not None]
    wall = sum(sample["wall_seconds"] for sample in timed)
    cpu = sum(sample["cpu_seconds"] or 0.0 for sample in timed)
    if threads and cpu > THREADS_LIMIT * threads * wall + TICK_SECONDS * len(timed):
        yield f"it kept {cpu / wall:.1f} cores busy, but was given {threads} (--threads)"


def audit_faults(run: Run, result: Result, reference: Result | None) -> Iterator[str]:
    """Say why a row did not pass its audit; nothing of a run without one, or of an engine on a server."""
    if not run["settings"].get("audit"):
        return
    audit = result.get("audit")
    theirs = None if reference is None else reference.get("audit")
    if audit is None:
        yield "it was not audited: the run ended before"
        return
    if not audit["auditable"]:
        return
    words, changed = audit["words"], audit["changed_words"]
    if audit["error"] is not None:
        yield f"it could not be audited: {audit['error']}"
    elif result is reference:
        if changed < AUDIT_EXCHANGED_LIMIT * words or not words:
            yield (
                f"exchanging words in the checkpoint changed only {changed} of {words} words of its answers: "
                "the audit proves nothing"
            )
    elif not words:
        yield "it could not be audited: the reference answered without a word"
    elif changed > AUDIT_CHANGED_LIMIT * words + audit["usual_changed_words"]:
        yield (
            f"with another checkpoint {changed} of {words} words are not those that follow from it (audit): "
            "it does not run the checkpoint that it is given"
        )
    slower = max(1.0, (theirs and theirs["over_run"]) or 1.0)
    if audit["over_run"] is not None and audit["over_run"] > UNSEEN_OVER_SEEN_LIMIT * slower:
        yield f"with another checkpoint it took {audit['over_run']:.1f} times as long as in the run (audit)"


def _worst(result: Result, excess: Callable[[RoundErrors], float]) -> RoundErrors | None:
    """Return the round whose `excess` over a limit is largest, None where no round exceeds it."""
    worst = max(_rounds(result), key=excess, default=None)
    return worst if worst is not None and excess(worst) > 1e-12 else None


def _timing(run: Run, result: Result) -> Iterator[str]:
    rounds = timed_samples.complete_rounds(run, result)
    if rounds == 0:
        yield "no complete round in the timed session, so its speed would cover only some clips"
    integrity = result["integrity"]
    if integrity is None or not any(map(word_errors.is_timed, result["samples"])):
        yield "its timing was not checked for cached answers"
        return
    ratio = integrity["unseen_over_seen"]
    if ratio is not None and ratio > UNSEEN_OVER_SEEN_LIMIT:
        yield f"copies that it had not heard took {ratio:.1f} times as long: answers were cached or prepared"
    is_one_machine = run.get("executor", "local") == "local"  # elsewhere the next round may be another's
    ratio = later_over_first(result["samples"]) if registry.of(run).has_rounds and is_one_machine else None
    if ratio is not None and ratio > LATER_OVER_FIRST_LIMIT:
        yield f"after the first round its clips took {ratio:.1f} times as long: it had known the first ones"
    ratio = integrity.get("spliced_over_seen")
    if ratio is not None and ratio > SPLICED_OVER_SEEN_LIMIT:
        yield f"splices of two clips took {ratio:.1f} times as long as a clip: its answers were known"
    looked_at = [s for s in result["samples"] if s["late_work_seconds"] is not None]
    # a stream spends most of the wall time waiting for audio
    wall = sum(s.get("busy_seconds") or s["wall_seconds"] for s in looked_at if word_errors.is_timed(s))
    late = integrity["late_work_seconds"] or 0.0
    if late > LATE_WORK_LIMIT * wall:
        yield f"it worked for {late:.2f} s after its calls had returned ({wall:.2f} s were measured)"
    yield from _work_outside_calls(run, result)


def _work_outside_calls(run: Run, result: Result) -> Iterator[str]:
    """What a worker computes before and after its calls is in no call's time, whatever it is for."""
    used = result["resources"]
    outside, calls = used.get("outside_cpu_seconds"), used.get("calls")
    if outside is None or not calls:
        return
    inside = used.get("calls_cpu_seconds") or 0.0
    harmless = OUTSIDE_SECONDS_PER_CALL * calls
    if registry.of(run).idles:  # elsewhere this time is short, but for what such work itself takes
        harmless += POLLING_CORES * (used.get("outside_wall_seconds") or 0.0)
    if outside > LATE_WORK_LIMIT * inside + harmless:
        yield (
            f"it computed for {outside:.2f} s outside its {calls} calls, in which it computed for "
            f"{inside:.2f} s (allowed: {LATE_WORK_LIMIT * inside + harmless:.2f})"
        )


def _differences(run: Run, result: Result, reference: Result | None) -> Iterator[str]:
    """Yield the reasons that compare the row with the reference backend's."""
    if reference is None:
        return
    shaky = functools.partial(_shakiness, reference)
    wer, reference_wer = _wer(result), _wer(reference)
    tolerance = run["settings"]["wer_tolerance"]

    def rise(entry: RoundErrors) -> float:
        return max(tolerance, _few_words(run, entry)) + shaky(entry)

    if wer is not None and reference_wer is not None and wer - reference_wer > tolerance + 1e-12:
        yield (
            f"WER {wer:.1%} is {100 * (wer - reference_wer):.1f} points above the reference's "
            f"{reference_wer:.1%} (allowed: {100 * tolerance:.1f})"
        )
    elif (worst := _worst(result, lambda e: (e["wer_difference"] or 0.0) - rise(e))) is not None:
        yield (
            f"WER {worst['wer']:.1%} in round {worst['round'] + 1} is "
            f"{100 * (worst['wer_difference'] or 0):.1f} points above the reference's "
            f"(allowed: {100 * rise(worst):.1f})"
        )
    versus = None if result["wer"] is None else result["wer"]["versus_reference"]
    ratio, length = None if versus is None else versus["length_ratio"], run["settings"]["length_tolerance"]
    if ratio is not None and abs(ratio - 1) > length + 1e-12:
        yield (
            f"wrote {ratio:.0%} of the reference's number of words "
            f"(allowed: {1 - length:.0%} to {1 + length:.0%})"
        )
    elif (worst := _worst(result, lambda e: _off(e["length_ratio"]) - length - shaky(e))) is not None:
        length += shaky(worst)
        yield (
            f"wrote {worst['length_ratio']:.0%} of the reference's number of words in round "
            f"{worst['round'] + 1} (allowed: {1 - length:.0%} to {1 + length:.0%})"
        )
    yield from _empty(run, result)
    yield from _copies(result, reference)


def _own_differences(run: Run, result: Result) -> Iterator[str]:
    """Yield the reasons against an engine with a model of its own, which no reference has.

    Its length is compared with the reference texts, and its errors with those of its first answers.
    """
    length = run["settings"]["length_tolerance"]
    worst = _worst(result, lambda e: _off(e["length_ratio"]) - length)
    if worst is not None:
        yield (
            f"wrote {worst['length_ratio']:.0%} of the number of words in the reference texts in round "
            f"{worst['round'] + 1} (allowed: {1 - length:.0%} to {1 + length:.0%})"
        )
    worst = _worst(result, lambda e: (e["wer_difference"] or 0.0) - _rise_by_chance(run, e))
    if worst is not None:
        yield (
            f"WER {worst['wer']:.1%} in round {worst['round'] + 1} is "
            f"{100 * (worst['wer_difference'] or 0):.1f} points above that of its first answers "
            f"(allowed: {100 * _rise_by_chance(run, worst):.1f})"
        )
    yield from _empty(run, result)
    other = any_reference(run)
    if other is not None:
        yield from _spliced(result, other)
    for probe in probes_of(result):
        if probe["changed_words"] is None:
            yield f"it gave no answer to a {probe['kind']} copy of {probe['clip']}"
    dithered = [probe for probe in probes_of(result) if probe["kind"] == "dithered"]
    changed = sum(probe["changed_words"] or 0 for probe in dithered)
    words = sum(probe["text_words"] or 0 for probe in dithered)
    if changed > CHANGED_WORDS_LIMIT * words:
        yield f"inaudible noise changes {changed} of {words} words of its answers"


def _rise_by_chance(run: Run, entry: RoundErrors) -> float:
    """Return by how much the WER of an engine may rise in a round, if nobody else has its model.

    Where words change by chance, as many get right as get wrong, up to some deviations; and the tolerance.
    """
    words = sum(clip["reference_words"] or 0 for clip in run["clips"])
    by_chance = CHANCE_DEVIATIONS * math.sqrt((entry["changed_words"] or 0.0) / words) if words else 0.0
    return run["settings"]["wer_tolerance"] + min(CHANGED_BETWEEN_ROUNDS_LIMIT, by_chance)


def _empty(run: Run, result: Result) -> Iterator[str]:
    empty = list(dict.fromkeys(clip for entry in _rounds(result) for clip in entry["empty_clips"]))
    if empty:
        yield (
            f"answered nothing to {len(empty)} of {len(run['clips'])} clips that the reference understood "
            f"({_listing(empty)})"
        )


def _copies(result: Result, reference: Result) -> Iterator[str]:
    """Compare the answers to copies with how the reference's answers changed on the same copies."""
    theirs = {(p["kind"], p["clip"]): p for p in probes_of(reference)}
    for probe in probes_of(result):
        other = theirs.get((probe["kind"], probe["clip"]))
        if other is None or other["changed_words"] is None:
            continue
        if probe["changed_words"] is None:
            yield f"it gave no answer to a {probe['kind']} copy of {probe['clip']}"
        elif probe["kind"] == "dithered" and _share(probe) > CHANGED_WORDS_LIMIT >= _share(other):
            yield (f"inaudible noise changes {probe['changed_words']} words of its answer to {probe['clip']}")
    yield from _spliced(result, reference)


def _spliced(result: Result, reference: Result) -> Iterator[str]:
    """Say which splices were answered with the text of their beginning, where the reference heard another.

    One of few words may be chance: an engine that mishears a third of all words answered one of three so.
    And whether most were answered with other words than the reference's: an engine that tells a splice by its
    ear might answer something in no time.
    """
    theirs = {(p["kind"], p["clip"]): p for p in probes_of(reference)}
    alike = []
    for probe in probes_of(result):
        other = theirs.get((probe["kind"], probe["clip"]))
        if probe["kind"] != "spliced" or other is None or other["changed_words"] is None:
            continue
        if probe["changed_words"] == 0 and _share(other) > 0.25:
            alike.append(probe)
    if len(alike) > 1 or any((probe["text_words"] or 0) > FEW_SPLICED_WORDS for probe in alike):
        for probe in alike:
            yield f"it answered a recording spliced from two clips with the text of {probe['clip']}"
    heard = {p["copy_sha256"]: p["text_words"] or 0 for p in probes_of(reference) if "copy_sha256" in p}
    shares = [
        1.0
        if changed is None
        else changed / max(heard.get(probe.get("copy_sha256", ""), 0), probe["text_words"] or 0, 1)
        for probe in probes_of(result)
        if (changed := probe.get("reference_changed_words", -1)) != -1
    ]
    wrong = sum(share > SPLICED_WORDS_LIMIT for share in shares)
    if wrong > max(1, len(shares) / 2):
        yield f"{wrong} of {len(shares)} splices of two clips were answered otherwise than by the reference"


def _rounds(result: Result) -> list[RoundErrors]:
    """Return what each round is worth; nothing in runs from before that was recorded."""
    return [] if result["wer"] is None else result["wer"]["rounds"]


def _off(length_ratio: float | None) -> float:
    return 0.0 if length_ratio is None else abs(length_ratio - 1)


def _share(probe: ProbeRecord) -> float:
    """Return the words that the copy changed, over the copy's words."""
    return (probe["changed_words"] or 0) / max(probe["text_words"] or 0, 1)


def _wer(result: Result) -> float | None:
    return None if result["wer"] is None else result["wer"]["wer"]


def _listing(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
