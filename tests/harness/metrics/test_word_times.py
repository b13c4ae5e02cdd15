"""`--word-timestamps`: word times are read, asked for outside the measured calls, checked and scored."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tones
from make_run import make_run, result_of

from asrgate.backends.base import Transcript, Word
from asrgate.harness import record, report
from asrgate.harness.corpus.clips import CorpusError, load_clips
from asrgate.harness.metrics import word_times
from asrgate.harness.report import columns, context
from asrgate.harness.report.rows import rows
from asrgate.harness.scoring import score
from asrgate.harness.worker import child, messages

REFERENCE, OTHER = "whisper-cpu@cpu/float32", "faster-whisper@cpu/int8"


def said(*words: tuple[str, float, float]) -> list[dict[str, Any]]:
    return [{"word": word, "start": start, "end": end} for word, start, end in words]


def timed(spoken: list[list[dict[str, Any]]], heard: list[list[dict[str, Any]]]) -> Any:
    """A scored run in which REFERENCE was asked for word times and OTHER has none."""
    texts = [" ".join(word["word"] for word in clip) for clip in spoken]
    run = make_run(references=texts, texts={REFERENCE: texts, OTHER: texts})
    run["settings"]["word_timestamps"] = True
    for clip, words in zip(run["clips"], spoken, strict=True):
        clip["tags"]["words"] = words
    result_of(run, REFERENCE)["word_answers"] = {
        "available": True,
        "error": None,
        "answers": [
            {
                "clip": clip["name"],
                "wall_seconds": 2 * sum(s["wall_seconds"] for s in samples) / len(samples),
                "text": " ".join(word["word"] for word in words),
                "words": words,
                "error": None,
            }
            for clip, words in zip(run["clips"], heard, strict=True)
            if (samples := [s for s in result_of(run, REFERENCE)["samples"] if s["clip"] == clip["name"]])
        ],
    }
    result_of(run, OTHER)["word_answers"] = {"available": False, "error": None, "answers": []}
    score.score(run, "whisper", replicates=100)
    return run


def test_offsets_are_of_the_words_that_both_have() -> None:
    run = timed(
        [said(("Don't", 0.5, 0.9), ("stop", 1.0, 1.4), ("me", 1.5, 1.7)), said(("Twenty", 0.0, 0.4))],
        # another case and punctuation are the same word; "shop" is none of the reference, "me," is 0.4 s late
        [said(("don't", 0.6, 0.9), ("shop", 7.0, 7.4), ("me,", 1.9, 1.8 + 0.3)), said(("20", 0.0, 0.2))],
    )
    record.validate(run)
    found = result_of(run, REFERENCE)["word_times"]
    assert (found["clips"], found["reference_words"], found["aligned_words"]) == (2, 4, 3)
    assert found["start"]["mean_seconds"] == pytest.approx((0.1 + 0.4 + 0.0) / 3)
    assert found["end"]["mean_seconds"] == pytest.approx((0.0 + 0.4 + 0.2) / 3)
    # 95 % of the way from the smallest of three to the largest: nine tenths between the last two
    assert found["start"]["p95_seconds"] == pytest.approx(0.1 + 0.9 * 0.3)
    assert found["changed_words"] == pytest.approx(1 / 5), "don't is two words: do not"
    assert found["over_call"] == pytest.approx(2, rel=0.1)
    assert "word_times" not in result_of(run, OTHER)


def test_engines_without_word_times_are_shown_as_such() -> None:
    run = timed([said(("hello", 0.5, 0.9))], [said(("hello", 0.75, 0.9))])
    cells = {
        column.heading: {row["variant"]: column.cell(row) for row in rows(run)} for column in columns.FIGURES
    }
    assert cells["word start s"] == {REFERENCE: "0.25, 0.25", OTHER: "none"}
    assert cells["word end s"] == {REFERENCE: "0.00, 0.00", OTHER: "none"}
    told = context.describe(run)["word times"]
    assert told.startswith("of 1 clip, asked for after the last round: no figure of speed contains them")
    assert f"{OTHER} gives none" in told
    result_of(run, REFERENCE)["word_answers"]["error"] = "the worker was killed"
    assert f"{REFERENCE}: the worker was killed" in context.describe(run)["word times"]


def test_runs_that_did_not_ask_show_nothing_of_it() -> None:
    run = make_run()
    score.score(run, "whisper", replicates=100)
    assert "word times" not in context.describe(run)
    shown = columns.shown([*columns.FIGURES, *columns.QUALITY, *columns.TIMES], rows(run))
    assert not [column.heading for column in shown if column.heading.startswith("word")]


def test_texts_are_left_out_of_word_times_too() -> None:
    run = timed([said(("secret", 0.5, 0.9))], [said(("secret", 0.5, 0.9))])
    run["digest"] = record.digest_of(run)
    assert "secret" not in json.dumps(record.without_texts(run))
    record.validate(record.without_texts(run))
    changed = run["results"][0]["word_answers"]["answers"][0]["words"][0]
    changed["start"] = 0.4
    assert record.digest_of(run) != run["digest"], "what was measured is in the digest"


@pytest.mark.parametrize(
    "fields",
    [
        {"words": [{"word": "hi", "start": 0.5, "end": 0.75}]},
        {"words": [{"text": "hi", "start_time": 0.5, "end_time": 0.75}]},
        {"words": [{"word": "hi", "start": 0.5, "duration": 0.25, "conf": 0.9}]},  # as in a CTM
        {"words": [{"text": "hi", "timestamp": [0.5, 0.75]}]},  # transformers' chunks
        {"alignment": {"word": [["hi", 0.5, 0.25, None]]}},  # Lhotse's
    ],
)
def test_others_names_for_word_times_are_read(fields: dict[str, Any]) -> None:
    assert word_times.of_manifest(fields) == [{"word": "hi", "start": 0.5, "end": 0.75}]


@pytest.mark.parametrize(
    "fields", [{}, {"words": 12}, {"words": ["a", "b"]}, {"words": []}, {"alignment": "x"}]
)
def test_other_fields_of_these_names_are_no_word_times(fields: dict[str, Any]) -> None:
    assert word_times.of_manifest(fields) is None


@pytest.mark.parametrize(
    "word",
    [
        {"word": "hi", "start": 0.75, "end": 0.5},
        {"word": "hi", "start": -1, "end": 0.5},
        {"word": "hi", "start": "0.5", "end": 0.75},
        {"word": "hi", "start": 0.5},
        {"start": 0.5, "end": 0.75},
    ],
)
def test_words_without_times_are_an_error_with_their_line(
    spoken: Path, tmp_path: Path, word: dict[str, Any]
) -> None:
    shutil.copy(spoken / "apples.wav", tmp_path)
    path = tmp_path / "manifest.jsonl"
    path.write_text(json.dumps({"audio_filepath": "apples.wav", "text": "hi", "words": [word]}))
    with pytest.raises(CorpusError, match=r"manifest.jsonl:1: a word must have word, start and end"):
        load_clips([path])


def test_times_that_an_engine_invents_are_refused() -> None:
    def sent(*words: Any) -> Any:
        return messages.words({"words": list(words)}, 2.0)

    assert sent(["hi", 0, 2.0]) == [("hi", 0.0, 2.0)]
    odd_times = ([-0.1, 1], [1, 0.9], [0, 2.1], [math.nan, 1], [0, math.inf], ["0", 1], [True, 1], [0, None])
    for times in odd_times:
        with pytest.raises(messages.MessageError, match=r"said from|times of a word"):
            sent(["hi", *times])
    for odd in (["hi", 0], "hi", None, ["hi", 0, 1, 2], [5, 0, 1]):
        with pytest.raises(messages.MessageError, match="a word"):
            sent(odd)
    with pytest.raises(messages.MessageError, match="no list"):
        messages.words({}, 2.0)


def test_words_reach_the_parent_as_plain_values() -> None:
    finished = child._with_words(Transcript("hi", words=(Word("hi", 0.5, 1),)))
    assert json.loads(json.dumps(finished["words"])) == [["hi", 0.5, 1.0]]
    with pytest.raises(TypeError, match="returned words that are a NoneType"):
        child._with_words(Transcript("hi"))


@pytest.fixture
def with_words(spoken: Path, tmp_path: Path) -> Path:
    """The spoken clips, all but one with the true times of their words."""
    folder = tmp_path / "timed"
    shutil.copytree(spoken, folder)
    lines = []
    for name, text in tones.TEXTS.items():
        line: dict[str, Any] = {"audio_filepath": f"{name}.wav", "text": text, "lang": "en"}
        if name != "bridge":
            line["words"] = said(
                *(
                    (word, n * tones.WORD_SECONDS, (n + 1) * tones.WORD_SECONDS)
                    for n, word in enumerate(text.split())
                )
            )
        lines.append(json.dumps(line))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def test_engines_are_asked_after_the_rounds(
    asrgate: Callable[..., int], with_words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backends = "honest,times-words,invents-times"
    assert asrgate("--backends", backends, "--rounds", "1", "--word-timestamps", clips=with_words) == 0
    run = record.read(tmp_path / "results" / "latest")
    rows = {row["backend"]: row for row in run["results"]}
    found = rows["times-words"]["word_times"]
    words = sum(len(text.split()) for name, text in tones.TEXTS.items() if name != "bridge")
    assert (found["clips"], found["reference_words"], found["aligned_words"]) == (4, words, words)
    assert found["start"]["mean_seconds"] == pytest.approx(0.04)
    assert found["end"]["mean_seconds"] == pytest.approx(((words - 4) * 0.02 + 4 * 0.1) / words)
    assert found["end"]["p95_seconds"] == pytest.approx(0.1)
    assert found["changed_words"] == 0
    # the calls that gave word times are none of those that speed is made of
    assert len(rows["times-words"]["samples"]) == len(tones.TEXTS)
    assert rows["honest"]["word_answers"] == {"available": False, "error": None, "answers": []}
    invented = rows["invents-times"]
    assert "the worker sent a word said from 60.04 to" in invented["word_answers"]["error"]
    assert invented["status"] == "ok" and invented["gate"]["ranked"], "what it was ranked by is untouched"
    assert "honest@cpu/float32 gives none" in " ".join(capsys.readouterr().out.split())
    with (tmp_path / "results" / "latest" / "summary.csv").open() as file:
        summary = {row["backend"]: row for row in csv.DictReader(file)}
    assert float(summary["times-words"]["word_start_mean_seconds"]) == pytest.approx(0.04)
    assert summary["honest"]["word_start_mean_seconds"] == ""
    assert summary["honest"]["gives_word_times"] == "False"
    assert "word start s" in report.render(run, "md")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "and no clip has one"),
        (("--task", "translate"), "does not go with --task translate"),
    ],
)
def test_what_has_no_times_to_compare_is_refused(
    asrgate: Callable[..., int], capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    assert asrgate("--word-timestamps", *options) == 2
    assert told in capsys.readouterr().err
