"""Whisper's whole greedy decoding loop as one MAX graph on the CPU: from cross-attention K/V to tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.graph import BufferType, DeviceRef, TensorType, TensorValue, ops

from asrgate.backends.base import BackendError
from asrgate.backends.max_graph import custom_ops
from asrgate.backends.max_graph.place import Place
from asrgate.backends.whisper_common.beams import BeamSearch
from asrgate.backends.whisper_common.greedy import Window, WindowRules

if TYPE_CHECKING:
    from asrgate.backends.max_graph.modules import MultiHeadAttention, TextDecoder


class WindowState(NamedTuple):
    """The state of a window that is being decoded, in the order of the int64 (8,) that the kernels take."""

    position: int  # of the next token to feed
    token: int  # the next token to feed
    written: int  # the number of tokens sampled so far
    last_is_stamp: int  # 1 if the last sampled token is a timestamp, else 0
    before_is_stamp: int  # the same for the token before it; 1 if there is none
    stamp: int  # the last sampled timestamp; before the first one, one less than the lowest
    done: int  # 0 or 1
    failed: int  # 1 if it is done because no token was allowed, or the logits were not numbers


def logits(
    decoder: TextDecoder,
    x: TensorValue,
    self_attention: Callable[[MultiHeadAttention, TensorValue, int], TensorValue],
    cross_attention: Callable[[TensorValue, int], TensorValue],
) -> TensorValue:
    """whisper.model.TextDecoder at one position.

    Args:
        decoder: the layers.
        x: the first layer's input, (windows, n_state).
        self_attention: called with the layer's attention, its normalised input and the layer's number;
            returns the values weighted by attention.
        cross_attention: called with the query and the layer's number; returns the same.

    Returns:
        (windows, n_vocab).
    """
    for index, block in enumerate(decoder.blocks):
        x = block.attn.out(self_attention(block.attn, block.attn_ln(x), index), added=x)
        query = block.cross_attn.query(block.cross_attn_ln(x))
        x = block.feed_forward(block.cross_attn.out(cross_attention(query, index), added=x))
    return decoder.token_embedding.logits(decoder.ln(x))


# the first dimension of what each window has, in the graph that takes several; of the audio, which may be the
# same for all; and how many tokens to choose from
WINDOWS, HEARD, CANDIDATES = "windows", "heard", "candidates"


def new_buffer(kind: TensorType | BufferType, driver: Any) -> Buffer:
    """Allocate memory for a graph's input, uninitialised, for one window that is decoded greedily."""
    named = WINDOWS, HEARD, CANDIDATES
    return Buffer(kind.dtype, [1 if n in named else int(n) for n in kind.shape], device=driver)


def window_types(dims: Any, place: Place) -> list:
    """The types of a window's inputs of both loops, in order.

    They are the audio's keys and values, (layers, heads, n_audio_ctx, head size); the cache for those of the
    text, (layers, 2, n_text_ctx, n_state); masks, which all windows share; and five that device_ops.choose
    describes. On the CPU all but the masks have a first dimension of windows, and there are the candidates of
    custom_ops.select.
    """
    device = place.device
    many, heard = ((WINDOWS,), (HEARD,)) if place.has_kernels else ((), ())
    candidates = [
        BufferType(dtype, (WINDOWS, CANDIDATES), device=device) for dtype in (DType.int64, DType.float32)
    ]
    size = dims.n_text_state // dims.n_text_head
    cross = (*heard, dims.n_text_layer, dims.n_text_head, dims.n_audio_ctx, size)
    text = (*many, dims.n_text_layer, 2, dims.n_text_ctx, dims.n_text_state)
    return [
        TensorType(place.cross_dtype, cross, device=device),
        TensorType(place.cross_dtype, cross, device=device),
        BufferType(place.dtype, text, device=device),
        TensorType(DType.float32, (2, dims.n_vocab), device=device),
        BufferType(DType.int64, (*many, 8), device=device),
        BufferType(DType.float32, (*many, 2), device=device),
        BufferType(DType.int64, (*many, dims.n_text_ctx), device=device),
        TensorType(DType.int64, (*many, dims.n_text_ctx), device=device),
        TensorType(DType.int64, (*many, 8), device=device),
        *(candidates if place.has_kernels else ()),
    ]


