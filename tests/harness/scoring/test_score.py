import copy

import pytest
from make_run import REFERENCE, VARIANTS, add_unavailable, make_run, result_of

from asrgate.harness import record
from asrgate.harness.metrics import normalizers
from asrgate.harness.scoring import score

OTHER = VARIANTS[1]
QUICK = 200  # bootstrap replicates where their number does not matter


def scored(*args, normalizer="whisper", replicates=QUICK, **kwargs):
    run = make_run(*args, **kwargs)
    score.score(run, normalizer, replicates)
    record.validate(run)
    return run


def wer_of(run, variant=REFERENCE):
    return result_of(run, variant)["wer"]


def counts(wer):
    return {name: wer[name] for name in ("substitutions", "deletions", "insertions", "reference_words")}


def one(references, answers, **kwargs):
    return scored((REFERENCE,), references, texts={REFERENCE: answers}, rounds=1, **kwargs)


# word errors


def test_word_errors_of_an_example_counted_by_hand():
    # "quick" -> "quack"; "jumps" missing; "very" too much
    wer = wer_of(one(["the quick fox jumps high"], ["The quack fox very high."]))
    assert counts(wer) == {"substitutions": 2, "deletions": 0, "insertions": 0, "reference_words": 5}
    wer = wer_of(one(["a b c d", "e f"], ["a x c", "e f g"]))
    assert counts(wer) == {"substitutions": 1, "deletions": 1, "insertions": 1, "reference_words": 6}
    assert wer["wer"] == 0.5
    assert wer["output_words"] == 6
    assert [clip["wer"] for clip in wer["per_clip"]] == [0.5, 0.5]


def test_set_wer_is_no_mean_of_clip_rates():
    wer = wer_of(one(["one", "b c d e f g h i j"], ["two", "b c d e f g h i j"]))
    assert wer["wer"] == 0.1  # the mean of 1 and 0 would be 0.5
    assert wer["exact_matches"] == 1


def test_character_errors_of_an_example_counted_by_hand():
    wer = wer_of(one(["cat sat"], ["cut sats"]))  # a -> u, s added, of 7 with the space
    assert wer["cer"] == pytest.approx(2 / 7)
    assert wer["per_clip"][0]["character_errors"] == 2


def test_texts_are_compared_normalised():
    wer = wer_of(one(["TWENTY-TWO COLOURS, Mr. Smith"], ["22 colors mister smith"]))
    assert wer["wer"] == 0
    assert wer["exact_matches"] == 1
    raw = wer_of(one(["Yes, sir"], ["yes sir"], normalizer="none"))
    assert raw["wer"] == 0.5


def test_a_clip_with_no_answer_is_charged_whole():
    wer = wer_of(one(["a b c", "d e"], ["a b c", None]))
    assert counts(wer) == {"substitutions": 0, "deletions": 2, "insertions": 0, "reference_words": 5}
    assert wer["clips"] == 2
    assert not wer["per_clip"][1]["exact"]


def test_a_clip_that_was_never_asked_is_charged_whole():
    run = make_run((REFERENCE,), ["a b c", "d e"], texts={REFERENCE: ["a b c", "d e"]}, rounds=1)
    del result_of(run, REFERENCE)["samples"][1]
    score.score(run, replicates=QUICK)
    assert wer_of(run)["deletions"] == 2


def test_first_round_counts_even_when_it_failed_and_a_later_one_did_not():
    run = make_run((REFERENCE,), ["a b", "c"], texts={REFERENCE: [None, "c"]}, rounds=1)
    later = make_run((REFERENCE,), ["a b", "c"], texts={REFERENCE: ["a b", "c"]}, rounds=2)
    samples = result_of(run, REFERENCE)["samples"]
    samples += [s for s in result_of(later, REFERENCE)["samples"] if s["round"] == 1]
    score.score(run, replicates=QUICK)
    assert wer_of(run)["deletions"] == 2


