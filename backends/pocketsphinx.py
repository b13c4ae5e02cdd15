"""CMU PocketSphinx with the model for American English that its wheel brings along."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from asrgate.backends import own_weights
from asrgate.backends.base import (
    SAMPLE_RATE_HZ,
    BackendError,
    BackendUnavailable,
    Checkpoint,
    ModelIdentity,
    Settings,
    Transcript,
    Word,
)
from asrgate.backends.devices import require_package

LANGUAGE = "en"
FRAME_SAMPLES = 410  # one window of its features: a shorter clip has none
FILLERS = ("<", "[", "+")  # begin what is no word: silence, noise, the sentence's ends
_PRONUNCIATION = re.compile(r"\(\d+\)$")  # the number of a word's further pronunciations
FULL_SCALE = 32_767  # of 16 bits
WHY = "PocketSphinx searches with beams of its own, over phones and words, not over tokens"


class PocketSphinx:
    """A decoder of hidden Markov models with a trigram language model; it runs on one thread."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {"cpu": ("float32",)}
    imports: ClassVar[Sequence[str]] = ("pocketsphinx",)

    def __init__(self, decoder: Any, sha256: str, settings: Settings):
        """Wrap a loaded decoder.

        Args:
            sha256: of the model files that it loaded.
        """
        self._decoder = decoder
        self._sha256 = sha256
        self._settings = settings

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if the package, or its model, is missing."""
        _model_folder()

    @classmethod
    def model_identity(cls) -> ModelIdentity:
        """Return the identity of the wheel's model, whose version is the wheel's."""
        return ModelIdentity(
            name="en-us",
            revision=importlib.metadata.version("pocketsphinx"),
            sha256=_sha256(_model_folder()),
            languages=(LANGUAGE,),
            licence="BSD-2-Clause",
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> PocketSphinx:
        """Load the wheel's model.

        Raises:
            BackendError: a setting does not apply, or the model understands no such language.
        """
        own_weights.require_applicable(settings, "pocketsphinx")
        if settings.task != "transcribe":
            raise BackendError(
                f"pocketsphinx cannot {settings.task!r}; leave it out, or use --task transcribe"
            )
        if settings.threads < 1:
            raise BackendError(f"threads must be at least 1, not {settings.threads}")
        _require_english(settings.language or LANGUAGE)
        folder = _model_folder()
        sha256 = _sha256(folder)
        import pocketsphinx

        try:
            decoder = pocketsphinx.Decoder(
                hmm=str(folder / "en-us"),
                lm=str(folder / "en-us.lm.bin"),
                dict=str(folder / "cmudict-en-us.dict"),
                samprate=SAMPLE_RATE_HZ,
                cmn="batch",  # normalises each clip by itself
                loglevel="FATAL",
            )
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"pocketsphinx cannot load {folder}: {error}; install it again") from error
        return cls(decoder, sha256, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings that mean something to it, and the digest of what it loaded."""
        config = self._decoder.config
        return {
            **own_weights.applied(self._settings, WHY),
            "checkpoint_sha256": self._sha256,
            "device": "cpu",
            "threads_used": 1,
            **{name: config[name] for name in ("beam", "wbeam", "maxhmmpf", "lw", "cmn", "remove_noise")},
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip in three passes over all of it; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the language is not English.
        """
        return Transcript(self._text(audio, language))

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        """As `transcribe`, with the frames of each word of the best path."""
        text = self._text(audio, language)
        if not text:
            return Transcript("", words=[])
        rate = self._decoder.config["frate"]
        found = [
            Word(_PRONUNCIATION.sub("", part.word), part.start_frame / rate, (part.end_frame + 1) / rate)
            for part in self._decoder.seg()
            if part.word[0] not in FILLERS
        ]
        return Transcript(text, words=found)

    def _text(self, audio: np.ndarray, language: str) -> str:
        _require_english(language)
        if len(audio) < FRAME_SAMPLES:
            return ""
        decoder = self._decoder
        decoder.reinit_feat()  # its estimate of the noise would go on from clip to clip
        samples = np.round(np.clip(audio, -1.0, 1.0) * FULL_SCALE).astype("<i2")
        decoder.start_utt()
        try:
            decoder.process_raw(samples.tobytes(), False, True)
        finally:
            decoder.end_utt()
        found = decoder.hyp()
        return "" if found is None else str(found.hypstr)

    def synchronize(self) -> None:
        """Do nothing: there is no device to wait for."""


def _require_english(language: str) -> None:
    if language != LANGUAGE:
        raise BackendError(
            f"pocketsphinx brings a model for English only and cannot decode {language!r}; leave it out, or "
            "choose other clips"
        )


def _model_folder() -> Path:
    """Return the folder of the model, without importing the package.

    Raises:
        BackendUnavailable: the package or its model is missing.
    """
    folder = require_package("pocketsphinx", "pocketsphinx").with_name("model") / "en-us"
    if folder.is_dir():
        return folder
    raise BackendUnavailable(
        "pocketsphinx is installed without its model", "python -m pip install --force-reinstall pocketsphinx"
    )


def _sha256(folder: Path) -> str:
    return own_weights.files_sha256(folder, (path for path in folder.rglob("*") if path.is_file()))
