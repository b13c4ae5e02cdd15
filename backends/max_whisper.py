"""`max`: all of Whisper as MAX graphs, log-mel, encoder and the greedy loop itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from backends.base import Checkpoint, Settings
from backends.greedy import TRIM, GreedyBackend, Window, WindowRules
from backends.max_graph import engine


class MaxWhisper(GreedyBackend):
    """The encoder's graph ends in the decoder's cross-attention keys and values; a second graph decodes."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {
        "cpu": ("float32", "bfloat16", "int8", "bfloat16" + TRIM, "int8" + TRIM),
        "cuda": ("float16", "bfloat16", "float32"),
    }
    imports: ClassVar[Sequence[str]] = engine.IMPORTS

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if MAX, a package beside it or the GPU is missing."""
        engine.check(device)

    @classmethod
    def build(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> _Engine:
        """Load weights and graphs, compiled on first use; see GreedyBackend.load."""
        return _Engine(checkpoint, device, precision, settings)

    def encoder_trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """See backends.encoder_trace.TracesEncoder."""
        return self._engine.trace(audio)  # type: ignore[attr-defined]


class _Engine(engine.MaxEngine):
    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        from max.driver import CPU
        from max.dtype import DType

        super().__init__(checkpoint, device, precision, settings)
        dims = self.dims
        self._cache = self._buffer(
            DType.float32, (dims.n_text_layer, 2, dims.n_text_ctx, dims.n_text_state), device=self._driver
        )
        self._sampled = self._buffer(DType.int64, (dims.n_text_ctx,), device=CPU())
        self._masks = lru_cache(maxsize=8)(self._make_masks)

    def graphs(self) -> dict[str, Callable[..., Any]]:
        """See MaxEngine.graphs."""
        return {**super().graphs(), "greedy": self._greedy_graph}

    def _greedy_graph(self, **shared: Any) -> Any:
        from max.graph import Graph

        from backends.max_graph import decoder

        return Graph(
            forward=decoder.greedy(self.modules().decoder, self.dims),
            input_types=decoder.greedy_types(self.dims, self.place),
            **shared,
        )

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """See backends.greedy.Engine."""
        from backends.max_graph.decoder import rule_numbers

        buffer = self._buffer
        count, sum_logprob, no_speech = self._models["greedy"].execute(
            *encoded,
            self._cache,
            self._sampled,
            buffer.from_numpy(np.array(rules.prompt, np.int64)),
            buffer.from_numpy(rule_numbers(rules)),
            self._masks(
                rules.suppressed,
                rules.suppressed_first,
                rules.timestamps,
                rules.max_initial_timestamp_index,
                rules.no_timestamps,
                rules.timestamp_begin,
            ),
        )
        tokens = self._sampled.to_numpy()[: count.item()].tolist()
        return Window(tokens, sum_logprob.item(), no_speech.item())

    def _make_masks(self, *rules: Any) -> Any:
        from backends.max_graph.decoder import masks

        return self._to_device(self._torch.from_numpy(masks(self.dims.n_vocab, *rules)))

    def applied(self) -> Mapping[str, Any]:
        """See backends.greedy.Engine."""
        return {**super().applied(), "greedy_loop": "in the graph"}