def test_round_order_in_the_record_does_not_matter_and_unstable_clips_are_named():
    run = make_run((REFERENCE,), ["a b", "c d"], texts={REFERENCE: ["a b", "c d"]}, rounds=2)
    samples = result_of(run, REFERENCE)["samples"]
    late = next(s for s in samples if s["round"] == 1 and s["clip"] == "clip-001")
    late.update(text="x y", text_sha256=record.text_sha256("x y"))
    samples.reverse()
    score.score(run, replicates=QUICK)
    assert wer_of(run)["wer"] == 0
    assert wer_of(run)["unstable_clips"] == ["clip-001"]


def test_words_heard_in_silence_count_as_insertions():
    wer = wer_of(one(["a b c d", ""], ["a b c d", "thank you"]))
    assert wer["insertions"] == 2
    assert wer["wer"] == 0.5
    assert wer["per_clip"][1]["wer"] is None
    assert wer["exact_matches"] == 1


def test_silence_left_silent_is_exact():
    wer = wer_of(one(["a b", ""], ["a b", ""]))
    assert (wer["wer"], wer["exact_matches"]) == (0, 2)
    unanswered = wer_of(one(["a b", ""], ["a b", None]))
    assert unanswered["exact_matches"] == 1


def test_a_set_without_reference_words_has_no_wer():
    silent = wer_of(one(["", "um"], ["thanks", ""]))
    assert silent["wer"] is None
    assert silent["cer"] is None
    assert silent["insertions"] == 1
    assert silent["interval"] is None


def test_clips_without_reference_are_not_charged():
    wer = wer_of(one(["a b", None], ["a b", "whatever it was"]))
    assert (wer["wer"], wer["clips"], wer["output_words"]) == (0, 1, 2)


def test_no_answer_at_all_is_no_wer_rather_than_a_perfect_one():
    run = one(["a b"], [None])
    result = result_of(run, REFERENCE)
    assert (result["wer"], result["rtfx"], result["latency"]) == (None, None, None)


def test_word_counts_are_filled_everywhere():
    run = one(["twenty two colours", None], ["22 colors", "so it is"])
    assert [clip["reference_words"] for clip in run["clips"]] == [2, None]
    result = result_of(run, REFERENCE)
    assert [s["text_words"] for s in result["samples"]] == [2, 3]
    assert [p["text_words"] for p in result["integrity"]["probes"]] == [2, 3]


def test_clips_are_normalised_in_their_language_unless_translated_into_english():
    texts = {REFERENCE: ["um drei", "colours"]}
    german = scored((REFERENCE,), ["um drei", "colors"], texts=texts, languages=["de", "de"])
    assert wer_of(german)["per_clip"][0]["reference_words"] == 2
    assert wer_of(german)["substitutions"] == 1
    run = make_run((REFERENCE,), ["um drei", "colors"], texts=texts, languages=["de", "de"])
    run["settings"]["decoding"]["task"] = "translate"
    score.score(run, replicates=QUICK)
    assert wer_of(run)["wer"] == 0


# against the reference backend


def test_comparison_with_the_reference_counted_by_hand():
    texts = {REFERENCE: ["a b c d", "e f", "Um, so"], OTHER: ["a b c x", "e", "um so"]}
    run = scored(VARIANTS, ["a b c d", "e f", None], texts=texts)
    versus = wer_of(run, OTHER)["versus_reference"]
    assert versus["variant"] == REFERENCE
    assert versus["wer_difference"] == pytest.approx(2 / 6)
    assert versus["compared_clips"] == 3
    assert versus["same_text_clips"] == 0  # "Um, so" is not "um so" to the letter
    assert versus["length_ratio"] == pytest.approx(6 / 7)  # "um" is no word to the normaliser
    assert wer_of(run, REFERENCE)["versus_reference"] is None


def test_length_and_sameness_are_of_clips_both_answered():
    texts = {REFERENCE: ["a b", "c d"], OTHER: ["a b", None]}
    versus = wer_of(scored(VARIANTS, ["a b", "c d"], texts=texts), OTHER)["versus_reference"]
    assert (versus["compared_clips"], versus["same_text_clips"], versus["length_ratio"]) == (1, 1, 1)
    assert versus["wer_difference"] == 0.5


