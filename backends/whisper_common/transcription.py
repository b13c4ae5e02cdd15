"""Calls openai-whisper's own transcription, around its model or around something in the model's place."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from asrgate.backends.base import Checkpoint, Settings, Transcript
from asrgate.backends.whisper_common.constants import N_SAMPLES
from asrgate.backends.whisper_common.decoding import to_decode_in
from asrgate.backends.whisper_common.stage_clock import StageClock


class OpenAiTranscription:
    """The part of a backend that runs whisper.transcribe.transcribe and measures its stages."""

    def __init__(
        self,
        model: Any,
        log_mel: Callable[..., Any],
        checkpoint: Checkpoint,
        device: str,
        precision: str,
        settings: Settings,
    ):
        """Translate the settings into whisper's options.

        Args:
            model: a whisper.model.Whisper, or an object with everything that transcribe uses of one.
            log_mel: called as whisper.audio.log_mel_spectrogram, and in its place.
            checkpoint: the weights that the model holds.
            device: "cpu" or "cuda".
            precision: as the variant's name states it.
            settings: what to honour.
        """
        import torch
        from whisper.tokenizer import LANGUAGES

        self._torch: Any = torch
        # the module, because the package's attribute of the same name is the function
        self._module: Any = importlib.import_module("whisper.transcribe")
        self._model = model
        self._languages = tuple(LANGUAGES)[: model.num_languages]
        self._checkpoint = checkpoint
        self._device = device
        self._precision = precision
        self._settings = settings
        self._options = {
            "task": settings.task,
            "temperature": settings.temperature,
            "beam_size": None if settings.beam_size == 1 else settings.beam_size,
            "condition_on_previous_text": settings.condition_on_previous_text,
            "no_speech_threshold": settings.no_speech_threshold,
            "logprob_threshold": settings.logprob_threshold,
            "compression_ratio_threshold": None,  # only triggers the fallback to other temperatures
            "suppress_blank": settings.suppress_blank,
            "suppress_tokens": settings.suppress_tokens,
            "fp16": False,
        }
        self._clock = StageClock(self.synchronize)
        self._log_mel = self._clock.timed("log_mel", log_mel)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings passed to whisper.transcribe, and where they apply."""
        passed = {name: value for name, value in self._options.items() if name not in ("beam_size", "fp16")}
        return {
            **self._settings.as_dict(),
            **passed,
            "device": self._device,
            "precision": self._precision,
            "max_tokens_per_window": self._model.dims.n_text_ctx // 2,
            "without_timestamps": "clips up to 30 s",
            "patience": None if self._settings.beam_size == 1 else 1.0,
            "length_penalty": None,  # whisper ranks beams by log-probability over length
            "beam_finishes": None if self._settings.beam_size == 1 else "before beam_size other candidates",
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip with whisper.transcribe; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language.
        """
        named = to_decode_in(self._checkpoint, language, self._languages)
        with self._clock.call(), self._instrumented():
            result = self._result(audio, named)
            segments = result["segments"]
            tokens = tuple(token for segment in segments for token in segment["tokens"])
            # as whisper's own writers print it; its result["text"] would also contain stray special tokens
            text = "".join(segment["text"] for segment in segments).strip()
        detected = result["language"] if named is None else None
        return Transcript(text, tokens, dict(self._clock.seconds), detected)

    def synchronize(self) -> None:
        """Wait for CUDA; operations on the CPU return when they are done."""
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def _segments(self, audio: np.ndarray, language: str) -> list[dict[str, Any]]:
        return self._result(audio, language)["segments"]

    def _result(
        self, audio: np.ndarray, language: str | None, word_timestamps: bool = False
    ) -> dict[str, Any]:
        """Return what whisper.transcribe does; None: it detects the language, in the first window."""
        return self._module.transcribe(
            self._model,
            audio,
            language=language,
            without_timestamps=len(audio) <= N_SAMPLES,
            word_timestamps=word_timestamps,
            **self._options,
        )

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        """Let whisper.transcribe call our log-mel, and keep quiet about what is intended."""
        original = self._module.log_mel_spectrogram
        self._module.log_mel_spectrogram = self._log_mel
        try:
            with warnings.catch_warnings():
                # the variant's name already says that it runs on the CPU
                warnings.filterwarnings("ignore", "Performing inference on CPU when CUDA is available")
                # safe, because the contract says that audio is only read
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                # whisper's beam search passes a tensor to numpy 2, which no user can change
                warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
                yield
        finally:
            self._module.log_mel_spectrogram = original
