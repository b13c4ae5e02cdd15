"""Whisper as MAX Graph modules (Radford et al. 2022), with the names of whisper.model.

Because the names are the same, `load_state_dict` takes openai-whisper's state dict after `prepared` has laid
it out. It is strict: a missing, misshapen or superfluous tensor is an error that names the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, Graph, TensorValue, Weight, ops
from max.nn import LayerList, LayerNorm, Module, Sequential

from asrgate.backends.max_graph import bfloat16_ops, custom_ops, encoder_ops
from asrgate.backends.max_graph.session import restore_environment

restore_environment()  # importing max.nn sets up Mojo's Python

WHOLE = 32  # MAX's products on a GPU are fast if the length of a row is a multiple of this
PANELS, ROWS = "panels", "rows"  # layouts of a matrix on the CPU: for many rows at once, and for a few


@dataclass(frozen=True)
class Place:
    """Where and how the graphs compute.

    Attributes:
        device: the device of weights and activations.
        dtype: the type of activations, and of all weights without a type of their own below.
        encoder_dtype: the type of the encoder's factors. On the CPU, bfloat16 factors are multiplied as such
            and summed in `dtype`.
        step_dtype: the type of the matrices read at every decoding step. On the CPU they may stay in the
            checkpoint's float16: this is exact, products are summed in `dtype`, and half as much is read.
            int8 has one factor per row.
        cross_dtype: the type of the cross-attention's keys and values.
        has_kernels: whether the products are our Mojo kernels for the CPU. If they are MAX's own, as on a
            GPU, the decoder keeps its state on the device: see asrgate.backends.max_graph.device_decoder.
    """

    device: DeviceRef
    dtype: DType
    encoder_dtype: DType
    step_dtype: DType
    cross_dtype: DType
    has_kernels: bool

    @property
    def panel_ops(self) -> Any:
        """The module with our products and attention of many rows in `encoder_dtype`."""
        return bfloat16_ops if self.encoder_dtype == DType.bfloat16 else encoder_ops

    def panel_weight(self, n_out: int, n_in: int) -> Weight:
        """Return the weight of a product of many rows, laid out in panels."""
        panels, width = -(-n_out // encoder_ops.PANEL), encoder_ops.PANEL
        if self.panel_ops is bfloat16_ops:
            return Weight("weight", DType.bfloat16, (panels, n_in // 2, width, 2), device=self.device)
        return Weight("weight", self.encoder_dtype, (panels, n_in, width), device=self.device)


class Linear(Module):
    """torch.nn.Linear and the operations after it: act(x weightT + bias) + added."""

    def __init__(self, n_in: int, n_out: int, place: Place, *, bias: bool = True, layout: str = PANELS):
        super().__init__()
        self.place = place
        self.layout = layout if place.has_kernels else ROWS
        self.scale: Weight | None = None
        if self.layout == PANELS:
            self.weight = place.panel_weight(n_out, n_in)
        else:
            dtype = place.step_dtype if layout == ROWS else place.dtype
            self.weight = Weight("weight", dtype, (n_out, n_in), device=place.device)
            if dtype == DType.int8:
                self.scale = Weight("scale", DType.float32, (n_out,), device=place.device)
        self.bias = Weight("bias", place.dtype, (n_out,), device=place.device) if bias else None

    def __call__(
        self, x: TensorValue, *, gelu: bool = False, added: TensorValue | None = None
    ) -> TensorValue:
        """(rows, n_in) to (rows, n_out)."""
        if self.layout == PANELS:
            return self.place.panel_ops.product(x, self.weight, bias=self.bias, added=added, gelu=gelu)
        if self.place.has_kernels:
            return custom_ops.linear(x, self.weight, scale=self.scale, bias=self.bias, added=added, gelu=gelu)
        y = x @ self.weight.transpose(0, 1)
        if self.bias is not None:
            y = y + self.bias
        if gelu:
            y = ops.gelu(y)  # exact, not the tanh approximation
        return y if added is None else y + added


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
        """(1, n_state) to float32 (n_vocab,)."""
        if self.place.has_kernels:
            y = custom_ops.linear(x, self.weight, scale=self.scale)
        else:
            y = ops.cast(x @ self.weight.transpose(0, 1), DType.float32)
        return ops.reshape(y, (self.weight.shape[0],))


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

    def __call__(self, x: TensorValue) -> TensorValue:
        edge = ops.constant(np.zeros((1, self.n_in), np.float32), DType.float32, self.place.device)
        edge = ops.cast(edge, self.place.dtype)
        rows = x.shape[0] // self.stride
        padded = ops.concat([edge, x, edge], axis=0)
        if self.place.has_kernels:
            return self.place.panel_ops.product(
                padded, self.weight, rows=rows, step=self.stride * self.n_in, bias=self.bias, gelu=True
            )
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
        source: str = PANELS,
        fused: bool = False,
    ):
        super().__init__()
        self.n_head, self.place = n_head, place
        if fused:
            self.qkv = Linear(n_state, 3 * n_state, place, layout=layout)
        else:
            self.query = Linear(n_state, n_state, place, layout=layout)
            self.key = Linear(n_state, n_state, place, bias=False, layout=source)
            self.value = Linear(n_state, n_state, place, layout=source)
        self.out = Linear(n_state, n_state, place, layout=layout)

    def __call__(self, x: TensorValue, added: TensorValue) -> TensorValue:
        """Self-attention over all positions, plus the residual: (positions, n_state) each."""
        q, k, v = self.query(x), self.key(x), self.value(x)
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
            return LayerNorm(n_state, [place.device], place.dtype)

        fused = cross and not place.has_kernels
        self.attn = MultiHeadAttention(n_state, n_head, place, layout=layout, source=layout, fused=fused)
        self.attn_ln = norm()
        if cross:
            self.cross_attn = MultiHeadAttention(n_state, n_head, place, layout=ROWS, source=PANELS)
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
        return self.feed_forward(self.attn(self.attn_ln(x), x))

    def feed_forward(self, x: TensorValue) -> TensorValue:
        """The block's second half: x + mlp(mlp_ln(x))."""
        first, _, second = self.mlp.layers
        return second(first(self.mlp_ln(x), gelu=True), added=x)


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
        self.ln_post = LayerNorm(n_state, [place.device], place.dtype)

    def __call__(self, mel: TensorValue) -> TensorValue:
        return list(self.layers(mel))[-1][1]

    def layers(self, mel: TensorValue) -> Iterator[tuple[str, TensorValue]]:
        """Yield each layer's name, as in inspection.encoder_trace, and its output (positions, n_state)."""
        x = self.conv1(mel.transpose(0, 1))
        yield "conv1", x
        x = self.conv2(x)
        yield "conv2", x
        positions: TensorValue | Weight = self.positional_embedding
        if x.shape[0] != positions.shape[0]:
            rows = ops.shape_to_tensor(x.shape)[0]
            positions = ops.slice_tensor(positions, [(slice(0, rows), x.shape[0]), slice(None)])
        x = x + positions
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
        self.ln = LayerNorm(n_state, [place.device], place.dtype)

    def __call__(self, features: TensorValue) -> list[tuple[TensorValue, TensorValue]]:
        """Return keys and values of each layer's cross-attention, in the shape of the encoder's output."""
        return [(block.cross_attn.key(features), block.cross_attn.value(features)) for block in self.blocks]


