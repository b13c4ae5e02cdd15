"""Makes the hallucination suite: sounds in which little or nothing is said, all from seeds.

It has silence, white and pink noise, babble, music-like tones, speech cut in the middle of a word, and a
sentence spoken five times. espeak-ng speaks (Python package `espeakng-loader`); the texts are made here.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError
from asrgate.harness import record
from asrgate.harness.corpus import augment
from asrgate.harness.corpus.manifests import FOLDER_MANIFEST
from asrgate.harness.metrics.hallucination import FIELD

LENGTHS_SECONDS = (2.0, 8.0, 25.0)  # of each sound without speech: short, typical, nearly a window
NOISE_RMS = 0.05
BABBLERS = 6
REPEATS = 5
VOICES = ("en-us+m3", "en-us+f3", "en-gb-x-rp+m1", "en+f1", "en-gb-scotland+m5", "en-us+f4")
EXTRA = "python -m pip install espeakng-loader scipy"

_SUBJECTS = ("the gardener", "my sister", "an old captain", "the young teacher", "our neighbour", "the baker")
_VERBS = ("carried", "painted", "repaired", "remembered", "followed", "borrowed", "discovered", "collected")
_OBJECTS = ("a wooden ladder", "seven letters", "the silver bicycle", "a heavy basket", "the narrow bridge")
_PLACES = ("behind the station", "before breakfast", "in the northern harbour", "without a single word")


class SuiteError(AsrgateError):
    """The suite cannot be made: the synthesiser is missing, or the folder is taken."""


@dataclass(frozen=True)
class Sound:
    """One clip to write: float32 samples, shape (samples,), 16 kHz; `text` is what is said, or ""."""

    name: str
    kind: str
    samples: np.ndarray
    text: str


def write(folder: Path, seed: int = 0) -> list[Sound]:
    """Write the suite's clips and manifest.jsonl into the folder; the same seed gives the same samples.

    Raises:
        SuiteError: espeak-ng is missing, or the folder already has a manifest.
    """
    manifest = folder / FOLDER_MANIFEST
    if manifest.exists():
        raise SuiteError(f"{manifest} exists; choose another folder or remove it first")
    made = list(sounds(seed))
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for sound in made:
        soundfile.write(folder / f"{sound.name}.flac", sound.samples, SAMPLE_RATE_HZ, subtype="PCM_16")
        fields = {
            "audio_filepath": f"{sound.name}.flac",
            "text": sound.text,
            "duration": round(len(sound.samples) / SAMPLE_RATE_HZ, 3),
            "lang": "en",
            FIELD: sound.kind,
            "license": "Apache-2.0",
            "source": f"asrgate hallucination suite, seed {seed}",
        }
        lines.append(json.dumps(fields))
    record.write_text(manifest, "\n".join(lines) + "\n")
    return made


def sounds(seed: int) -> Iterator[Sound]:
    """Yield the suite's clips.

    Raises:
        SuiteError: espeak-ng is missing.
    """
    generator = np.random.default_rng(seed)
    for seconds in LENGTHS_SECONDS:
        length, suffix = int(seconds * SAMPLE_RATE_HZ), f"{seconds:g}s"
        yield Sound(f"silence-{suffix}", "silence", np.zeros(length, np.float32), "")
        for noise in augment.NOISES:
            wave = NOISE_RMS * augment.make_noise(noise, length, generator)
            yield Sound(f"{noise}-{suffix}", f"{noise} noise", _safe(wave), "")
        yield Sound(f"babble-{suffix}", "babble", babble(length, generator), "")
        yield Sound(f"music-{suffix}", "music", music(length, generator), "")
    for number in range(3):
        yield Sound(f"cut-{number}", "cut mid-word", *cut_in_word(generator))
    for number in range(2):
        text = _sentence(generator)
        pause = np.zeros(SAMPLE_RATE_HZ // 2, np.float32)
        wave = np.tile(np.concatenate([say(text, VOICES[number]), pause]), REPEATS)
        yield Sound(f"repeat-{number}", "five times", wave, " ".join([text] * REPEATS))


def babble(length: int, generator: np.random.Generator) -> np.ndarray:
    """Return many voices at once, each played backwards: speech-like, but unintelligible."""
    mixed = np.zeros(length)
    for voice in VOICES[:BABBLERS]:
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < length + SAMPLE_RATE_HZ:
            parts.append(say(_sentence(generator), voice)[::-1])
        start = int(generator.integers(0, SAMPLE_RATE_HZ))
        mixed += np.concatenate(parts)[start : start + length]
    return _safe(mixed * (NOISE_RMS / np.sqrt(np.mean(mixed**2))))


def music(length: int, generator: np.random.Generator) -> np.ndarray:
    """Return random plucked chords in a minor scale over a bass: music-like tones without a voice."""
    mixed = np.zeros(length + SAMPLE_RATE_HZ)
    beat = int(0.4 * SAMPLE_RATE_HZ)
    scale = np.array([0, 2, 3, 5, 7, 8, 10, 12])
    time = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for start in range(0, length, beat):
        notes = [*generator.choice(scale, 2, replace=False), int(generator.choice(scale)) - 24]
        for note in notes:
            frequency_hz = 220.0 * 2 ** (float(note) / 12)
            tone = sum(np.sin(2 * np.pi * k * frequency_hz * time) / k**1.5 for k in range(1, 6))
            mixed[start : start + SAMPLE_RATE_HZ] += tone * np.exp(-4 * time)
    return _safe(mixed[:length] * (0.1 / np.abs(mixed).max() * 3))


def cut_in_word(generator: np.random.Generator) -> tuple[np.ndarray, str]:
    """Return a sentence that breaks off within its last word, and the complete words before it."""
    text = _sentence(generator)
    words = text.split()[:-1]
    voice = VOICES[int(generator.integers(len(VOICES)))]
    whole, without = say(text, voice), say(" ".join(words), voice)
    # espeak-ng draws out the end of a phrase, by less than half a word
    end = (len(without) + len(whole)) // 2
    return whole[: max(end, SAMPLE_RATE_HZ)], " ".join(words)


def _sentence(generator: np.random.Generator) -> str:
    return " ".join(str(generator.choice(part)) for part in (_SUBJECTS, _VERBS, _OBJECTS, _PLACES))


def _safe(wave: np.ndarray) -> np.ndarray:
    return np.clip(wave, -0.99, 0.99).astype(np.float32)


def say(text: str, voice: str) -> np.ndarray:
    """Return ASCII text as spoken: float32, shape (samples,), 16 kHz, peak 0.5, without silence around it.

    Raises:
        SuiteError: espeak-ng is missing or lacks the voice.
    """
    return _espeak().say(text, voice)


class _Espeak:
    """The synthesiser of this process; the library allows one."""

    def __init__(self) -> None:
        try:
            import espeakng_loader

            self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        except (ImportError, OSError) as error:
            raise SuiteError(f"the suite's speech needs espeak-ng: {EXTRA} ({error})") from error
        retrieval, no_exit = 1, 0x8000
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate_hz = self._lib.espeak_Initialize(retrieval, 0, data, no_exit)
        if self._rate_hz <= 0:
            raise SuiteError(f"espeak-ng could not be started; reinstall it: {EXTRA}")
        self._chunks: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._receive)  # keep a reference, because the library holds only a pointer
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    def say(self, text: str, voice: str) -> np.ndarray:
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SuiteError(f"espeak-ng has no voice {voice!r}")
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise: the same every time
        self._chunks = []
        content = text.encode("ascii") + b"\0"
        self._lib.espeak_Synth(content, ctypes.c_size_t(len(content)), 0, 1, 0, 0, None, None)
        self._lib.espeak_Synchronize()
        wave = np.concatenate(self._chunks).astype(np.float32)
        wave = soxr.resample(wave / np.abs(wave).max() * 0.5, self._rate_hz, SAMPLE_RATE_HZ)
        loud = np.flatnonzero(np.abs(wave) > 0.005)
        return wave[loud[0] : loud[-1] + 1].astype(np.float32)


@cache
def _espeak() -> _Espeak:
    return _Espeak()
