"""openai-whisper, the reference implementation (Radford et al. 2022), on CPU and on CUDA."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import BackendError, BackendUnavailable, Checkpoint, Settings, Transcript
from asrgate.backends.checkpoints.catalog import load_state_dict
from asrgate.backends.devices import CUDA_TORCH, require_cuda_torch, require_nvidia_gpu, require_package
from asrgate.backends.inspection.encoder_trace import first_window, trace_whisper
from asrgate.backends.inspection.token_margins import Decision, decide, recorded_windows
from asrgate.backends.whisper_common.constants import N_SAMPLES
from asrgate.backends.whisper_common.decoding import require_honourable, require_language
from asrgate.backends.whisper_common.stage_clock import StageClock
from asrgate.backends.whisper_common.torch_setup import forbid_tf32, set_threads, uses_tf32


class _OpenAiWhisper:
    """whisper.model.Whisper with the checkpoint's weights, called through whisper.transcribe."""

    devices: ClassVar[Mapping[str, Sequence[str]]]
    imports: ClassVar[Sequence[str]] = ("torch", "whisper")

    def __init__(self, model: Any, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        import torch
        from whisper.tokenizer import LANGUAGES

        # the module, because the package's attribute of the same name is the function
        self._module: Any = importlib.import_module("whisper.transcribe")
        self._torch: Any = torch
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
            "fp16": precision == "float16",
        }
        self._clock = StageClock(self.synchronize)
        model.encoder.forward = self._clock.timed("encode", model.encoder.forward)
        self._log_mel = self._clock.timed("log_mel", self._module.log_mel_spectrogram)

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package, the GPU or a CUDA build of torch is missing."""
        require_package("whisper", "openai-whisper")
        require_package("tiktoken", "tiktoken")
        require_package("torch", "torch")
        if device == "cuda":
            require_nvidia_gpu()
            require_cuda_torch()

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> _OpenAiWhisper:
        """Build the model and load every tensor; none may be missing or left over.

        float16 works as in openai-whisper: weights stay float32 and are cast at every use.

        Raises:
            BackendUnavailable: torch cannot use the GPU.
            BackendError: a setting cannot be honoured, or the weights do not fit the model.
        """
        require_honourable(checkpoint, settings)
        import torch
        from whisper.model import ModelDimensions, Whisper

        set_threads(settings.threads)
        forbid_tf32()
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendUnavailable(f"torch {torch.__version__} cannot use a CUDA device", CUDA_TORCH)
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
            **self._settings.as_dict(),
            **{name: value for name, value in self._options.items() if name not in ("beam_size", "fp16")},
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "device": self._device,
            "precision": self._precision,
            "weights_dtype": str(next(self._model.parameters()).dtype).removeprefix("torch."),
            "tf32": uses_tf32(),
            "max_tokens_per_window": self._model.dims.n_text_ctx // 2,
            "patience": None if self._settings.beam_size == 1 else 1.0,
            "length_penalty": None,  # whisper ranks beams by log-probability over length
            "beam_finishes": None if self._settings.beam_size == 1 else "before beam_size other candidates",
            "without_timestamps": "clips up to 30 s",
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Transcribe one clip with whisper.transcribe; see asrgate.backends.base.Backend.

        Raises:
            BackendError: the model has no such language.
        """
        require_language(self._checkpoint, language, self._languages)
        with self._clock.call(), self._instrumented():
            result = self._transcribe(audio, language)
            tokens = tuple(token for segment in result["segments"] for token in segment["tokens"])
            # as whisper's own writers print it; result["text"] would also contain stray special tokens
            text = "".join(segment["text"] for segment in result["segments"]).strip()
        return Transcript(text, tokens, dict(self._clock.seconds))

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
            segments = self._transcribe(audio, language)["segments"]
        return decide(self._model, windows, segments, tokens, index, other)

    def encoder_trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """Return each layer of the encoder; see asrgate.backends.inspection.encoder_trace.TracesEncoder."""
        torch = self._torch
        log_mel = self._module.log_mel_spectrogram(
            torch.tensor(audio), self._model.dims.n_mels, padding=N_SAMPLES
        )
        window = first_window(log_mel).to(self._model.device)
        return trace_whisper(self._model, window.half() if self._options["fp16"] else window)

    def synchronize(self) -> None:
        """Wait for CUDA; PyTorch's CPU operations return when they are done."""
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def _transcribe(self, audio: np.ndarray, language: str) -> dict[str, Any]:
        return self._module.transcribe(
            self._model,
            audio,
            language=language,
            without_timestamps=len(audio) <= N_SAMPLES,
            **self._options,
        )

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        original = self._module.log_mel_spectrogram
        self._module.log_mel_spectrogram = self._log_mel
        try:
            with warnings.catch_warnings():
                # the first is clear from the variant's name; for the second, the contract says that audio is
                # only read; the third, that whisper's beam search passes numpy 2 a tensor, helps nobody
                warnings.filterwarnings("ignore", "Performing inference on CPU when CUDA is available")
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                warnings.filterwarnings("ignore", "__array_wrap__", DeprecationWarning)
                yield
        finally:
            self._module.log_mel_spectrogram = original


class WhisperCpu(_OpenAiWhisper):
    """openai-whisper on the CPU: the reference that the gate compares with."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {"cpu": ("float32",)}


class WhisperCuda(_OpenAiWhisper):
    """openai-whisper on an NVIDIA GPU."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {"cuda": ("float16", "float32")}
