"""Derives a run's figures from its raw samples: word error rates, RTFx, latency, and how sure they are.

Word error rate is (substitutions + deletions + insertions) / reference words over all clips that have a
reference, never a mean of per-clip rates. A clip that was not answered counts as the deletion of its whole
reference. One bootstrap resampling of the clips serves every figure of every variant, so that all of them
are paired.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from asrgate.backends.base import AsrgateError
from asrgate.harness.metrics import bootstrap, language_id, normalizers, readings, word_errors, word_times
from asrgate.harness.metrics.word_errors import Texts, errors, first_answers, ratio, timed, walls_by_clip
from asrgate.harness.record import errors_of, is_of_engine, probes_of, reference_of
from asrgate.harness.record_types import AlsoResult, AlsoScored, Latency, Result, Run, Sample
from asrgate.harness.scenarios import registry


class ScoreError(AsrgateError):
    """A record cannot be scored: its texts were left out when it was stored."""


def score(
    run: Run, normalizer: str = "whisper", replicates: int = bootstrap.REPLICATES, also: Sequence[str] = ()
) -> None:
    """Fill, from the raw samples, `scoring`, all word counts, each result's `wer`, `rtfx` and `latency`, and
    what its scenario adds.

    `also` names normalisers whose WER and CER are put beside, in `scoring.also`. The text scored is each
    clip's first-round answer; clips whose text differs between rounds are listed in `wer.unstable_clips`.

    Raises:
        NormalizerError: unknown normaliser, or openai-whisper is missing.
        ScoreError: the record was stored without its texts.
    """
    _require_texts(run)
    texts = Texts(run, normalizer)
    texts.count_words()
    firsts = {result["variant"]: first_answers(result) for result in run["results"]}
    scenario = registry.of(run)
    for result in run["results"]:
        result["wer"] = word_errors.count(run, result, firsts[result["variant"]], texts)
        result["rtfx"] = scenario.speed(run, timed(result))
        scenario.add_figures(run, result, texts)
        result["latency"] = _latency(scenario.latencies(result), result)
        detected = language_id.count(run, firsts[result["variant"]])
        if detected is not None:
            result["language_id"] = detected
        times = word_times.count(run, result, firsts[result["variant"]], texts)
        if times is not None:
            result["word_times"] = times
    _compare_with_reference(run, firsts)
    _compare_splices(run, texts)
    for result in run["results"]:
        if result["wer"] is not None:
            is_own = is_of_engine(run, result)
            reference = _any_reference(run) if is_own else _reference(run, result)
            other = None if result is reference else reference
            result["wer"]["rounds"] = word_errors.by_round(run, result, other, texts, is_own)
    second = normalizers.second(normalizer)
    readings.add(run, firsts, texts, Texts(run, second))
    run["scoring"] = {
        "normalizer": normalizers.identify(normalizer),
        "second": normalizers.identify(second),
        "bootstrap": {"replicates": replicates, "seed": run["settings"]["seed"], "level": bootstrap.LEVEL},
    }
    if also:
        run["scoring"]["also"] = [_beside(run, name, firsts, replicates) for name in also]
    run["warnings"] = [warning for warning in run["warnings"] if not warning.startswith(normalizers.UNTAKEN)]
    run["warnings"] += dict.fromkeys(texts.notes)
    if run["clips"]:
        _add_intervals(run)


def _beside(
    run: Run, normalizer: str, firsts: Mapping[str, Mapping[str, Sample]], replicates: int
) -> AlsoScored:
    """Return one entry of `scoring.also`; the intervals are of resamples of the scored clips."""
    texts = Texts(run, normalizer)
    counted = {r["variant"]: word_errors.count(run, r, firsts[r["variant"]], texts) for r in run["results"]}
    found: list[AlsoResult] = []
    for variant, wer in counted.items():
        if wer is None:
            continue
        sums = [[errors(entry), entry["reference_words"]] for entry in wer["per_clip"]]
        interval = None
        if sum(words > 0 for _, words in sums) > 1:
            drawn = bootstrap.resampled_sums(np.array(sums), replicates, run["settings"]["seed"])
            interval = bootstrap.ratio_interval(drawn[:, 0], drawn[:, 1])
        found.append(
            {
                "variant": variant,
                "wer": wer["wer"],
                "interval": None if interval is None else list(interval),
                "cer": wer["cer"],
            }
        )
    return {"normalizer": normalizers.identify(normalizer), "results": found}


def rescore(run: Run, normalizer: str, also: Sequence[str] = ()) -> Run:
    """Return a copy of a stored run, scored again from its texts. The gate is left as it was.

    Raises:
        NormalizerError, ScoreError: as `score`.
    """
    run = copy.deepcopy(run)
    score(run, normalizer, also=also)
    return run


def _require_texts(run: Run) -> None:
    items = [item for result in run["results"] for item in result["samples"]]
    name = run["scoring"]["normalizer"]["name"]
    stripped = any(item["text"] is None and item["text_sha256"] is not None for item in items) or any(
        clip["reference"] is None and clip["reference_sha256"] is not None for clip in run["clips"]
    )
    if stripped:
        raise ScoreError(
            f"run {run['run_id']} was stored without texts (--no-texts), so its answers cannot be scored "
            f"again; its figures remain those of the normaliser {name!r}. "
            "Score a run that was stored with texts, or measure again without --no-texts"
        )


def _compare_splices(run: Run, texts: Texts) -> None:
    """Fill `reference_changed_words` of the splices that the reference heard as well."""
    for result in run["results"]:
        reference = _reference(run, result)
        if reference is None or result is reference:
            continue
        theirs = {
            probe["copy_sha256"]: probe["text"] for probe in probes_of(reference) if "copy_sha256" in probe
        }
        for probe in probes_of(result):
            other, text = theirs.get(probe.get("copy_sha256", "")), probe["text"]
            if probe["kind"] == "spliced" and other is not None:
                probe["reference_changed_words"] = (
                    None if text is None else texts.edits(other, text, probe["clip"])
                )


def _compare_with_reference(run: Run, firsts: Mapping[str, Mapping[str, Sample]]) -> None:
    """Fill `versus_reference`, but for what the bootstrap tells."""
    for result in run["results"]:
        reference = _reference(run, result)
        if reference is None or result is reference or result["wer"] is None or reference["wer"] is None:
            continue
        ours, theirs = firsts[result["variant"]], firsts[reference["variant"]]
        both = [clip for clip in ours if clip in theirs]
        wer, reference_wer = result["wer"]["wer"], reference["wer"]["wer"]
        result["wer"]["versus_reference"] = {
            "variant": reference["variant"],
            "wer_difference": None if wer is None or reference_wer is None else wer - reference_wer,
            "interval": None,
            "probability_worse": None,
            "probability_different": None,
            "same_text_clips": sum(ours[c]["text_sha256"] == theirs[c]["text_sha256"] for c in both),
            "compared_clips": len(both),
            "length_ratio": ratio(
                sum(ours[c]["text_words"] or 0 for c in both), sum(theirs[c]["text_words"] or 0 for c in both)
            ),
        }


def _reference(run: Run, result: Result) -> Result | None:
    """Return the row that a result is compared with, None when it is not in the run or answered nothing."""
    found = reference_of(run, result)
    return found if found is not None and found["wer"] is not None else None


def _any_reference(run: Run) -> Result | None:
    """Return the reference's first row, whatever its model, for an engine whose model none has."""
    return next((r for result in run["results"] if (r := _reference(run, result)) is not None), None)


