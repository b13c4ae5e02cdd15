"""What a run of several models comes to: its answer in three lines, its fronts, the rows that are beaten."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from asrgate.harness import record
from asrgate.harness.column import figure, interval, mebibytes, percent
from asrgate.harness.metrics import bootstrap
from asrgate.harness.metrics.word_errors import errors
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import Answer, FrontPlace, Result, Run
from asrgate.harness.report import context
from asrgate.harness.report.parts import Part
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import RTFX
from asrgate.harness.scoring import across

ALIKE_SHOWN = 3
LIKE_BEST = "not told apart from the most accurate"


def lines(run: Run) -> list[tuple[str, str]]:
    """Return question and answer of each line, or why there is none; nothing of a run of one model."""
    if "across" not in run:
        return []
    results = {result["variant"]: result for result in run["results"]}
    found = [
        (_question(answer), _answer(run, answer, results[answer["variant"]]))
        for answer in run["across"]["answers"]
    ]
    limits = _limits(run)
    if not found:
        why = f" with {limits}" if limits else ""
        return [("answer", f"no ranked row{why}")]
    return [*found, ("only rows with", limits)] if limits else found


def parts(run: Run) -> list[Part]:
    """Return the fronts and the beaten rows as tables; nothing of a run of one model."""
    if "across" not in run or "models" not in run:
        return []
    order = registry.of(run).order
    speed = "RTFx" if order == RTFX else order.by
    stated = run["across"]
    found = []
    for title, what, places in (
        ("Front of errors and speed", f"WER and {speed}", stated["front"]),
        ("Front of errors and memory", "WER and peak memory", stated["memory_front"]),
    ):
        if places:
            note = (
                f"Ranked rows that no other row beats in {what}. Points: WER minus that of the row above, "
                "with its paired 95 % interval; where that holds 0, the clips cannot tell the two apart."
            )
            headings = ["variant", "WER %", speed, "MiB", "points", "95 % CI"]
            found.append(Part(title, note, headings, list(_front(run, places)), frozenset(range(1, 6))))
    if stated["beaten"]:
        note = (
            "Rows that make more errors and are slower than another, beyond the 95 % intervals of both "
            "differences. Points: their WER minus the other's; times: how many times as fast the other is."
        )
        body = [
            [
                entry["variant"],
                entry["by"],
                _points(entry["wer_difference"]),
                _interval_of_points(entry["interval"]),
                figure(entry["speed_ratio"]),
                interval(entry["speed_interval"][0], entry["speed_interval"][1]),
            ]
            for entry in stated["beaten"]
        ]
        headings = ["variant", "beaten by", "points", "points 95 % CI", "times", "times 95 % CI"]
        found.append(Part("Beaten in both", note, headings, body, frozenset(range(2, 6))))
    return found


def of_runs(runs: Sequence[Run]) -> list[Part]:
    """Return a front for each machine on which several models were measured, in one run or in several.

    Only runs of the same clips, scenario and normaliser share one.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        clips = sorted([clip["sha256"], clip["language"], clip["reference_sha256"]] for clip in run["clips"])
        asked = [registry.of(run).conditions(), run["scoring"]["normalizer"], run["settings"]["decoding"]]
        alike.setdefault(json.dumps([context.machine(run), asked, clips]), []).append(run)
    found = []
    for members in alike.values():
        models = {record.model_digest(model) for run in members for model in record.models(run)}
        if len(models) > 1 and registry.of(members[0]).order == RTFX and (body := _front_of_runs(members)):
            note = (
                f"Of {len(models)} models on {context.machine(members[0])}: the ranked rows that no other "
                "row beats in WER and RTFx, from all runs here that have the same clips. Points: WER minus "
                "that of the row above, with its paired 95 % interval."
            )
            headings = ["variant", "model", "WER %", "RTFx", "points", "95 % CI", "run"]
            found.append(Part("Front of errors and speed", note, headings, body, frozenset(range(2, 6))))
    return found


def _front_of_runs(runs: Sequence[Run]) -> list[list[str]]:
    rows = [(run, row) for run in runs for row in across.ranked(run) if row["rtfx"] is not None]
    points = [(-row["rtfx"]["rtfx"] if row["rtfx"] else 0.0, across.wer_of(row)) for _, row in rows]
    front = [rows[n] for n in across.pareto_front(points)]
    body = []
    for before, (run, row) in zip([None, *front], front, strict=False):
        told = ["", ""]
        if before is not None:
            difference = across.wer_of(row) - across.wer_of(before[1])
            told = [_points(difference), _interval_of_points(_paired(before, (run, row)))]
        speed = "" if row["rtfx"] is None else figure(row["rtfx"]["rtfx"])
        model = record.model_of(run, row)["name"]
        body.append([record.without_model(row), model, _wer(row), speed, *told, run["run_id"]])
    return body


