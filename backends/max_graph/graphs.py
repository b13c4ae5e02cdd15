"""The MAX graphs of one Whisper model, which `max-hybrid` and `max` compile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from max.dtype import DType
from max.graph import Graph, TensorType, ops

from asrgate.backends.max_graph import decoder, device_decoder, encoder_ops, log_mel
from asrgate.backends.max_graph.modules import Whisper, split_heads
from asrgate.backends.max_graph.place import Place
from asrgate.backends.max_graph.weights import Kinds
from asrgate.backends.whisper_common.constants import N_FRAMES


class WhisperGraphs:
    """Builders of the graphs: each takes keywords of max.graph.Graph, and needs no device to build."""

    def __init__(self, dims: Any, place: Place, log_mel_method: str):
        """Keep everything that the graphs depend on.

        Args:
            dims: a whisper.model.ModelDimensions.
            place: where and how the graphs compute.
            log_mel_method: see log_mel.chosen_method.
        """
        self.dims, self.place, self.log_mel_method = dims, place, log_mel_method

    def builders(self, names: Iterable[str]) -> dict[str, Callable[..., Graph]]:
        """Return name -> builder of some graphs; a builder has the name of its graph."""
        return {name: getattr(self, name) for name in names}

    def kinds(self) -> Kinds:
        """The tensors that all graphs together take."""
        return Whisper(self.dims, self.place).kinds()

    def log_mel(self, **shared: Any) -> Graph:
        """See log_mel.log_mel."""
        hops = log_mel.hops_type(self.place.device)
        filters = log_mel.filters_type(self.dims.n_mels, self.place, self.log_mel_method)
        return Graph(
            forward=lambda hops, filters: log_mel.log_mel(
                hops.tensor, filters.tensor, self.dims.n_mels, self.place, self.log_mel_method
            ),
            input_types=[hops, filters],
            **shared,
        )

    def encoder(self, **shared: Any) -> Graph:
        """Turn a window's log-mel (n_mels, frames) into the cross-attention's keys and values.

        Both outputs are (layers, heads, n_audio_ctx, head size).
        """
        return self._of_window(_cross, shared)

    def layers(self, **shared: Any) -> Graph:
        """The same with every layer as a float32 output: see inspection.encoder_trace.layer_shapes."""

        def outputs(whisper: Whisper, mel: Any) -> Any:
            layers = dict(whisper.encoder.layers(mel))
            pairs = [x for pair in whisper.decoder(layers["ln_post"]) for x in pair]
            return tuple(ops.cast(x, DType.float32) for x in [*layers.values(), *pairs])

        return self._of_window(outputs, shared)

    def greedy(self, **shared: Any) -> Graph:
        """See decoder.greedy."""
        return Graph(
            forward=decoder.greedy(Whisper(self.dims, self.place).decoder, self.dims),
            input_types=decoder.window_types(self.dims, self.place),
            **shared,
        )

    def step(self, **shared: Any) -> Graph:
        """See device_decoder.step."""
        return Graph(
            forward=device_decoder.step(Whisper(self.dims, self.place).decoder, self.dims),
            input_types=decoder.window_types(self.dims, self.place),
            **shared,
        )

    def _of_window(self, outputs: Callable[[Whisper, Any], Any], shared: Mapping[str, Any]) -> Graph:
        def forward(mel: Any) -> Any:
            # new modules each time: MAX 26.7 ties a module to the first graph that uses it
            x = mel.tensor if self.place.dtype == DType.float32 else ops.cast(mel.tensor, self.place.dtype)
            return outputs(Whisper(self.dims, self.place), x)

        # windows are trimmed only on the CPU, where a length known in advance makes nothing faster
        frames = "frames" if self.place.has_kernels else N_FRAMES
        kind = TensorType(DType.float32, (self.dims.n_mels, frames), device=self.place.device)
        return Graph(forward=forward, input_types=[kind], **shared)


def _cross(whisper: Whisper, mel: Any) -> Any:
    dims, place = whisper.dims, whisper.place
    features = whisper.encoder(mel)
    cross = whisper.decoder.cross
    if cross is not None:
        return encoder_ops.heads(cross(features), dims.n_text_layer, dims.n_text_head, place.cross_dtype)
    return tuple(
        ops.stack([ops.cast(split_heads(x, dims.n_text_head), place.cross_dtype) for x in layers], axis=0)
        for layers in zip(*whisper.decoder(features), strict=True)
    )
