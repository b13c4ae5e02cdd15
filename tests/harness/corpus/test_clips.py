"""Clips: every way to name them works, and every mistake in them is reported, all at once."""

import json
import os
import pickle
import re
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from paths import SHARED_AUDIO

from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.corpus.clips import CorpusError, load_clips
from asrgate.harness.corpus.languages import LanguageError


def tone(seconds: float = 0.5, pitch_hz: float = 440) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * pitch_hz * np.arange(round(seconds * 16_000)) / 16_000)).astype(
        np.float32
    )


def write_wav(path: Path, seconds: float = 0.5, pitch_hz: float = 440) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, pitch_hz), 16_000)
    return path


def write_manifest(folder: Path, *lines: object) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path = folder / "manifest.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(*audio: Path, manifest: Path | None = None) -> str:
    with pytest.raises(CorpusError) as caught:
        load_clips(audio, manifest)
    return str(caught.value)


def test_manifest_line_becomes_a_clip(tmp_path):
    path = write_wav(tmp_path / "deep" / "a b.wav", seconds=0.75)
    line = {
        "audio_filepath": "deep/a b.wav",
        "text": "Grüße",
        "duration": 0.75,
        "lang": "de",
        "license": "CC0",
        "source": {"who": "me"},
    }
    (clip,) = load_clips(manifest=write_manifest(tmp_path, line))
    assert clip.name == "deep/a_b"
    assert clip.path == path
    assert clip.audio_seconds == 0.75
    assert clip.language == "de"
    assert clip.reference == "Grüße"
    assert clip.tags == {"license": "CC0", "source": {"who": "me"}}
    assert clip.sha256 == audio_file.sha256(audio_file.decode(path))
    assert np.array_equal(clip.samples(), audio_file.decode(path))


AUDIO_FOLDERS = {  # Hugging Face's, one recording with a comma in its text and one that says nothing
    "metadata.jsonl": '{"file_name": "a/1.wav", "transcription": "eins, zwei", "language": "de", "age": 7}\n'
    '{"file_name": "2.wav", "text": ""}\n',
    "metadata.csv": 'file_name,transcription,language,age,duration\r\na/1.wav,"eins, zwei",de,7,0.5\r\n'
    "2.wav,,,,\r\n",
}


@pytest.mark.parametrize("name", AUDIO_FOLDERS)
def test_hugging_faces_audio_folder_is_a_corpus(tmp_path, name):
    for number, path in enumerate(("a/1.wav", "2.wav")):
        write_wav(tmp_path / path, pitch_hz=300 + 100 * number)
    (tmp_path / name).write_bytes(AUDIO_FOLDERS[name].encode())
    first, second = load_clips([tmp_path])
    assert (first.name, first.reference, first.language) == ("a/1", "eins, zwei", "de")
    assert first.tags == {"age": 7 if name.endswith("jsonl") else "7"}
    assert (second.name, second.reference, second.language) == ("2", "", "en")
    (alone,) = load_clips([tmp_path / "a" / "1.wav"])
    assert alone.reference is None, "its folder is another"
    (alone,) = load_clips([tmp_path / "2.wav"])
    assert alone.reference == ""


def test_mistakes_in_a_metadata_table_are_told_with_their_rows(tmp_path):
    write_wav(tmp_path / "1.wav")
    table = "file_name,text,duration\n1.wav,one,long\n1.wav,one,nan\n,one,\n../2.wav,two,\n"
    (tmp_path / "metadata.csv").write_text(table)
    told = problems_of(tmp_path)
    assert "metadata.csv: row 2: duration must be a number of seconds above 0, not 'long'" in told
    assert "row 3: duration must be" in told and "row 4: audio_filepath must be a path" in told
    assert "row 5: audio_filepath '../2.wav' is outside" in told
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.wav,one,two\n")
    assert "row 2 has more cells than the heading" in problems_of(tmp_path)


def test_our_names_win_and_a_manifest_further_down_is_told(tmp_path, caplog):
    write_wav(tmp_path / "train" / "1.wav")
    line = {"audio_filepath": "1.wav", "path": "elsewhere", "text": "one", "transcription": "two"}
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(line))
    (clip,) = load_clips([tmp_path / "train"])
    assert clip.reference == "one" and clip.tags == {"path": "elsewhere", "transcription": "two"}
    assert not caplog.text
    (clip,) = load_clips([tmp_path])
    assert clip.reference is None
    assert f"{tmp_path / 'train' / 'metadata.jsonl'} is not read; pass its folder" in caplog.text


