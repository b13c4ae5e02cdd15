"""Whisper as MAX Graph modules (Radford et al. 2022), named as whisper.model names them.

Because the names are the same, `load_state_dict` takes openai-whisper's state dict as it is, and strictly:
a missing, misshapen or superfluous tensor is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from max.dtype import DType
from max.graph import DeviceRef, TensorValue, Weight, ops
from max.nn import Conv1D, Embedding, LayerList, LayerNorm, Linear, Module, Sequential


class Gelu(Module):
    """The exact, erf-based GELU: Whisper's, not the tanh approximation."""

    def __call__(self, x: TensorValue) -> TensorValue:
        return ops.gelu(x)


class MultiHeadAttention(Module):
    """whisper.model.MultiHeadAttention: heads of n_state / n_head, no bias on the keys."""

    def __init__(self, n_state: int, n_head: int, dtype: DType, device: DeviceRef):
        super().__init__()
        self.n_head = n_head
        self.query = Linear(n_state, n_state, dtype, device, has_bias=True)
        self.key = Linear(n_state, n_state, dtype, device, has_bias=False)
        self.value = Linear(n_state, n_state, dtype, device, has_bias=True)
        self.out = Linear(n_state, n_state, dtype, device, has_bias=True)

    def __call__(self, x: TensorValue) -> TensorValue:
        """Self-attention over all positions: (batch, positions, n_state) to the same."""
        return self.out(attend(self.query(x), self.key(x), self.value(x), self.n_head))


def attend(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v: (batch, positions, n_state) each, and so the result."""
    q, k, v = (split_heads(x, n_head) for x in (query, key, value))
    head_size = int(query.shape[-1]) // n_head
    # in this order the graph compiler finds its fused attention
    scores = (q @ k.transpose(2, 3)) * (head_size**-0.5)
    mixed = ops.softmax(scores) @ v
    return ops.reshape(mixed.transpose(1, 2), query.shape)


def split_heads(x: TensorValue, n_head: int) -> TensorValue:
    """(batch, positions, n_state) to (batch, heads, positions, head size)."""
    batch, positions, n_state = x.shape
    return ops.reshape(x, (batch, positions, n_head, int(n_state) // n_head)).transpose(1, 2)


class ResidualAttentionBlock(Module):
    """whisper.model.ResidualAttentionBlock, with cross-attention if it is the decoder's."""

    def __init__(self, n_state: int, n_head: int, dtype: DType, device: DeviceRef, *, cross: bool = False):
        super().__init__()
        self.attn = MultiHeadAttention(n_state, n_head, dtype, device)
        self.attn_ln = LayerNorm(n_state, [device], dtype)
        if cross:
            self.cross_attn = MultiHeadAttention(n_state, n_head, dtype, device)
            self.cross_attn_ln = LayerNorm(n_state, [device], dtype)
        self.mlp = Sequential(
            [
                Linear(n_state, 4 * n_state, dtype, device, has_bias=True),
                Gelu(),
                Linear(4 * n_state, n_state, dtype, device, has_bias=True),
            ]
        )
        self.mlp_ln = LayerNorm(n_state, [device], dtype)

    def __call__(self, x: TensorValue) -> TensorValue:
        """The encoder's block: (batch, positions, n_state) to the same."""
        x = x + self.attn(self.attn_ln(x))
        return x + self.mlp(self.mlp_ln(x))


class AudioEncoder(Module):
    """whisper.model.AudioEncoder: log-mel (batch, n_mels, 2 n_ctx) to (batch, n_ctx, n_state)."""

    def __init__(self, dims: Any, dtype: DType, device: DeviceRef):
        super().__init__()
        n_state = dims.n_audio_state
        conv = {"kernel_size": 3, "padding": 1, "has_bias": True, "permute": True}
        self.conv1 = Conv1D(in_channels=dims.n_mels, out_channels=n_state, dtype=dtype, device=device, **conv)
        self.conv2 = Conv1D(
            in_channels=n_state, out_channels=n_state, stride=2, dtype=dtype, device=device, **conv
        )
        self.positional_embedding = Weight(
            "positional_embedding", dtype, (dims.n_audio_ctx, n_state), device=device
        )
        self.blocks = LayerList(
            [
                ResidualAttentionBlock(n_state, dims.n_audio_head, dtype, device)
                for _ in range(dims.n_audio_layer)
            ]
        )
        self.ln_post = LayerNorm(n_state, [device], dtype)

    def __call__(self, mel: TensorValue) -> TensorValue:
        return list(self.layers(mel))[-1][1]

    def layers(self, mel: TensorValue) -> Iterator[tuple[str, TensorValue]]:
        """Each layer's name, as in backends.encoder_trace, and output; the last is the encoder's.

        The convolutions' outputs are (batch, n_state, positions), all others (batch, positions, n_state).
        """
        x = ops.gelu(self.conv1(mel))
        yield "conv1", x
        x = ops.gelu(self.conv2(x))
        yield "conv2", x
        x = x.transpose(1, 2) + self.positional_embedding
        # one subgraph for all blocks: its code is compiled once
        block = self.blocks[0].build_subgraph("encoder_block", [x], weight_prefix="encoder.blocks.0.")
        for index in range(len(self.blocks)):
            x = ops.call(block, x, prefix=f"encoder.blocks.{index}.")[0].tensor
            yield f"block.{index}", x
        yield "ln_post", self.ln_post(x)


class TextDecoder(Module):
    """whisper.model.TextDecoder: its weights; backends.max_graph.decoder says how they are used."""

    def __init__(self, dims: Any, dtype: DType, device: DeviceRef):
        super().__init__()
        n_state = dims.n_text_state
        self.token_embedding = Embedding(dims.n_vocab, n_state, dtype, device)
        self.positional_embedding = Weight(
            "positional_embedding", dtype, (dims.n_text_ctx, n_state), device=device
        )
        self.blocks = LayerList(
            [
                ResidualAttentionBlock(n_state, dims.n_text_head, dtype, device, cross=True)
                for _ in range(dims.n_text_layer)
            ]
        )
        self.ln = LayerNorm(n_state, [device], dtype)

    def __call__(self, features: TensorValue) -> list[tuple[TensorValue, TensorValue]]:
        """Keys and values of each layer's cross-attention, of the encoder's output and shaped as it is."""
        return [(block.cross_attn.key(features), block.cross_attn.value(features)) for block in self.blocks]


class Whisper(Module):
    """whisper.model.Whisper: one strict `load_state_dict` for all graphs made of it."""

    def __init__(self, dims: Any, dtype: DType, device: DeviceRef):
        super().__init__()
        self.dims = dims
        self.encoder = AudioEncoder(dims, dtype, device)
        self.decoder = TextDecoder(dims, dtype, device)

    def __call__(self, mel: TensorValue) -> TensorValue:
        """The encoder alone."""
        return self.encoder(mel)
