"""`--language auto`: what engines detect is counted, shown in a column, and asked of every answer."""

from __future__ import annotations

from typing import Any

import pytest
from make_run import make_run, result_of

from asrgate.backends.base import AUTO, BackendError, Checkpoint, Settings, Transcript
from asrgate.backends.whisper_common.decoding import require_honourable, to_decode_in
from asrgate.harness import record
from asrgate.harness.metrics import language_id
from asrgate.harness.report import columns, context
from asrgate.harness.report.rows import rows
from asrgate.harness.scoring import gate, score
from asrgate.harness.worker import child, messages

REFERENCE, OTHER = "whisper-cpu@cpu/float32", "faster-whisper@cpu/int8"
SPOKEN = ["de", "de", "fr", "en"]


def detected(reference: list[str | None], other: list[str | None], **asked: Any) -> Any:
    """A scored and judged run of clips in SPOKEN; None: the engine says none."""
    texts = [f"eins zwei drei {n}" for n in range(len(SPOKEN))]
    run = make_run(references=texts, texts={REFERENCE: texts, OTHER: texts}, languages=SPOKEN)
    run["settings"]["decoding"] |= {"language": AUTO, **asked}
    for variant, said in ((REFERENCE, reference), (OTHER, other)):
        result = result_of(run, variant)
        result["applied_settings"] |= {"language": AUTO, **asked}
        by_clip = dict(zip((clip["name"] for clip in run["clips"]), said, strict=True))
        for sample in result["samples"]:
            if (code := by_clip[sample["clip"]]) is not None:
                sample["language"] = code
    score.score(run, "whisper", replicates=100)
    gate.judge(run)
    return run


def test_languages_are_counted_and_shown_in_a_column_of_their_own() -> None:
    run = detected(["de", "de", "fr", "en"], ["de", "nl", "en", "en"])
    record.validate(run)
    assert result_of(run, REFERENCE)["language_id"]["accuracy"] == 1
    assert result_of(run, OTHER)["language_id"] == {
        "accuracy": 0.5,
        "right": 2,
        "clips": 4,
        "mistakes": [
            {"spoken": "de", "detected": "nl", "count": 1},
            {"spoken": "fr", "detected": "en", "count": 1},
        ],
    }
    (column,) = (c for c in columns.FIGURES if c.heading == "lang ID %")
    assert {row["variant"]: column.cell(row) for row in rows(run)} == {REFERENCE: "100.00", OTHER: "50.00"}
    assert "languages detected" in context.decoding(run)
    assert result_of(run, OTHER)["gate"]["ranked"], (
        "the texts decide, which a wrong language spoils by itself"
    )


def test_clips_whose_language_nobody_names_do_not_count_and_those_unanswered_are_wrong() -> None:
    run = detected(["de", "de", "fr", "en"], ["de", "de", "fr", "ja"])
    run["clips"][3]["language_told"] = False
    for sample in result_of(run, OTHER)["samples"]:
        if sample["clip"] == run["clips"][0]["name"]:
            del sample["language"]
            sample |= {"text": None, "text_sha256": None, "tokens": None, "error": "no"}
    score.score(run, "whisper", replicates=100)
    record.validate(run)
    found = result_of(run, OTHER)["language_id"]
    assert (found["right"], found["clips"]) == (2, 3)
    assert found["mistakes"] == [{"spoken": "de", "detected": language_id.UNANSWERED, "count": 1}]


def test_engine_that_does_not_say_what_it_detected_is_not_ranked() -> None:
    run = detected(["de", "de", "fr", "en"], ["de", None, "fr", "en"])
    (reason,) = result_of(run, OTHER)["gate"]["reasons"]
    assert reason == "it does not say which language it detected in clip-001"
    assert result_of(run, REFERENCE)["gate"]["ranked"]


def test_runs_that_name_languages_have_no_such_figure() -> None:
    run = detected(["de", "de", "fr", "en"], ["de"] * 4, language=None)
    assert not any("language_id" in result for result in run["results"])
    assert all(row["language_id_percent"] is None for row in rows(run))


def test_detected_language_reaches_the_parent_and_is_checked_there() -> None:
    said = child._finished(Transcript("eins", language="de"))
    assert messages.answer(said)["language"] == "de"
    assert "language" not in messages.answer(child._finished(Transcript("one")))
    for odd in (5, ["de"], "d" * 300):
        with pytest.raises(messages.MessageError, match="the language"):
            messages.answer({**said, "language": odd})


def test_only_multilingual_models_and_engines_that_tell_detect(tmp_path: Any) -> None:
    def weights(n_vocab: int) -> Checkpoint:
        return Checkpoint("m", tmp_path / "m.pt", "0" * 64, {"n_vocab": n_vocab})

    auto = Settings(language=AUTO)
    with pytest.raises(BackendError, match="English-only and cannot detect a language"):
        require_honourable(weights(51_864), auto, detects_language=True)
    with pytest.raises(BackendError, match="does not say which language it detects"):
        require_honourable(weights(51_865), auto)
    require_honourable(weights(51_865), auto, detects_language=True)
    assert to_decode_in(weights(51_865), AUTO, ("de",)) is None
    assert to_decode_in(weights(51_865), "de", ("de",)) == "de"
    with pytest.raises(BackendError, match="cannot decode 'auto'"):
        to_decode_in(weights(51_864), AUTO, ())