class Whisper(Module):
    """whisper.model.Whisper, with one strict `load_state_dict` for all its graphs."""

    def __init__(self, dims: Any, place: Place):
        super().__init__()
        self.dims, self.place = dims, place
        self.encoder = AudioEncoder(dims, place)
        self.decoder = TextDecoder(dims, place)
        self._weights = self.raw_state_dict()
        for name, weight in self._weights.items():
            weight.name = name

    def __call__(self, mel: TensorValue) -> TensorValue:
        """The encoder alone."""
        return self.encoder(mel)

    def prepared(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's tensors (torch, on the CPU) in the types and layouts of the weights.

        A tensor whose name no weight has is returned unchanged, so that `load_state_dict` names it.
        """
        import torch

        tensors = dict(state_dict)
        for name in self._weights:
            attention, fused, kind = name.rpartition(".qkv.")
            query, key, value = (f"{attention}.{part}.{kind}" for part in ("query", "key", "value"))
            if fused and query in tensors and value in tensors and (key in tensors or kind == "bias"):
                rows = [tensors.pop(query), tensors.pop(key, None), tensors.pop(value)]
                tensors[name] = torch.cat([torch.zeros_like(rows[0]) if x is None else x for x in rows])
        return {
            name: prepared
            for whole_name, tensor in tensors.items()
            for name, prepared in self._prepared(whole_name, tensor).items()
        }

    def _prepared(self, name: str, tensor: Any) -> dict[str, Any]:
        """Return one tensor laid out; an int8 matrix comes with a second tensor, one factor per row."""
        import torch

        weight = self._weights.get(name)
        if weight is None:
            return {name: tensor}
        if tensor.ndim == 3 and not self.place.has_kernels:
            taps = tensor.transpose(1, 2).flatten(1)  # side by side
            tensor = torch.nn.functional.pad(taps, (0, int(weight.shape[1]) - taps.shape[1]))
        elif len(weight.shape) > tensor.ndim or tensor.ndim == 3:
            values = tensor.float().numpy()
            if weight.dtype == DType.bfloat16:
                pairs = torch.from_numpy(bfloat16_ops.pairs(values).view(np.int16))
                return {name: pairs.view(torch.bfloat16)}
            return {name: torch.from_numpy(encoder_ops.panels(values))}
        if weight.dtype == DType.int8:
            values, scale = custom_ops.quantize_rows(tensor.float().numpy())
            scale_name = name.removesuffix("weight") + "scale"
            return {name: torch.from_numpy(values), scale_name: torch.from_numpy(scale)}
        return {name: tensor.to(getattr(torch, weight.dtype.name)).contiguous()}
