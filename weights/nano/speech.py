"""Synthetic speech: the espeak-ng library in this process, and a bank of utterances on disk.

The library comes with the Python package `espeakng-loader`; nothing else need be installed. It also says
when each word and each phoneme starts, which the training uses as a second teacher.
"""

from __future__ import annotations

import ctypes
import json
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import sentences
import soundfile
import soxr

RATE = 16_000  # Hz, of everything here except the synthesiser's own output
FRAME = 320  # samples in one encoder position (20 ms)

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f3", "f4", "f5"),
    *("Andy", "Annie", "Lee", "Mario", "Michael", "adam", "belinda", "john", "linda", "paul", "steph", "max"),
)
# Neither this accent nor this variant is ever combined with anything in training.
UNSEEN_VOICE = "en-gb-x-rp+f2"


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_WORD, _PHONEME = 1, 7
_RATE_PARAMETER, _PITCH_PARAMETER, _RANGE_PARAMETER = 1, 3, 4


@dataclass
class Speech:
    """What was said, how it sounds and when: 16 kHz int16 samples, times in seconds from the first sample."""

    samples: np.ndarray
    words: list[tuple[int, float]] = field(default_factory=list)  # (index of the first character, start)
    phonemes: list[tuple[str, float]] = field(default_factory=list)  # (name, start)


