"""`asrgate corpus list|info|validate`: every kind of mistake planted once is found, counted and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asrgate.harness.cli import main
from asrgate.harness.corpus import check
from asrgate.harness.corpus.clips import BUNDLED_MANIFEST
from asrgate.harness.corpus.fields import LENGTH

RATE_HZ = 16_000


def store(path: Path, frequency_hz: float, seconds: float = 0.5) -> None:
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * frequency_hz * time), RATE_HZ)


def manifest(folder: Path, lines: list[dict[str, Any] | str]) -> Path:
    """Write a manifest; clips that name no file get one of their own."""
    folder.mkdir(exist_ok=True)
    written = []
    for number, line in enumerate(lines):
        name = f"{number}.wav"
        if isinstance(line, dict) and "audio_filepath" not in line:
            store(folder / name, 200 + 20 * number)
        is_text = isinstance(line, str)
        written.append(line if is_text else json.dumps({"audio_filepath": name} | line))
    (folder / "manifest.jsonl").write_text("\n".join(written) + "\n")
    return folder


def found(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    main(["corpus", "validate", str(folder), "--json", *options])
    return json.loads(capsys.readouterr().out)["problems"]


MISTAKES: list[tuple[str, dict[str, Any] | str]] = [
    ("unreadable line", "{no json"),
    ("unreadable line", {"text": 5}),
    ("missing audio", {"audio_filepath": "gone.wav", "text": "one"}),
    ("unreadable audio", {"audio_filepath": "noise.wav", "text": "one"}),
    ("duration disagrees", {"text": "one", "duration": 0.8}),
    ("no reference", {}),
    ("empty reference", {"text": " "}),
    ("duplicate reference", {"text": "GOOD  morning"}),
    ("duplicate audio", {"audio_filepath": "copy.wav", "text": "one"}),
    ("control character", {"text": "one\ttwo"}),
    ("control character", {"text": "one\ntwo"}),
    ("control character", {"text": "one\u200btwo"}),
    ("replacement character", {"text": "caf\ufffd"}),
    ("wrong encoding", {"text": "cafÃ©"}),
    ("wrong encoding", {"text": "itâ€™s"}),
    ("markup", {"text": "<unk> yes"}),
    ("markup", {"text": "yes [laughter]"}),
    ("markup", {"text": "this &amp; that"}),
    ("markup", {"text": "yes *coughs* no"}),
    ("markup", {"text": "%HESITATION yes"}),
    ("markup", {"text": "((yes"}),
    ("markup", {"text": "Speaker 2: yes"}),
    ("markup", {"text": "SPEAKER_01: yes"}),
    ("markup", {"text": "yes agent: no"}),
    ("markup", {"text": "MR. SMITH: yes"}),
    ("markup", {"text": ">> yes"}),
    ("markup", {"text": "♪ la la"}),
    ("markup", {"text": "00:01 --> 00:02 yes"}),
    # TED-LIUM's, https://github.com/k2-fsa/icefall/issues/846
    ("only tags", {"text": "ignore_time_segment_in_scoring"}),
    ("markup", {"text": "yes (laughs) no"}),
    ("markup", {"text": "真昼（笑）"}),
    ("only tags", {"text": "[noise]"}),
    ("only tags", {"text": "<unk> (hesitation)."}),
    ("only tags", {"text": "(he says nothing)"}),
    ("no words", {"text": "???? ??!"}),
    ("word times", {"text": "hello", "words": [{"word": "hello", "start": 0.2, "end": 0.7}]}),
    ("word times", {"text": "hello there", "words": [{"word": "hello", "start": 0.2, "end": 0.4}]}),
    ("mixed scripts", {"text": "Неllo"}),
]


@pytest.mark.parametrize(("kind", "line"), MISTAKES)
def test_each_mistake_is_found_as_what_it_is(
    kind: str, line: dict[str, Any] | str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = manifest(tmp_path / "set", [{"text": "good morning"}, line])
    (folder / "noise.wav").write_bytes(b"not audio")
    (folder / "copy.wav").write_bytes((folder / "0.wav").read_bytes())
    assert main(["corpus", "validate", str(folder)]) == 1
    shown = capsys.readouterr().out
    counts = {name: entry["count"] for name, entry in found(folder, capsys).items() if entry["count"]}
    assert counts == {kind: 1}
    assert f"1  {kind}" in shown
    assert "manifest.jsonl:2" in shown


@pytest.mark.parametrize(
    "text",
    [
        "naïve café — “quoted”",
        "Ça va ? Âge d’or",
        "3 < 4 and 5 > 2",
        "می\u200cخواهم",
        "R&D; or so",
        "a 100% natural, 2*3*4 (sic), Привет and hello, α-test",
        "真っ昼間なのに",
    ],
)
def test_ordinary_texts_are_not_suspected(text: str, tmp_path: Path) -> None:
    folder = manifest(tmp_path / "set", [{"text": text, "audio_filepath": "a.wav"}])
    store(folder / "a.wav", 300, seconds=3.0)
    assert main(["corpus", "validate", str(folder)]) == 0


def test_times_of_the_words_that_are_said_are_not_suspected(tmp_path: Path) -> None:
    words = [{"word": "Hello,", "start": 0.1, "end": 0.2}, {"word": "THERE", "start": 0.2, "end": 0.55}]
    folder = manifest(tmp_path / "set", [{"text": "hello there!", "words": words}])
    assert main(["corpus", "validate", str(folder)]) == 0


SAID = "nobody who reads it aloud can be quicker than this sentence"  # 51 letters


@pytest.mark.parametrize(
    ("seconds", "text", "is_odd"),
    [
        (51 / 27, SAID, True),  # 8 kHz that is called 16, of someone who says 13.5 letters a second
        (51 / 20, SAID, False),  # as fast as people talk
        (51 / 4.5, SAID, True),  # 48 kHz that is called 16
        (51 / 7.0, SAID, False),
        (51 / 4.5, SAID + " 1234567", False),  # numbers are long when they are read
        (11.0, "A B C D E F G H I J K L M N O P Q R S T U", False),  # and so are letters
        (1.0, "真っ昼間なのにキャンプの外れの電柱に電球がともっていた", True),
        (4.0, "真っ昼間なのにキャンプの外れの電柱に電球がともっていた", False),
        (0.2, "yes", False),  # too short a text to tell
    ],
)
def test_speech_at_a_rate_of_nobody_is_found(seconds: float, text: str, is_odd: bool, tmp_path: Path) -> None:
    # https://github.com/microsoft/DNS-Challenge/issues/106
    folder = manifest(tmp_path / "set", [{"text": text, "audio_filepath": "a.wav"}])
    store(folder / "a.wav", 300, seconds)
    assert [problem.kind for problem in check.check([folder]).problems] == ["speech rate"] * is_odd


def test_pauses_do_not_make_speech_slow(tmp_path: Path) -> None:
    folder = manifest(tmp_path / "set", [{"text": SAID, "audio_filepath": "a.wav"}])
    time = np.arange(20 * RATE_HZ) / RATE_HZ
    soundfile.write(folder / "a.wav", 0.2 * np.sin(2 * np.pi * 300 * time) * (time < 4), RATE_HZ)
    assert not check.check([folder]).problems


def test_silence_may_have_an_empty_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = manifest(tmp_path / "set", [{"audio_filepath": "s.wav", "text": ""}])
    soundfile.write(folder / "s.wav", np.zeros(RATE_HZ), RATE_HZ)
    assert main(["corpus", "validate", str(folder)]) == 0


def test_counts_are_whole_though_examples_are_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = manifest(tmp_path / "set", [{"text": f"{word} [noise]"} for word in "abcdefg"])
    entry = found(folder, capsys, "--examples", "2")["markup"]
    assert entry["count"] == 7
    assert [example["where"][-2:] for example in entry["examples"]] == [":1", ":2"]


def test_ignored_kinds_do_not_fail(tmp_path: Path) -> None:
    folder = manifest(tmp_path / "set", [{"text": "a [b]"}])
    assert main(["corpus", "validate", str(folder), "--ignore", "markup"]) == 0


def test_same_text_in_two_languages_is_no_duplicate() -> None:
    texts: dict[tuple[str, str], str] = {}
    for number, language in enumerate(["de", "nl", "de"]):
        entry = check.Entry(Path(f"{number}.wav"), Path(), f"m:{number}", "in", language)
        kinds = [problem.kind for problem in check._of_text(entry, 0.5, texts)]
        assert kinds == (["duplicate reference"] if number == 2 else [])


def test_bundled_clips_are_sound() -> None:
    assert main(["corpus", "validate"]) == 0


def test_list_tells_size_and_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any] | str] = [
        {"text": "a", "duration": 0.5, "lang": "de"},
        {"text": "b", "duration": 0.5},
        "broken",
    ]
    manifest(tmp_path / "mine", lines)
    assert main(["corpus", "list", str(tmp_path), "--json"]) == 0
    bundled, mine = json.loads(capsys.readouterr().out)
    assert bundled["name"] == "bundled"
    assert bundled["clips"] == len(BUNDLED_MANIFEST.read_text().splitlines())
    assert mine["name"] == "mine"
    assert (mine["clips"], mine["audio_seconds"], mine["bad_lines"]) == (2, 1.0, 1)
    assert mine["languages"] == ["de", "en"]
    assert main(["corpus", "list", str(tmp_path)]) == 0
    assert "mine" in capsys.readouterr().out
    assert main(["corpus", "list", str(tmp_path / "no")]) == 2


def test_info_counts_values_of_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = manifest(
        tmp_path / "set", [{"text": "a b", "room": "hall"}, {"text": "c", "room": "car"}, {"room": "car"}]
    )
    assert main(["corpus", "info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["clips"], facts["with_reference"], facts["reference_words"]) == (3, 2, 3)
    assert facts["fields"]["room"] == {"car": 2, "hall": 1}
    assert facts["fields"][LENGTH] == {"0 to 2 s": 3}
    assert main(["corpus", "info", str(folder)]) == 0
    assert "car (2), hall (1)" in capsys.readouterr().out


def test_folders_and_files_that_are_not_what_they_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in "ab":
        store(folder / f"{name}.wav", 200 + 20 * ord(name))
        (folder / f"{name}.txt").write_text(f"text {name}")
    content = (folder / "b.wav").read_bytes()
    data = content.index(b"data")
    (folder / "b.wav").write_bytes(content[: data + 4] + bytes(4) + content[data + 8 :])
    (folder / "c.amr").write_bytes(b"x")
    assert main(["corpus", "validate", str(folder)]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        f"1 unfinished header: a WAV whose recorder was stopped before it wrote the size {folder}/b.wav"
        in shown
    )
    assert f"1 unused file: audio or video of a format that is not read {folder}/c.amr" in shown
    assert main(["corpus", "info", str(folder)]) == 0
    assert "2 clips without a language, which a run takes for English" in capsys.readouterr().out
    assert main(["corpus", "import", str(folder), "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "b.wav: its header says 0 bytes of samples" in told
    assert (tmp_path / "out" / "manifest.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"offset": 0, "duration": 0.3}, None),
        ({"duration": 0.3}, "duration says 0.3 s, but 0.wav lasts 0.50 s; only its first 0.3 s are used"),
        ({"duration": 3}, "duration says 3 s, but 0.wav lasts 0.50 s; it may be cut off"),
        ({"offset": 0.3, "duration": 3}, "lies beyond the end"),
    ],
)
def test_validate_holds_offset_and_duration_against_the_audio(
    line: dict[str, Any], told: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = found(manifest(tmp_path / "set", [{"text": "one"} | line]), capsys)
    counts = {name: entry["count"] for name, entry in problems.items() if entry["count"]}
    assert counts == ({"duration disagrees": 1} if told else {})
    if told:
        assert told in problems["duration disagrees"]["examples"][0]["detail"]


def speech_like(seconds: float = 1.0) -> np.ndarray:
    return 0.2 * np.random.default_rng(1).standard_normal(int(seconds * 16_000)).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "told"),
    [
        ((0 * speech_like(),), "peak 0.00000, but “hello”"),
        ((speech_like(), -speech_like()), "0.wav: its channels cancel; keep one of them"),
        ((speech_like(), -0.9 * speech_like()), "0.wav: its channels cancel; keep one of them"),
        ((speech_like(), 0 * speech_like()), None),
        ((speech_like(), speech_like()), None),
        ((speech_like(),), None),
    ],
)
def test_a_text_without_sound_is_found(
    channels: tuple[np.ndarray, ...], told: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = manifest(tmp_path / "set", [{"text": "hello"}])
    soundfile.write(folder / "0.wav", np.column_stack(channels), 16_000)
    problems = found(folder, capsys)
    assert {name: entry["count"] for name, entry in problems.items() if entry["count"]} == (
        {"silent audio": 1} if told else {}
    )
    if told:
        assert told in problems["silent audio"]["examples"][0]["detail"]


def test_a_folder_of_audio_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one/a.wav", "two/b.wav"):
        (tmp_path / name).parent.mkdir()
        store(tmp_path / name, 300)
    (tmp_path / "metadata.csv").write_text("file_name,transcription\none/a.wav,eins\n")
    assert main(["corpus", "import", "--dataset", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert f"import it without --dataset: asrgate corpus import {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "told"), [("50", "did you mean 50%?"), ("9999%", "the most is 1000%")])
def test_max_wer_says_what_it_takes(text: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--max-wer", text])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.rstrip().endswith(f"and {text} would let everything pass; {told}")