def greedy(decoder: TextDecoder, dims: Any) -> Callable[..., Any]:
    """Return the graph's function, whose inputs `window_types` describes: it decodes windows together.

    Every step feeds each state's token, samples the next one and advances the state. The graph ends when half
    of the windows are done, so that those that are not can be decoded without them. With several candidates
    it selects them once, after the prompt, and ends. It returns a bool, false, only because it must have an
    output.
    """

    def forward(*inputs: Any) -> TensorValue:
        cross_key, cross_value, cache, masks, state, sums, sampled, prompt, numbers, *ranked = inputs
        cache, state = cache.buffer, state.buffer
        candidates, chances = (x.buffer for x in ranked)
        window = [state, sums.buffer, sampled.buffer, prompt.tensor, numbers.tensor]

        def self_attention(attn: MultiHeadAttention, x: TensorValue, layer: int) -> TensorValue:
            return custom_ops.self_attention(attn.qkv(x), state, cache, layer, dims.n_text_head)

        def cross_attention(query: TensorValue, layer: int) -> TensorValue:
            return custom_ops.cross_attention(query, cross_key.tensor, cross_value.tensor, state, layer)

        def step(running: TensorValue) -> TensorValue:
            embedding = decoder.token_embedding
            x = custom_ops.embedded(embedding.weight, embedding.scale, decoder.positional_embedding, state)
            step_logits = logits(decoder, x, self_attention, cross_attention)
            rules = custom_ops.rules(window, dims.n_vocab)
            selected = custom_ops.select(step_logits, masks.tensor, rules, candidates, chances)
            return custom_ops.advance(window, candidates, *selected)

        begins = ops.constant(True, DType.bool, device=DeviceRef.CPU())
        return ops.while_loop([begins], lambda running: running, lambda running: [step(running)])[0]

    return forward


class Loop:
    """The buffers of one window after another, which a subclass decodes with `_run`."""

    how: str

    def __init__(self, dims: Any, place: Place, driver: Any):
        """Allocate the buffers.

        Args:
            dims: a whisper.model.ModelDimensions.
            place: where and how the graph computes.
            driver: the max.driver.Device of `place`.
        """
        self._n_text_ctx, self._driver = dims.n_text_ctx, driver
        self._buffers = [new_buffer(kind, driver) for kind in window_types(dims, place)]
        self._state, self._sums, self._sampled, self._prompt, self._numbers = self._buffers[4:9]

    def decode(self, cross_key: Any, cross_value: Any, masks: Any, rules: WindowRules) -> Window:
        """Decode one window.

        Args:
            cross_key, cross_value, masks: buffers of the types that `window_types` gives.
            rules: what may be sampled.

        Raises:
            BackendError: no token was allowed, or the logits were not numbers.
        """
        start = first_state(rules)
        self._fill(
            (self._state, start),
            (self._sums, [0, 0]),
            (self._prompt, padded_prompt(rules)),
            (self._numbers, rule_numbers(rules)),
        )
        state = self._run(cross_key, cross_value, masks, len(rules.prompt))
        if state.failed:
            raise BackendError("no token is allowed, or the logits are not numbers")
        sum_logprob, no_speech = self._read(self._sums).tolist()
        return Window(self._read(self._sampled)[: state.written].tolist(), sum_logprob, no_speech)

    def decode_batch(self, keys: Any, values: Any, masks: Any, rules: WindowRules) -> list[Window]:
        """Decode several windows, one after another.

        Args:
            keys, values: torch.Tensor (windows, layers, heads, n_audio_ctx, head size). They may be changed.
            masks: a buffer, as in `decode`.
            rules: what may be sampled; the same for all windows.

        Raises:
            BackendError: no token was allowed, or the logits were not numbers.
        """
        pairs = zip(map(Buffer.from_dlpack, keys), map(Buffer.from_dlpack, values), strict=True)
        return [self.decode(key, value, masks, rules) for key, value in pairs]

    def _run(self, cross_key: Any, cross_value: Any, masks: Any, n_prompt: int) -> WindowState:
        """Decode until the window is done."""
        raise NotImplementedError

    def _fill(self, *pairs: tuple[Buffer, Any]) -> None:
        sources = [
            Buffer.from_numpy(np.array(values, kind.dtype.to_numpy()).reshape(kind.shape))
            for kind, values in pairs
        ]
        for (target, _), source in zip(pairs, sources, strict=True):
            target.inplace_copy_from(source)
        # MAX 26.7 copies while Python goes on; a source could be freed, or a step begin, before it is done
        self._driver.synchronize()

    @staticmethod
    def _read(buffer: Any) -> np.ndarray:
        return buffer.to(CPU()).to_numpy().reshape(-1)


