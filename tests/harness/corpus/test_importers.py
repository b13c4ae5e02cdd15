"""Corpora of others become a manifest that a run reads: every format, and what is wrong with one is told."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from asrgate.harness import corpus
from asrgate.harness.cli import main
from asrgate.harness.corpus.importers import huggingface

RATE_HZ = 16_000

Import = Callable[..., list[corpus.Clip]]


def wave(seconds: float = 0.5, frequency_hz: float = 300.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return 0.2 * np.sin(2 * np.pi * frequency_hz * time)


def store(path: Path, seconds: float = 0.5, frequency_hz: float = 300.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave(seconds, frequency_hz), RATE_HZ)
    return path


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Import into a new folder and return the clips that a run would read from it."""

    def call(*arguments: Any, status: int = 0) -> list[corpus.Clip]:
        output = tmp_path / "imported"
        assert main(["corpus", "import", *map(str, arguments), "--output", str(output)]) == status
        return corpus.load_clips([output])

    return call


def test_nemo_manifest_with_absolute_paths_and_parts(tmp_path: Path, imported: Import) -> None:
    whole, long = store(tmp_path / "far" / "a.wav"), store(tmp_path / "away" / "b.flac", seconds=3)
    lines = [
        {"audio_filepath": str(whole), "text": "one", "duration": 0.5, "offset": 0.0, "speaker": 7},
        {"audio_filepath": str(long), "text": "two", "duration": 1.25, "offset": 1.5, "lang": "de-AT"},
    ]
    manifest = tmp_path / "nemo.json"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    first, second = imported(manifest)
    assert (first.reference, first.language, first.tags["speaker"]) == ("one", "en", 7)
    assert (second.reference, second.language) == ("two", "de")
    assert second.audio_seconds == 1.25
    cut = np.round(wave(3) * 32768)[int(1.5 * RATE_HZ) : int(2.75 * RATE_HZ)] / 32768
    assert np.allclose(second.samples(), cut, atol=2 / 32768)


def cut(path: str, text: str, seconds: float = 0.5, **fields: Any) -> dict[str, Any]:
    """A line as Lhotse writes it."""
    supervision = {"id": "s", "recording_id": "r", "start": 0.0, "duration": seconds, "text": text}
    source = {"type": "file", "channels": [0], "source": path}
    recording = {"id": "r", "sources": [source], "sampling_rate": RATE_HZ, "duration": 0.5}
    return {
        "id": "c",
        "start": 0.0,
        "duration": seconds,
        "channel": 0,
        "type": "MonoCut",
        "supervisions": [{**supervision, "language": "German", "speaker": "k7"}],
        "recording": recording,
        **fields,
    }


