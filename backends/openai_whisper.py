"""openai-whisper, the reference implementation (Radford et al. 2022), on CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import BackendError, Checkpoint, Settings, Transcript
from asrgate.backends.checkpoints.catalog import identified, load_state_dict
from asrgate.backends.checkpoints.conversions.ctranslate2_model import alignment_heads
from asrgate.backends.devices import require_package, require_torch
from asrgate.backends.inspection.encoder_trace import first_window, trace_whisper
from asrgate.backends.inspection.token_margins import Decision, decide, recorded_windows
from asrgate.backends.whisper_common.constants import N_SAMPLES
from asrgate.backends.whisper_common.decoding import (
    require_honourable,
    require_language,
    timed_word,
    to_decode_in,
)
from asrgate.backends.whisper_common.torch_setup import (
    forbid_tf32,
    require_cuda,
    set_threads,
    uses_tf32,
)
from asrgate.backends.whisper_common.transcription import OpenAiTranscription


class _OpenAiWhisper(OpenAiTranscription):
    """whisper.model.Whisper with the checkpoint's weights, called through whisper.transcribe."""

    devices: ClassVar[Mapping[str, Sequence[str]]]
    imports: ClassVar[Sequence[str]] = ("torch", "whisper")

    def __init__(self, model: Any, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        from whisper.audio import log_mel_spectrogram

        super().__init__(model, log_mel_spectrogram, checkpoint, device, precision, settings)
        self._options["fp16"] = precision == "float16"
        self._has_heads = False  # whether the model knows which heads of its attention follow time
        model.encoder.forward = self._clock.timed("encode", model.encoder.forward)

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package, the GPU or a CUDA build of torch is missing."""
        require_package("whisper", "openai-whisper")
        require_package("tiktoken", "tiktoken")
        require_torch(device)

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> _OpenAiWhisper:
        """Build the model and load every tensor; none may be missing or left over.

        float16 works as in openai-whisper: weights stay float32 and are cast at every use.

        Raises:
            BackendUnavailable: torch cannot use the GPU.
            BackendError: a setting cannot be honoured, or the weights do not fit the model.
        """
        require_honourable(checkpoint, settings, detects_language=True)
        from whisper.model import ModelDimensions, Whisper

        set_threads(settings.threads)
        forbid_tf32()
        if device == "cuda":
            require_cuda()
        model = Whisper(ModelDimensions(**checkpoint.dimensions))
        try:
            model.load_state_dict(load_state_dict(checkpoint), strict=True)
            model = model.to(device)
        except RuntimeError as error:
            raise BackendError(f"{checkpoint.name} cannot be loaded: {str(error)[:300]}") from error
        return cls(model, checkpoint, device, precision, settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """The settings passed to whisper.transcribe, and those with which torch really runs."""
        torch = self._torch
        return {
            **super().applied_settings,
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "weights_dtype": str(next(self._model.parameters()).dtype).removeprefix("torch."),
            "tf32": uses_tf32(),
        }

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        """As `transcribe`, and align each window's tokens with its audio by the decoder's attention.

        With word times whisper.transcribe decodes what follows the last word as a window of its own; of a
        clip of up to 30 s only the first window counts, as in `transcribe`.

        Raises:
            BackendError: the model has no such language.
        """
        named = to_decode_in(self._checkpoint, language, self._languages)
        self._choose_heads()
        with self._clock.call(), self._instrumented():
            result = self._result(audio, named, word_timestamps=True)
        set_threads(self._settings.threads)  # numba, which aligns, has raised the number of OpenMP's
        is_short = len(audio) <= N_SAMPLES
        segments = [s for s in result["segments"] if not (is_short and s["seek"])]
        return Transcript(
            "".join(segment["text"] for segment in segments).strip(),
            tuple(token for segment in segments for token in segment["tokens"]),
            dict(self._clock.seconds),
            result["language"] if named is None else None,
            [timed_word(w["word"], w["start"], w["end"]) for segment in segments for w in segment["words"]],
        )

    def _choose_heads(self) -> None:
        """Have the model align by OpenAI's list of heads for it, as whisper.load_model does."""
        if self._has_heads:
            return
        known = identified(self._checkpoint.path)
        dimensions = dict(self._checkpoint.dimensions)
        mask = self._torch.zeros(dimensions["n_text_layer"], dimensions["n_text_head"], dtype=bool)
        for layer, head in alignment_heads(dimensions, None if known is None else known.name):
            mask[layer, head] = True
        self._model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
        self._has_heads = True

    def decision(
        self, audio: np.ndarray, language: str, tokens: Sequence[int], index: int, other: int | None
    ) -> Decision:
        """Return the choice at which another engine diverged; see inspection.token_margins.Decides.

        Raises:
            BackendError: it decodes with beams, or as in `asrgate.backends.inspection.token_margins.decide`.
        """
        require_language(self._checkpoint, language, self._languages)
        if self._settings.beam_size != 1:
            raise BackendError("beams are chosen by their sums, so no single token has a margin; use beam 1")
        with self._instrumented(), recorded_windows(self._model) as windows:
            segments = self._segments(audio, language)
        return decide(self._model, windows, segments, tokens, index, other)

    def encoder_trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """Return each layer of the encoder; see asrgate.backends.inspection.encoder_trace.TracesEncoder."""
        from whisper.audio import log_mel_spectrogram

        log_mel = log_mel_spectrogram(self._torch.tensor(audio), self._model.dims.n_mels, padding=N_SAMPLES)
        window = first_window(log_mel).to(self._model.device)
        return trace_whisper(self._model, window.half() if self._options["fp16"] else window)


class WhisperCpu(_OpenAiWhisper):
    """openai-whisper on the CPU: the reference that the gate compares with."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {"cpu": ("float32",)}


class WhisperCuda(_OpenAiWhisper):
    """openai-whisper on an NVIDIA GPU."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {"cuda": ("float16", "float32")}
