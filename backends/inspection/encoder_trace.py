"""The outputs of an encoder's layers by name, so that two engines can be compared layer by layer.

A backend that can return them implements `TracesEncoder`, which `asrgate debug-encoder` uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from asrgate.backends.base import BackendError
from asrgate.backends.whisper_common.constants import N_FRAMES

LOG_MEL = "log_mel"


@runtime_checkable
class TracesEncoder(Protocol):
    """What a backend needs beyond `asrgate.backends.base.Backend` so that its encoder can be examined."""

    def encoder_trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        """Return each layer's output for the clip's first window, computed as for a transcription.

        Args:
            audio: float32, shape (samples,), mono, 16 kHz, in [-1, 1]. It must not be modified. The window
                is the first one of whisper.transcribe; see `first_window`.

        Returns:
            name -> float32 array, whatever the engine's precision, with the names, shapes and order of
            `layer_shapes`. Each layer's input is what the engine itself computed before it.
        """
        ...


def layer_shapes(dimensions: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return layer name -> (rows, columns), in the order of the computation.

    log_mel is (n_mels, 3000); every other layer has one row per position:

        conv1            (3000, n_audio_state)   after its GELU
        conv2            (1500, n_audio_state)   after its GELU, before the positional embedding is added
        block.0, …       (1500, n_audio_state)   the residual stream after the whole block
        ln_post          (1500, n_audio_state)   the encoder's output, whether or not it has such a layer
        cross_key.0,     (1500, n_text_state)    keys and values of each decoder block's cross-attention,
        cross_value.0, …                         heads side by side, unscaled, bias added if there is one

    Args:
        dimensions: the fields of whisper.model.ModelDimensions.
    """
    states = dimensions["n_audio_ctx"], dimensions["n_audio_state"]
    shapes = {
        LOG_MEL: (dimensions["n_mels"], N_FRAMES),
        "conv1": (N_FRAMES, dimensions["n_audio_state"]),
        "conv2": states,
    }
    shapes.update({f"block.{block}": states for block in range(dimensions["n_audio_layer"])})
    shapes["ln_post"] = states
    for block in range(dimensions["n_text_layer"]):
        for kind in ("cross_key", "cross_value"):
            shapes[f"{kind}.{block}"] = (dimensions["n_audio_ctx"], dimensions["n_text_state"])
    return shapes


def first_window(log_mel: Any) -> Any:
    """Cut the first window from a clip's spectrogram as whisper.transcribe does.

    Frames beyond the end of the audio become zeros. Silence looks different in a log-mel spectrogram, but
    zeros are what Whisper's encoder gets.

    Args:
        log_mel: torch.Tensor (n_mels, samples // 160 + 3000), the result of
            whisper.audio.log_mel_spectrogram(audio, n_mels, padding=N_SAMPLES).

    Returns:
        torch.Tensor (n_mels, 3000).
    """
    from whisper.audio import pad_or_trim

    content_frames = log_mel.shape[-1] - N_FRAMES
    return pad_or_trim(log_mel[:, : min(N_FRAMES, content_frames)], N_FRAMES)


def trace_whisper(model: Any, log_mel: Any) -> dict[str, np.ndarray]:
    """Return the trace of openai-whisper's model, from hooks on its own forward pass.

    Args:
        model: a whisper.model.Whisper, or a deliberately changed one.
        log_mel: torch.Tensor (n_mels, 3000) on the model's device, in the precision to compute in.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    traced: dict[str, Any] = {LOG_MEL: log_mel}
    convolved: dict[str, Any] = {}

    class Activations(TorchFunctionMode):
        """Records the activation after a convolution, which is no module that could be hooked."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> torch.Tensor:
            result = function(*args, **(kwargs or {}))
            for name, output in convolved.items():
                is_activation = isinstance(result, torch.Tensor) and result.shape == output.shape
                if name not in traced and is_activation and args and args[0] is output:
                    traced[name] = result[0].T
            return result

    def keep_convolved(name: str) -> Any:
        return lambda _module, _inputs, output: convolved.__setitem__(name, output)

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: traced.__setitem__(name, output[0])

    encoder = model.encoder
    hooks = [
        getattr(encoder, name).register_forward_hook(keep_convolved(name)) for name in ("conv1", "conv2")
    ]
    hooks += [
        block.register_forward_hook(keep(f"block.{number}")) for number, block in enumerate(encoder.blocks)
    ]
    try:
        with torch.no_grad(), Activations():
            encoded = encoder(log_mel[None])
    finally:
        for hook in hooks:
            hook.remove()
    traced["ln_post"] = encoded[0]
    with torch.no_grad():
        for number, block in enumerate(model.decoder.blocks):
            traced[f"cross_key.{number}"] = block.cross_attn.key(encoded)[0]
            traced[f"cross_value.{number}"] = block.cross_attn.value(encoded)[0]
    return {name: _as_array(tensor) for name, tensor in traced.items()}


def require_trace(trace: Mapping[str, np.ndarray], dimensions: Mapping[str, int]) -> None:
    """Raise BackendError if the trace's names, order, shapes or types differ from `layer_shapes`."""
    expected = layer_shapes(dimensions)
    if list(trace) != list(expected):
        raise BackendError(
            f"its encoder_trace has the layers {', '.join(trace)}, but must have {', '.join(expected)}"
        )
    for name, array in trace.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != expected[name]:
            kind, shape = getattr(array, "dtype", type(array).__name__), getattr(array, "shape", "")
            raise BackendError(
                f"its encoder_trace gives {name} as {kind} {shape}; it must be a numpy array, float32 "
                f"{expected[name]}"
            )


def _as_array(tensor: Any) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())
