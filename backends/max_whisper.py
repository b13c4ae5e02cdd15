"""`max`: all of Whisper as MAX graphs, log-mel, encoder and the greedy loop itself; with beams, each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from asrgate.backends.base import Checkpoint, Settings
from asrgate.backends.max_graph.engine import MaxBackend, MaxEngine
from asrgate.backends.whisper_common.greedy import TRIM, Window, WindowRules


class _Engine(MaxEngine):
    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        from asrgate.backends.max_graph.decoder import GraphLoop
        from asrgate.backends.max_graph.device_decoder import StepLoop

        super().__init__(checkpoint, device, precision, settings)
        self._masks = lru_cache(maxsize=8)(self._make_masks)
        loop = GraphLoop if self.place.has_kernels else StepLoop
        self._loop = loop(self._models, self.dims, self.place, self._driver)

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        keys, values = encoded
        return self._loop.decode(keys, values, self._masks(rules.for_any_prompt()), rules)

    def decode_batch(self, encoded: Any, rules: WindowRules) -> list[Window]:
        """See asrgate.backends.whisper_common.batches.BatchEngine."""
        keys, values = encoded
        return self._loop.decode_batch(keys, values, self._masks(rules.for_any_prompt()), rules)

    def _make_masks(self, rules: WindowRules) -> Any:
        return self._to_device(self._torch.from_numpy(rules.logit_biases(self.dims.n_vocab)))

    def applied(self) -> Mapping[str, Any]:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        return {**super().applied(), "greedy_loop": self._loop.how}


class MaxWhisper(MaxBackend):
    """The encoder's graph ends in the decoder's cross-attention keys and values; a second graph decodes."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32", "bfloat16", "int8", "bfloat16" + TRIM, "int8" + TRIM),
        "cuda": ("float16", "bfloat16"),  # MAX's own float32 products may round to TF32 there
    }
    beam_devices: ClassVar[Sequence[str]] = ("cpu",)
    engine_class = _Engine