@pytest.mark.parametrize("stored, named", [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_however_unicode_composes_them(tmp_path, stored, named):
    # https://github.com/mpv-player/mpv/issues/1492
    write_wav(tmp_path / unicodedata.normalize(stored, "réunion/café.wav"))
    (tmp_path / unicodedata.normalize(named, "café.txt")).write_text("outside")
    line = {"audio_filepath": unicodedata.normalize(named, "réunion/café.wav"), "text": "un"}
    (clip,) = load_clips(manifest=write_manifest(tmp_path, line))
    assert clip.reference == "un" and clip.audio_seconds == 0.5
    folder = tmp_path / unicodedata.normalize(stored, "réunion")
    (folder / unicodedata.normalize(named, "café.txt")).write_text("deux")
    (clip,) = load_clips([folder])
    assert clip.reference == "deux"


def test_backslashes_of_windows_divide_folders_where_no_such_file_is(tmp_path):
    write_wav(tmp_path / "a" / "1.wav")
    write_wav(tmp_path / "a\\2.wav", pitch_hz=600)
    lines = [{"audio_filepath": "a\\1.wav"}, {"audio_filepath": "a\\2.wav"}, {"audio_filepath": "a\\3.wav"}]
    one, two = load_clips(manifest=write_manifest(tmp_path, *lines[:2]))
    assert (one.path, two.path) == (tmp_path / "a" / "1.wav", tmp_path / "a\\2.wav")
    assert "3.wav does not exist" in problems_of(manifest=write_manifest(tmp_path, *lines))
    write_wav(tmp_path / "1.wav")
    outside = {"audio_filepath": "..\\1.wav"}
    assert "outside the manifest's folder" in problems_of(manifest=write_manifest(tmp_path / "a", outside))


def test_text_beside_may_have_an_upper_case_ending(tmp_path):
    write_wav(tmp_path / "A.WAV")
    (tmp_path / "A.TXT").write_text("hello")
    (clip,) = load_clips([tmp_path])
    assert clip.reference == "hello"


def test_transcripts_may_be_divided_by_tabs(tmp_path):
    write_wav(tmp_path / "1-2-0000.wav")
    (tmp_path / "1-2.trans.txt").write_text("1-2-0000\tHELLO  THERE\r\n")
    (clip,) = load_clips([tmp_path])
    assert clip.reference == "HELLO  THERE"


def test_one_json_array_is_told_with_what_converts_it(tmp_path):
    # https://github.com/NVIDIA-NeMo/Speech/issues/3590
    (tmp_path / "all.json").write_text(json.dumps([{"audio_filepath": "a.wav"}], indent=1))
    told = problems_of(tmp_path / "all.json")
    assert told.startswith("1 problem") and "jq -c '.[]' all.json > lines.jsonl" in told


@pytest.mark.parametrize("key", ["audio_filename", "audio_file", "wav"])
def test_others_names_for_the_file_are_known(tmp_path, key):
    # https://github.com/NVIDIA-NeMo/Speech/issues/108
    write_wav(tmp_path / "a.wav")
    (clip,) = load_clips([write_manifest(tmp_path, {key: "a.wav", "text": "hi"})])
    assert (clip.name, clip.reference) == ("a", "hi")


def test_a_stored_column_of_audio_names_its_file(tmp_path):
    write_wav(tmp_path / "a.wav")
    (clip,) = load_clips(
        [write_manifest(tmp_path, {"audio": {"path": "a.wav", "bytes": None}, "text": "hi"})]
    )
    assert (clip.name, clip.reference) == ("a", "hi")


def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path):
    # https://github.com/pytorch/audio/issues/2838
    for number in range(3):
        write_wav(tmp_path / f"{number}.wav", pitch_hz=300 + 50 * number)
    (tmp_path / "metadata.csv").write_text('file_name,text\n0.wav,"Hello there\n1.wav,two\n2.wav,thr" ee\n')
    assert "row 2 goes on over several lines and its quotes do not fit" in problems_of(tmp_path)
    table = 'file_name,text\n0.wav,"one\nand, more"\n1.wav,two\n2.wav,three\n'
    (tmp_path / "metadata.csv").write_text(table)
    assert [clip.reference for clip in load_clips([tmp_path])] == ["one\nand, more", "two", "three"]


def test_words_that_mean_nothing_to_programs_stay_texts(tmp_path):
    # https://github.com/huggingface/datasets/issues/4467
    texts = ["null", "None", "NA", "nan"]
    for number in range(4):
        write_wav(tmp_path / f"{number}.wav", pitch_hz=300 + 50 * number)
    rows = "".join(f"./{number}.wav,{text}\n" for number, text in enumerate(texts))
    (tmp_path / "metadata.csv").write_text("file_name,transcription\n" + rows)
    assert [clip.reference for clip in load_clips([tmp_path])] == texts


LJSPEECH = (
    'LJ001-0001|"Printing," in the 15th century|"Printing," in the fifteenth century\n'
    "LJ001-0002|in being comparatively modern.|\n"
)


@pytest.mark.parametrize("cells", ["{0}|{1}|{2}", "wavs/{0}.wav|{2}"])
def test_ljspeechs_metadata_without_a_heading_is_a_manifest(tmp_path, cells):
    # two cells and a path: https://github.com/voice-cloning-app/Voice-Cloning-App/issues/16
    for number in (1, 2):
        write_wav(tmp_path / "wavs" / f"LJ001-000{number}.wav", pitch_hz=300 + 50 * number)
    rows = [line.split("|") for line in LJSPEECH.splitlines()]
    rows = [
        (name, text, normalised or (text if cells.count("|") == 1 else "")) for name, text, normalised in rows
    ]
    (tmp_path / "metadata.csv").write_text("".join(cells.format(*row) + "\n" for row in rows))
    clips = load_clips([tmp_path])
    assert [(clip.name, clip.reference) for clip in clips] == [
        ("wavs/LJ001-0001", '"Printing," in the fifteenth century'),
        ("wavs/LJ001-0002", "in being comparatively modern."),
    ]


def test_mistakes_in_ljspeechs_metadata_are_told_with_their_lines(tmp_path):
    write_wav(tmp_path / "wavs" / "LJ001-0001.wav")
    (tmp_path / "metadata.csv").write_text("LJ001-0001|a|a\nLJ001-0002|b|b\nLJ001-0003|c|c|c|c\n")
    told = problems_of(tmp_path)
    assert told.startswith("2 problems")
    assert "metadata.csv:2: " in told and "LJ001-0002.wav" in told
    assert "metadata.csv:3: has 5 cells" in told


def test_metadata_that_names_no_files_is_not_taken_for_a_manifest(tmp_path):
    write_wav(tmp_path / "wavs" / "LJ001-0001.wav")
    (tmp_path / "metadata.csv").write_text("speaker|age|town\nanna|40|Rome\n")
    (clip,) = load_clips([tmp_path])
    assert clip.name == "wavs/LJ001-0001"


def test_no_words_and_no_reference_are_two_things(tmp_path):
    for name in "abc":
        write_wav(tmp_path / f"{name}.wav")
    silent, unknown, absent = load_clips(
        manifest=write_manifest(
            tmp_path,
            {"audio_filepath": "a.wav", "text": ""},
            {"audio_filepath": "b.wav", "text": None},
            {"audio_filepath": "c.wav"},
        )
    )
    assert silent.reference == ""
    assert unknown.reference is None
    assert absent.reference is None
    assert absent.language == "en"


def test_byte_order_mark_blank_lines_and_odd_separators(tmp_path):
    write_wav(tmp_path / "a.wav")
    text = json.dumps({"audio_filepath": "a.wav", "text": "x\u2028y"}, ensure_ascii=False)
    (tmp_path / "m.json").write_text(f"\ufeff\n{text}\r\n\n", encoding="utf-8", newline="")
    (clip,) = load_clips([tmp_path / "m.json"])
    assert clip.reference == "x\u2028y"


def test_language_given_by_the_caller_wins(tmp_path):
    write_wav(tmp_path / "a.wav")
    manifest = write_manifest(tmp_path, {"audio_filepath": "a.wav", "lang": "de"})
    assert [c.language for c in load_clips(manifest=manifest, language="fr")] == ["fr"]
    with pytest.raises(LanguageError, match="no language 'Englis'"):
        load_clips(manifest=manifest, language="Englis")


def test_single_file_is_what_its_folders_manifest_says(tmp_path):
    write_wav(tmp_path / "one.wav")
    path = write_wav(tmp_path / "two.wav", pitch_hz=880)
    broken = {"audio_filepath": "one.wav", "lang": "Englisch"}
    write_manifest(tmp_path, broken, {"audio_filepath": "two.wav", "text": "hallo", "lang": "de"})
    (clip,) = load_clips([path])
    assert (clip.name, clip.reference, clip.language) == ("two", "hallo", "de")
    (tmp_path / "two.txt").write_text("hello")  # closer than the manifest
    assert load_clips([path])[0].reference == "hello"
    assert "lang: Whisper has no language 'Englisch'; did you mean en" in problems_of(tmp_path / "one.wav")


def test_folder_with_texts_beside_the_audio(tmp_path):
    write_wav(tmp_path / "one.wav")
    (tmp_path / "one.txt").write_text("first\nline two\n", encoding="utf-8-sig")
    write_wav(tmp_path / "sub" / "two.WAV")
    soundfile.write(tmp_path / "sub" / "three.flac", tone(), 16_000)
    (tmp_path / "sub" / "three.txt").write_text("")
    (tmp_path / "README.txt").write_text("no clip")
    write_wav(tmp_path / "._one.wav").write_bytes(b"what macOS leaves behind")
    clips = {clip.name: clip for clip in load_clips([tmp_path])}
    assert sorted(clips) == ["one", "sub/three", "sub/two"]
    assert clips["one"].reference == "first line two"
    assert clips["sub/three"].reference == ""
    assert clips["sub/two"].reference is None


def test_single_file_and_its_reference(tmp_path):
    path = write_wav(tmp_path / "one.wav")
    assert [clip.reference for clip in load_clips([path])] == [None]
    (tmp_path / "one.txt").write_text("hello")
    assert [clip.reference for clip in load_clips([path])] == ["hello"]


def test_librispeech_tree(tmp_path):
    chapter = tmp_path / "61" / "70968"
    for i in range(2):
        write_wav(chapter / f"61-70968-000{i}.wav")
    transcripts = chapter / "61-70968.trans.txt"
    transcripts.write_text("61-70968-0000 HE BEGAN\n61-70968-0001 A CONFUSED COMPLAINT\n")
    clips = load_clips([tmp_path])
    assert [clip.reference for clip in clips] == ["HE BEGAN", "A CONFUSED COMPLAINT"]

    transcripts.write_text("61-70968-0000 A\n61-70968-0000 B\n61-70968-0009 C\n")
    told = problems_of(tmp_path)
    assert "61-70968.trans.txt:2: 61-70968-0000 is listed twice" in told
    assert "61-70968.trans.txt:3: there is no audio for 61-70968-0009" in told


def test_a_folder_that_has_a_manifest_is_read_by_it(tmp_path):
    write_wav(tmp_path / "a.wav")
    write_wav(tmp_path / "not_named.wav")
    write_manifest(tmp_path, {"audio_filepath": "a.wav", "text": "yes"})
    assert [(clip.name, clip.reference) for clip in load_clips([tmp_path])] == [("a", "yes")]


def test_same_name_in_several_places_stays_apart(tmp_path):
    for folder in ("x", "y"):
        write_wav(tmp_path / folder / "a.wav")
    soundfile.write(tmp_path / "x" / "a.flac", tone(), 16_000)
    clips = load_clips([tmp_path / "x", tmp_path / "y"])
    assert [clip.name for clip in clips] == ["a.flac", "x/a.wav", "y/a.wav"]


def test_names_are_safe_for_tables_and_unique(tmp_path):
    for name in ("a|b.wav", "a b.wav", "a\tb.wav", "ü.wav"):
        write_wav(tmp_path / name)
    names = [clip.name for clip in load_clips([tmp_path])]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"[\w./~+-]+", name) for name in names)
    assert "ü" in names


