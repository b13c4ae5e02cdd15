"""Texts that no engine should give: each is scored in seconds, and named if its normaliser cannot take it."""

from __future__ import annotations

import time

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of

from asrgate.harness import record
from asrgate.harness.metrics import normalizers
from asrgate.harness.record import Run
from asrgate.harness.report.formats import FORMATS, render
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]
LONG = "one two three " * 700_000  # 10 MB


def scored(reference: str, text: str, normalizer: str = "whisper") -> Run:
    references = ["one two three", reference]
    texts = {REFERENCE: references, OTHER: ["one two three", text]}
    run = make_run(VARIANTS, references, texts=texts, rounds=1)
    score.score(run, normalizer, replicates=20)
    gate.judge(run)
    record.validate(run)
    return run


@pytest.mark.parametrize("language", ["en", "de", "ja"])
@pytest.mark.parametrize("name", ["whisper", "whisper-english", "whisper-basic"])
@pytest.mark.parametrize(
    "text",
    [
        "1" * 5_000,
        "[" * 400_000,
        "(" * 400_000,
        "[<(" * 130_000,
        "a b" + "<" * 99_999,
        LONG,
        "1/2" * 300_000,
    ],
    ids=["digits", "square", "round", "mixed", "angle", "10 MB", "fractions"],
)
def test_every_text_is_normalised_in_seconds(text: str, name: str, language: str) -> None:
    began = time.process_time()
    assert isinstance(normalizers.normalizer(name)(text, language), str)
    assert time.process_time() - began < 10


def test_a_text_that_is_not_taken_goes_to_the_next_simpler() -> None:
    normalize = normalizers.normalizer("whisper")
    assert isinstance(normalize, normalizers.Guarded)
    digits = "It's " + "1" * 5_000 + "!"
    assert normalize(digits, "en") == normalizers.normalizer("whisper-basic")(digits, "en")
    (note,) = normalize.notes
    assert note.startswith("a text cannot be normalised by whisper (")
    assert "so whisper-basic took it: \"It's 1111" in note
    assert normalize("(" * 100_000 + " Oh!", "en").endswith("( Oh!")
    assert "100,000 brackets that are never closed), so none took it" in normalize.notes[1]
    assert normalize("It's [noise] one hundred (laughs) dollars", "en") == "it is $100"
    assert len(normalize.notes) == 2


@pytest.mark.parametrize("text", ["1" * 5_000, "(" * 400_000, LONG], ids=["digits", "brackets", "10 MB"])
@pytest.mark.parametrize("is_reference_too", [False, True])
@pytest.mark.slow
def test_a_run_with_such_a_text_is_scored_and_shown(text: str, is_reference_too: bool) -> None:
    began = time.process_time()
    run = scored(text if is_reference_too else "one two", text + " more" if is_reference_too else text)
    assert time.process_time() - began < 60
    wer = result_of(run, OTHER)["wer"]
    assert wer["wer"] > 0
    told = [warning for warning in run["warnings"] if warning.startswith("a text cannot be normalised")]
    assert len(told) == len(set(told)) >= 1
    again = score.rescore(run, "none")
    assert not [warning for warning in again["warnings"] if warning.startswith("a text cannot be normalised")]
    if len(text) < 10_000:
        for name in FORMATS:
            assert render(run, name)
