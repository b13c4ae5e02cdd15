"""The hallucination suite: the same from the same seed; every invented word is counted."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from make_run import REFERENCE, make_run
from paths import ROOT

from asrgate.harness import record, report
from asrgate.harness.corpus import check, clips
from asrgate.harness.metrics import hallucination
from asrgate.harness.record import Run
from asrgate.harness.scoring import gate, score

RATE_HZ = 16_000
ESPEAK = importlib.util.find_spec("espeakng_loader")


def make(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Make the suite in a process of its own: espeak-ng keeps one synthesiser a process."""
    command = [
        sys.executable,
        "-m",
        "asrgate",
        "corpus",
        "make",
        "hallucination",
        str(folder),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if ESPEAK is None:
        pytest.skip("needs espeak-ng: the package espeakng-loader of the extra `train`")
    folder = tmp_path_factory.mktemp("suite") / "hallucination"
    done = make(folder)
    assert done.returncode == 0, done.stderr
    return folder


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def samples(folder: Path, name: str) -> np.ndarray:
    return soundfile.read(folder / f"{name}.flac", dtype="float64")[0]


def test_suite_has_every_kind_and_is_a_sound_corpus(suite: Path) -> None:
    kinds = Counter(line["hallucination"] for line in lines(suite))
    assert kinds == {
        **dict.fromkeys(["silence", "white noise", "pink noise", "babble", "music", "cut mid-word"], 3),
        "five times": 2,
    }
    assert check.check([suite]).problems == []
    assert len(clips.load_clips([suite])) == sum(kinds.values())


def test_nothing_is_said_where_nobody_speaks(suite: Path) -> None:
    for line in lines(suite):
        speaks = line["hallucination"] in ("cut mid-word", "five times")
        assert bool(line["text"]) == speaks


def test_sounds_are_what_they_are_called(suite: Path) -> None:
    assert not samples(suite, "silence-8s").any()
    for name in ("white-8s", "pink-8s", "babble-8s", "music-8s"):
        assert 0.02 < np.sqrt(np.mean(samples(suite, name) ** 2)) < 0.3
    white, music = (
        np.sort(np.abs(np.fft.rfft(samples(suite, name)))) ** 2 for name in ("white-8s", "music-8s")
    )
    top = len(white) // 100
    assert white[-top:].sum() / white.sum() < 0.1
    assert music[-top:].sum() / music.sum() > 0.7  # tones: a hundredth of the spectrum holds nearly all


def test_repeated_clip_says_its_sentence_five_times(suite: Path) -> None:
    line = next(line for line in lines(suite) if line["hallucination"] == "five times")
    words = str(line["text"]).split()
    assert words == words[: len(words) // 5] * 5
    wave = samples(suite, "repeat-0")
    period = len(wave) // 5
    assert np.abs(wave[:period] - wave[period : 2 * period]).max() < 1e-3


def test_cut_clip_breaks_off_in_sound(suite: Path) -> None:
    ends = [np.sqrt(np.mean(samples(suite, f"cut-{n}")[-RATE_HZ // 50 :] ** 2)) for n in range(3)]
    assert max(ends) > 0.01


@pytest.mark.slow
def test_same_seed_same_bytes_and_another_seed_another_suite(suite: Path, tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    assert make(tmp_path / "again").returncode == 0
    assert digests(tmp_path / "again") == digests(suite)
    assert make(tmp_path / "other", "--seed", "1").returncode == 0
    other = digests(tmp_path / "other")
    same = {name for name, digest in digests(suite).items() if other[name] == digest}
    assert same == {f"silence-{length}s.flac" for length in (2, 8, 25)}


def test_taken_folder_is_one_error(suite: Path) -> None:
    done = make(suite)
    assert done.returncode == 2
    assert "exists; choose another folder" in done.stderr


# what is counted


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("a b c d e", "", 0),
        ("a b c d e a b c d e", "", 1),
        ("a b c d e " * 4, "", 16 - 5),  # 16 runs, 5 of them for the first time
        ("a b c d e " * 5, "a b c d e " * 5, 0),
        ("a b c d e " * 6, "a b c d e " * 5, 5),
        ("a b c d", "", 0),
        ("x x x x x x x", "", 2),
    ],
)
def test_repeated_runs_of_five_words(text: str, reference: str, expected: int) -> None:
    assert hallucination.repeated_grams(text.split(), reference.split()) == expected


@pytest.fixture
def run() -> Run:
    references = ["", "", "one two three", "four five"]
    made = make_run(
        (REFERENCE,),
        references,
        texts={REFERENCE: ["thank you", ".", "one two three", "four five five"]},
        audio_seconds=[30, 30, 20, 40],
    )
    for clip, kind in zip(made["clips"], ["silence", "silence", "cut mid-word", None], strict=True):
        if kind is not None:
            clip["tags"]["hallucination"] = kind
    score.score(made, "whisper", replicates=100)
    gate.judge(made)
    record.validate(made)
    return made


def test_invented_words_are_counted_by_kind(run: Run) -> None:
    rows = {row["kind"]: row for row in hallucination.rows(run)}
    assert list(rows) == ["silence", "cut mid-word", "all"]
    silence = rows["silence"]
    assert silence["insertions_per_minute"] == pytest.approx(2.0)
    assert (silence["text_on_silence"], silence["silent_clips"]) == (1, 2)
    assert rows["cut mid-word"]["insertions_per_minute"] == 0
    assert rows["all"]["clips"] == 3
    assert rows["all"]["insertions_per_minute"] == pytest.approx(2 / 80 * 60)


def test_reports_show_the_counts(run: Run) -> None:
    (line,) = [
        x
        for x in report.render(run, "md").splitlines()
        if x.startswith("| silence | whisper-cpu") and "/2" in x
    ]
    assert "2.00" in line
    assert "1/2" in line
    page = report.render(run, "html")
    assert "text on silence" in page
    assert '<td class="number">1/2</td>' in page


def test_counts_outlive_the_texts_but_for_repetitions(run: Run) -> None:
    silence = hallucination.rows(record.without_texts(run))[0]
    assert silence["text_on_silence"] == 1
    assert silence["insertions_per_minute"] == pytest.approx(2.0)
    assert silence["repeated_5grams"] is None


def test_ordinary_runs_have_no_such_table() -> None:
    made = make_run((REFERENCE,))
    score.score(made, "none", replicates=100)
    assert hallucination.rows(made) == []
    assert "Hallucination" not in report.render(made, "md")
