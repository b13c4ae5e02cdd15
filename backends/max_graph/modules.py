"""Whisper as MAX Graph modules (Radford et al. 2022), with the names of whisper.model.

Only a compilation needs this module. What is compiled takes openai-whisper's state dict, laid out by
asrgate.backends.max_graph.weights, because the names are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import Graph, TensorValue, Weight, ops

from asrgate.backends.max_graph import custom_ops, encoder_ops, int8_ops
from asrgate.backends.max_graph.place import Place
from asrgate.backends.max_graph.session import import_max_nn
from asrgate.backends.max_graph.weights import Kinds

import_max_nn()
from max.nn import LayerList, Module, Sequential  # noqa: E402
from max.nn import LayerNorm as PlainNorm  # noqa: E402

WHOLE = 32  # MAX's products on a GPU are fast if the length of a row is a multiple of this
PANELS, ROWS = "panels", "rows"  # layouts of a matrix on the CPU: for many rows at once, and for a few


class Linear(Module):
    """torch.nn.Linear and the operations after it: act(x weightT + bias) + added."""

    def __init__(
        self,
        n_in: int,
        n_out: int,
        place: Place,
        *,
        bias: bool = True,
        layout: str = PANELS,
        may_be_int8: bool = True,
    ):
        super().__init__()
        self.place = place
        self.layout = layout if place.has_kernels else ROWS
        self.scale: Weight | None = None
        if self.layout == PANELS:
            int8 = place.multiplies_int8 and may_be_int8
            self.weight = place.panel_weight(n_out, n_in, int8=int8)
            if int8:
                rows = int(self.weight.shape[0]) * encoder_ops.PANEL
                self.scale = Weight("scale", DType.float32, (rows,), device=place.device)
        else:
            dtype = place.step_dtype if layout == ROWS else place.dtype
            self.weight = Weight("weight", dtype, (n_out, n_in), device=place.device)
            if dtype == DType.int8:
                self.scale = Weight("scale", DType.float32, (n_out,), device=place.device)
        self.bias = Weight("bias", place.dtype, (n_out,), device=place.device) if bias else None

    def __call__(
        self,
        x: TensorValue,
        *,
        gelu: bool = False,
        added: TensorValue | None = None,
        narrow: bool = False,
    ) -> TensorValue:
        """(rows, n_in) to (rows, n_out).

        `narrow` says that only factors are made of the result, so that it may have their type at once.
        """
        if self.layout == PANELS:
            out_dtype = self.place.encoder_dtype if narrow else self.place.dtype
            product, factors = self.place.panel_ops.product, [x, self.weight]
            if self.scale is not None:
                product, factors = int8_ops.product, [x, self.weight, self.scale]
            return product(*factors, bias=self.bias, added=added, gelu=gelu, out_dtype=out_dtype)
        if self.place.has_kernels:
            return custom_ops.linear(x, self.weight, scale=self.scale, bias=self.bias, added=added, gelu=gelu)
        y = x @ self.weight.transpose(0, 1)
        if self.bias is not None:
            y = y + self.bias
        if gelu:
            y = ops.gelu(y)  # exact, not the tanh approximation
        return y if added is None else y + added


class LayerNorm(PlainNorm):
    """torch.nn.LayerNorm over the last dimension."""

    def __init__(self, n_state: int, place: Place):
        super().__init__(n_state, [place.device], place.dtype)
        self.place = place

    def __call__(self, x: TensorValue, *, narrow: bool = False) -> TensorValue:
        """(rows, n_state) to the same; for `narrow`, see Linear."""
        if self.place.has_kernels:
            dtype = self.place.encoder_dtype if narrow else self.place.dtype
            return custom_ops.layer_norm(x, self.weight, self.bias, dtype)
        return super().__call__(x)


class TokenEmbedding(Module):
    """torch.nn.Embedding, whose matrix also computes the logits."""

    def __init__(self, n_vocab: int, n_state: int, place: Place):
        super().__init__()
        self.place = place
        self.weight = Weight("weight", place.step_dtype, (n_vocab, n_state), device=place.device)
        self.scale: Weight | None = None
        if place.step_dtype == DType.int8:
            self.scale = Weight("scale", DType.float32, (n_vocab,), device=place.device)

    def __call__(self, token: TensorValue) -> TensorValue:
        """int64 (1,) to (1, n_state)."""
        x = ops.cast(ops.gather(self.weight, token, axis=0), self.place.dtype)
        return x if self.scale is None else x * ops.reshape(ops.gather(self.scale, token, axis=0), (1, 1))

    def logits(self, x: TensorValue) -> TensorValue:
        """(rows, n_state) to float32 (rows, n_vocab)."""
        if self.place.has_kernels:
            return custom_ops.linear(x, self.weight, scale=self.scale)
        return ops.cast(x @ self.weight.transpose(0, 1), DType.float32)


class Conv1d(Module):
    """torch.nn.Conv1d of width 3 with a padding of 1, and a GELU: (2 n, in) or (n, in) to (n, out)."""

    def __init__(self, n_in: int, n_out: int, stride: int, place: Place):
        super().__init__()
        self.place, self.n_in, self.stride = place, n_in, stride
        if place.has_kernels:
            self.weight = place.panel_weight(n_out, 3 * n_in)
        else:
            self.filled = -(-3 * n_in // WHOLE) * WHOLE
            self.weight = Weight("weight", place.dtype, (n_out, self.filled), device=place.device)
        self.bias = Weight("bias", place.dtype, (n_out,), device=place.device)

    def __call__(self, x: TensorValue, *, turned: bool = False) -> TensorValue:
        """Convolve x, or x turned by 90 degrees."""
        rows = x.shape[1 if turned else 0] // self.stride
        if self.place.has_kernels:
            return self.place.panel_ops.product(
                encoder_ops.padded(x, turned=turned),
                self.weight,
                rows=rows,
                step=self.stride * self.n_in,
                bias=self.bias,
                gelu=True,
            )
        x = x.transpose(0, 1) if turned else x
        edge = ops.constant(np.zeros((1, self.n_in), np.float32), DType.float32, self.place.device)
        edge = ops.cast(edge, self.place.dtype)
        padded = ops.concat([edge, x, edge], axis=0)
        # a product over the taps side by side, which avoids the layouts of MAX's convolution
        taps = [padded[tap : tap + int(rows) * self.stride : self.stride] for tap in range(3)]
        if self.filled > 3 * self.n_in:
            zeros = np.zeros((int(rows), self.filled - 3 * self.n_in), np.float32)
            zeros = ops.cast(ops.constant(zeros, DType.float32, self.place.device), self.place.dtype)
            taps.append(zeros)
        return ops.gelu(ops.concat(taps, axis=1) @ self.weight.transpose(0, 1) + self.bias)


class MultiHeadAttention(Module):
    """whisper.model.MultiHeadAttention: heads of size n_state / n_head; the keys have no bias."""

    def __init__(
        self,
        n_state: int,
        n_head: int,
        place: Place,
        *,
        layout: str = PANELS,
        source: str | None = PANELS,
        fused: bool = False,
    ):
        super().__init__()
        self.n_head, self.place = n_head, place
        if fused:
            self.qkv = Linear(n_state, 3 * n_state, place, layout=layout)
        else:
            self.query = Linear(n_state, n_state, place, layout=layout)
            if source is not None:
                self.key = Linear(n_state, n_state, place, bias=False, layout=source)
                self.value = Linear(n_state, n_state, place, layout=source, may_be_int8=False)
        # values and this would add most of int8's error and save least of its time: see docs/exactness.md
        self.out = Linear(n_state, n_state, place, layout=layout, may_be_int8=False)

    def __call__(self, x: TensorValue, added: TensorValue) -> TensorValue:
        """Self-attention over all positions, plus the residual: (positions, n_state) each."""
        q, k, v = (part(x, narrow=True) for part in (self.query, self.key, self.value))
        if self.place.has_kernels:
            mixed = self.place.panel_ops.attention(q, k, v, self.n_head)
        elif x.device.is_cpu() or x.dtype == DType.float16:
            mixed = plain_attention(q, k, v, self.n_head)  # MAX 26.7's flash attention has no float16
        else:
            mixed = flash_attention(q, k, v, self.n_head)
        return self.out(mixed, added=added)


def plain_attention(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """softmax(q kT / sqrt(head size)) v in MAX's own operations: (positions, n_state) each."""
    size = int(query.shape[1]) // n_head
    q, k, v = (split_heads(x, n_head) for x in (query * size**-0.5, key, value))
    return ops.reshape((ops.softmax(q @ k.transpose(1, 2)) @ v).transpose(0, 1), query.shape)


