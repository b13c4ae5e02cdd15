"""faster-whisper: Whisper on CTranslate2, from a conversion of the same checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import BackendError, BackendUnavailable, Checkpoint, Settings, Transcript
from asrgate.backends.checkpoints.conversions.ctranslate2_model import convert
from asrgate.backends.devices import load_cuda_12_libraries, require_nvidia_gpu, require_package
from asrgate.backends.whisper_common.constants import N_SAMPLES
from asrgate.backends.whisper_common.decoding import (
    require_honourable,
    suppressed_tokens,
    timed_word,
    to_decode_in,
)
from asrgate.backends.whisper_common.stage_clock import StageClock


class FasterWhisper:
    """faster_whisper.WhisperModel, without its voice filter, its batching and its temperature fallback.

    Greedy decoding is openai-whisper's, token for token. With beams, one rule differs and cannot be changed:
    CTranslate2 accepts an end of text as a finished beam only if it is among the beam_size best candidates;
    openai-whisper accepts it if fewer than beam_size others rank above it. `applied_settings` says so.
    """

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32", "int8"),
        "cuda": ("float16", "int8_float16"),
    }
    imports: ClassVar[Sequence[str]] = ("ctranslate2", "faster_whisper")

    def __init__(self, model: Any, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        from faster_whisper.tokenizer import _LANGUAGE_CODES, Tokenizer

        tokenizer = Tokenizer(model.hf_tokenizer, multilingual=False)
        self._model = model
        self._languages = tuple(
            code for code in _LANGUAGE_CODES if model.hf_tokenizer.token_to_id(f"<|{code}|>") is not None
        )
        self._checkpoint = checkpoint
        self._device = device
        self._precision = precision
        self._settings = settings
        suppressed = suppressed_tokens(settings, checkpoint)
        if suppressed:
            # openai-whisper never samples this token, nor does faster-whisper since 1.2
            suppressed.append(tokenizer.no_speech)
        self._options = {
            "task": settings.task,
            "temperature": settings.temperature,
            "beam_size": settings.beam_size,
            "patience": 1.0,  # openai-whisper's default
            "length_penalty": 1.0,  # log-probability over length, as openai-whisper ranks beams without one
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "condition_on_previous_text": settings.condition_on_previous_text,
            "no_speech_threshold": settings.no_speech_threshold,
            "log_prob_threshold": settings.logprob_threshold,
            "compression_ratio_threshold": None,  # only triggers the fallback to other temperatures
            "suppress_blank": settings.suppress_blank,
            "suppress_tokens": suppressed,
            "max_initial_timestamp": 1.0,
            "vad_filter": False,
        }
        self._clock = StageClock(self.synchronize)
        model.encode = self._clock.timed("encode", model.encode)
        model.feature_extractor = _TimedFeatures(model.feature_extractor, self._clock)

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package or the GPU is missing."""
        require_package("faster_whisper", "faster-whisper")
        require_package("ctranslate2", "ctranslate2")
        require_package("whisper", "openai-whisper")  # the conversion uses its tokenizer
        if device == "cuda":
            require_nvidia_gpu()

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> FasterWhisper:
        """Convert the checkpoint unless the cache has it, and load it in the requested precision.

        Raises:
            BackendUnavailable: CTranslate2 cannot use the device or the precision.
            BackendError: a setting or the checkpoint cannot be honoured.
        """
        require_honourable(checkpoint, settings, detects_language=True)
        folder = convert(checkpoint)
        if device == "cuda":
            load_cuda_12_libraries()
        from faster_whisper import WhisperModel

        try:
            model = WhisperModel(
                str(folder),
                device=device,
                compute_type=precision,
                cpu_threads=settings.threads,
                num_workers=1,
                local_files_only=True,
            )
        except (ValueError, RuntimeError) as error:
            raise BackendUnavailable(
                f"CTranslate2 cannot run {precision} on {device}: {str(error).splitlines()[0]}",
                "pip install nvidia-cublas-cu12 nvidia-cudnn-cu12" if device == "cuda" else None,
            ) from error
        computed = model.model.compute_type
        if computed not in (precision, f"{precision}_float32"):  # with int8, other layers stay float32
            raise BackendError(f"CTranslate2 would compute in {computed} although {precision} was requested")
        model.max_length = checkpoint.dimensions["n_text_ctx"]  # the library assumes 448 for every model
        return cls(model, checkpoint, device, precision, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings passed to WhisperModel.transcribe, and those with which CTranslate2 really runs."""
        options = {name: value for name, value in self._options.items() if name != "log_prob_threshold"}
        return {
            **self._settings.as_dict(),
            **options,
            "suppress_tokens": self._settings.suppress_tokens,
            "logprob_threshold": self._options["log_prob_threshold"],
            "device": self._device,
            "precision": self._precision,
            "compute_type": self._model.model.compute_type,
            "beam_finishes": None
            if self._settings.beam_size == 1
            else "among the first beam_size candidates",
            "num_workers": self._model.model.num_workers,
            "max_tokens_per_window": self._model.max_length // 2,
            "without_timestamps": "clips up to 30 s",
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip and drain the segments; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language.
        """
        return self._transcribe(audio, language)

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        """As `transcribe`, and align each window's tokens with its audio by the decoder's attention.

        With word times the library decodes what follows the last word as a window of its own; of a clip of
        up to 30 s only the first window counts, as in `transcribe`.
        """
        return self._transcribe(audio, language, with_words=True)

    def _transcribe(self, audio: np.ndarray, language: str, with_words: bool = False) -> Transcript:
        named = to_decode_in(self._checkpoint, language, self._languages)
        is_short = len(audio) <= N_SAMPLES
        with self._clock.call():
            segments, found = self._model.transcribe(
                audio,
                language=named,
                without_timestamps=is_short,
                word_timestamps=with_words,
                **self._options,
            )
            if with_words and is_short:
                segments = takewhile(lambda segment: not segment.seek, segments)
            finished = list(segments)  # a generator: nothing is decoded until it is drained
            tokens = tuple(token for segment in finished for token in segment.tokens)
            text = "".join(segment.text for segment in finished).strip()
        detected = found.language if named is None else None
        words = [timed_word(w.word, w.start, w.end) for segment in finished for w in segment.words or ()]
        return Transcript(text, tokens, dict(self._clock.seconds), detected, words if with_words else None)

    def synchronize(self) -> None:
        """Nothing to wait for: CTranslate2 waits for its stream before it returns features or tokens."""


class _TimedFeatures:
    """The model's FeatureExtractor, with its call timed."""

    def __init__(self, extractor: Any, clock: StageClock):
        self._extractor = extractor
        self._call = clock.timed("log_mel", extractor.__call__)

    def __call__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)
