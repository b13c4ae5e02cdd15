"""openai-whisper with one fault planted in its encoder each, as another package's backends."""

from __future__ import annotations

from typing import Any

import numpy as np

from asrgate.backends.openai_whisper import WhisperCpu

FAULTY_BLOCK = 1


class Sound(WhisperCpu):
    """Without a fault, and as another engine would be: with sums in another order, so rounded otherwise."""

    def __init__(self, model: Any, *arguments: Any):
        super().__init__(model, *arguments)
        with self._torch.no_grad():
            self.plant(model)

    def plant(self, model: Any) -> None:
        torch = self._torch

        class Reordered(torch.nn.Linear):  # type: ignore[name-defined]
            def forward(self, x: Any) -> Any:
                half = x.shape[-1] // 2
                first, second = (
                    x[..., :half] @ self.weight[:, :half].T,
                    x[..., half:] @ self.weight[:, half:].T,
                )
                return second + first if self.bias is None else second + (first + self.bias)

        for block in model.encoder.blocks:
            for linear in (block.attn.query, block.attn.out, block.mlp[0], block.mlp[2]):
                linear.__class__ = Reordered


class WithoutLnPost(Sound):
    """As the engine was whose speed nobody could repeat."""

    def plant(self, model: Any) -> None:
        model.encoder.ln_post = self._torch.nn.Identity()


class TransposedQuery(Sound):
    def plant(self, model: Any) -> None:
        weight = model.encoder.blocks[FAULTY_BLOCK].attn.query.weight
        weight.copy_(weight.T.clone())


class GeluTanh(Sound):
    """The approximation, where the encoder's own forward pass calls GELU: after both convolutions."""

    activations = ("tanh", "tanh")

    def plant(self, model: Any) -> None:
        encoder, torch = model.encoder, self._torch
        first, second = self.activations

        def forward(x: Any) -> Any:
            x = torch.nn.functional.gelu(encoder.conv1(x), approximate=first)
            x = torch.nn.functional.gelu(encoder.conv2(x), approximate=second).permute(0, 2, 1)
            x = x + encoder.positional_embedding
            for block in encoder.blocks:
                x = block(x)
            return encoder.ln_post(x)

        encoder.forward = forward


class GeluTanhSecond(GeluTanh):
    activations = ("none", "tanh")


class GeluTanhInBlock(Sound):
    def plant(self, model: Any) -> None:
        model.encoder.blocks[FAULTY_BLOCK].mlp[1] = self._torch.nn.GELU(approximate="tanh")


class Epsilon(Sound):
    """1e-3 in every layer norm of the encoder, where Whisper has 1e-5."""

    def plant(self, model: Any) -> None:
        for module in model.encoder.modules():
            if isinstance(module, self._torch.nn.LayerNorm):
                module.eps = 1e-3


class EpsilonOfLnPost(Sound):
    def plant(self, model: Any) -> None:
        model.encoder.ln_post.eps = 1e-3


class SwappedKeys(Sound):
    """The cross-attention keys of one decoder block are made with its values' weights."""

    def plant(self, model: Any) -> None:
        attention = model.decoder.blocks[FAULTY_BLOCK].cross_attn
        attention.key.weight.copy_(attention.value.weight)


class _OtherFilters(Sound):
    def filters(self, mel_filters: Any) -> Any:
        raise NotImplementedError

    def encoder_trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        import whisper.audio

        mel_filters = whisper.audio.mel_filters
        whisper.audio.mel_filters = lambda device, n_mels: self.filters(mel_filters)  # type: ignore[assignment]
        try:
            return super().encoder_trace(audio)
        finally:
            whisper.audio.mel_filters = mel_filters


class NarrowFilters(_OtherFilters):
    """Every filter as narrow as with 128 bands, at the place it has among 80."""

    def filters(self, mel_filters: Any) -> Any:
        narrow = mel_filters("cpu", 128)
        return narrow[[round(band * 127 / 79) for band in range(80)]]


class ShiftedFilters(_OtherFilters):
    """One bin of the Fourier transform too high, as when counting begins at 1."""

    def filters(self, mel_filters: Any) -> Any:
        return self._torch.roll(mel_filters("cpu", 80), 1, dims=1)


class NotFinite(Sound):
    def plant(self, model: Any) -> None:
        model.encoder.blocks[FAULTY_BLOCK].mlp_ln.weight[0] = float("nan")


class Misshapen(Sound):
    """Gives a layer the other way round."""

    def encoder_trace(self, audio: np.ndarray) -> dict[str, np.ndarray]:
        trace = super().encoder_trace(audio)
        return trace | {"conv1": trace["conv1"].T}
