"""Whisper in tuned PyTorch, without any other engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import BackendUnavailable, Checkpoint, Settings, Transcript
from asrgate.backends.checkpoints.catalog import load_state_dict
from asrgate.backends.devices import require_package, require_torch
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_FRAMES, N_SAMPLES
from asrgate.backends.whisper_common.decoding import require_language
from asrgate.backends.whisper_common.greedy import (
    TRIM,
    TRIMMED,
    GreedyBackend,
    Window,
    WindowRules,
    frames_to_encode,
    window_rules,
)
from asrgate.backends.whisper_common.torch_setup import forbid_tf32, require_cuda, set_threads, uses_tf32

WINDOWS_AT_ONCE = 32  # how many a GPU encodes at once


class TorchFast(GreedyBackend):
    """openai-whisper's transcription with TorchEncoder and TorchDecoder.

    A precision is that of the matrices; sums, normalisation and the residual stream stay float32. On the CPU
    the decoder's steps are always float32, see TorchDecoder. With "+trim" only the clip and a little silence
    of each window are encoded, which is not the computation that Whisper was trained for.
    """

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32", "bfloat16", "bfloat16" + TRIM),
        "cuda": ("float16", "bfloat16", "float32"),
    }
    has_beams: ClassVar[bool] = True
    _engine: TorchEngine

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package, the GPU or a CUDA build of torch is missing."""
        require_package("whisper", "openai-whisper")
        require_package("tiktoken", "tiktoken")
        require_torch(device)

    @classmethod
    def build(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> TorchEngine:
        """Load the weights.

        Raises:
            BackendUnavailable: torch cannot use the GPU, or oneDNN has no bfloat16 on this CPU.
            BackendError: torch does not run the requested number of threads.
        """
        import torch

        set_threads(settings.threads)
        forbid_tf32()
        if device == "cuda":
            require_cuda()
        if device == "cpu" and precision != "float32" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise BackendUnavailable(
                f"oneDNN has no bfloat16 arithmetic on this CPU, which {precision} needs; use float32"
            )
        return TorchEngine(checkpoint, device, precision)

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        """Transcribe clips together: their windows are encoded and decoded as one batch.

        For a clip of up to 30 s the result is that of `transcribe`, up to rounding. A longer clip is cut
        every 30 s and its parts are decoded as separate clips, so words at the cuts may be lost;
        `applied_settings` says "chunked".

        Args:
            audios: float32 arrays as `transcribe` takes them.
            language: the language of all of them.

        Raises:
            BackendError: the model has no such language.
        """
        from whisper.decoding import DecodingOptions

        require_language(self._checkpoint, language, self._languages)
        clips = [
            [audio[start : start + N_SAMPLES] for start in range(0, len(audio), N_SAMPLES)] or [audio]
            for audio in audios
        ]
        chunks = [chunk for clip in clips for chunk in clip]
        order = sorted(range(len(chunks)), key=lambda index: -len(chunks[index]))
        passed_on = ("task", "temperature", "beam_size", "suppress_blank", "suppress_tokens")
        options = DecodingOptions(
            language=language,
            without_timestamps=True,
            prompt=[],
            fp16=False,
            **{name: self._options[name] for name in passed_on},
        )
        rules, _ = window_rules(self._model, options)
        transcripts = {}
        decoded = self._engine.decoded([chunks[index] for index in order], rules)
        for index, ready in zip(order, decoded, strict=True):
            self._engine.ready = ready
            transcripts[index] = self.transcribe(chunks[index], language)
        results, position = [], 0
        for clip in clips:
            parts = [transcripts[index] for index in range(position, position + len(clip))]
            position += len(clip)
            text = " ".join(part.text for part in parts if part.text)
            results.append(Transcript(text, tuple(token for part in parts for token in part.tokens or ())))
        return results


class TorchEngine:
    """TorchEncoder and TorchDecoder as one asrgate.backends.whisper_common.greedy.Engine."""

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str):
        import torch
        from whisper.model import ModelDimensions

        from asrgate.backends.torch_whisper.decoder import TorchDecoder
        from asrgate.backends.torch_whisper.encoder import TorchEncoder

        self.dims = ModelDimensions(**checkpoint.dimensions)
        self.device = torch.device(device)
        self._torch = torch
        weights = load_state_dict(checkpoint)
        matrices = precision.removesuffix(TRIM)
        self._trims = precision.endswith(TRIM)
        self._precisions = {"encoder": matrices, "decoder": "float32" if device == "cpu" else matrices}
        self._encoder = TorchEncoder(weights, self.dims, matrices, device)
        self._decoder = TorchDecoder(weights, self.dims, matrices, device)
        if self._trims:
            self._decoder.follow_with(self._encoder.encode(torch.zeros(1, self.dims.n_mels, N_FRAMES))[0])
        # log-mel and first window of the next clip to transcribe, if they are already computed
        self.ready: tuple[Any, Window] | None = None

    def log_mel(self, audio: np.ndarray) -> Any:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        from asrgate.backends.torch_whisper.encoder import log_mel

        return self.ready[0] if self.ready else log_mel(audio, self.dims.n_mels, self.device)

    def encode(self, mel: Any) -> Any:
        """See asrgate.backends.whisper_common.greedy.Engine; None for a window that is already decoded."""
        if self.ready:
            return None
        return self._encoder.encode(mel[None, :, : frames_to_encode(mel) if self._trims else None])[0]

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        ready, self.ready = self.ready, None
        return ready[1] if ready else self._decoder.decode(encoded, rules)

    def decoded(self, chunks: Sequence[np.ndarray], rules: WindowRules) -> list[tuple[Any, Window] | None]:
        """Return log-mel and window of clips of up to 30 s, decoded in one batch; None if one has no frame.

        The longest clips should come first: they end last, and those after them drop out earlier.
        """
        from whisper.audio import pad_or_trim

        mels = [self.log_mel(chunk) for chunk in chunks if len(chunk) >= HOP_LENGTH]
        if not mels:
            return [None] * len(chunks)
        windows = [pad_or_trim(mel[:, :-N_FRAMES], N_FRAMES) for mel in mels]
        done = zip(mels, self._decoder.decode_batch(self._features(windows), rules), strict=True)
        return [next(done) if len(chunk) >= HOP_LENGTH else None for chunk in chunks]

    def _features(self, windows: Sequence[Any]) -> list[Any]:
        """Return the encoder's output for each window; one window keeps a CPU's cores busy, but not a GPU."""
        if self.device.type == "cpu":
            return [self.encode(window) for window in windows]
        parts = self._torch.stack(list(windows)).split(WINDOWS_AT_ONCE)
        return [features for part in parts for features in self._encoder.encode(part)]

    def applied(self) -> Mapping[str, Any]:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        torch = self._torch
        return {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "precisions": dict(self._precisions),
            "audio_context": TRIMMED if self._trims else "30 s",
            "tf32": uses_tf32(),
            "long_form": "sequential; in batches chunked",
        }
