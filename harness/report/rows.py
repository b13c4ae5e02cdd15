"""Builds the rows that all reports show, so that formats cannot disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asrgate.harness import record
from asrgate.harness.column import Row
from asrgate.harness.escape import MOST_OF_REASON, cut
from asrgate.harness.metrics.normalizers import UNSPACED_LANGUAGES
from asrgate.harness.record import reference_name
from asrgate.harness.record_types import Result, Run
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import RTFX
from asrgate.harness.scoring import machines, round_ratios

RANKED, UNRANKED, UNAVAILABLE = "ranked", "unranked", "unavailable"


def rows(run: Run) -> list[Row]:
    """Return one flat row per variant: the ranked ones by rank, then the unranked, then the unavailable.

    In a run of several models, the rows of each come together; the unavailable ones are last all the same.

    A row is ranked only if the gate says so and the record has both its WER and the figure by which its
    scenario is ranked. Units are in the names; values are in percent where the record has fractions; unknown
    values are None. Speed-up is given only for ranked rows, where RTFx ranks, because others did different
    work.
    """
    built = {result["variant"]: _row(run, result) for result in run["results"]}
    by_rtfx = registry.of(run).order == RTFX
    for result, row in zip(run["results"], built.values(), strict=True):
        reference = built.get(reference_name(run, result))
        if by_rtfx and reference is not None and row["group"] == reference["group"] == RANKED:
            row["speedup"] = row["rtfx"] / reference["rtfx"]
            row["speedup_low"], row["speedup_high"] = _speedup_interval(run, result)
    _add_across(run, built)
    order = [RANKED, UNRANKED, UNAVAILABLE]
    models = [model["name"] for model in record.models(run)]

    def place(row: Row) -> tuple[bool, int, int, int]:
        is_absent = row["group"] == UNAVAILABLE
        model = models.index(row["model"]) if row["model"] in models and not is_absent else 0
        return is_absent, model, order.index(row["group"]), row["rank"] or 0

    return sorted(built.values(), key=place)


def _add_across(run: Run, built: Mapping[str, Row]) -> None:
    """Say of each row whether it is on a front, and which row beats it, if the run says so of its rows."""
    if "across" not in run:
        return
    across = run["across"]
    fronts = [{place["variant"] for place in across[name]} for name in ("front", "memory_front")]
    beaten = {entry["variant"]: entry["by"] for entry in across["beaten"]}
    for name, row in built.items():
        row["on_front"], row["on_memory_front"] = (name in front for front in fronts)
        row["beaten_by"] = beaten.get(name)


def without_model(row: Row) -> str:
    """Return a row's variant without its model, for where that stands beside."""
    return str(row["variant"]).replace(f":{row['model']}", "", 1)


