"""Log-mel and encoder in MAX, which `max-hybrid` and `max` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from asrgate.backends.base import BackendError, BackendUnavailable, Checkpoint, Settings
from asrgate.backends.checkpoints.catalog import load_state_dict
from asrgate.backends.devices import require_package, require_torch
from asrgate.backends.max_graph import session as sessions
from asrgate.backends.whisper_common.batches import BatchBackend
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_FRAMES
from asrgate.backends.whisper_common.greedy import TRIM, TRIMMED, Window, WindowRules, frames_to_encode

if TYPE_CHECKING:
    from asrgate.backends.max_graph.weights import Kinds

MAX_RELEASE = "26.7"


def check(device: str) -> None:
    """Raise BackendUnavailable if MAX, another required package or the GPU is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("max")
    except PackageNotFoundError:
        raise BackendUnavailable("the package max is not installed", "pip install max") from None
    if not installed.startswith(f"{MAX_RELEASE}."):
        raise BackendUnavailable(
            f"MAX {installed} is installed; the graphs are written for {MAX_RELEASE}",
            f"pip install 'max=={MAX_RELEASE}.*'",
        )
    require_package("whisper", "openai-whisper")
    require_torch(device)


class MaxBackend(BatchBackend):
    """A backend made of a MaxEngine; a subclass defines it with `devices` and `engine_class`."""

    imports: ClassVar[Sequence[str]] = ("torch", "whisper", "max.engine")  # max.nn only if it compiles
    engine_class: ClassVar[type[MaxEngine]]
    _engine: MaxEngine

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if MAX, another required package or the GPU is missing."""
        check(device)

    @classmethod
    def build(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> MaxEngine:
        """Load weights and graphs, compiled on first use; see GreedyBackend.load."""
        return cls.engine_class(checkpoint, device, precision, settings)

    def encoder_trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """See asrgate.backends.inspection.encoder_trace.TracesEncoder."""
        return self._engine.trace(audio)


class MaxEngine:
    """The first stages of asrgate.backends.whisper_common.batches.BatchEngine; a subclass adds the decoder.

    torch and MAX exchange tensors through DLPack, without copies. On a GPU each has its own stream, so one
    waits before the other reads or frees memory that both use.
    """

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, settings: Settings):
        import torch
        from max.driver import CPU, Accelerator, Buffer
        from max.engine import InferenceSession
        from max.graph import DeviceRef
        from whisper.audio import mel_filters
        from whisper.model import ModelDimensions

        from asrgate.backends.max_graph import log_mel
        from asrgate.backends.max_graph.place import place

        torch.set_num_threads(settings.threads)
        self.dims = ModelDimensions(**checkpoint.dimensions)
        _require_whole_panels(self.dims, device)
        self.device = torch.device("cuda" if device == "cuda" else "cpu")
        self._torch = torch
        self._buffer = Buffer
        self._name, self._trims = checkpoint.name, precision.endswith(TRIM)
        try:
            if device == "cuda":
                self._driver = Accelerator()
                self._session = InferenceSession(devices=[CPU(), self._driver])
            else:
                self._driver = CPU()
                # MAX 26.7 aborts the process if num_threads is given. It starts one thread per core that the
                # process may use, and the harness pins a worker to as many cores as it may use
                self._session = InferenceSession()
        except (RuntimeError, ValueError) as error:
            raise BackendUnavailable(f"MAX cannot use {device}: {str(error).splitlines()[0]}") from error
        self.state_dict = load_state_dict(checkpoint)
        halves = all(tensor.dtype == torch.float16 for tensor in self.state_dict.values())
        self.place = place(DeviceRef.from_device(self._driver), precision.removesuffix(TRIM), halves)
        self._method = log_mel.chosen_method(device)
        self._filters = self._to_device(
            log_mel.prepared_filters(mel_filters("cpu", self.dims.n_mels), self.place, self._method)
        )
        self._weights: Mapping[str, Any] = {}
        self._models = self._load(self._compiled_graphs())
        if device == "cuda":
            self._mel = self._to_device(torch.zeros(self.dims.n_mels, N_FRAMES))
            self._encoder = sessions.Launch(self._models["encoder"], [self._mel])
        if self._trims:
            silence = torch.zeros(self.dims.n_mels, N_FRAMES)
            self._silence = [torch.from_dlpack(x) for x in self._encoded(silence)]
            self._whole = [torch.empty_like(x) for x in self._silence]

    def _to_device(self, tensor: Any) -> Any:
        """Return a torch tensor on the CPU as a MAX buffer on the engine's device."""
        buffer = self._buffer.from_dlpack(tensor)
        if self.device.type == "cpu":
            return buffer
        moved = buffer.to(self._driver)
        self._driver.synchronize()  # the caller may free the tensor at once
        return moved

    def _compiled_graphs(self) -> Sequence[str]:
        """The graphs compiled as one module, which `max` and `max-hybrid` share on the CPU."""
        return ("log_mel", "encoder", "greedy" if self.place.has_kernels else "step")

    def _load(self, names: Sequence[str]) -> dict[str, Any]:
        types = ("dtype", "encoder_dtype", "step_dtype", "cross_dtype")
        facts = {
            "dims": vars(self.dims),
            **{name: getattr(self.place, name).name for name in types},
            "has_kernels": self.place.has_kernels,
            "splits": self.place.splits,
            "multiplies_int8": self.place.multiplies_int8,
            "log_mel": self._method,
        }
        return sessions.load_all(self._session, self.device.type, facts, names, self._plan, self._prepared)

    def _plan(self, names: Sequence[str]) -> sessions.Plan:
        # imported only to compile: max.nn alone takes longer than a load from the cache
        from asrgate.backends.max_graph.graphs import WhisperGraphs

        graphs = WhisperGraphs(self.dims, self.place, self._method)
        return sessions.Plan(graphs.builders(names), graphs.kinds())

    def _prepared(self, kinds: Kinds) -> Mapping[str, Any]:
        """Return the weights that the graphs take: on the host even for a GPU, as MAX moves them itself."""
        from asrgate.backends.max_graph.weights import prepared

        if not self._weights:
            try:
                tensors = prepared(self.state_dict, kinds, has_kernels=self.place.has_kernels)
            except ValueError as error:
                raise BackendError(f"{self._name} does not fit the MAX graphs: {error}") from error
            self._weights = {name: self._buffer.from_dlpack(x) for name, x in tensors.items()}
        return self._weights

    def encode(self, mel: Any) -> Any:
        """Turn one window (n_mels, 3000) into cross-attention keys and values; see WhisperGraphs.encoder."""
        if not self._trims:
            return self._encoded(mel)
        parts = self._encoded(mel[:, : frames_to_encode(mel)])
        for whole, silence, part in zip(self._whole, self._silence, parts, strict=True):
            positions = part.shape[2]
            whole[:, :, :positions] = self._torch.from_dlpack(part)
            whole[:, :, positions:] = silence[:, :, positions:]
        return [self._buffer.from_dlpack(whole) for whole in self._whole]

    def encode_batch(self, mels: Sequence[Any]) -> tuple[Any, Any]:
        """Encode windows, one after another because each keeps all cores busy.

        Returns:
            Their keys and values, torch.Tensor (windows, layers, heads, n_audio_ctx, head size).
        """
        batch: list[Any] = []
        for index, mel in enumerate(mels):
            parts = self._to_torch(MaxEngine.encode(self, mel))
            if not batch:
                batch = [part.new_empty((len(mels), *part.shape)) for part in parts]
            for whole, part in zip(batch, parts, strict=True):
                whole[index] = part
        return batch[0], batch[1]

    def decode(self, encoded: Any, rules: WindowRules) -> Window:
        """See asrgate.backends.whisper_common.greedy.Engine; a subclass defines it."""
        raise NotImplementedError

    def decode_batch(self, encoded: Any, rules: WindowRules) -> list[Window]:
        """See asrgate.backends.whisper_common.batches.BatchEngine; a subclass defines it."""
        raise NotImplementedError

    def _encoded(self, mel: Any) -> Sequence[Any]:
        window = self._from_torch(mel)
        if self.device.type == "cpu":
            return self._models["encoder"].execute(window)
        self._mel.inplace_copy_from(window)
        encoded = self._encoder()
        self._driver.synchronize()  # `window` is freed on return
        return encoded

    def log_mel(self, audio: np.ndarray) -> Any:
        """See greedy.Engine; frames of silence are filled in, not computed."""
        from asrgate.backends.max_graph.log_mel import cut

        hops = self._to_device(self._torch.from_numpy(cut(audio)))
        spoken, silence = self._to_torch(self._models["log_mel"].execute(hops, self._filters))
        mel = self._torch.empty((self.dims.n_mels, len(audio) // HOP_LENGTH + N_FRAMES), device=self.device)
        frames = min(spoken.shape[1], mel.shape[1])
        mel[:, :frames] = spoken[:, :frames]
        mel[:, frames:] = silence
        return mel

    def trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """See inspection.encoder_trace.TracesEncoder; a separate graph outputs every layer."""
        from asrgate.backends.inspection.encoder_trace import first_window, layer_shapes

        model = self._load(["layers"])["layers"]
        mel = first_window(self.log_mel(audio))
        names = list(layer_shapes(vars(self.dims)))
        results = [x.cpu().numpy() for x in self._to_torch(model.execute(self._from_torch(mel)))]
        return dict(zip(names, [mel.cpu().numpy(), *results], strict=True))

    def _to_torch(self, buffers: Sequence[Any]) -> list[Any]:
        if self.device.type != "cpu":
            self._driver.synchronize()
        return [self._torch.from_dlpack(x) for x in buffers]

    def _from_torch(self, tensor: Any) -> Any:
        whole = tensor.contiguous()
        if self.device.type != "cpu":
            self._torch.cuda.current_stream().synchronize()
        return self._buffer.from_dlpack(whole)

    def applied(self) -> Mapping[str, Any]:
        """See asrgate.backends.whisper_common.greedy.Engine."""
        from importlib.metadata import version

        return {
            "threads": self._torch.get_num_threads(),
            "max_version": version("max"),
            "log_mel": self._method,
            "long_form": "sequential; in batches chunked",
            **({"audio_context": TRIMMED} if self._trims else {}),
            **({} if self.device.type == "cpu" else {"encoder_launched": self._encoder.how}),
            "activations_dtype": self.place.dtype.name,
            "encoder_dtype": self.place.encoder_dtype.name,
            **self._encoder_products(),
            "step_weights_dtype": self.place.step_dtype.name,
            "cross_attention_dtype": self.place.cross_dtype.name,
        }

    def _encoder_products(self) -> Mapping[str, str]:
        if self.place.multiplies_int8:
            return {"encoder_products": "int8 for query, key and MLP"}
        return {"encoder_products": "float32 in parts of bfloat16 (AMX)"} if self.place.splits else {}


def _require_whole_panels(dims: Any, device: str) -> None:
    """Raise BackendError if the kernels cannot take these dimensions; all of OpenAI's models fit."""
    from asrgate.backends.max_graph.encoder_ops import PANEL

    sizes = dims.n_audio_state // dims.n_audio_head, dims.n_text_state // dims.n_text_head
    if device == "cpu" and any(size % PANEL for size in sizes):
        raise BackendError(
            f"its kernels need attention heads of a multiple of {PANEL} numbers, but this checkpoint's have "
            f"{sizes[0]} (encoder) and {sizes[1]} (decoder); use whisper-cpu or faster-whisper for it"
        )
