"""Training windows: utterances laid out in time, degraded, with the tokens Whisper should answer.

A window is a function of its random generator alone, so training can stop and resume at any step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import fftconvolve
from speech import FRAME, RATE, Bank
from whisper.tokenizer import get_tokenizer

TOKENIZER = get_tokenizer(multilingual=False)
# Whisper never lets the first token be the end of the text: silence is answered by a line break.
BLANK = 198
IGNORE = -100
FIRST_TIMESTAMP_LIMIT = 1.0  # seconds; Whisper's decoding allows no later first timestamp
PAD_FLOOR, PAD_ZERO = 0, 1  # what follows in the log-mel: silence, or zeros (long-form)


@dataclass
class Window:
    """One example: audio (float32, 16 kHz, not padded) and, for each decoder position, input and target.

    `spans` holds, for every target, the seconds in which it is heard (start > end: nowhere); `frames`, the
    phoneme of each encoder position. `offset` is the encoder position the window starts at.
    """

    audio: np.ndarray
    inputs: list[int]
    targets: list[int]
    spans: list[tuple[float, float]]
    frames: np.ndarray
    offset: int
    padding: int
    shift: float  # added to the maximum that the log-mel is normalised by, in units of log10


@lru_cache(maxsize=100_000)
def _encode(text: str) -> tuple[list[int], list[int]]:
    """Tokens of " " + text, and the index in `text` of each token's first letter."""
    tokens = TOKENIZER.encode(" " + text)
    starts, position = [], -1
    for token in tokens:
        starts.append(max(0, position + 1 if TOKENIZER.decode([token]).startswith(" ") else position))
        position += len(TOKENIZER.decode([token]))
    return tokens, starts


def _token_spans(
    starts: list[int], words: list[tuple[int, float]], length: float
) -> list[tuple[float, float]]:
    spans = []
    for start in starts:
        index = max((i for i, (p, _) in enumerate(words) if p <= start), default=0)
        begin = words[index][1] if words else 0.0
        end = words[index + 1][1] if index + 1 < len(words) else length
        spans.append((begin, max(end, begin + 0.05)))
    return spans


class Noise:
    """Noises and room responses, made once: `mix` adds a noise, `reverberate` puts audio in a room."""

    KINDS = ("white", "pink", "brown", "band", "hum")

    def __init__(self, seed: int, seconds: int = 31, rooms: int = 32) -> None:
        rng = np.random.default_rng(seed)
        count = seconds * RATE
        hertz = np.fft.rfftfreq(count, 1 / RATE)
        self.noises = []
        for kind in self.KINDS:
            spectrum = np.fft.rfft(rng.standard_normal(count))
            if kind in ("pink", "brown"):
                spectrum /= np.maximum(hertz, 50) ** (0.5 if kind == "pink" else 1.0)
            if kind == "band":
                spectrum *= np.exp(-(((hertz - 1200) / 900) ** 2))
            wave = np.fft.irfft(spectrum, count)
            if kind == "hum":
                t = np.arange(count) / RATE
                hum = sum(np.sin(2 * np.pi * 50 * k * t + k) / k for k in range(1, 12))
                wave = hum / hum.std() + 0.3 * wave / wave.std()
            self.noises.append((wave / wave.std()).astype(np.float32))
        self.rooms = []
        for _ in range(rooms):
            decay = rng.uniform(0.08, 0.5)  # seconds until 60 dB down
            t = np.arange(int(decay * RATE)) / RATE
            tail = rng.standard_normal(t.size) * 10 ** (-3 * t / decay)
            tail[: int(0.002 * RATE)] = 0
            tail *= 10 ** (-rng.uniform(3, 12) / 20) / np.sqrt((tail**2).sum())
            tail[0] = 1.0
            self.rooms.append((tail / np.sqrt((tail**2).sum())).astype(np.float32))

    def piece(self, rng: np.random.Generator, count: int, kind: int | None = None) -> np.ndarray:
        """`count` samples (at most 31 s) of one noise, of unit power."""
        noise = self.noises[rng.integers(len(self.noises)) if kind is None else kind]
        start = int(rng.integers(len(noise) - count + 1))
        return noise[start : start + count]

    def mix(
        self, rng: np.random.Generator, audio: np.ndarray, decibels: float, kind: int | None = None
    ) -> np.ndarray:
        """Audio plus noise, `decibels` below the mean power of the parts that are not silent."""
        loud = audio[np.abs(audio) > 0.02 * np.abs(audio).max(initial=1e-9)]
        power = float((loud**2).mean()) if loud.size else 1e-4
        return audio + self.piece(rng, len(audio), kind) * np.sqrt(
            power * 10 ** (-decibels / 10), dtype=np.float32
        )

    def reverberate(self, rng: np.random.Generator, audio: np.ndarray) -> np.ndarray:
        """Audio as heard in one of the rooms; the length stays."""
        return fftconvolve(audio, self.rooms[rng.integers(len(self.rooms))])[: len(audio)].astype(np.float32)


