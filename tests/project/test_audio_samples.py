"""The bundled clips: the manifest is true, and the texts are held out of nano.en's training."""

from __future__ import annotations

import json
import re
import sys

import pytest
import soundfile
from paths import ROOT

from asrgate.harness.corpus import load_clips

FOLDER = ROOT / "audio_samples"
CLIPS = [json.loads(line) for line in (FOLDER / "manifest.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip["audio_filepath"])
def test_manifest_line_matches_its_file(clip):
    assert set(clip) - {"on_request"} == {"audio_filepath", "text", "duration", "lang", "license", "source"}
    assert clip["lang"] == "en" and clip["license"] == "Apache-2.0" and clip["source"]
    info = soundfile.info(FOLDER / clip["audio_filepath"])
    assert clip["duration"] == pytest.approx(info.frames / info.samplerate, abs=0.001)
    samples, _ = soundfile.read(FOLDER / clip["audio_filepath"])
    assert bool(clip["text"]) == bool(samples.any())


def test_every_file_is_listed_and_the_set_is_small():
    files = {p.name for p in FOLDER.iterdir() if p.suffix in {".flac", ".wav", ".ogg"}}
    assert files == {clip["audio_filepath"] for clip in CLIPS} and len(files) == len(CLIPS)
    assert sum((FOLDER / name).stat().st_size for name in files) < 5.1e6


def test_lengths_and_formats_vary():
    durations = [clip["duration"] for clip in CLIPS]
    assert min(durations) < 4 and any(30 < d <= 45 for d in durations)
    assert any(120 <= d <= 190 for d in durations)
    assert [clip for clip in CLIPS if not clip["text"]]
    infos = [soundfile.info(FOLDER / clip["audio_filepath"]) for clip in CLIPS]
    assert {16_000, 22_050, 44_100} <= {info.samplerate for info in infos}
    assert {1, 2} == {info.channels for info in infos}
    assert {"FLAC", "WAV", "OGG"} <= {info.format for info in infos}


def test_a_first_look_takes_little_more_than_a_minute_of_audio_with_every_kind_of_clip():
    first = load_clips()
    assert len(first) == sum("on_request" not in clip for clip in CLIPS)
    assert 60 < sum(clip.audio_seconds for clip in first) < 90
    assert any(clip.audio_seconds > 30 for clip in first), "more than one window"
    assert any(clip.reference == "" for clip in first), "silence"
    assert len(load_clips([FOLDER])) == len(load_clips(manifest=FOLDER / "manifest.jsonl")) == len(CLIPS)


def test_texts_are_held_out_of_training(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "weights" / "nano"))
    monkeypatch.delitem(sys.modules, "sentences", raising=False)
    import sentences

    said = [s for clip in CLIPS for s in re.findall(r"[^.?]+[.?]", clip["text"])]
    assert len(said) > 60
    assert {sentences.split_of(s) for s in said} == {"samples"}
    assert not set(sentences.sentences(1, "train", 3000)) & {s.strip() for s in said}
