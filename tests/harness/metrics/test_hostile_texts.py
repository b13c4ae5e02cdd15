"""Texts that no engine should give: each is scored in seconds, and named if its normaliser cannot take it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of

from asrgate.harness import record
from asrgate.harness.metrics import normalizers, word_errors
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


@pytest.mark.parametrize("text", [LONG, "x" * 10_000_000], ids=["words", "one word"])
def test_texts_of_more_than_eight_hours_are_not_aligned(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bounded(name: str, count: Callable[[str], int]) -> None:
        align = getattr(word_errors.jiwer, name)

        def checked(*texts: str) -> Any:
            assert max(map(count, texts)) <= word_errors.LONGEST, "it takes a minute"
            return align(*texts)

        monkeypatch.setattr(word_errors.jiwer, name, checked)

    bounded("process_words", lambda text: len(text.split()))
    bounded("process_characters", len)
    run = scored("one two", text)
    wer = result_of(run, OTHER)["wer"]
    entry = wer["per_clip"][1]
    words = len(text.split())
    assert entry["output_words"] == words
    assert (entry["substitutions"], entry["insertions"]) == (1, words - 1)  # "one two" is read as "12"
    assert entry["character_errors"] == len(" ".join(text.split()))
    assert wer["confusions"] == [] or words == 1


@pytest.mark.parametrize("text", ["", "one", "one two three", "It's (noise) 12 %"])
@pytest.mark.parametrize("name", normalizers.NAMES)
def test_words_are_counted_at_their_single_spaces(name: str, text: str) -> None:
    for language in ("en", "de", "ja"):
        found = normalizers.normalizer(name)(f" {text}\u2003\n ", language)
        assert word_errors.word_count(found) == len(found.split())


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