class GraphLoop(Loop):
    """Runs `greedy` on one window after another, on several at once, or on the beams of one."""

    how = "in the graph; with beams, a step at a time"

    def __init__(self, models: Mapping[str, Any], dims: Any, place: Place, driver: Any):
        """See Loop; `models` are the compiled graphs by name."""
        super().__init__(dims, place, driver)
        self._model = models["greedy"]
        self._beam_caches: Any = None

    def decode(self, cross_key: Any, cross_value: Any, masks: Any, rules: WindowRules) -> Window:
        """See Loop; with the beams that the rules ask for."""
        if rules.beam_size == 1:
            return super().decode(cross_key, cross_value, masks, rules)
        import torch

        search = BeamSearch(rules)
        width = search.width
        if self._beam_caches is None or len(self._beam_caches) != width:
            self._beam_caches = torch.empty(width, *self._buffers[2].shape[1:])
        rows = _Rows.of(rules, width, candidates=width + 1)
        heard = [x.view(x.dtype, [1, *x.shape]) for x in (cross_key, cross_value)]

        def step(count: int) -> list[int]:
            given = [self._beam_caches[:count], *(x[:count] for x in rows)]
            cache, *others = map(Buffer.from_dlpack, given)
            self._model.execute(*heard, cache, masks, *others)
            tokens, chances = (x[:count].expand(width, -1) for x in (rows.candidates, rows.chances))
            return search.take(tokens.tolist(), chances.numpy())

        step(1)  # the prompt, and the first token, before which all beams are alike
        no_speech_prob = float(rows.sums[0, 1])
        length = len(rules.prompt)
        self._beam_caches[1:, :, :, :length] = self._beam_caches[:1, :, :, :length]
        for _ in range(1, rules.most_tokens):
            if search.ended():
                break
            rows.state.copy_(torch.tensor([state_after(text, rules) for text in search.texts]))
            continued = step(width)
            length += 1
            moved = [beam for beam, source in enumerate(continued) if beam != source]
            if moved:
                so_far = self._beam_caches[:, :, :, :length]
                so_far[moved] = so_far[[continued[beam] for beam in moved]]
        return search.window(no_speech_prob)

    def _run(self, cross_key: Any, cross_value: Any, masks: Any, n_prompt: int) -> WindowState:
        keys, values = (x.view(x.dtype, [1, *x.shape]) for x in (cross_key, cross_value))
        self._model.execute(keys, values, self._buffers[2], masks, *self._buffers[4:])
        return WindowState(*self._read(self._state).tolist())

    def decode_batch(self, keys: Any, values: Any, masks: Any, rules: WindowRules) -> list[Window]:
        """See Loop: together, unless with beams. Those done drop out when they are half of those left."""
        if rules.beam_size > 1:
            return super().decode_batch(keys, values, masks, rules)
        import torch

        count = len(keys)
        caches = torch.empty(count, *self._buffers[2].shape[1:])
        each = _Rows.of(rules, count, candidates=1)
        moving = [keys, values, caches, each.state, each.sums, each.sampled]
        found: dict[int, Window] = {}
        rows = list(range(count))  # the window in each row
        while rows:
            given = [x[: len(rows)] for x in (keys, values, caches, *each)]
            buffers = [Buffer.from_dlpack(x) for x in given]
            self._model.execute(*buffers[:3], masks, *buffers[3:])
            states = [WindowState(*row) for row in given[3].tolist()]
            for row, now in enumerate(states):
                if now.done:
                    tokens = each.sampled[row, : now.written].tolist()
                    found[rows[row]] = Window(tokens, *each.sums[row].tolist())
            running = [row for row, now in enumerate(states) if not now.done]
            for target, source in enumerate(running):
                if target != source:
                    for tensor in moving:
                        tensor[target] = tensor[source]
            rows = [rows[row] for row in running]
        return [found[index] for index in range(count)]