def test_same_errors_do_not_differ_and_many_more_do():
    references = ["one two three four five six"] * 40
    good, bad = ["one two three four five six"] * 39 + ["one"], ["one two x four y six"] * 40
    run = scored(
        ("r@cpu/a", "same@cpu/a", "bad@cpu/a"),
        references,
        texts={"r@cpu/a": good, "same@cpu/a": good, "bad@cpu/a": bad},
    )
    same, worse = (wer_of(run, name)["versus_reference"] for name in ("same@cpu/a", "bad@cpu/a"))
    assert (same["probability_different"], same["probability_worse"]) == (0, 0)
    assert same["interval"] == [0, 0]
    assert worse["probability_worse"] > 0.99
    assert worse["probability_different"] > 0.99
    assert worse["interval"][0] > 0


def test_no_comparison_without_the_reference_backend():
    run = scored(settings={"reference": "absent@cpu/float32"})
    assert wer_of(run, OTHER)["versus_reference"] is None


# speed


def test_rtfx_is_a_ratio_of_sums_not_a_mean_of_ratios():
    run = make_run((REFERENCE,), ["a", "b"], rounds=1, audio_seconds=[1.0, 10.0])
    for sample, wall in zip(result_of(run, REFERENCE)["samples"], [1.0, 4.0], strict=True):
        sample["wall_seconds"] = wall
    score.score(run, replicates=QUICK)
    rtfx = result_of(run, REFERENCE)["rtfx"]
    assert rtfx["rtfx"] == 2.2  # the mean of 1 and 2.5 is 1.75
    assert rtfx["rtf"] == pytest.approx(5 / 11)
    assert (rtfx["audio_seconds"], rtfx["wall_seconds"]) == (11, 5)


def test_rtfx_counts_answered_samples_with_their_own_audio():
    run = make_run(
        (REFERENCE,), ["a", "b"], texts={REFERENCE: ["a", None]}, rounds=2, audio_seconds=[2.0, 100.0]
    )
    samples = result_of(run, REFERENCE)["samples"]
    samples[0]["wall_seconds"], samples[2]["wall_seconds"] = 1.0, 3.0
    samples[1]["wall_seconds"] = 50.0  # how long it took to fail
    score.score(run, replicates=QUICK)
    rtfx, latency = result_of(run, REFERENCE)["rtfx"], result_of(run, REFERENCE)["latency"]
    assert (rtfx["rtfx"], rtfx["audio_seconds"], rtfx["wall_seconds"]) == (1, 4, 4)
    assert latency["count"] == 2


def test_rtfx_interval_is_over_clips_with_the_median_of_the_rounds():
    run = make_run((REFERENCE,), ["a"] * 8, rounds=3, audio_seconds=[10.0] * 8)
    for sample in result_of(run, REFERENCE)["samples"]:
        sample["wall_seconds"] = 1.0 if sample["round"] else 5.0  # a slow first round
    score.score(run, replicates=QUICK)
    rtfx = result_of(run, REFERENCE)["rtfx"]
    assert rtfx["interval"] == [10, 10]
    assert rtfx["rtfx"] == pytest.approx(30 / 7)


def test_rtfx_interval_leaves_out_the_audio_of_unanswered_clips():
    texts = {REFERENCE: ["a"] * 8 + [None]}
    run = make_run((REFERENCE,), ["a"] * 9, texts=texts, rounds=1, audio_seconds=[10.0] * 8 + [1000.0])
    for sample in result_of(run, REFERENCE)["samples"][:8]:
        sample["wall_seconds"] = 1.0
    score.score(run, replicates=QUICK)
    assert result_of(run, REFERENCE)["rtfx"]["interval"] == [10, 10]