def test_every_problem_is_reported_with_its_line(tmp_path):
    write_wav(tmp_path / "good.wav")
    write_wav(tmp_path / "long.wav", seconds=2.0)
    write_wav(tmp_path / "cut.wav").write_bytes((tmp_path / "long.wav").read_bytes()[:20_000])
    (tmp_path / "empty.wav").touch()
    told = problems_of(
        manifest=write_manifest(
            tmp_path,
            {"audio_filepath": "good.wav"},
            "{oops",
            {"audio_filepath": "good.wav"},
            {"audio_filepath": "cut.wav"},
            {"audio_filepath": "empty.wav"},
            {"audio_filepath": "gone.wav"},
            {"audio_filepath": "long.wav", "duration": 2.2},
        )
    )
    for line, reason in {
        2: "not JSON",
        3: "good.wav is already listed at .*manifest.jsonl:1",
        4: "cut.wav is truncated",
        5: "empty.wav is empty",
        6: "gone.wav does not exist",
        7: "duration says 2.2 s, but long.wav lasts 2.00 s",
    }.items():
        assert re.search(rf"manifest\.jsonl:{line}: .*{reason}", told), (line, told)
    assert told.startswith("6 problems")
    assert "manifest.jsonl:1:" not in told.replace("at " + str(tmp_path), "")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "a list, not a JSON object"),
        ("[" * 100_000, "not JSON|nested"),
        ('{"audio_filepath": "a.wav", "x": NaN}', "NaN is not a number"),
        ('{"audio_filepath": "a.wav", "text": "\\ud800"}', "surrogate"),
        ({"text": "x"}, "audio_filepath must be a path, not None"),
        ({"audio_filepath": " "}, "audio_filepath must be a path"),
        ({"audio_filepath": 3}, "audio_filepath must be a path, not 3"),
        ({"audio_filepath": "a\0.wav"}, "audio_filepath must be a path"),
        ({"audio_filepath": "a.wav", "text": 3}, "text must be a string"),
        ({"audio_filepath": "a.wav", "lang": "xx"}, "lang: Whisper has no language 'xx'"),
        ({"audio_filepath": "a.wav", "keywords": "Anna"}, "keywords must be a list"),
        ({"audio_filepath": "a.wav", "duration": "1"}, "duration must be a number"),
        ({"audio_filepath": "a.wav", "duration": True}, "duration must be a number"),
        ({"audio_filepath": "a.wav", "duration": -1}, "duration must be a number"),
        ('{"audio_filepath": "a.wav", "duration": 1e999}', "1e999 is too large a number"),
        ({"audio_filepath": "a.wav", "offset": "0"}, "offset must be a number"),
        ({"audio_filepath": "a.wav", "offset": -1}, "offset must be a number"),
        ({"audio_filepath": "a.wav", "offset": 0.5}, "lies beyond the end"),
        (
            {"audio_filepath": "a.wav", "offset": 0.2, "duration": 0.5},
            "from 0.20 to 0.70 s lies beyond the end",
        ),
        ({"audio_filepath": "a.wav", "offset": 0.47, "duration": 0.02}, "is shorter than"),
        ({"audio_filepath": "x" * 300 + ".wav"}, "cannot be read"),
    ],
)
def test_bad_lines_are_refused(tmp_path, line, reason):
    write_wav(tmp_path / "a.wav")
    told = problems_of(manifest=write_manifest(tmp_path, line))
    assert re.search(rf"manifest\.jsonl:1: .*({reason})", told)


