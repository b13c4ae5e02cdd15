"""The backend `morse`: reads Morse code sent as a tone, at 20 words a minute."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ, BackendError, Checkpoint, Settings, Transcript, Word
from asrgate.backends.checkpoints.file import read_dimensions
from asrgate.backends.whisper_common.decoding import require_honourable, require_language

DOT_SECONDS = 0.06  # 20 words a minute, by the word PARIS: 50 dots
DOT_SAMPLES = round(DOT_SECONDS * SAMPLE_RATE_HZ)
TONE_HZ = 600.0
CODE = (  # of a to z, ITU-R M.1677
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- "
    "-. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."
)
LETTERS = dict(zip("abcdefghijklmnopqrstuvwxyz", CODE.split(), strict=True))
SIGNS = {sign: letter for letter, sign in LETTERS.items()}


class Morse:
    """An engine without weights: it reads the checkpoint's head only, to refuse what is no checkpoint."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {"cpu": ("float32",)}  # the default precision first
    imports: ClassVar[Sequence[str]] = ("numpy",)  # what your engine imports; asrgate times it

    def __init__(self, checkpoint: Checkpoint, settings: Settings):
        self._checkpoint = checkpoint
        self._settings = settings

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if this machine cannot run it; look, but do not import the engine."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Morse:
        """Load the checkpoint; raise BackendError for settings that cannot be honoured."""
        require_honourable(checkpoint, settings)
        if settings.task != "transcribe":
            raise BackendError("Morse code cannot be translated; choose --task transcribe")
        if settings.beam_size != 1 or settings.condition_on_previous_text:
            raise BackendError("Morse code leaves no choice to beams or to what was said before")
        read_dimensions(checkpoint.path)
        return cls(checkpoint, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """Every field of Settings as it really ran, and why one of them did not."""
        return {
            **self._settings.as_dict(),
            "no_speech_threshold": None,
            "not_applied": {"no_speech_threshold": "a tone is sent or not"},
            "dot_seconds": DOT_SECONDS,
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Return the text, finished; the samples are only read."""
        require_language(self._checkpoint, language)
        return Transcript(read(audio))

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        """Return the words with their times too; optional, and only `--word-timestamps` calls it."""
        require_language(self._checkpoint, language)
        words = timed(audio)
        return Transcript(" ".join(word.text for word in words), words=words)

    def synchronize(self) -> None:
        """Nothing runs on after a call."""


def send(text: str) -> np.ndarray:
    """Return the text in Morse code: float32 samples, shape (samples,), mono, 16 kHz."""
    units = "000".join(
        "0".join({".": "1", "-": "111"}[s] for s in LETTERS[c]) if c != " " else "0" for c in text
    )
    gate = np.repeat([float(unit) for unit in units], DOT_SAMPLES)
    time = np.arange(len(gate)) / SAMPLE_RATE_HZ
    return (0.5 * gate * np.sin(2 * np.pi * TONE_HZ * time)).astype(np.float32)


def read(audio: np.ndarray) -> str:
    """Return the text that `send` turned into samples."""
    return " ".join(word.text for word in timed(audio))


def timed(audio: np.ndarray) -> list[Word]:
    """Return the words that `send` turned into samples, each from its first tone to the end of its last."""
    blocks = audio[: len(audio) // DOT_SAMPLES * DOT_SAMPLES].reshape(-1, DOT_SAMPLES)
    units = "".join("1" if loud else "0" for loud in np.abs(blocks).mean(axis=1) > 0.05)
    found = re.finditer("1(?:0{0,6}1)*", units)  # seven units of silence are between words
    return [
        Word(_read_word(match.group()), match.start() * DOT_SECONDS, match.end() * DOT_SECONDS)
        for match in found
    ]


def _read_word(units: str) -> str:
    return "".join(_letter(sign) for sign in units.split("000") if sign)


def _letter(units: str) -> str:
    return SIGNS.get("".join("-" if mark == "111" else "." for mark in units.split("0")), "?")
