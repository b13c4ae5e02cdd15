"""Make the bundled audio clips and their manifest.jsonl: `python audio_samples/make.py`.

Everything is spoken by espeak-ng (Python package `espeakng-loader`), with fixed seeds. The texts are those
sentences of weights/nano that the training of nano.en never sees. Other voices, speeds, formats: edit CLIPS.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "weights" / "nano"))

import sentences  # noqa: E402 - found through the line above
import speech  # noqa: E402

LICENSE = "Apache-2.0"
SEED = 7


@dataclass
class Clip:
    """One clip: its file name, how long it should get (s, at least) and who speaks how, into which format.

    `noise` in dB below the speech; `rate` in Hz; `peak` of full scale; `voice` empty for silence.
    """

    file: str
    seconds: float
    voice: str = ""
    speed: int = 170
    pitch: int = 50
    rate: int = 16_000
    channels: int = 1
    subtype: str = "PCM_16"
    noise: float | None = None
    peak: float = 0.2


CLIPS = (
    Clip("short.flac", 1.0, "en-us+m3", 165),
    Clip("short_22khz.wav", 2.0, "en+f3", 170, 60, rate=22_050),
    Clip("statement.flac", 3.0, "en-gb-scotland+m1", 160, 45),
    Clip("numbers.flac", 5.0, "en-us+f1", 150, 55),
    Clip("fast.flac", 6.0, "en-us+Andy", 220, 50, peak=0.9),
    Clip("slow.flac", 9.0, "en+m7", 125, 40, peak=0.02),
    Clip("stereo.flac", 10.0, "en-029+f4", 175, 60, rate=44_100, channels=2),
    Clip("compressed.ogg", 12.0, "en-us+m5", 175, 45, subtype="VORBIS"),
    Clip("noisy.flac", 14.0, "en-gb-x-gbclan+m2", 165, 50, noise=15.0),
    Clip("unseen_voice.flac", 15.0, speech.UNSEEN_VOICE, 170, 55),
    Clip("full_window.flac", 24.0, "en-us+f5", 180, 50),
    Clip("over_window.flac", 36.0, "en+m4", 170, 50),
    Clip("three_minutes.flac", 170.0, "en-us+m1", 170, 50),
    Clip("silence.flac", 8.0),
)
# What a run measures that names no audio: under two minutes that a small model understands. The others are on
# request.
FIRST = (
    *("short_22khz.wav", "statement.flac", "slow.flac", "compressed.ogg", "full_window.flac"),
    *("over_window.flac", "silence.flac"),
)


def spoken(clip: Clip, texts: list[str], rng: random.Random) -> tuple[np.ndarray, list[str]]:
    """Speak sentences off the front of `texts` until the clip is long enough: samples, sentences."""
    said: list[str] = []
    parts = [np.zeros(int(rng.uniform(0.2, 0.5) * clip.rate), np.float32)]
    while sum(map(len, parts)) < clip.seconds * clip.rate:
        text = texts.pop(0)
        wave = speech.espeak().say(text, clip.voice, clip.speed, clip.pitch, rate=clip.rate).samples
        pause = np.zeros(int(rng.uniform(0.3, 0.8) * clip.rate), np.float32)
        parts += [wave.astype(np.float32) / 32768, pause]
        said.append(text)
    return np.concatenate(parts), said


def make(clip: Clip, texts: list[str], folder: Path) -> dict:
    """Write one clip into `folder` and return its line of the manifest."""
    rng = random.Random(f"{SEED}-{clip.file}")
    if clip.voice:
        wave, said = spoken(clip, texts, rng)
    else:
        wave, said = np.zeros(int(clip.seconds * clip.rate), np.float32), []
    if clip.noise is not None:
        power = float((wave[np.abs(wave) > 0.02 * np.abs(wave).max()] ** 2).mean())
        white = np.random.default_rng(SEED).standard_normal(len(wave)).astype(np.float32)
        wave = wave + white * np.float32(np.sqrt(power * 10 ** (-clip.noise / 10)))
    if clip.channels == 2:
        wave = np.stack([wave, 0.5 * wave], 1)
    wave = wave * (clip.peak / max(np.abs(wave).max(), 1e-9))
    smallest = {"compression_level": 1.0} if clip.file.endswith(".flac") else {}
    soundfile.write(folder / clip.file, wave, clip.rate, subtype=clip.subtype, **smallest)
    line = {
        "audio_filepath": clip.file,
        "text": " ".join(said),
        "duration": round(len(wave) / clip.rate, 3),
        "lang": "en",
        "license": LICENSE,
        "source": f"espeak-ng, voice {clip.voice}" if clip.voice else "digital silence",
    }
    return line if clip.file in FIRST else {**line, "on_request": True}


def main(argv: list[str] | None = None) -> None:
    """Write all clips, then manifest.jsonl, into --out (default: this folder)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: this one)")
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    texts = sentences.sentences(SEED, "samples", 200)
    # the first clips are short: give them the shortest sentences of the first few
    texts[:12] = sorted(texts[:12], key=len)
    lines = [json.dumps(make(clip, texts, folder)) for clip in CLIPS]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