class Composer:
    """Draws training windows of at most `limit` seconds from a bank of utterances."""

    def __init__(self, bank: Bank, seed: int) -> None:
        self.bank, self.noise = bank, Noise(seed)

    def _babble(self, rng: np.random.Generator, count: int) -> np.ndarray:
        out = np.zeros(count, np.float32)
        for _ in range(5):
            other = self.bank[int(rng.integers(len(self.bank)))].samples.astype(np.float32)
            out += np.resize(np.roll(other, int(rng.integers(len(other)))), count)
        return out / max(float(out.std()), 1e-6)

    def _degrade(self, rng: np.random.Generator, audio: np.ndarray) -> np.ndarray:
        if rng.random() < 0.25:
            audio = self.noise.reverberate(rng, audio)
        audio = audio * (10 ** (rng.uniform(-30, 0) / 20) / max(float(np.abs(audio).max()), 1e-6))
        if rng.random() < 0.5:
            decibels = rng.uniform(4, 30)
            if rng.random() < 0.12:
                power = float((audio**2).mean())
                audio = audio + self._babble(rng, len(audio)) * np.sqrt(power * 10 ** (-(decibels + 5) / 10))
            else:
                audio = self.noise.mix(rng, audio, decibels)
        return audio.astype(np.float32)

    def silence(self, rng: np.random.Generator, limit: float) -> Window:
        """A window without speech: digital silence or noise alone, of random length and level."""
        count = int(rng.uniform(0.5, limit) * RATE)
        audio = np.zeros(count, np.float32)
        shift = float(rng.uniform(0, 9)) if rng.random() < 0.5 else 0.0
        if rng.random() < 0.7:
            audio = self.noise.piece(rng, count) * np.float32(10 ** rng.uniform(-5, -0.7))
        sot = TOKENIZER.sot
        if rng.random() < 0.5:
            inputs, targets = (
                [sot, TOKENIZER.no_timestamps, BLANK],
                [TOKENIZER.no_speech, BLANK, TOKENIZER.eot],
            )
        else:
            first = TOKENIZER.timestamp_begin + int(rng.integers(51))
            inputs, targets = [sot, first], [TOKENIZER.no_speech, TOKENIZER.eot]
        frames = np.zeros(int(limit * RATE) // FRAME, np.int16)
        return Window(
            audio, inputs, targets, [(1.0, 0.0)] * len(inputs), frames, 0, int(rng.integers(2)), shift
        )

    def speech(
        self, rng: np.random.Generator, limit: float, fill: float, timestamps: bool, offset: int
    ) -> Window:
        """Utterances until `fill` seconds; with timestamps `limit` may cut off the last, as in long-form."""
        start_kind = rng.random()
        now = float(
            rng.uniform(0, 0.3)
            if start_kind < 0.6
            else rng.uniform(0.3, 1.0)
            if start_kind < 0.92
            else rng.uniform(1.0, 3.0)
        )
        audio = np.zeros(int(limit * RATE), np.float32)
        frames = np.zeros(len(audio) // FRAME, np.int16)
        index = int(rng.integers(len(self.bank)))
        placed: list[tuple[str, list, float, float]] = []  # text, words, start, end
        cut = None
        for attempt in range(40):
            utterance = self.bank[index % len(self.bank)]
            length = len(utterance.samples) / RATE
            if now + length > limit - 0.1:
                if timestamps and placed and fill >= limit:
                    cut = now
                elif not placed and attempt < 39:
                    now, index = min(now, 0.2), int(rng.integers(len(self.bank)))
                    continue
                if cut is None or now > limit - 0.05:
                    break
            begin = int(now * RATE)
            samples = utterance.samples[: len(audio) - begin].astype(np.float32)
            audio[begin : begin + len(samples)] += samples * np.float32(10 ** (rng.uniform(-3, 3) / 20))
            labels = utterance.frames[: len(frames) - begin // FRAME]
            frames[begin // FRAME : begin // FRAME + len(labels)] = labels
            if cut is not None:
                break
            placed.append((utterance.text, utterance.words, now, now + length))
            now += length + float(rng.uniform(0.1, 0.8) if rng.random() < 0.9 else rng.uniform(0.8, 3.0))
            index = index + 1 if rng.random() < 0.8 else int(rng.integers(len(self.bank)))
            if now > fill:
                break
        end = (
            limit
            if cut is not None
            else min(limit, placed[-1][3] + rng.uniform(0.05, 1.0))
            if placed
            else limit
        )
        tokens, spans = self._tokens(placed, cut, timestamps, offset)
        shift = float(rng.uniform(0, 1)) if rng.random() < 0.2 else 0.0
        return Window(
            self._degrade(rng, audio[: int(end * RATE)]),
            tokens[:-1],
            tokens[1:],
            spans[1:],
            frames,
            offset,
            int(rng.integers(2)),
            shift,
        )

    @staticmethod
    def _tokens(placed, cut: float | None, timestamps: bool, offset: int):
        tokens, spans = [TOKENIZER.sot], [(1.0, 0.0)]

        def stamp(seconds: float) -> None:
            if len(tokens) == 1 and offset == 0:
                seconds = min(seconds, FIRST_TIMESTAMP_LIMIT)
            tokens.append(TOKENIZER.timestamp_begin + min(1500, round(seconds * 50) + offset))
            spans.append((max(0.0, seconds - 0.1), seconds + 0.1))

        if not timestamps:
            tokens.append(TOKENIZER.no_timestamps)
            spans.append((1.0, 0.0))
        for text, words, start, end in placed:
            if timestamps:
                stamp(start)
            ids, starts = _encode(text)
            tokens += ids
            spans += [(a + start, b + start) for a, b in _token_spans(starts, words, end - start)]
            if timestamps:
                stamp(end)
        if cut is not None:
            stamp(cut)
        last = placed[-1][3] if placed else 0.0
        tokens.append(TOKENIZER.eot)
        spans.append((cut, cut + 0.1) if cut is not None else (last, last + 0.3))
        return tokens, spans

    def draw(self, rng: np.random.Generator, limit: float) -> Window:
        """A window for one slot of a batch: mostly speech of one or several utterances, sometimes none."""
        if rng.random() < 0.04:
            return self.silence(rng, limit)
        timestamps = bool(rng.random() < 0.4)
        offset = 0
        if limit < 30 and rng.random() < 0.5:  # teaches late positions and late timestamps with short clips
            offset = int(rng.integers(1500 - int(limit * 50)))
        kind = rng.random()
        fill = 0.0 if kind < 0.3 else limit if kind > 0.65 else float(rng.uniform(0, limit))
        return self.speech(rng, limit, fill, timestamps, offset)
