"""Builds the rows that all reports show, so that formats cannot disagree."""

from __future__ import annotations

from typing import Any

from asrgate.harness.metrics.normalizers import UNSPACED_LANGUAGES
from asrgate.harness.record import Run
from asrgate.harness.scenarios import registry
from asrgate.harness.scoring import ranking

Row = dict[str, Any]

RANKED, UNRANKED, UNAVAILABLE = "ranked", "unranked", "unavailable"


def rows(run: Run) -> list[Row]:
    """Return one flat row per variant: the ranked ones by rank, then the unranked, then the unavailable.

    A row is ranked only if the gate says so and the record has both its WER and the figure by which its
    scenario is ranked. Units are in the names; values are in percent where the record has fractions; unknown
    values are None. Speed-up is given only for ranked rows, where RTFx ranks, because others did different
    work.
    """
    built = [_row(run, result) for result in run["results"]]
    reference = next((r for r in built if r["variant"] == run["settings"]["reference"]), None)
    by_rtfx = ranking.order(run).by == "RTFx"
    for row in built:
        if by_rtfx and reference is not None and row["group"] == reference["group"] == RANKED:
            row["speedup"] = row["rtfx"] / reference["rtfx"]
    order = [RANKED, UNRANKED, UNAVAILABLE]
    return sorted(built, key=lambda row: (order.index(row["group"]), row["rank"] or 0))


def _row(run: Run, result: dict[str, Any]) -> Row:
    group = _group(run, result)
    return {
        "group": group,
        "rank": result["gate"]["rank"] if group == RANKED else None,
        "variant": result["variant"],
        "backend": result["backend"],
        "device": result["device"],
        "precision": result["precision"],
        "batch_size": result.get("batch_size"),
        "takes_batches": result.get("takes_batches"),
        "scenario": registry.of(run),
        "is_emulated": result.get("is_emulated"),
        "status": result["status"],
        "reason": _reason(group, result),
        "remedy": result["remedy"],
        "cer_is_headline": _is_unspaced(run),
        **_quality(result),
        **_versus(result),
        **_speed(result),
        **_latency(result),
        **_server(result),
        **_streaming(result),
        **result["load"],
        **_resources(result),
    }


def _group(run: Run, result: dict[str, Any]) -> str:
    if result["status"] == "unavailable":
        return UNAVAILABLE
    has_figure = ranking.order(run).figure(result) is not None
    has_both = (result["wer"] or {}).get("wer") is not None and has_figure
    judged = result["gate"]["ranked"] and result["gate"]["rank"] is not None
    return RANKED if result["status"] == "ok" and judged and has_both else UNRANKED


def _reason(group: str, result: dict[str, Any]) -> str | None:
    if group == RANKED:
        return None
    if group == UNAVAILABLE:
        return result["error"] or "this machine cannot run it"
    reasons = list(result["gate"]["reasons"])
    if result["error"] and not any(result["error"] in reason for reason in reasons):
        reasons.insert(0, result["error"])
    return "; ".join(reasons) or "not judged yet"


def _quality(result: dict[str, Any]) -> Row:
    wer = result["wer"] or {}
    low, high = wer.get("interval") or (None, None)
    unstable = wer.get("unstable_clips")
    return {
        "wer_percent": _percent(wer.get("wer")),
        "wer_low_percent": _percent(low),
        "wer_high_percent": _percent(high),
        "cer_percent": _percent(wer.get("cer")),
        "second_wer_percent": _percent((wer.get("second") or {}).get("wer")),
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


def _is_unspaced(run: Run) -> bool:
    """Whether all texts are in languages written without spaces, in which the field's figure is the CER."""
    translated = run["settings"]["decoding"].get("task") == "translate"
    scored = [clip for clip in run["clips"] if clip["reference_words"]]
    return bool(scored) and not translated and all(c["language"] in UNSPACED_LANGUAGES for c in scored)


def _versus(result: dict[str, Any]) -> Row:
    versus = (result["wer"] or {}).get("versus_reference") or {}
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


def _speed(result: dict[str, Any]) -> Row:
    rtfx = result["rtfx"] or {}
    low, high = rtfx.get("interval") or (None, None)
    return {
        "rtfx": rtfx.get("rtfx"),
        "rtfx_low": low,
        "rtfx_high": high,
        "rtf": rtfx.get("rtf"),
        "speedup": None,
        "audio_seconds": rtfx.get("audio_seconds"),
        "wall_seconds": rtfx.get("wall_seconds"),
        "tokens_per_second": rtfx.get("tokens_per_second"),
    }


def _latency(result: dict[str, Any]) -> Row:
    latency = result["latency"] or {}
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


def _server(result: dict[str, Any]) -> Row:
    server = result.get("server") or {}
    return {
        name: server.get(name)
        for name in (
            *("rate_per_second", "max_rate_per_second", "achieved_per_second", "utilisation"),
            *("largest_queue", "is_overloaded"),
        )
    }


def _streaming(result: dict[str, Any]) -> Row:
    streaming = result.get("streaming") or {}
    return {
        name: streaming.get(name)
        for name in (
            *("first_text_median_seconds", "first_text_p90_seconds", "unstable_partial_word_ratio"),
            *("partials", "busy_fraction"),
        )
    }


def _resources(result: dict[str, Any]) -> Row:
    resources = dict(result["resources"])
    joules, audio_seconds = resources["energy_joules"], (result["rtfx"] or {}).get("audio_seconds")
    known = joules is not None and audio_seconds
    resources["energy_joules_per_audio_hour"] = joules / audio_seconds * 3600 if known else None
    return resources


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