def by_model(run: Run, built: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each model, in the order of the run; "" -> all of them, if it has but one."""
    if "models" not in run:
        return {"": list(built)}
    found = {name: [r for r in built if r["model"] == name] for name in (m["name"] for m in run["models"])}
    return {name: members for name, members in found.items() if members}


def _row(run: Run, result: Result) -> Row:
    group = _group(run, result)
    return {
        "group": group,
        "rank": result["gate"]["rank"] if group == RANKED else None,
        "variant": result["variant"],
        "model": result.get("model") if "models" in run else run["checkpoint"]["name"],
        "backend": result["backend"],
        "device": result["device"],
        "precision": result["precision"],
        "scenario": registry.of(run).name,
        "status": result["status"],
        "reason": _reason(group, result),
        "remedy": result["remedy"],
        "cer_is_headline": _is_unspaced(run),
        **_quality(result),
        **_word_times(result),
        **_versus(result),
        **({"length_ratio": _own_length(result)} if record.is_of_engine(run, result) else {}),
        **_speed(result),
        **_latency(result),
        **_of_scenarios(result),
        **result["load"],
        **_resources(result),
    }


def _group(run: Run, result: Result) -> str:
    if result["status"] == "unavailable":
        return UNAVAILABLE
    has_figure = registry.of(run).order.figure(result) is not None
    has_both = result["wer"] is not None and result["wer"]["wer"] is not None and has_figure
    judged = result["gate"]["ranked"] and result["gate"]["rank"] is not None
    return RANKED if result["status"] == "ok" and judged and has_both else UNRANKED


def _reason(group: str, result: Result) -> str | None:
    if group == RANKED:
        return None
    if group == UNAVAILABLE:
        return cut(result["error"] or "this machine cannot run it", MOST_OF_REASON)
    reasons = list(result["gate"]["reasons"])
    if result["error"] and not any(result["error"] in reason for reason in reasons):
        reasons.insert(0, result["error"])
    return "; ".join(cut(reason, MOST_OF_REASON) for reason in reasons) or "not judged yet"


def _quality(result: Result) -> Row:
    wer = _part(result["wer"])
    low, high = wer.get("interval") or (None, None)
    unstable = wer.get("unstable_clips")
    return {
        "wer_percent": _percent(wer.get("wer")),
        "wer_low_percent": _percent(low),
        "wer_high_percent": _percent(high),
        "cer_percent": _percent(wer.get("cer")),
        "second_wer_percent": _percent((wer.get("second") or {}).get("wer")),
        "language_id_percent": _percent(_part(result.get("language_id")).get("accuracy")),
        "keyword_recall_percent": _percent((wer.get("keywords") or {}).get("recall")),
        "keywords_said": (wer.get("keywords") or {}).get("said"),
        "formatted_wer_percent": _percent(wer.get("formatted")),
        "substitutions": wer.get("substitutions"),
        "deletions": wer.get("deletions"),
        "insertions": wer.get("insertions"),
        "reference_words": wer.get("reference_words"),
        "output_words": wer.get("output_words"),
        "exact_clips": wer.get("exact_matches"),
        "scored_clips": wer.get("clips"),
        "unstable_clips": None if unstable is None else len(unstable),
    }


def _word_times(result: Result) -> Row:
    times, answers = _part(result.get("word_times")), _part(result.get("word_answers"))
    offsets = {
        f"word_{side}_{name}": _part(times.get(side)).get(name)
        for side in ("start", "end")
        for name in ("mean_seconds", "p95_seconds")
    }
    return {
        **offsets,
        "timed_words": times.get("aligned_words"),
        "timed_reference_words": times.get("reference_words"),
        "word_times_over_call": times.get("over_call"),
        "gives_word_times": answers.get("available"),
    }


def _is_unspaced(run: Run) -> bool:
    """Whether all texts are in languages written without spaces, in which the field's figure is the CER."""
    translated = run["settings"]["decoding"].get("task") == "translate"
    scored = [clip for clip in run["clips"] if clip["reference_words"]]
    return bool(scored) and not translated and all(c["language"] in UNSPACED_LANGUAGES for c in scored)


def _versus(result: Result) -> Row:
    versus = _part(_part(result["wer"]).get("versus_reference"))
    low, high = versus.get("interval") or (None, None)
    return {
        "compared_with": versus.get("variant"),
        "wer_difference_points": _percent(versus.get("wer_difference")),
        "wer_difference_low_points": _percent(low),
        "wer_difference_high_points": _percent(high),
        "probability_worse": versus.get("probability_worse"),
        "probability_different": versus.get("probability_different"),
        "same_text_clips": versus.get("same_text_clips"),
        "compared_clips": versus.get("compared_clips"),
        "length_ratio": versus.get("length_ratio"),
    }


def _own_length(result: Result) -> float | None:
    """Return the words of first answers over those of the reference texts."""
    rounds = _part(result["wer"]).get("rounds") or [{}]
    length: float | None = rounds[0].get("length_ratio")
    return length


def _speed(result: Result) -> Row:
    rtfx = _part(result["rtfx"])
    low, high = rtfx.get("interval") or (None, None)
    return {
        "rtfx": rtfx.get("rtfx"),
        "rtfx_low": low,
        "rtfx_high": high,
        "rtf": rtfx.get("rtf"),
        "speedup": None,
        "speedup_low": None,
        "speedup_high": None,
        "audio_seconds": rtfx.get("audio_seconds"),
        "wall_seconds": rtfx.get("wall_seconds"),
        "tokens_per_second": rtfx.get("tokens_per_second"),
    }


def _speedup_interval(run: Run, result: Result) -> tuple[float, float] | tuple[None, None]:
    found = round_ratios.over_reference(run, result)
    return (None, None) if found is None or found.interval is None else found.interval


def _latency(result: Result) -> Row:
    latency = _part(result["latency"])
    stages = latency.get("stage_seconds", {})
    return {
        "samples": latency.get("count"),
        "latency_min_seconds": latency.get("min_seconds"),
        "latency_median_seconds": latency.get("median_seconds"),
        "latency_iqr_seconds": latency.get("iqr_seconds"),
        "latency_p90_seconds": latency.get("p90_seconds"),
        "latency_p99_seconds": latency.get("p99_seconds"),
        **{f"{stage}_median_seconds": stages.get(stage) for stage in ("log_mel", "encode", "decode")},
    }


def _of_scenarios(result: Result) -> Row:
    """Return the figures of all scenarios, so that every run has the same columns."""
    found: Row = {}
    parts: Mapping[str, Any] = result
    for scenario in registry.BUILTIN.values():
        part, names = scenario.figures
        found |= {name: parts.get(name) for name in scenario.row_fields}
        found |= {name: (parts.get(part) or {}).get(name) for name in names}
    return found


def _resources(result: Result) -> Row:
    joules, audio_seconds = result["resources"]["energy_joules"], _part(result["rtfx"]).get("audio_seconds")
    an_hour = joules / audio_seconds * 3600 if joules is not None and audio_seconds else None
    used = {name: value for name, value in result["resources"].items() if name not in machines.USAGE}
    return {**used, "energy_joules_per_audio_hour": an_hour}


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _part(found: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a part of a result; one that is null has no figures."""
    return {} if found is None else found
