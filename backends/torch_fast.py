"""Whisper in tuned PyTorch, without any other engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import BackendUnavailable, Checkpoint, Settings
from asrgate.backends.checkpoints.catalog import load_state_dict
from asrgate.backends.devices import require_package, require_torch
from asrgate.backends.whisper_common.constants import N_FRAMES
from asrgate.backends.whisper_common.greedy import TRIM, TRIMMED, Window, WindowRules, frames_to_encode
from asrgate.backends.whisper_common.streams import StreamBackend
from asrgate.backends.whisper_common.torch_setup import forbid_tf32, require_cuda, set_threads, uses_tf32

WINDOWS_AT_ONCE = 32  # how many a GPU encodes at once


class TorchFast(StreamBackend):
    """openai-whisper's transcription with TorchEncoder and TorchDecoder, of clips, batches and streams.

    A precision is that of the matrices; sums, normalisation and the residual stream stay float32. On the CPU
    the decoder's steps are always float32, see TorchDecoder. With "+trim" only the clip and a little silence
    of each window are encoded, which is not the computation that Whisper was trained for.
    """

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32", "bfloat16", "bfloat16" + TRIM),
        "cuda": ("float16", "bfloat16", "float32"),
    }
    beam_devices: ClassVar[Sequence[str]] = ("cpu", "cuda")
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


class TorchEngine:
    """TorchEncoder and TorchDecoder as one asrgate.backends.whisper_common.batches.BatchEngine."""

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

    def log_mel(self, audio: np.ndarray) -> Any:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        from asrgate.backends.torch_whisper.encoder import log_mel

        return log_mel(audio, self.dims.n_mels, self.device)

    def encode(self, mel: Any) -> Any:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        return self._encoder.encode(mel[None, :, : frames_to_encode(mel) if self._trims else None])[0]

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        return self._decoder.decode(encoded, rules)

    def encode_batch(self, mels: Sequence[Any]) -> list[Any]:
        """Return the encoder's output for each window; one window keeps a CPU's cores busy, but not a GPU."""
        if self.device.type == "cpu":
            return [self.encode(mel) for mel in mels]
        parts = self._torch.stack(list(mels)).split(WINDOWS_AT_ONCE)
        return [features for part in parts for features in self._encoder.encode(part)]

    def decode_batch(self, encoded: Sequence[Any], rules: WindowRules) -> list[Window]:
        """See asrgate.backends.whisper_common.batches.BatchEngine."""
        return self._decoder.decode_batch(encoded, rules)

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