def flash_attention(query: TensorValue, key: TensorValue, value: TensorValue, n_head: int) -> TensorValue:
    """plain_attention in MAX's kernel for GPUs."""
    from max.nn.attention import MHAMaskVariant
    from max.nn.kernels import flash_attention_gpu

    size = int(query.shape[1]) // n_head
    heads = [ops.reshape(x, (1, x.shape[0], n_head, size)) for x in (query, key, value)]
    mixed = flash_attention_gpu(*heads, mask_variant=MHAMaskVariant.NULL_MASK, scale=size**-0.5)
    return ops.reshape(mixed, query.shape)


def split_heads(x: TensorValue, n_head: int) -> TensorValue:
    """(positions, n_state) to (heads, positions, head size)."""
    positions, n_state = x.shape
    return ops.reshape(x, (positions, n_head, int(n_state) // n_head)).transpose(0, 1)


class Gelu(Module):
    """Stands for the activation in `mlp`; the product before it applies it."""

    def __call__(self, x: TensorValue) -> TensorValue:
        return x


class ResidualAttentionBlock(Module):
    """whisper.model.ResidualAttentionBlock; the decoder's has cross-attention, and is read step by step."""

    def __init__(self, n_state: int, n_head: int, place: Place, *, cross: bool = False):
        super().__init__()
        layout = ROWS if cross else PANELS

        def norm() -> LayerNorm:
            return LayerNorm(n_state, place)

        self.attn = MultiHeadAttention(n_state, n_head, place, layout=layout, fused=cross)
        self.attn_ln = norm()
        if cross:
            # the CPU's graphs compute the keys and values of all layers at once: see TextDecoder.cross
            source = None if place.has_kernels else PANELS
            self.cross_attn = MultiHeadAttention(n_state, n_head, place, layout=ROWS, source=source)
            self.cross_attn_ln = norm()
        self.mlp = Sequential(
            [
                Linear(n_state, 4 * n_state, place, layout=layout),
                Gelu(),
                Linear(4 * n_state, n_state, place, layout=layout),
            ]
        )
        self.mlp_ln = norm()

    def __call__(self, x: TensorValue) -> TensorValue:
        """The encoder's block: (positions, n_state) to the same."""
        return self.feed_forward(self.attn(self.attn_ln(x, narrow=True), x))

    def feed_forward(self, x: TensorValue) -> TensorValue:
        """The block's second half: x + mlp(mlp_ln(x))."""
        first, _, second = self.mlp.layers
        narrow = first.layout == PANELS
        return second(first(self.mlp_ln(x, narrow=narrow), gelu=True, narrow=narrow), added=x)


class AudioEncoder(Module):
    """whisper.model.AudioEncoder: log-mel (n_mels, 2 n) to (n, n_state), n at most n_audio_ctx.

    On the CPU, n may be a dimension that is unknown until the graph runs.
    """

    def __init__(self, dims: Any, place: Place):
        super().__init__()
        n_state = dims.n_audio_state
        self.conv1 = Conv1d(dims.n_mels, n_state, 1, place)
        self.conv2 = Conv1d(n_state, n_state, 2, place)
        self.positional_embedding = Weight(
            "positional_embedding", place.dtype, (dims.n_audio_ctx, n_state), device=place.device
        )
        self.blocks = LayerList(
            [ResidualAttentionBlock(n_state, dims.n_audio_head, place) for _ in range(dims.n_audio_layer)]
        )
        self.ln_post = LayerNorm(n_state, place)

    def __call__(self, mel: TensorValue) -> TensorValue:
        return list(self.layers(mel))[-1][1]

    def layers(self, mel: TensorValue) -> Iterator[tuple[str, TensorValue]]:
        """Yield each layer's name, as in inspection.encoder_trace, and its output (positions, n_state)."""
        x = self.conv1(mel, turned=True)
        yield "conv1", x
        x = self.conv2(x)
        yield "conv2", x
        if self.conv1.place.has_kernels:
            x = encoder_ops.sum_of_rows(x, self.positional_embedding)
        else:
            x = x + self.positional_embedding
        for index, block in enumerate(self.blocks):
            x = self._through(block, index, x)
            yield f"block.{index}", x
        yield "ln_post", self.ln_post(x)

    def _through(self, block: ResidualAttentionBlock, index: int, x: TensorValue) -> TensorValue:
        if self.conv1.place.has_kernels:
            # MAX 26.7's build_subgraph cannot name custom_extensions; a kernel is compiled only once anyway
            return block(x)
        if index == 0:  # one subgraph for all blocks, so that they are compiled once
            name = f"{Graph.current.name}_block"  # a name must be unique in a module of graphs
            self._subgraph = block.build_subgraph(name, [x], weight_prefix="encoder.blocks.0.")
        return ops.call(self._subgraph, x, prefix=f"encoder.blocks.{index}.")[0].tensor


class TextDecoder(Module):
    """The weights of whisper.model.TextDecoder, which asrgate.backends.max_graph.decoder uses."""

    def __init__(self, dims: Any, place: Place):
        super().__init__()
        n_state = dims.n_text_state
        self.n_state = n_state
        self.cross: Linear | None = None
        if place.has_kernels:
            self.cross = Linear(dims.n_audio_state, 2 * dims.n_text_layer * n_state, place, may_be_int8=False)
        self.token_embedding = TokenEmbedding(dims.n_vocab, n_state, place)
        self.positional_embedding = Weight(
            "positional_embedding", place.dtype, (dims.n_text_ctx, n_state), device=place.device
        )
        self.blocks = LayerList(
            [
                ResidualAttentionBlock(n_state, dims.n_text_head, place, cross=True)
                for _ in range(dims.n_text_layer)
            ]
        )
        self.ln = LayerNorm(n_state, place)

    def __call__(self, features: TensorValue) -> list[tuple[TensorValue, TensorValue]]:
        """Return keys and values of each layer's cross-attention, in the shape of the encoder's output."""
        if self.cross is not None:
            x, n = self.cross(features), self.n_state
            parts = [x[:, i * n : (i + 1) * n] for i in range(2 * len(self.blocks))]
            return list(zip(parts[::2], parts[1::2], strict=True))
        return [(block.cross_attn.key(features), block.cross_attn.value(features)) for block in self.blocks]


class Whisper(Module):
    """whisper.model.Whisper, whose weights have its names."""

    def __init__(self, dims: Any, place: Place):
        super().__init__()
        self.dims, self.place = dims, place
        self.encoder = AudioEncoder(dims, place)
        self.decoder = TextDecoder(dims, place)
        for name, weight in self.raw_state_dict().items():
            weight.name = name

    def __call__(self, mel: TensorValue) -> TensorValue:
        """The encoder alone."""
        return self.encoder(mel)

    def kinds(self) -> Kinds:
        """The tensors that the graphs take: see asrgate.backends.max_graph.weights."""
        return {
            name: (weight.dtype.name, tuple(int(n) for n in weight.shape))
            for name, weight in self.raw_state_dict().items()
        }