@pytest.mark.parametrize("ran", [".", "elsewhere"])
def test_lhotses_gzipped_cuts(
    tmp_path: Path, imported: Import, ran: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to where its recipe ran: above the file, or where the import runs too."""
    store(tmp_path / ran / "download" / "a.wav")
    monkeypatch.chdir(tmp_path / ran)
    long = store(tmp_path / "download" / "b.flac", seconds=3)
    part = cut(str(long), "x", seconds=1.0, start=1.5)
    part["recording"]["duration"] = 3.0
    words = {"word": [["zwei", 0.5, 0.25, None]]}
    part["supervisions"] = [
        {"start": 0.5, "duration": 0.6, "text": "zwei", "language": "de", "alignment": words, "speaker": "b"},
        {"start": -0.1, "duration": 0.4, "text": "eins", "language": "de", "speaker": "a"},
        {"start": 0.7},
    ]
    manifest = tmp_path / "data" / "cuts.jsonl.gz"
    manifest.parent.mkdir()
    lines = [cut("download/a.wav", "null"), part]
    manifest.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    whole, second = imported(manifest)
    assert (whole.reference, whole.language, whole.audio_seconds) == ("null", "de", 0.5)
    assert whole.tags == {"id": "c", "speaker": "k7"}
    assert (second.reference, second.language, second.audio_seconds) == ("eins zwei", "de", 1.0)
    assert second.tags["words"] == [{"word": "zwei", "start": 0.5, "end": 0.75}]
    assert "speaker" not in second.tags
    assert np.allclose(second.samples(), wave(3)[int(1.5 * RATE_HZ) : int(2.5 * RATE_HZ)], atol=2 / 32768)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"id": "r", "sources": [], "duration": 1.0}, "lhotse cut simple"),
        ({"id": "s", "recording_id": "r", "text": "yes"}, "lhotse cut simple"),
        ({"id": "c", "tracks": []}, "a mixed cut"),
        (cut("a.wav", "yes", channel=1), "channel 1 has no file of its own"),
        (cut("a.wav", "yes", start=-1), "start must be a number of seconds, not -1"),
        (cut("a.wav", "yes", duration=None), "duration must be a number of seconds, not None"),
        (cut("a.wav", "yes", supervisions=3), "supervisions must be a list"),
        (cut("a.wav", "yes", duration=0.2), "ends after it"),
        (cut("a.wav", "", supervisions=[{"start": -1, "duration": 1, "text": "x"}]), "begins before the cut"),
        (cut("a.wav", "yes", recording={"sources": 3}), "no list of sources"),
        (
            cut("a.wav", "yes", recording={"sources": [{"type": "url", "channels": [0]}]}),
            "a 'url', not a file",
        ),
    ],
)
def test_lines_of_lhotse_that_are_no_cuts_of_one_file(
    tmp_path: Path, line: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "a.wav")
    manifest = tmp_path / "cuts.jsonl.gz"
    manifest.write_bytes(gzip.compress(json.dumps(line).encode()))
    assert main(["corpus", "import", str(manifest), "--output", str(tmp_path / "x")]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_a_run_of_lhotses_cuts_says_how_to_import_them(tmp_path: Path, name: str) -> None:
    store(tmp_path / "a.wav")
    line = json.dumps(cut("a.wav", "yes")).encode()
    (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith(".gz") else line)
    with pytest.raises(corpus.CorpusError, match=f"asrgate corpus import .*{name}"):
        corpus.load_clips([tmp_path / name])


def test_a_gzipped_file_that_is_cut_off_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "cuts.jsonl.gz"
    manifest.write_bytes(gzip.compress(json.dumps(cut("a.wav", "yes")).encode())[:-12])
    assert main(["corpus", "import", str(manifest), "--output", str(tmp_path / "x")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_hugging_faces_audio_folder(tmp_path: Path, imported: Import, name: str) -> None:
    store(tmp_path / "there" / "train" / "a.wav")
    row = {"file_name": "train/a.wav", "transcription": "eins", "language": "German", "speaker": "k7"}
    is_table = name.endswith("csv")
    text = ",".join(row) + "\n" + ",".join(row.values()) if is_table else json.dumps(row)
    (tmp_path / "there" / name).write_text(text)
    (clip,) = imported(tmp_path / "there")
    assert (clip.reference, clip.language, clip.tags) == ("eins", "de", {"speaker": "k7"})


def test_quotes_that_are_not_closed_swallow_no_rows(tmp_path: Path, imported: Import) -> None:
    # https://github.com/coqui-ai/STT/pull/2321
    folder = tmp_path / "set"
    for number in range(3):
        store(folder / f"{number}.wav", frequency_hz=300.0 + 50 * number)
    (folder / "all.tsv").write_text('path\tsentence\n0.wav\t"Hello there\n1.wav\ttwo\n2.wav\tthr" ee\n')
    clips = imported(folder, "--language", "en")
    assert [clip.reference for clip in clips] == ['"Hello there', "two", 'thr" ee']


def test_ljspeechs_metadata_without_a_heading(tmp_path: Path, imported: Import) -> None:
    corpus_folder = tmp_path / "LJSpeech-1.1"
    store(corpus_folder / "wavs" / "LJ001-0001.wav")
    (corpus_folder / "metadata.csv").write_text("LJ001-0001|the 15th|the fifteenth\n")
    (clip,) = imported(corpus_folder, "--language", "en")
    assert (clip.reference, clip.language) == ("the fifteenth", "en")


def test_line_separators_within_texts_end_no_row(tmp_path: Path, imported: Import) -> None:
    texts = ["eins\u2028zwei", "drei\x85vier", "fünf\x0csechs"]
    for number in range(len(texts)):
        store(tmp_path / "de" / "clips" / f"{number}.wav", frequency_hz=300 + 100 * number)
    rows = [f"k\t{number}.wav\t{text}" for number, text in enumerate(texts)]
    content = "\ufeff" + "\r\n".join(["client_id\tpath\tsentence", *rows])
    (tmp_path / "de" / "test.tsv").write_bytes(content.encode())
    clips = imported(tmp_path / "de")
    assert [clip.reference for clip in clips] == texts
    assert {clip.language for clip in clips} == {"de"}


def test_tabs_divide_the_transcripts_of_a_librispeech_tree(tmp_path: Path, imported: Import) -> None:
    store(tmp_path / "test" / "1" / "2" / "1-2-0000.flac")
    (tmp_path / "test" / "1" / "2" / "1-2.trans.txt").write_text("1-2-0000\tHE BEGAN\n")
    (clip,) = imported(tmp_path / "test")
    assert clip.reference == "HE BEGAN"


def test_part_at_offset_0_is_cut_and_a_duration_that_is_wrong_is_told(
    tmp_path: Path, imported: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "talk.wav", seconds=3)
    store(tmp_path / "long.wav", seconds=2, frequency_hz=500)
    store(tmp_path / "whole.wav", seconds=1, frequency_hz=600)
    lines = [
        {"audio_filepath": "talk.wav", "text": "one", "offset": 0.0, "duration": 1.0},
        {"audio_filepath": "talk.wav", "text": "two", "offset": 1.0, "duration": 2.0},
        {"audio_filepath": "long.wav", "text": "three", "duration": 0.5},
        {"audio_filepath": "whole.wav", "text": "four", "offset": 0, "duration": 1.0},
    ]
    (tmp_path / "m.json").write_text("\n".join(map(json.dumps, lines)))
    clips = imported(tmp_path / "m.json")
    assert [clip.audio_seconds for clip in clips] == [1.0, 2.0, 0.5, 1.0]
    assert [clip.path.name for clip in clips[2:]] == ["long.flac", "whole-0.000.wav"]
    assert np.allclose(clips[0].samples(), wave(3)[:RATE_HZ], atol=2 / 32768)
    told = capsys.readouterr().err
    assert "m.json:3: duration says 0.5 s, but long.wav lasts 2.00 s; only its first 0.5 s are used" in told
    assert told.count("duration says") == 1


def test_a_duration_longer_than_the_audio_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "a.wav")
    (tmp_path / "m.json").write_text(json.dumps({"audio_filepath": "a.wav", "text": "one", "duration": 2.0}))
    assert main(["corpus", "import", str(tmp_path / "m.json"), "--output", str(tmp_path / "out")]) == 2
    assert "m.json:1: duration says 2 s, but a.wav lasts 0.50 s" in capsys.readouterr().err


def test_part_beyond_the_end_is_refused(
    tmp_path: Path, imported: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "a.wav")
    line = {"audio_filepath": "a.wav", "text": "one", "offset": 0.3, "duration": 1.0}
    (tmp_path / "m.json").write_text(json.dumps(line))
    with pytest.raises(corpus.CorpusError):
        imported(tmp_path / "m.json", status=2)
    assert "from 0.30 to 1.30 s lies beyond the end" in capsys.readouterr().err


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech"
    for split, speaker, chapter, texts in (
        ("test-clean", "61", "70968", ["HE BEGAN", "IT WAS"]),
        ("dev-other", "116", "288", ["AS I"]),
    ):
        folder = root / split / speaker / chapter
        names = [f"{speaker}-{chapter}-{n:04}" for n in range(len(texts))]
        for number, name in enumerate(names):
            store(folder / f"{name}.flac", frequency_hz=200 + 50 * number)
        lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (root / "SPEAKERS.TXT").write_text("; a comment | X\n61   | M | test-clean | 8.08 | Somebody\n")
    return root


def test_librispeech_tree(librispeech: Path, imported: Import) -> None:
    clips = {clip.path.stem: clip for clip in imported(librispeech)}
    assert len(clips) == 3
    clip = clips["61-70968-0001"]
    assert clip.reference == "IT WAS"
    assert clip.language == "en"
    assert clip.tags == {"split": "test-clean", "speaker": "61", "chapter": "70968", "sex": "M"}
    assert "sex" not in clips["116-288-0000"].tags


def test_librispeech_split(librispeech: Path, imported: Import, capsys: pytest.CaptureFixture[str]) -> None:
    assert [clip.reference for clip in imported(librispeech, "--split", "dev-other")] == ["AS I"]
    assert main(["corpus", "import", str(librispeech), "--split", "test", "--output", "x"]) == 2
    assert "it has dev-other, test-clean" in capsys.readouterr().err


@pytest.fixture
def common_voice(tmp_path: Path) -> Path:
    folder = tmp_path / "sv-SE"
    for number in range(4):
        store(folder / "clips" / f"common_voice_sv_{number}.wav", frequency_hz=200 + 50 * number)
    rows = [
        ("c0", "common_voice_sv_0.wav", "Hej då.", "sv-SE", "twenties"),
        ("c1", "common_voice_sv_1", '"Ja", sa han', "sv-SE", ""),
        ("c2", "common_voice_sv_2.wav", '"Vad ""nu"" då?"', "sv-SE", ""),
        ("c3", "common_voice_sv_3.wav", '" utan slut', "", ""),
    ]
    head = "client_id\tpath\tsentence\tlocale\tage\n"
    (folder / "test.tsv").write_text(head + "".join("\t".join(row) + "\n" for row in rows))
    return folder


def test_common_voice_tree(common_voice: Path, imported: Import) -> None:
    clips = imported(common_voice)
    assert [clip.reference for clip in clips] == ["Hej då.", '"Ja", sa han', 'Vad "nu" då?', '" utan slut']
    assert {clip.language for clip in clips} == {"sv"}
    assert clips[0].tags == {"split": "test", "speaker": "c0", "age": "twenties", "locale": "sv-SE"}


def test_common_voice_lists_its_splits(common_voice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "import", str(common_voice), "--split", "train", "--output", "x"]) == 2
    assert "no split 'train'; it has test" in capsys.readouterr().err


def test_folder_with_texts_beside(tmp_path: Path, imported: Import) -> None:
    store(tmp_path / "set" / "deep" / "a.wav")
    store(tmp_path / "set" / "b.wav", frequency_hz=400)
    (tmp_path / "set" / "deep" / "a.txt").write_text("hello\nthere\n")
    clips = {clip.path.name: clip for clip in imported(tmp_path / "set", "--language", "fr")}
    assert clips["a.wav"].reference == "hello there"
    assert clips["b.wav"].reference is None
    assert clips["a.wav"].language == "fr"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'file_name,transcription,lang,dialect\na.wav,"one, two",en,north\nb,three,de,\n'),
        ("t.tsv", "path\tSentence\tlocale\tdialect\na.wav\tone, two\ten\tnorth\nb.wav\tthree\tde-DE\t\n"),
        ("t.csv", "wav;text;language;dialect\na.wav;one, two;en;north\nb.wav;three;de;\n"),
        ("t.csv", "sep=;\r\nwav;text;language;dialect\r\na.wav;one, two;en;north\r\nb.wav;three;de;\r\n"),
    ],
)
def test_table_with_detected_columns(tmp_path: Path, imported: Import, name: str, content: str) -> None:
    store(tmp_path / "set" / "a.wav")
    store(tmp_path / "set" / "b.wav", frequency_hz=400)
    (tmp_path / "set" / name).write_text(content)
    first, second = imported(tmp_path / "set")
    assert (first.reference, first.language, first.tags) == ("one, two", "en", {"dialect": "north"})
    assert (second.reference, second.language, second.tags) == ("three", "de", {})


def test_table_with_named_columns(
    tmp_path: Path, imported: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "set" / "a.wav")
    table = tmp_path / "set" / "t.csv"
    table.write_text("where,said\na.wav,one\n")
    assert main(["corpus", "import", str(table), "--output", str(tmp_path / "x")]) == 2
    message = capsys.readouterr().err
    assert "--audio-column" in message
    assert "where, said" in message
    (clip,) = imported(table, "--audio-column", "where", "--text-column", "said")
    assert clip.reference == "one"
    assert main(["corpus", "import", str(table), "--audio-column", "wher", "--output", "x"]) == 2
    assert "no column 'wher'" in capsys.readouterr().err


def test_audio_below_the_output_is_not_copied(tmp_path: Path) -> None:
    store(tmp_path / "set" / "audio" / "a.wav")
    (tmp_path / "set" / "t.csv").write_text("path,text\naudio/a.wav,one\n")
    assert main(["corpus", "import", str(tmp_path / "set"), "--output", str(tmp_path / "set")]) == 0
    assert sorted(path.name for path in (tmp_path / "set").rglob("*.wav")) == ["a.wav"]
    (clip,) = corpus.load_clips([tmp_path / "set"])
    assert clip.path.samefile(tmp_path / "set" / "audio" / "a.wav")


def test_broken_audio_is_told_and_nothing_left_behind(
    tmp_path: Path, imported: Import, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path / "set" / "a.wav")
    (tmp_path / "set" / "b.wav").write_bytes(b"RIFF no audio at all")
    (tmp_path / "set" / "t.csv").write_text("path,text\na.wav,one\nb.wav,two\nc.wav,three\n")
    output = tmp_path / "out"
    assert main(["corpus", "import", str(tmp_path / "set"), "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert "2 problems, nothing was imported" in message
    assert "row 3" in message
    assert "c.wav does not exist" in message
    assert [path for path in output.rglob("*") if path.is_file()] == []
    assert [clip.reference for clip in imported(tmp_path / "set", "--skip-broken")] == ["one"]


def test_manifest_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "set" / "a.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_text("precious")
    assert main(["corpus", "import", str(tmp_path / "set"), "--output", str(tmp_path / "out")]) == 2
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == "precious"


def test_unknown_formats_and_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "import", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "--format" in capsys.readouterr().err
    assert main(["corpus", "import", str(tmp_path), "--format", "librispech"]) == 2
    assert "Did you mean 'librispeech'?" in capsys.readouterr().err
    assert main(["corpus", "import", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


# Hugging Face datasets


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset on disk, as the library itself writes it; one split of three rows."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")

    def content(frequency_hz: float) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, wave(0.5, frequency_hz), RATE_HZ, format="FLAC")
        return file.getvalue()

    rows = {
        "sound": [{"bytes": content(200 + 100 * n), "path": f"{n}.flac"} for n in range(3)],
        "sentence": [" eins", "zwei", "drei"],
        "locale": ["de-DE"] * 3,
        "speaker_id": [4, 5, 5],
    }
    folder = tmp_path / "dataset"
    made = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio(decode=False))
    made.to_parquet(str(folder / "test.parquet"))
    return folder


def test_dataset_is_streamed_with_its_revision(dataset: Path, imported: Import) -> None:
    clips = imported("--dataset", f"{dataset}::test", "--limit", "2")
    assert [clip.reference for clip in clips] == ["eins", "zwei"]
    assert {clip.language for clip in clips} == {"de"}
    assert clips[1].tags["speaker_id"] == 5
    assert clips[0].tags["dataset"] == f"{dataset}::test"
    assert len(clips[0].tags["revision"]) == 64
    assert np.allclose(clips[1].samples(), wave(0.5, 300), atol=2 / 32768)


def test_revision_of_a_local_dataset_follows_its_files(dataset: Path) -> None:
    before = huggingface._local_revision(dataset)
    assert huggingface._local_revision(dataset) == before
    (dataset / "README.md").write_text("more")
    assert huggingface._local_revision(dataset) != before


def test_dataset_mistakes_are_one_error(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        ([f"{dataset}::train"], "train"),
        ([f"{dataset}::test", "--text-column", "txt"], "no column 'txt'"),
        ([f"{dataset}:a:b:c"], "ORG/NAME:config:split"),
    ):
        assert main(["corpus", "import", "--dataset", *arguments, "--output", "x"]) == 2
        message = capsys.readouterr().err
        assert told in message
        assert "Traceback" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name:en:test", ("org/name", "en", "test")),
        ("org/name::test", ("org/name", None, "test")),
        ("org/name", ("org/name", None, None)),
    ],
)
def test_dataset_names(text: str, expected: tuple[str, str | None, str | None]) -> None:
    assert huggingface.parse(text) == expected
