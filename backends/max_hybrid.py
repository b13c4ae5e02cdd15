"""`max-hybrid`: log-mel and encoder as MAX graphs, the decoder in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from asrgate.backends.base import Checkpoint, Settings
from asrgate.backends.max_graph.engine import MaxBackend, MaxEngine
from asrgate.backends.whisper_common.greedy import Window, WindowRules
from asrgate.backends.whisper_common.streams import StreamBackend


class _Engine(MaxEngine):
    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        from asrgate.backends.torch_whisper.decoder import TorchDecoder

        super().__init__(checkpoint, device, precision, settings)
        self._decoder = TorchDecoder(self.state_dict, self.dims, precision, device, projects_audio=False)

    def _compiled_graphs(self) -> Sequence[str]:
        if self.place.has_kernels:
            return super()._compiled_graphs()  # with the decoder, so that `max` finds them compiled
        return ("log_mel", "encoder")  # the decoder's weights would lie on a GPU twice

    def encode(self, mel: Any) -> Any:
        """(n_mels, 3000) to cross-attention keys and values, torch.Tensor (layers, heads, 1500, size)."""
        return self._to_torch(super().encode(mel))

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        keys, values = encoded
        return self._decoder.decode_projected(keys, values, rules)

    def decode_batch(self, encoded: Any, rules: WindowRules) -> list[Window]:
        """See asrgate.backends.whisper_common.batches.BatchEngine."""
        keys, values = encoded
        return self._decoder.decode_projected_batch(keys, values, rules)

    def applied(self) -> Mapping[str, Any]:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        return {**super().applied(), "decoder": "PyTorch"}


class MaxHybrid(MaxBackend, StreamBackend):
    """Keys and values of the audio go to the decoder of `torch-fast` through DLPack, without copying."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32",),
        "cuda": ("float16", "bfloat16"),  # MAX's own float32 products may round to TF32 there
    }
    beam_devices: ClassVar[Sequence[str]] = ("cpu", "cuda")
    engine_class = _Engine
