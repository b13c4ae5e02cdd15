"""Engines with weights of their own: their rows are another model, held to the reference texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import soundfile
import tones
from make_run import REFERENCE, make_run, result_of

from asrgate import backends
from asrgate.backends import Variant, description
from asrgate.backends.base import BackendUnavailable, Checkpoint, ModelIdentity
from asrgate.harness import record, report
from asrgate.harness.cli import run as run_command
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.runner.stopping import Stopping
from asrgate.harness.scoring import gate, score, verify

OWN = "own@cpu/float32"
IDENTITY = {"name": "m", "revision": "1", "sha256": "ab" * 32, "languages": ["en"], "licence": "CC0-1.0"}


def judged(
    texts: Mapping[str, list[str]], rounds: int = 2, spoken: list[str] | None = None, **changes: Any
) -> record.Run:
    """Return a judged run of whisper-cpu with tiny.en, and of an engine with a model of its own."""
    run = make_run(
        (REFERENCE, OWN), spoken or CLIPS, models=("tiny.en", "own-model"), rounds=rounds, texts=texts
    )
    run["models"][1].update(
        tensors_sha256=None,
        dimensions={},
        identity={"backend": "own", "revision": "1", "languages": ["en"], "licence": "CC0-1.0"},
    )
    for name in (f"{OWN}:tiny.en", f"{REFERENCE}:own-model"):
        run["results"].remove(result_of(run, name))
    own = result_of(run, f"{OWN}:own-model")
    own["applied_settings"] |= {"checkpoint_sha256": run["models"][1]["sha256"], **changes}
    record.validate(run)
    score.score(run, "none")
    gate.judge(run)
    return run


CLIPS = [f"{word} one two three four five six seven eight nine ten" for word in "abcdefghijkl"]
MANY_ERRORS = [clip.replace("one two three", "won too tree") for clip in CLIPS]


def reasons(run: record.Run) -> str:
    return "; ".join(result_of(run, f"{OWN}:own-model")["gate"]["reasons"])


def test_an_engine_with_its_own_weights_is_another_model_and_one_that_stops_early_is_not_ranked(
    asrgate: Callable[..., int], tmp_path: Path
) -> None:
    names = "brings-model,brings-and-stops-early,brings-other-files"
    assert asrgate("--backends", names, "--rounds", "2", "--audit") == 0
    run = verify.read(tmp_path / "results" / "latest")
    rows = {row["backend"]: row for row in run["results"]}
    assert {row["variant"] for row in rows.values()} == {
        "honest@cpu/float32:fake.en",
        "brings-model@cpu/float32:bringsmodel-model",
        "brings-and-stops-early@cpu/float32:bringsandstopsearly-model",
        "brings-other-files@cpu/float32:bringsotherfiles-model",
    }
    assert record.model_of(run, rows["brings-model"])["identity"] == {
        "backend": "brings-model",
        "revision": "2026.1",
        "languages": ["en"],
        "licence": "CC0-1.0",
    }
    assert rows["brings-model"]["gate"] == {"ranked": True, "rank": 1, "reasons": []}
    told = {name: "; ".join(row["gate"]["reasons"]) for name, row in rows.items()}
    assert "of the number of words in the reference texts" in told["brings-and-stops-early"]
    assert "it ran other weights (cdcdcdcdcdcd…)" in told["brings-other-files"]
    facts = report.context.describe(run)
    assert "brought along by brings-model, revision 2026.1, en, CC0-1.0" in facts["model"]
    assert (
        "brings-model@cpu/float32:bringsmodel-model not auditable: its weights are its own" in facts["audit"]
    )
    lacking = [line for line in report.context.warnings(run) if line.startswith("brings-model@")]
    assert len(lacking) == 1 and "does not apply beam_size, temperature" in lacking[0]


def test_settings_that_mean_nothing_to_it_are_refused(asrgate: Callable[..., int], tmp_path: Path) -> None:
    assert asrgate("--backends", "brings-model", "--beam-size", "3", "--rounds", "1") == 1
    (row,) = [
        r for r in record.read(tmp_path / "results" / "latest")["results"] if r["backend"] == "brings-model"
    ]
    assert "beam_size 3 does not apply to brings-model" in row["error"]


def test_its_errors_are_not_held_to_those_of_another_model() -> None:
    run = judged({f"{OWN}:own-model": MANY_ERRORS})
    assert reasons(run) == ""
    assert result_of(run, f"{OWN}:own-model")["wer"]["wer"] > 0.2
    assert result_of(run, f"{OWN}:own-model")["wer"]["versus_reference"] is None


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([clip[: len(clip) // 2] for clip in CLIPS], "number of words in the reference texts"),
        ([clip + " and so on for ever" for clip in CLIPS], "number of words in the reference texts"),
        ([""] + CLIPS[1:], "answered nothing to 1 of 12 clips that the reference understood"),
        (["x " * 11] * 12, "above the ceiling of 50%"),
        ([None] + CLIPS[1:], "answered 11 of 12 clips"),
    ],
)
def test_all_else_of_the_gate_holds(texts: list[Any], told: str) -> None:
    assert told in reasons(judged({f"{REFERENCE}:tiny.en": CLIPS, f"{OWN}:own-model": texts}))


def test_one_that_goes_bad_is_held_to_its_first_answers() -> None:
    run = judged({f"{OWN}:own-model": CLIPS}, rounds=3)
    for sample in result_of(run, f"{OWN}:own-model")["samples"]:
        if sample["round"] == 2:
            sample["text"] = MANY_ERRORS[int(sample["clip"][-3:])]
    score.score(run, "none")
    gate.judge(run)
    assert "WER 27.3% in round 3 is 27.3 points above that of its first answers" in reasons(run)


def slackened(clips: int, wrong: int) -> record.Run:
    """Return a judged run in which every later answer has so many words of eleven wrong."""
    spoken = [f"w{number} one two three four five six seven eight nine ten" for number in range(clips)]
    run = judged({f"{OWN}:own-model": spoken}, rounds=2, spoken=spoken)
    for sample in result_of(run, f"{OWN}:own-model")["samples"]:
        if sample["round"] == 1:
            sample["text"] = " ".join(["x"] * wrong + str(sample["text"]).split()[wrong:])
    score.score(run, "none")
    gate.judge(run)
    return run


def test_what_changes_must_not_only_get_worse() -> None:
    """Of words that change by chance some get right: a cheat's, which works less in later rounds, do not."""
    assert "WER 9.1% in round 2 is 9.1 points above that of its first answers" in reasons(slackened(40, 1))
    run = slackened(40, 0)
    texts = {s["clip"]: s for s in result_of(run, f"{OWN}:own-model")["samples"] if s["round"] == 0}
    for sample in result_of(run, f"{OWN}:own-model")["samples"]:
        number = int(sample["clip"][-3:])
        words = str(texts[sample["clip"]]["text"]).split()
        if number % 2 == sample["round"]:  # each round mishears other clips
            sample["text"] = " ".join(["x", *words[1:]])
    score.score(run, "none")
    gate.judge(run)
    assert reasons(run) == ""