def test_paths_cannot_leave_the_folder_of_the_manifest(tmp_path):
    outside = write_wav(tmp_path / "outside.wav")
    inner = tmp_path / "inner"
    write_wav(inner / "sub" / "a.wav")
    (inner / "link.wav").symlink_to(outside)
    (inner / "linked").symlink_to(tmp_path)
    os.symlink("circle.wav", inner / "circle.wav")
    for name in ("../outside.wav", str(outside), "link.wav", "linked/outside.wav", str(inner / "sub/a.wav")):
        told = problems_of(manifest=write_manifest(inner, {"audio_filepath": name}))
        assert "is outside the manifest's folder" in told
    assert "circle.wav" in problems_of(manifest=write_manifest(inner, {"audio_filepath": "circle.wav"}))
    assert load_clips(manifest=write_manifest(inner, {"audio_filepath": "sub/../sub/a.wav"}))


def test_many_problems_are_counted_not_all_printed(tmp_path):
    told = problems_of(manifest=write_manifest(tmp_path, *["{"] * 25))
    assert told.startswith("25 problems")
    assert told.count("not JSON") == 10
    assert told.endswith("and 15 more")


def test_sets_without_clips_are_refused(tmp_path):
    assert "names no clips" in problems_of(manifest=write_manifest(tmp_path))
    (tmp_path / "none").mkdir()
    assert "contains no audio" in problems_of(tmp_path / "none")
    assert "cannot be read" in problems_of(manifest=tmp_path / "gone.jsonl")
    assert "does not exist" in problems_of(tmp_path / "gone.wav")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    assert "not UTF-8" in problems_of(manifest=tmp_path / "latin.jsonl")