def _paired(before: tuple[Run, Result], new: tuple[Run, Result]) -> bootstrap.Interval | None:
    """Return the interval of the WER of a row minus that of another, which may be of another run."""
    counted = []
    for run, row in (before, new):
        names = {clip["name"]: clip["sha256"] for clip in run["clips"]}
        counted.append({names[entry["clip"]]: entry for entry in errors_of(row)})
    one, other = counted
    both = [sha256 for sha256 in one if sha256 in other]
    values = [[errors(one[s]), errors(other[s]), one[s]["reference_words"]] for s in both]
    if len(both) < 2:
        return None
    sums = bootstrap.resampled_sums(np.array(values, dtype=np.float64))
    return bootstrap.ratio_interval(sums[:, 1] - sums[:, 0], sums[:, 2])


def _front(run: Run, places: Sequence[FrontPlace]) -> Iterator[list[str]]:
    order = registry.of(run).order
    results = {result["variant"]: result for result in run["results"]}
    for place in places:
        result = results[place["variant"]]
        difference = place["wer_difference"]
        yield [
            place["variant"],
            _wer(result),
            figure(order.figure(result)),
            mebibytes(across.memory_bytes(result)),
            "" if difference is None else _points(difference),
            _interval_of_points(place["interval"]),
        ]


def _question(answer: Answer) -> str:
    return {
        across.MOST_ACCURATE: "most accurate",
        across.FASTEST: f"fastest within {100 * across.FASTEST_WITHIN:g} point",
        across.SMALLEST: f"smallest within {100 * across.SMALLEST_WITHIN:g} points",
    }[answer["question"]]


def _answer(run: Run, answer: Answer, result: Result) -> str:
    memory = across.memory_bytes(result)
    facts = [
        answer["variant"],
        f"WER {_wer(result)} %{_bracketed(interval(*_wer_interval(result), percent))}",
        _speed(run, result),
        *([] if memory is None else [f"{mebibytes(memory)} MiB"]),
    ]
    if answer["question"] != across.MOST_ACCURATE and answer["interval"] is not None:
        low, high = answer["interval"]
        told = f"; {LIKE_BEST}" if low <= 0 <= high else ""
        points = _points(answer["wer_difference"])
        facts.append(f"{points} points{_bracketed(_interval_of_points(answer['interval']))}{told}")
    what = "speed" if answer["question"] == across.FASTEST else "errors"
    alike = f"; cannot be told apart in {what} from {_few(run, answer['alike'])}" if answer["alike"] else ""
    return ", ".join(facts) + alike


def _few(run: Run, variants: Sequence[str]) -> str:
    """Name the fastest of some rows, and count the others."""
    rows = [result for result in run["results"] if result["variant"] in variants]
    rows.sort(key=registry.of(run).order.sort_key)
    more = len(rows) - ALIKE_SHOWN
    named = ", ".join(result["variant"] for result in rows[:ALIKE_SHOWN])
    return f"{named} and {more} more" if more > 0 else named


def _speed(run: Run, result: Result) -> str:
    order = registry.of(run).order
    if order != RTFX or result["rtfx"] is None:
        return f"{order.by} {figure(order.figure(result))}"
    ends = result["rtfx"]["interval"]
    return f"RTFx {figure(result['rtfx']['rtfx'])}{_bracketed(interval(ends[0], ends[1]) if ends else '')}"


def _limits(run: Run) -> str:
    settings = run["settings"]
    told = []
    if "max_rtf" in settings:
        told.append(f"RTF at most {settings['max_rtf']:g}")
    if "max_memory_bytes" in settings:
        told.append(f"peak memory at most {mebibytes(settings['max_memory_bytes'])} MiB")
    return " and ".join(told)


def _wer(result: Result) -> str:
    wer = None if result["wer"] is None else result["wer"]["wer"]
    return "unknown" if wer is None else percent(100 * wer)


def _wer_interval(result: Result) -> tuple[float | None, float | None]:
    ends = None if result["wer"] is None else result["wer"]["interval"]
    return (None, None) if ends is None else (100 * ends[0], 100 * ends[1])


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _interval_of_points(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{_points(ends[0])} to {_points(ends[1])}"


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""