def test_words_that_are_wrong_anyway_must_not_change_without_end() -> None:
    wrong = [" ".join(["x"] * 4 + clip.split()[4:]) for clip in CLIPS]
    run = judged({f"{OWN}:own-model": wrong})
    for sample in result_of(run, f"{OWN}:own-model")["samples"]:
        if sample["round"] == 1:
            sample["text"] = " ".join(["y"] * 4 + str(sample["text"]).split()[4:])
    score.score(run, "none")
    gate.judge(run)
    told = "36% of its words changed between its first answers and round 2 (allowed: 30%)"
    assert reasons(run) == told


def test_few_words_may_change_by_chance_as_before() -> None:
    assert reasons(slackened(2, 1)) == ""
    assert "27.3 points above" in reasons(slackened(2, 3))


def test_an_engine_that_slackens_after_the_first_round_is_refused(
    asrgate: Callable[..., int], tmp_path: Path
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(12):
        text = " ".join(tones.WORDS[(number + 3 * place) % len(tones.WORDS)] for place in range(10))
        soundfile.write(folder / f"{number}.wav", tones.speak(text), tones.SAMPLE_RATE_HZ)
        (folder / f"{number}.txt").write_text(text)
    arguments = ["--backends", "brings-and-slackens", "--no-reference", "--rounds", "3", "--warmup", "0"]
    asrgate(*arguments, clips=folder)
    (row,) = record.read(tmp_path / "results" / "latest")["results"]
    assert row["wer"]["wer"] == 0
    assert "WER 10.0% in round 2 is 10.0 points above that of its first answers" in "; ".join(
        row["gate"]["reasons"]
    )


def test_its_answers_to_copies_count_all_together() -> None:
    run = judged({f"{OWN}:own-model": CLIPS})
    one, other = result_of(run, f"{OWN}:own-model")["integrity"]["probes"]
    one["changed_words"] = 11  # of 11 words: an engine of this kind may hear a short clip otherwise
    gate.judge(run)
    assert reasons(run) == ""
    other["changed_words"] = 1
    gate.judge(run)
    assert reasons(run) == "inaudible noise changes 12 of 22 words of its answers"
    result_of(run, f"{REFERENCE}:tiny.en")["integrity"]["probes"][0] |= {
        "kind": "spliced",
        "changed_words": 9,
    }
    one |= {"kind": "spliced", "changed_words": 0}
    other["changed_words"] = 0
    gate.judge(run)
    assert reasons(run) == f"it answered a recording spliced from two clips with the text of {one['clip']}"
    one["text_words"] = 3
    gate.judge(run)
    assert reasons(run) == "", "one of so few words may be chance"
    theirs = result_of(run, f"{REFERENCE}:tiny.en")["integrity"]["probes"][1]
    before = dict(other), dict(theirs)
    other |= {"kind": "spliced", "changed_words": 0, "text_words": 3}
    theirs |= {"kind": "spliced", "changed_words": 9}
    gate.judge(run)
    assert reasons(run).count("spliced from two clips with the text of") == 2
    other |= before[0]
    theirs |= before[1]
    one["changed_words"] = None
    gate.judge(run)
    assert reasons(run) == f"it gave no answer to a spliced copy of {one['clip']}"


def test_its_speed_is_known_well_enough_when_that_over_any_reference_is() -> None:
    run = judged({}, rounds=3)
    assert Stopping(within=0.5).reason(run, 1.0) == {"reason": "precise", "wide": []}
    result_of(run, f"{OWN}:own-model")["samples"][0]["wall_seconds"] *= 50
    assert Stopping(within=0.5).reason(run, 1.0) is None


def test_it_must_say_which_weights_and_settings_it_ran_with() -> None:
    run = judged({f"{OWN}:own-model": CLIPS})
    applied = result_of(run, f"{OWN}:own-model")["applied_settings"]
    del applied["checkpoint_sha256"]
    applied["threads"] = None
    applied["beam_size"], applied["not_applied"] = None, {"beam_size": "why", "threads": "why"}
    gate.judge(run)
    assert "it does not say which weights it loaded" in reasons(run)
    assert "threads None" in reasons(run) and "beam_size" not in reasons(run)
    theirs = result_of(run, f"{REFERENCE}:tiny.en")["applied_settings"]  # for it, beams mean something
    theirs["beam_size"], theirs["not_applied"] = None, {"beam_size": "why"}
    gate.judge(run)
    assert "beam_size None" in result_of(run, f"{REFERENCE}:tiny.en")["gate"]["reasons"][0]


def test_it_takes_part_only_if_it_is_named() -> None:
    asked = {variant.backend for variant in backends.defaults()}
    assert "honest" in asked and not {"brings-model", "pocketsphinx"} & asked
    assert "brings-model" in {variant.backend for variant in backends.every()}


def test_clips_in_a_language_that_it_lacks_are_refused_for_it_alone(tmp_path: Path) -> None:
    variants = [Variant("whisper-cpu", "cpu", "float32"), Variant("own", "cpu", "float32")]
    many = Checkpoint("base", tmp_path, "0" * 64, {"n_vocab": 51_865})
    identity = ModelIdentity("own-model", "1", "ab" * 32, ("en",), "CC0-1.0")
    own = Checkpoint("own-model", Path(), identity.sha256, {})
    clips = [Clip("one", tmp_path, 1.0, "0" * 64, "de", None, {})]
    usable, refused = run_command._of_models(
        variants, {"base": many, "own-model": own}, {"own-model": ("own", identity)}, clips
    )
    assert list(map(str, usable)) == ["whisper-cpu@cpu/float32:base"]
    ((variant, why, _),) = refused
    assert str(variant) == "own@cpu/float32:own-model"
    assert why == "own-model understands only en, but some clips are in de"


def test_a_plug_in_declares_its_model_in_a_process_of_its_own() -> None:
    described = backends.describe("brings-model")
    assert described.brings_model
    assert described.model_identity() == ModelIdentity(
        "bringsmodel-model", "2026.1", "ab" * 32, ("en",), "CC0-1.0"
    )
    assert not backends.describe("honest").brings_model


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "xyz"},
        {"languages": []},
        {"languages": "en"},
        {"name": ""},
        {"licence": None},
        {"name": "a\nb"},
        {"server": None},
    ],
)
def test_an_identity_that_is_none_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BackendUnavailable, match="model_identity"):
        description.checked_identity(IDENTITY | change)