class _Rows(NamedTuple):
    """What `greedy` takes for each of several rows after the masks, as torch.Tensor, in order."""

    state: Any
    sums: Any
    sampled: Any
    prompt: Any
    numbers: Any
    candidates: Any
    chances: Any

    @classmethod
    def of(cls, rules: WindowRules, count: int, candidates: int) -> _Rows:
        """Return those of windows before their first token is fed, all under the same rules."""
        import torch

        def each(values: Any) -> Any:
            return torch.from_numpy(np.tile(np.asarray(values), (count, 1)))

        return cls(
            state=each(np.array(first_state(rules))),
            sums=torch.zeros(count, 2),
            sampled=torch.zeros(count, rules.n_text_ctx, dtype=torch.int64),
            prompt=each(padded_prompt(rules)),
            numbers=each(rule_numbers(rules)),
            candidates=torch.zeros(count, candidates, dtype=torch.int64),
            chances=torch.zeros(count, candidates),
        )


def first_state(rules: WindowRules) -> WindowState:
    """Return a window's state before its first token is fed."""
    return WindowState(
        position=0,
        token=rules.prompt[0],
        written=0,
        last_is_stamp=0,
        before_is_stamp=1,
        stamp=rules.timestamp_begin - 1,
        done=0,
        failed=0,
    )


def state_after(text: Sequence[int], rules: WindowRules) -> WindowState:
    """Return a window's state before the last token of what was sampled is fed."""
    stamps = [token for token in text if token >= rules.timestamp_begin]
    return WindowState(
        position=len(rules.prompt) + len(text) - 1,
        token=text[-1],
        written=len(text),
        last_is_stamp=int(text[-1] >= rules.timestamp_begin),
        before_is_stamp=int(len(text) == 1 or text[-2] >= rules.timestamp_begin),
        stamp=stamps[-1] if stamps else rules.timestamp_begin - 1,
        done=0,
        failed=0,
    )


def padded_prompt(rules: WindowRules) -> np.ndarray:
    """Return the prompt's tokens and zeros behind them, int64 (n_text_ctx,)."""
    prompt = np.zeros(rules.n_text_ctx, np.int64)
    prompt[: len(rules.prompt)] = rules.prompt
    return prompt


def rule_numbers(rules: WindowRules) -> np.ndarray:
    """Return the numbers of device_ops.choose, int64 (8,)."""
    return np.array(
        [
            rules.sot_index,
            rules.eot,
            rules.timestamp_begin,
            rules.no_speech,
            rules.sample_limit,
            rules.timestamps,
            rules.n_text_ctx,
            len(rules.prompt),
        ],
        np.int64,
    )
