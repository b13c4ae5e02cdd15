"""Log-mel and encoder in MAX: what `max-hybrid` and `max` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from backends.base import BackendError, BackendUnavailable, Checkpoint, Settings
from backends.checkpoint import load_state_dict
from backends.devices import require_nvidia_gpu, require_package
from backends.greedy import TRIM, TRIMMED, frames_to_encode
from backends.max_graph import session as sessions

N_FRAMES = 3000  # of a 30 s window
PANEL = 32  # columns that the kernels compute at once
MAX_RELEASE = "26.7"
IMPORTS = ("torch", "whisper", "max.driver", "max.engine", "max.graph", "max.nn")


def check(device: str) -> None:
    """Raise BackendUnavailable if MAX, a package beside it or the GPU is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("max")
    except PackageNotFoundError:
        raise BackendUnavailable("the package max is not installed", "pip install max") from None
    if not found.startswith(f"{MAX_RELEASE}."):
        raise BackendUnavailable(
            f"MAX {found} is installed; the graphs are written for {MAX_RELEASE}",
            f"pip install 'max=={MAX_RELEASE}.*'",
        )
    require_package("whisper", "openai-whisper")
    require_package("torch", "torch")
    if device == "cuda":
        require_nvidia_gpu()


class MaxEngine:
    """The first two stages of backends.greedy.Engine; a subclass adds the decoder.

    torch and MAX hand tensors to one another through DLPack, without copies.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        import torch
        from max.driver import Accelerator, Buffer
        from max.engine import InferenceSession
        from max.graph import DeviceRef
        from whisper.audio import mel_filters
        from whisper.model import ModelDimensions

        from backends.max_graph import log_mel
        from backends.max_graph.modules import Whisper

        torch.set_num_threads(settings.threads)
        self.dims = ModelDimensions(**checkpoint.dimensions)
        _require_whole_panels(self.dims, device)
        self.device = torch.device("cuda" if device == "cuda" else "cpu")
        self._torch = torch
        self._buffer = Buffer
        self._threads = settings.threads
        self._precision = precision
        self._trims = precision.endswith(TRIM)
        try:
            if device == "cuda":
                self._session = InferenceSession(devices=[Accelerator()])
            else:
                # MAX 26.7 aborts the process when num_threads is given: it takes a thread for each core that
                # this process may use, and the harness pins a worker to as many as it may have
                self._session = InferenceSession()
        except (RuntimeError, ValueError) as error:
            raise BackendUnavailable(f"MAX cannot use {device}: {str(error).splitlines()[0]}") from error
        self._driver = self._session.devices[0]
        self.state_dict = load_state_dict(checkpoint)
        halves = all(tensor.dtype == torch.float16 for tensor in self.state_dict.values())
        self.place = _place(DeviceRef.from_device(self._driver), precision.removesuffix(TRIM), halves)
        whisper = Whisper(self.dims, self.place)
        self._weights = {
            name: self._to_device(prepared)
            for whole_name, tensor in self.state_dict.items()
            for name, prepared in whisper.prepared(whole_name, tensor).items()
        }
        try:
            whisper.load_state_dict(self._weights)
        except ValueError as error:
            raise BackendError(f"{checkpoint.name} does not fit the MAX graphs: {error}") from error
        types = ("dtype", "encoder_dtype", "step_dtype", "cross_dtype")
        self._facts = {
            "dims": vars(self.dims),
            **{name: getattr(self.place, name).name for name in types},
        }
        self._method = log_mel.chosen_method(device)
        self._filters = self._to_device(
            log_mel.prepared_filters(mel_filters("cpu", self.dims.n_mels), device, self._method)
        )
        self._models = self._load(self.graphs())
        if self._trims:
            silence = torch.zeros(self.dims.n_mels, N_FRAMES)
            self._silence = [torch.from_dlpack(x) for x in self._execute(self._models["encoder"], silence)]
            self._whole = [torch.empty_like(x) for x in self._silence]

    def modules(self) -> Any:
        """New modules with the weights: MAX 26.7 ties a module to the first graph it is used in."""
        from backends.max_graph.modules import Whisper

        whisper = Whisper(self.dims, self.place)
        whisper.load_state_dict(self._weights)
        return whisper

    def _to_device(self, tensor: Any) -> Any:
        """A torch CPU tensor as a MAX buffer on the engine's device."""
        buffer = self._buffer.from_dlpack(tensor)
        return buffer if self.device.type == "cpu" else buffer.to(self._driver)

    def graphs(self) -> dict[str, Callable[..., Any]]:
        """Name -> what builds the graph from keywords of max.graph.Graph; a subclass adds its own."""
        return {
            "log_mel": self._log_mel_graph,
            "encoder": lambda **shared: self._encoder_graph(_cross, shared),
        }

    def _load(self, graphs: Mapping[str, Callable[..., Any]]) -> dict[str, Any]:
        facts = {**self._facts, "log_mel": self._method}
        return sessions.load_all(self._session, self.device.type, facts, graphs, self._weights)

    def _log_mel_graph(self, **shared: Any) -> Any:
        from max.dtype import DType
        from max.graph import Graph, TensorType

        from backends.max_graph import log_mel

        filters = TensorType(DType.float32, self._filters.shape, device=self.place.device)
        return Graph(
            forward=lambda hops, filters: log_mel.log_mel(
                hops.tensor, filters.tensor, self.dims.n_mels, self.place.device, self._method
            ),
            input_types=[log_mel.hops_type(self.place.device), filters],
            **shared,
        )

    def _encoder_graph(self, outputs: Any, shared: Mapping[str, Any]) -> Any:
        """The graph from a window's log-mel (n_mels, frames) to whatever `outputs(whisper, mel)` returns."""
        from max.dtype import DType
        from max.graph import Graph, TensorType, ops

        def forward(mel: Any) -> Any:
            return outputs(self.modules(), ops.cast(mel.tensor, self.place.dtype))

        # only on the CPU is a window ever trimmed, and there a number known in advance makes nothing faster
        frames = "frames" if self.place.device.is_cpu() else N_FRAMES
        kind = TensorType(DType.float32, (self.dims.n_mels, frames), device=self.place.device)
        return Graph(forward=forward, input_types=[kind], **shared)

    def encode(self, mel: Any) -> Any:
        """One window (n_mels, 3000) to cross-attention keys and values, as `_cross` gives them."""
        if not self._trims:
            return self._execute(self._models["encoder"], mel)
        heard = self._execute(self._models["encoder"], mel[:, : frames_to_encode(mel)])
        for whole, silence, part in zip(self._whole, self._silence, heard, strict=True):
            positions = part.shape[2]
            whole[:, :, :positions] = self._torch.from_dlpack(part)
            whole[:, :, positions:] = silence[:, :, positions:]
        return [self._buffer.from_dlpack(whole) for whole in self._whole]

    def log_mel(self, audio: np.ndarray) -> Any:
        """See backends.greedy.Engine; frames of silence are filled in rather than computed."""
        from backends.max_graph.log_mel import HOP, cut

        hops = self._to_device(self._torch.from_numpy(cut(audio)))
        heard, silence = self._models["log_mel"].execute(hops, self._filters)
        heard = self._torch.from_dlpack(heard)
        mel = self._torch.empty((self.dims.n_mels, len(audio) // HOP + N_FRAMES), device=self.device)
        frames = min(heard.shape[1], mel.shape[1])
        mel[:, :frames] = heard[:, :frames]
        mel[:, frames:] = self._torch.from_dlpack(silence)
        return mel

    def trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """See backends.encoder_trace.TracesEncoder; a graph of its own, which gives out every layer."""
        from backends.encoder_trace import first_window, layer_shapes

        model = self._load({"layers": self._trace_graph})["layers"]
        mel = first_window(self.log_mel(audio))
        names = list(layer_shapes(vars(self.dims)))
        results = [self._torch.from_dlpack(x).cpu().numpy() for x in self._execute(model, mel)]
        return dict(zip(names, [mel.cpu().numpy(), *results], strict=True))

    def _trace_graph(self, **shared: Any) -> Any:
        from max.dtype import DType
        from max.graph import ops

        def outputs(whisper: Any, mel: Any) -> Any:
            layers = dict(whisper.encoder.layers(mel))
            features = layers["ln_post"]
            pairs = [x for pair in whisper.decoder(features) for x in pair]
            return tuple(ops.cast(x, DType.float32) for x in [*layers.values(), *pairs])

        return self._encoder_graph(outputs, shared)

    def _execute(self, model: Any, mel: Any) -> Sequence[Any]:
        return model.execute(self._buffer.from_dlpack(mel.contiguous()))

    def applied(self) -> Mapping[str, Any]:
        """See backends.greedy.Engine."""
        from importlib.metadata import version

        return {
            "threads": self._torch.get_num_threads(),
            "max_version": version("max"),
            "log_mel": self._method,
            **({"audio_context": TRIMMED} if self._trims else {}),
            "activations_dtype": self.place.dtype.name,
            "encoder_dtype": self.place.encoder_dtype.name,
            "step_weights_dtype": self.place.step_dtype.name,
            "cross_attention_dtype": self.place.cross_dtype.name,
        }


def _require_whole_panels(dims: Any, device: str) -> None:
    """Raise BackendError if the kernels cannot take these dimensions; every Whisper of OpenAI's fits."""
    sizes = dims.n_audio_state // dims.n_audio_head, dims.n_text_state // dims.n_text_head
    if device == "cpu" and any(size % PANEL for size in sizes):
        raise BackendError(
            f"its kernels take heads of a multiple of {PANEL}, and this checkpoint's have {sizes[0]} and "
            f"{sizes[1]}; take whisper-cpu or faster-whisper for it"
        )


def _place(device: Any, precision: str, halves: bool) -> Any:
    """What `precision` means on the device, for a checkpoint that is stored in float16 or not."""
    from max.dtype import DType

    from backends.max_graph.modules import Place

    if not device.is_cpu():
        dtype = DType[precision]
        return Place(device, dtype, dtype, dtype, DType.float32)
    whole, half = DType.float32, DType.bfloat16
    if precision == "float32":
        return Place(device, whole, whole, DType.float16 if halves else whole, whole)
    stored = DType.float16 if halves else half
    return Place(device, whole, half, DType.int8 if precision == "int8" else stored, half)


def _cross(whisper: Any, mel: Any) -> Any:
    """Keys and values of all layers: (layers, heads, n_audio_ctx, head size) each."""
    from max.graph import ops

    from backends.max_graph.decoder import split_heads

    pairs = whisper.decoder(whisper.encoder(mel))
    return tuple(
        ops.stack(
            [ops.cast(split_heads(x, whisper.dims.n_text_head), whisper.place.cross_dtype) for x in layers],
            axis=0,
        )
        for layers in zip(*pairs, strict=True)
    )
