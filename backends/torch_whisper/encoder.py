"""Whisper's audio encoder and log-mel spectrogram in tuned PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from asrgate.backends.torch_whisper.linear import linear
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_AUDIO_CTX, N_FFT, N_SAMPLES

ROWS = N_AUDIO_CTX  # the number of rows for which the weights' packing is tuned: one window
QUERIES_AT_ONCE = 500  # see `_attention`


class TorchEncoder:
    """whisper.model.AudioEncoder: matrices in one precision, sums and normalisation in float32."""

    def __init__(self, weights: Mapping[str, Any], dims: Any, precision: str, device: str):
        """Prepare the weights.

        Args:
            weights: the checkpoint's tensors by whisper's names, "encoder.conv1.weight" and so on.
            dims: a whisper.model.ModelDimensions.
            precision: "float32", "bfloat16" or (CUDA) "float16".
            device: "cpu" or "cuda".
        """
        import torch

        self._torch = torch
        self._n_state, self._n_head = dims.n_audio_state, dims.n_audio_head
        self._dtype = getattr(torch, precision)

        def tensor(name: str) -> Any:
            return weights[f"encoder.{name}"].detach().to(device, torch.float32)

        self._convolutions = [
            (tensor(f"{name}.weight").to(self._dtype), tensor(f"{name}.bias").to(self._dtype), stride)
            for name, stride in (("conv1", 1), ("conv2", 2))
        ]
        self._positions = tensor("positional_embedding")
        self._layers = [self._layer(tensor, f"blocks.{index}") for index in range(dims.n_audio_layer)]
        self._ln_post = self._norm(tensor, "ln_post", torch.float32)

    def encode(self, mel: Any) -> Any:
        """Encode windows.

        Args:
            mel: torch.Tensor float32 (batch, n_mels, frames), at most 3000 frames.

        Returns:
            torch.Tensor float32 (batch, frames / 2 rounded up, n_state).
        """
        functional = self._torch.nn.functional
        with self._torch.inference_mode():
            x = mel.to(self._dtype)
            for weight, bias, stride in self._convolutions:
                x = functional.gelu(functional.conv1d(x, weight, bias, stride=stride, padding=1))
            x = x.mT + self._positions[: x.shape[-1]]  # float32 from here on
            heads = (*x.shape[:2], self._n_head, -1)
            for layer in self._layers:
                parts = layer.qkv(layer.attn_ln(x)).chunk(3, -1)
                attended = self._attention(*(part.view(heads).transpose(1, 2) for part in parts))
                x = x + layer.out(attended.transpose(1, 2).flatten(2))
                x = x + layer.mlp_2(layer.mlp_1(layer.mlp_ln(x)))
            return self._ln_post(x)

    def _attention(self, q: Any, k: Any, v: Any) -> Any:
        """softmax(q kT) v; all three are (batch, heads, positions, width), and q is already scaled."""
        torch = self._torch
        if self._dtype != torch.bfloat16 or q.device.type != "cpu":
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)
        # On a CPU PyTorch's fused kernel gains nothing from bfloat16; oneDNN's products are 8 times faster.
        # With a slice of the queries at a time, the attention weights stay in the processor's cache.
        keys, values = k.mT.contiguous(), v.contiguous()
        slices = q.split(QUERIES_AT_ONCE, 2)
        return torch.cat([torch.matmul(torch.matmul(part, keys).softmax(-1), values) for part in slices], 2)

    def _layer(self, tensor: Any, block: str) -> Any:
        """Prepare one whisper.model.ResidualAttentionBlock, with query, key and value in one product."""
        torch = self._torch
        attn = f"{block}.attn"
        scale = (self._n_state // self._n_head) ** -0.5
        query_bias = tensor(f"{attn}.query.bias") * scale
        parts = [tensor(f"{attn}.{part}.weight") for part in ("query", "key", "value")]
        parts[0] = parts[0] * scale
        biases = [query_bias, torch.zeros_like(query_bias), tensor(f"{attn}.value.bias")]
        named = partial(self._named, tensor)
        return SimpleNamespace(
            attn_ln=self._norm(tensor, f"{block}.attn_ln", self._dtype),
            qkv=self._linear(torch.cat(parts), torch.cat(biases)),
            out=self._linear(*named(f"{attn}.out")),
            mlp_ln=self._norm(tensor, f"{block}.mlp_ln", self._dtype),
            mlp_1=self._linear(*named(f"{block}.mlp.0"), gelu=True),
            mlp_2=self._linear(*named(f"{block}.mlp.2")),
        )

    @staticmethod
    def _named(tensor: Any, name: str) -> tuple[Any, Any]:
        return tensor(f"{name}.weight"), tensor(f"{name}.bias")

    def _linear(self, weight: Any, bias: Any, gelu: bool = False) -> Any:
        return linear(weight.to(self._dtype), bias.to(self._dtype), gelu, ROWS)

    def _norm(self, tensor: Any, name: str, dtype: Any) -> Any:
        weight, bias = self._named(tensor, name)
        norm = self._torch.nn.functional.layer_norm
        return lambda x: norm(x, (self._n_state,), weight, bias).to(dtype)


def log_mel(audio: np.ndarray, n_mels: int, device: Any) -> Any:
    """Return what whisper.audio.log_mel_spectrogram(audio, n_mels, padding=N_SAMPLES) returns.

    Only frames that overlap the audio are transformed: the log-mel of the 30 s of silence after it is known.

    Args:
        audio: float32, shape (samples,), 16 kHz.
        n_mels: 80 or 128.
        device: where to compute it.

    Returns:
        torch.Tensor float32 (n_mels, samples // 160 + 3000), on `device`.
    """
    import torch
    from whisper.audio import mel_filters

    silence = N_FFT + HOP_LENGTH  # at least one whole frame of silence
    signal = torch.nn.functional.pad(torch.from_numpy(audio).to(device), (0, silence))
    window = torch.hann_window(N_FFT, device=device)
    spectrum = torch.stft(signal, N_FFT, HOP_LENGTH, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2
    spoken = (mel_filters(power.device, n_mels) @ power).clamp(min=1e-10).log10()
    floor = spoken.max() - 8.0
    frames = (len(audio) + N_SAMPLES) // HOP_LENGTH
    result = torch.empty(n_mels, frames, device=device)
    result[:, : spoken.shape[1]] = spoken
    result[:, spoken.shape[1] :] = -10.0
    return torch.maximum(result, floor).add_(4.0).div_(4.0)