class Espeak:
    """The synthesiser of this process (the library allows one). RuntimeError if it cannot be started."""

    def __init__(self) -> None:
        import espeakng_loader

        self.lib = ctypes.CDLL(espeakng_loader.get_library_path())
        retrieve, phoneme_events, no_exit = 1, 1, 0x8000
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate = self.lib.espeak_Initialize(retrieve, 0, data, phoneme_events | no_exit)
        if self.rate <= 0:
            raise RuntimeError("espeak-ng could not be started")
        self.chunks: list[np.ndarray] = []
        self.events: list[tuple[int, int, int, str]] = []
        self.callback = _CALLBACK(self._receive)  # kept: the library holds only a pointer
        self.lib.espeak_SetSynthCallback(self.callback)

    def _receive(self, wave, count, events) -> int:
        if wave and count > 0:
            self.chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        i = 0
        while events[i].type != 0:
            event = events[i]
            name = event.id.string.decode(errors="replace") if event.type == _PHONEME else ""
            self.events.append((event.type, event.text_position, event.audio_position, name))
            i += 1
        return 0

    def say(
        self,
        text: str,
        voice: str,
        *,
        speed: int = 175,
        pitch: int = 50,
        pitch_range: int = 50,
        rate: int = RATE,
    ) -> Speech:
        """Speak ASCII `text`; `speed` in words a minute, pitches 0-99, `rate` of the samples in Hz.

        ValueError for an unknown voice.
        """
        if self.lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in (
            (_RATE_PARAMETER, speed),
            (_PITCH_PARAMETER, pitch),
            (_RANGE_PARAMETER, pitch_range),
        ):
            self.lib.espeak_SetParameter(parameter, value, 0)
        self.lib.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath noise: the same every time
        self.chunks, self.events = [], []
        data = text.encode() + b"\0"
        self.lib.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, 0, None, None)
        self.lib.espeak_Synchronize()
        wave = np.concatenate(self.chunks) if self.chunks else np.zeros(1, np.int16)
        samples = soxr.resample(wave, self.rate, rate) if rate != self.rate else wave
        loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 0.01 * max(1, int(np.abs(samples).max())))
        first, last = (max(0, loud[0] - rate // 50), loud[-1] + rate // 50) if loud.size else (0, rate)
        shift = first / rate
        words = [(p - 1, max(0.0, ms / 1000 - shift)) for kind, p, ms, _ in self.events if kind == _WORD]
        phonemes = [
            (name, max(0.0, ms / 1000 - shift)) for kind, _, ms, name in self.events if kind == _PHONEME
        ]
        return Speech(samples[first:last], words, phonemes)


_espeak: Espeak | None = None


def espeak() -> Espeak:
    """The one synthesiser of this process, started when first asked for."""
    global _espeak  # noqa: PLW0603 - the library is a process-wide singleton too
    _espeak = _espeak or Espeak()
    return _espeak


def random_voice(rng: random.Random) -> dict:
    """Arguments of `Espeak.say` for one of the training voices, with its speed and pitch."""
    return {
        "voice": f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}",
        "speed": rng.randint(120, 230),
        "pitch": rng.randint(20, 80),
        "pitch_range": rng.randint(20, 80),
    }


@dataclass
class Utterance:
    """One sentence of the bank: samples (int16, 16 kHz), phoneme of every 20 ms frame (0 = silence)."""

    text: str
    voice: str
    words: list[tuple[int, float]]
    samples: np.ndarray
    frames: np.ndarray


def _shard(folder: Path, seed: int, index: int, texts: list[str], group: int) -> None:
    """Write one shard of the bank: audio, frames and, last, the table whose presence says: complete."""
    table_file = folder / f"{index:03d}.json"
    if table_file.exists():
        return
    rng = random.Random(f"voice-{seed}-{index}")
    names: dict[str, int] = {"": 0}
    audio, frames, rows = [], [], []
    for number, text in enumerate(texts):
        if number % group == 0:
            voice = random_voice(
                rng
            )  # neighbours share a voice, so that they can follow each other in a window
        speech = espeak().say(text, **voice)
        labels = np.zeros(len(speech.samples) // FRAME + 1, np.int16)
        for name, start in speech.phonemes:
            key = name.lstrip("',%=")  # stress marks
            key = "" if key.startswith("_") else key
            labels[round(start * RATE / FRAME) :] = names.setdefault(key, len(names))
        audio.append(speech.samples)
        frames.append(labels)
        rows.append([text, voice["voice"], speech.words, len(speech.samples), len(labels)])
    np.save(folder / f"{index:03d}.audio.npy", np.concatenate(audio))
    np.save(folder / f"{index:03d}.frames.npy", np.concatenate(frames))
    table_file.write_text(json.dumps({"names": list(names), "rows": rows}))


class Bank:
    """Utterances of the training split, synthesised once into `folder` and read from there.

    `len(bank)`, `bank[i]` (an `Utterance`), `bank.phonemes` (names; index 0 is silence). Neighbours share a
    voice in groups of `GROUP`.
    """

    GROUP = 8
    SHARD = 1000

    def __init__(self, folder: Path, count: int, seed: int, workers: int) -> None:
        folder = folder / f"bank-{seed}-{count}"
        folder.mkdir(parents=True, exist_ok=True)
        shards = range((count + self.SHARD - 1) // self.SHARD)
        missing = [i for i in shards if not (folder / f"{i:03d}.json").exists()]
        if missing:
            texts = sentences.sentences(seed, "train", count)
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                jobs = [
                    pool.submit(
                        _shard, folder, seed, i, texts[i * self.SHARD : (i + 1) * self.SHARD], self.GROUP
                    )
                    for i in missing
                ]
                for done, job in enumerate(jobs, 1):
                    job.result()
                    print(f"synthesised {done}/{len(jobs)} shards", flush=True)
        tables = [json.loads((folder / f"{i:03d}.json").read_text()) for i in shards]
        self.phonemes = ["", *sorted({n for t in tables for n in t["names"]} - {""})]
        ids = {name: i for i, name in enumerate(self.phonemes)}
        self.rows = []
        self.seconds = 0.0
        for index, table in zip(shards, tables, strict=True):
            audio = np.load(folder / f"{index:03d}.audio.npy", mmap_mode="r")
            frames = np.load(folder / f"{index:03d}.frames.npy", mmap_mode="r")
            to_global = np.array([ids[n] for n in table["names"]], np.int16)
            a = f = 0
            for text, voice, words, audio_length, frame_length in table["rows"]:
                self.rows.append(
                    (text, voice, words, audio, a, audio_length, frames, f, frame_length, to_global)
                )
                a, f = a + audio_length, f + frame_length
            self.seconds += a / RATE

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Utterance:
        text, voice, words, audio, a, audio_length, frames, f, frame_length, to_global = self.rows[index]
        return Utterance(
            text, voice, words, audio[a : a + audio_length], to_global[frames[f : f + frame_length]]
        )


def read(file: Path) -> np.ndarray:
    """A sound file as float32 mono at 16 kHz."""
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    mono = samples.mean(1)
    return mono if rate == RATE else soxr.resample(mono, rate, RATE)