def test_nan_audio_is_found_before_the_run(tmp_path):
    sound = tone()
    sound[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", sound, 16_000, subtype="FLOAT")
    assert "NaN" in problems_of(tmp_path)


def test_durations_may_be_rounded_but_not_wrong(tmp_path):
    write_wav(tmp_path / "a.wav", seconds=20.0)
    for duration in (20.15, 19.85):
        manifest = write_manifest(tmp_path, {"audio_filepath": "a.wav", "duration": duration})
        (clip,) = load_clips(manifest=manifest)
        assert (clip.audio_seconds, dict(clip.tags)) == (20.0, {})
    manifest = write_manifest(tmp_path, {"audio_filepath": "a.wav", "duration": 20.3})
    assert "it may be cut off" in problems_of(manifest=manifest)


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3"])
def test_offset_and_duration_cut_every_container(tmp_path, ending, caplog):
    # https://github.com/NVIDIA-NeMo/Speech/issues/10060
    path = tmp_path / f"talk{ending}"
    soundfile.write(path, np.concatenate([tone(1.0, pitch) for pitch in (300, 500, 700)]), 16_000)
    manifest = write_manifest(
        tmp_path,
        *[
            {"audio_filepath": path.name, "offset": start, "duration": 1.0, "text": "a"}
            for start in (0, 1.0, 2.0)
        ],
        {"audio_filepath": path.name, "offset": 1.5},
    )
    clips = load_clips(manifest=manifest)
    assert [clip.name for clip in clips[:3]] == ["talk-0.000", "talk-1.000", "talk-2.000"]
    assert [clip.audio_seconds for clip in clips[:3]] == pytest.approx([1.0] * 3, abs=0.01)
    assert clips[3].audio_seconds == pytest.approx(1.5, abs=0.15)
    assert [clip.tags["offset"] for clip in clips] == [0, 1.0, 2.0, 1.5]
    whole = audio_file.decode(path)
    for start, clip in enumerate(clips[:3]):
        assert np.array_equal(clip.samples(), whole[start * 16_000 : (start + 1) * 16_000])
    assert "duration says" not in caplog.text
    again = write_manifest(tmp_path, *[{"audio_filepath": path.name, "offset": 1, "duration": 1}] * 2)
    assert "is already listed" in problems_of(manifest=again)


def test_a_duration_without_an_offset_cuts_with_a_warning(tmp_path, caplog):
    path = write_wav(tmp_path / "a.wav", seconds=3.0)
    (clip,) = load_clips(manifest=write_manifest(tmp_path, {"audio_filepath": "a.wav", "duration": 1.25}))
    assert np.array_equal(clip.samples(), audio_file.decode(path)[:20_000])
    assert clip.tags["duration"] == 1.25
    assert "manifest.jsonl:1: duration says 1.25 s, but a.wav lasts 3.00 s; only its first" in caplog.text


def test_only_an_mp3_may_outlast_its_declared_duration(tmp_path, caplog):
    soundfile.write(tmp_path / "a.mp3", tone(4.0), 16_000)
    manifest = write_manifest(tmp_path, {"audio_filepath": "a.mp3", "duration": 3.0})
    (clip,) = load_clips(manifest=manifest)
    assert clip.audio_seconds == pytest.approx(4.0, abs=0.15)
    assert clip.tags["duration"] == 3.0
    assert "duration says 3 s" in caplog.text
    manifest = write_manifest(tmp_path, {"audio_filepath": "a.mp3", "duration": 5.0})
    assert "it may be cut off" in problems_of(manifest=manifest)


def test_a_file_that_changes_after_loading_is_noticed(tmp_path):
    path = write_wav(tmp_path / "a.wav", pitch_hz=440)
    (clip,) = load_clips([path])
    write_wav(path, pitch_hz=441)
    with pytest.raises(audio_file.AudioError, match="changed during the run"):
        clip.samples()


def test_memory_stays_flat(tmp_path):
    (clip,) = load_clips([write_wav(tmp_path / "a.wav", seconds=5.0)])
    assert len(pickle.dumps(clip)) < 1_000


@pytest.mark.skipif(not SHARED_AUDIO.is_dir(), reason="needs the 64 recordings of ../shared/audio")
def test_the_manifest_of_real_recordings_loads(caplog):
    clips = load_clips(manifest=SHARED_AUDIO / "manifest.jsonl")
    assert len({clip.name for clip in clips}) == 64
    assert sum(clip.language == "en" for clip in clips) == 45
    assert all(clip.reference and clip.tags["license"] for clip in clips)
    assert caplog.text.count("the lengths of MP3 files are often guesses") == 3


def encode(path: Path, samples: np.ndarray, codec: str, container: str) -> Path:
    """Write mono 16 kHz samples with ffmpeg's encoder."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=48_000 if codec == "libopus" else 16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=stream.rate, frame_size=stream.frame_size
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))
    return path


CONTAINERS = {
    "b.webm": ("libopus", "webm"),
    "c.mp4": ("aac", "mp4"),
    "d.aac": ("aac", "adts"),
    "e.aiff": ("pcm_s16be", "aiff"),
    "f.caf": ("pcm_s16be", "caf"),
    "g.MKA": ("libopus", "matroska"),
    "h.mov": ("aac", "mov"),
}


def test_other_containers_beside_a_wav_are_used_too(tmp_path):
    write_wav(tmp_path / "a.wav", seconds=1.0)
    (tmp_path / "a.txt").write_text("text a")
    for name, (codec, container) in CONTAINERS.items():
        encode(tmp_path / name, tone(1.0, 300 + 40 * ord(name[0]) % 400), codec, container)
        (tmp_path / name).with_suffix(".txt").write_text(f"text {name[0]}")
    clips = load_clips([tmp_path])
    assert {clip.path.name: clip.reference for clip in clips} == {
        name: f"text {name[0]}" for name in ("a.wav", *CONTAINERS)
    }
    assert all(clip.audio_seconds == pytest.approx(1.0, abs=0.15) for clip in clips)


def test_what_is_left_out_of_a_folder_is_counted_and_named(tmp_path, caplog):
    write_wav(tmp_path / "a.wav")
    for name in ("b.amr", "sub/c.spx", "d.odd", "d.txt", "notes.odd", "a.json", "README", ".hidden.amr"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [clip.name for clip in load_clips([tmp_path])] == ["a"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("3 files are left out")
    assert message.endswith(
        ": " + ", ".join(str(tmp_path / name) for name in ("b.amr", "d.odd", "sub/c.spx"))
    )
    caplog.clear()
    write_manifest(tmp_path, {"audio_filepath": "a.wav"})
    load_clips([tmp_path])
    assert not caplog.records


def killed_recorder(path: Path, tail: bytes = b"") -> Path:
    content = write_wav(path, seconds=2.0).read_bytes()
    data = content.index(b"data")
    path.write_bytes(content[: data + 4] + bytes(4) + (tail or content[data + 8 :]))
    return path


def test_a_wav_whose_recorder_was_killed_is_read_to_its_end(tmp_path, caplog):
    # https://github.com/JamesHeinrich/getID3/issues/468
    whole = audio_file.decode(write_wav(tmp_path / "whole.wav", seconds=2.0))
    (clip,) = load_clips([killed_recorder(tmp_path / "a.wav")])
    assert clip.audio_seconds == 2.0
    assert np.array_equal(clip.samples(), whole)
    assert "duration" not in clip.tags
    assert "a.wav: its header says 0 bytes of samples" in caplog.text


def test_an_empty_wav_with_tags_after_it_has_no_audio(tmp_path):
    tags = b"LIST" + (2_000).to_bytes(4, "little") + b"INFO" + bytes(1_996)
    assert "lasts 0.000 s" in problems_of(killed_recorder(tmp_path / "a.wav", tags))