def test_latency_figures_of_an_example():
    run = make_run((REFERENCE,), ["a"] * 5, rounds=1)
    for sample, wall in zip(result_of(run, REFERENCE)["samples"], [5.0, 1.0, 2.0, 4.0, 3.0], strict=True):
        sample.update(wall_seconds=wall, stage_seconds={"decode": wall / 2} if wall > 2 else {})
    score.score(run, replicates=QUICK)
    latency = result_of(run, REFERENCE)["latency"]
    assert latency == {
        "count": 5,
        "min_seconds": 1,
        "median_seconds": 3,
        "iqr_seconds": 2,
        "p90_seconds": pytest.approx(4.6),
        "p99_seconds": pytest.approx(4.96),
        "stage_seconds": {"decode": 2},
    }


def test_tokens_per_second_is_of_samples_that_tell_tokens():
    run = make_run((REFERENCE,), ["a", "b"], rounds=1)
    for sample, tokens in zip(result_of(run, REFERENCE)["samples"], [30, None], strict=True):
        sample.update(wall_seconds=2.0, token_count=tokens)
    score.score(run, replicates=QUICK)
    assert result_of(run, REFERENCE)["rtfx"]["tokens_per_second"] == 15
    for sample in result_of(run, REFERENCE)["samples"]:
        sample["token_count"] = None
    score.score(run, replicates=QUICK)
    assert result_of(run, REFERENCE)["rtfx"]["tokens_per_second"] is None


# how sure


def test_intervals_hold_the_figures_and_do_not_change_for_a_seed():
    run = scored(references=40, replicates=1000, seed=3)
    for variant in VARIANTS:
        wer, rtfx = wer_of(run, variant), result_of(run, variant)["rtfx"]
        assert wer["interval"][0] < wer["wer"] < wer["interval"][1]
        assert rtfx["interval"][0] < rtfx["rtfx"] < rtfx["interval"][1]
    assert scored(references=40, replicates=1000, seed=3) == run
    assert run["scoring"]["bootstrap"] == {"replicates": 1000, "seed": 3, "level": 0.95}
    assert run["scoring"]["normalizer"] == normalizers.identify("whisper")


def test_one_clip_has_no_interval():
    run = one(["a b"], ["a x"])
    assert wer_of(run)["interval"] is None
    assert result_of(run, REFERENCE)["rtfx"]["interval"] is None


def test_a_variant_does_not_change_the_figures_of_the_others():
    run = make_run(references=12)
    alone = copy.deepcopy(run)
    alone["results"].pop()
    for each in (run, alone):
        score.score(each, replicates=QUICK)
    assert wer_of(run) == wer_of(alone)
    assert result_of(run, REFERENCE)["rtfx"]["interval"] == pytest.approx(
        result_of(alone, REFERENCE)["rtfx"]["interval"], rel=1e-12
    )


# stored runs


def test_unavailable_rows_and_empty_runs_score_to_nothing():
    run = make_run()
    add_unavailable(run, "x@cuda/float16", "no GPU", "find one")
    score.score(run, replicates=QUICK)
    record.validate(run)
    assert result_of(run, "x@cuda/float16")["wer"] is None
    empty = scored(references=[])
    assert result_of(empty, REFERENCE)["wer"] is None


def test_rescoring_follows_the_normaliser_and_leaves_the_stored_run_alone():
    run = one(["Yes, sir", "OK"], ["yes sir", "OK"])
    before = copy.deepcopy(run)
    again = score.rescore(run, "none")
    assert (wer_of(run)["wer"], wer_of(again)["wer"]) == (0, pytest.approx(1 / 3))
    assert again["scoring"]["normalizer"]["name"] == "none"
    assert run == before
    assert score.rescore(again, "whisper") == score.rescore(run, "whisper")


def test_a_run_stored_without_texts_keeps_its_figures():
    run = record.without_texts(scored())
    before = copy.deepcopy(run)
    with pytest.raises(score.ScoreError, match=r"without texts.*remain those.*'whisper'"):
        score.score(run)
    assert run == before
    only_references = make_run()
    for clip in only_references["clips"]:
        clip["reference"] = None
    with pytest.raises(score.ScoreError):
        score.score(only_references)


def test_an_unknown_normaliser_changes_nothing():
    run = make_run()
    before = copy.deepcopy(run)
    with pytest.raises(normalizers.NormalizerError):
        score.score(run, "whsiper")
    assert run == before
