"""Speech that a test can make and a fake engine can really hear: each word is a tone of its own pitch."""

from __future__ import annotations

import numpy as np

# What the clips of the fixture `spoken` say.
TEXTS = {
    "apples": "red apple white table",
    "bridge": "stone river north summer cloud",
    "letter": "paper letter number train morning silver evening",
    "window": "window winter west water engine bread house",
    "chairs": "black chair brown table green house",
}

SAMPLE_RATE_HZ = 16_000
WORD_SECONDS = 0.2
WORD_SAMPLES = int(WORD_SECONDS * SAMPLE_RATE_HZ)
WORDS = (
    "red green blue black white brown river stone cloud apple bread water house table chair window "
    "north south east west summer winter morning evening train engine letter number paper silver"
).split()
LOWEST_HZ, STEP_HZ = 400.0, 100.0  # a word of 0.2 s resolves 5 Hz


def speak(text: str) -> np.ndarray:
    """Return float32 samples, shape (0.2 s a word,), mono, 16 kHz."""
    time = np.arange(WORD_SAMPLES) / SAMPLE_RATE_HZ
    tones = [0.3 * np.sin(2 * np.pi * (LOWEST_HZ + STEP_HZ * WORDS.index(w)) * time) for w in text.split()]
    return np.concatenate(tones).astype(np.float32) if tones else np.zeros(WORD_SAMPLES, np.float32)


def hear(audio: np.ndarray) -> str:
    """Return the words of the tones in samples that `speak` made, noise and splices included."""
    words = []
    for start in range(0, len(audio) - WORD_SAMPLES + 1, WORD_SAMPLES):
        spectrum = np.abs(np.fft.rfft(audio[start : start + WORD_SAMPLES]))
        peak = int(spectrum.argmax())
        if spectrum[peak] > WORD_SAMPLES / 50:  # silence and dither stay far below
            pitch_hz = peak * SAMPLE_RATE_HZ / WORD_SAMPLES
            words.append(WORDS[round((pitch_hz - LOWEST_HZ) / STEP_HZ)])
    return " ".join(words)
