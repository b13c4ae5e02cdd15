"""One step of Whisper's greedy decoding as a MAX graph that leaves everything on the device.

A GPU replays it token after token without waiting for the host, which checks only every few steps whether
the window is done. The CPU uses asrgate.backends.max_graph.decoder instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from max.driver import CPU, Buffer
from max.dtype import DType
from max.graph import BufferType, TensorType, TensorValue, ops

from asrgate.backends.base import BackendError
from asrgate.backends.max_graph import device_ops
from asrgate.backends.max_graph.decoder import (
    cache_type,
    cross_type,
    embedded,
    logits,
    new_buffer,
    rule_numbers,
)
from asrgate.backends.max_graph.device_ops import WindowState
from asrgate.backends.max_graph.modules import Place, TextDecoder
from asrgate.backends.max_graph.session import Launch
from asrgate.backends.whisper_common.greedy import Window, WindowRules

POSITION, TOKEN = (WindowState._fields.index(name) for name in ("position", "token"))
STEPS_BETWEEN_CHECKS = 8  # whether the window is done


def step_types(dims: Any, place: Place) -> list:
    """The types of the inputs of `step`, in order; device_ops.choose describes the last six."""
    device = place.device
    return [
        cross_type(dims, place),
        cross_type(dims, place),
        cache_type(dims, place),
        TensorType(DType.float32, (2, dims.n_vocab), device=device),
        BufferType(DType.int64, (8,), device=device),
        BufferType(DType.float32, (2,), device=device),
        BufferType(DType.int64, (dims.n_text_ctx,), device=device),
        TensorType(DType.int64, (dims.n_text_ctx,), device=device),
        TensorType(DType.int64, (8,), device=device),
    ]


def step(decoder: TextDecoder, dims: Any) -> Callable[..., TensorValue]:
    """Return the graph's function: it feeds the state's token, samples the next one and advances the state.

    It returns the first layer's input (1, n_state) only because a graph must have an output.
    """

    def forward(*inputs: Any) -> TensorValue:
        cross_key, cross_value, cache, masks, state, sums, sampled, prompt, numbers = inputs
        cache, state = cache.buffer, state.buffer
        now = ops.buffer_load(state)
        x = embedded(decoder, now[TOKEN : TOKEN + 1], now[POSITION : POSITION + 1])
        step_logits = logits(
            decoder,
            x,
            lambda attn, x, layer: device_ops.self_attention(
                attn.qkv(x), cache, state, layer, dims.n_text_head
            ),
            lambda q, layer: device_ops.cross_attention(q, cross_key.tensor, cross_value.tensor, layer),
        )
        device_ops.choose(
            step_logits, masks.tensor, state, sums.buffer, sampled.buffer, prompt.tensor, numbers.tensor
        )
        return x

    return forward


class StepLoop:
    """Runs `step` on one window after another."""

    def __init__(self, models: Mapping[str, Any], dims: Any, place: Place, driver: Any):
        """Allocate the buffers, and capture the step if MAX can; the arguments are those of GraphLoop."""
        self._n_text_ctx, self._driver = dims.n_text_ctx, driver
        buffers = [new_buffer(kind, driver) for kind in step_types(dims, place)]
        self._cross_key, self._cross_value, _, self._masks, self._state, *rest = buffers
        self._sums, self._sampled, self._prompt, self._numbers = rest
        # a step changes nothing once the window is done
        done = WindowState(0, 0, 0, 0, 0, 0, done=1, failed=0)
        self._fill((self._state, _numbers(self._state, done)))
        self._launch = Launch(models["step"], buffers)
        self.how = f"a step at a time, {self._launch.how}"

    def decode(self, cross_key: Any, cross_value: Any, masks: Any, rules: WindowRules) -> Window:
        """Decode one window.

        Args:
            cross_key, cross_value, masks: buffers of the types that `step_types` gives.
            rules: what may be sampled.

        Raises:
            BackendError: no token was allowed, or the logits were not numbers.
        """
        prompt = np.zeros(self._n_text_ctx)
        prompt[: len(rules.prompt)] = rules.prompt
        start = WindowState(
            position=0,
            token=rules.prompt[0],
            written=0,
            last_is_stamp=0,
            before_is_stamp=1,
            stamp=rules.timestamp_begin - 1,
            done=0,
            failed=0,
        )
        self._fill(
            (self._cross_key, cross_key),
            (self._cross_value, cross_value),
            (self._masks, masks),
            (self._state, _numbers(self._state, start)),
            (self._sums, _numbers(self._sums, [0, 0])),
            (self._prompt, _numbers(self._prompt, prompt)),
            (self._numbers, _numbers(self._numbers, [*rule_numbers(rules), len(rules.prompt)])),
        )
        state = self._advance(len(rules.prompt) - 1)
        while not state.done:
            state = self._advance(STEPS_BETWEEN_CHECKS)
        if state.failed:
            raise BackendError("no token is allowed, or the logits are not numbers")
        sum_logprob, no_speech = self._read(self._sums).tolist()
        return Window(self._read(self._sampled)[: state.written].tolist(), sum_logprob, no_speech)

    def _advance(self, steps: int) -> WindowState:
        for _ in range(steps):
            self._launch()
        return WindowState(*self._read(self._state).tolist())

    def _fill(self, *pairs: tuple[Buffer, Buffer]) -> None:
        for target, source in pairs:
            target.inplace_copy_from(source)
        # MAX 26.7 copies while Python goes on; a source could be freed, or a step begin, before it is done
        self._driver.synchronize()

    @staticmethod
    def _read(buffer: Any) -> np.ndarray:
        return buffer.to(CPU()).to_numpy()


def _numbers(like: Buffer, values: Any) -> Buffer:
    """Return values in a buffer on the host, of the same type as another buffer."""
    return Buffer.from_numpy(np.array(values, like.dtype.to_numpy()))