def _latency(walls: Sequence[float], result: Result) -> Latency | None:
    if not walls:
        return None
    low, median, high, p90, p99 = bootstrap.percentiles(walls, [25, 50, 75, 90, 99])
    stages: dict[str, list[float]] = {}
    for sample in timed(result):
        for stage, seconds in sample["stage_seconds"].items():
            stages.setdefault(stage, []).append(seconds)
    return {
        "count": len(walls),
        "min_seconds": min(walls),
        "median_seconds": median,
        "iqr_seconds": high - low,
        "p90_seconds": p90,
        "p99_seconds": p99,
        "stage_seconds": {stage: bootstrap.percentiles(values, [50])[0] for stage, values in stages.items()},
    }


def _add_intervals(run: Run) -> None:
    """Resample the clips once and fill every interval and probability from the resampled sums.

    A clip without a reference, or without an answer, adds nothing to the sums it has no part in.
    """
    scored = [result for result in run["results"] if result["wer"] is not None]
    over_clips = registry.of(run).speed_is_over_clips
    fast = [result for result in run["results"] if over_clips and result["rtfx"] is not None]
    names = [clip["name"] for clip in run["clips"]]
    columns = {"words": _column(names, {c["name"]: c["reference_words"] or 0 for c in run["clips"]})}
    for result in scored:
        wrong = {entry["clip"]: errors(entry) for entry in errors_of(result)}
        columns[f"errors {result['variant']}"] = _column(names, wrong)
    for result in fast:
        walls = _median_walls(result)
        audio = {c["name"]: c["audio_seconds"] for c in run["clips"] if c["name"] in walls}
        columns[f"wall {result['variant']}"] = _column(names, walls)
        columns[f"audio {result['variant']}"] = _column(names, audio)

    resampling = run["scoring"]["bootstrap"]
    found = bootstrap.resampled_sums(
        np.column_stack(list(columns.values())), resampling["replicates"], resampling["seed"]
    )
    sums = dict(zip(columns, found.T, strict=True))

    if np.count_nonzero(columns["words"]) > 1:
        for result in scored:
            _add_word_intervals(result, sums)
    for result in fast:
        if result["rtfx"] is not None and np.count_nonzero(columns[f"wall {result['variant']}"]) > 1:
            audio_seconds, wall_seconds = (sums[f"{what} {result['variant']}"] for what in ("audio", "wall"))
            interval = bootstrap.ratio_interval(audio_seconds, wall_seconds)
            result["rtfx"]["interval"] = None if interval is None else list(interval)


def _add_word_intervals(result: Result, sums: Mapping[str, np.ndarray]) -> None:
    if result["wer"] is None:
        return
    ours = sums[f"errors {result['variant']}"]
    interval = bootstrap.ratio_interval(ours, sums["words"])
    result["wer"]["interval"] = None if interval is None else list(interval)
    versus = result["wer"]["versus_reference"]
    if versus is None:
        return
    differences = ours - sums[f"errors {versus['variant']}"]
    interval = bootstrap.ratio_interval(differences, sums["words"])
    versus["interval"] = None if interval is None else list(interval)
    versus["probability_worse"] = bootstrap.probability_worse(differences)
    versus["probability_different"] = bootstrap.probability_different(differences)


def _median_walls(result: Result) -> dict[str, float]:
    return {clip: statistics.median(walls) for clip, walls in walls_by_clip(result).items()}


def _column(names: Sequence[str], values: Mapping[str, float]) -> np.ndarray:
    return np.array([values.get(name, 0) for name in names], dtype=np.float64)
