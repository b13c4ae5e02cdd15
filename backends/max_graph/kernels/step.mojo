"""Attention of one new position, as a decoder's step needs it; reading keys and values limits its speed."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility.managed_tensor_slice import _MutableInputTensor as MutableInputTensor
from std.math import exp
from std.memory.alloc import unsafe_alloc
from std.sys import simd_width_of

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext

from .linear import STREAMS, ask_ahead
from .window import DONE, POSITION, STATE_SIZE, TOKEN, Floats, Integers, Numbers

comptime LANES = simd_width_of[DType.float32]()


@always_inline
def place(n: Int, each: Int) -> Int:
    """The position read as number `n`: STREAMS runs of `each` positions in turn, then those left over."""
    return n % STREAMS * each + n // STREAMS if n < STREAMS * each else n


@fieldwise_init
struct Glance[dtype: DType, size: Int](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """One query's attention, head by head; rows of keys and values lie `row` apart, heads `head` apart."""

    var y: Floats
    var q: Floats
    var keys: Numbers[Self.dtype]
    var values: Numbers[Self.dtype]
    var count: Int
    var head: Int
    var row: Int
    var scale: Float32

    def attend(self, index: Int):
        comptime vectors = Self.size // LANES
        var scores = unsafe_alloc[Float32](self.count + LANES)
        var query = Array[SIMD[DType.float32, LANES], vectors](fill=0)
        comptime for v in range(vectors):
            query[v] = self.q.unsafe_load[width=LANES](index * Self.size + v * LANES) * self.scale
        var key = self.keys.unsafe_offset(index * self.head)
        var top = Float32.MIN
        var each = self.count // STREAMS
        for n in range(self.count):
            var i = place(n, each)
            ask_ahead[Self.dtype, Self.size](key.unsafe_offset(i * self.row))
            var sum = SIMD[DType.float32, LANES](0)
            comptime for v in range(vectors):
                sum = key.unsafe_load[width=LANES](i * self.row + v * LANES).cast[DType.float32]().fma(
                    query[v], sum
                )
            var score = sum.reduce_add()
            top = max(top, score)
            scores.unsafe_store(i, score)
        for i in range(LANES):
            scores.unsafe_store(self.count + i, Float32.MIN)
        var sums = SIMD[DType.float32, LANES](0)
        for i in range(0, self.count, LANES):
            var weight = exp(scores.unsafe_load[width=LANES](i) - top)
            scores.unsafe_store(i, weight)
            sums += weight
        var mixed = Array[SIMD[DType.float32, LANES], vectors](fill=0)
        var value = self.values.unsafe_offset(index * self.head)
        for n in range(self.count):
            var i = place(n, each)
            ask_ahead[Self.dtype, Self.size](value.unsafe_offset(i * self.row))
            var weight = SIMD[DType.float32, LANES](scores.unsafe_load(i))
            comptime for v in range(vectors):
                mixed[v] = value.unsafe_load[width=LANES](i * self.row + v * LANES).cast[DType.float32]().fma(
                    weight, mixed[v]
                )
        var total = sums.reduce_add()
        comptime for v in range(vectors):
            self.y.unsafe_store(index * Self.size + v * LANES, mixed[v] / total)
        scores.unsafe_free()


@fieldwise_init
struct Glances[dtype: DType, size: Int](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """One query of each window; a window that is done has none.

    Queries lie `query` apart, keys and values of a window `window` (0: all have the same). The rest is as in Glance.
    """

    var y: Floats
    var q: Floats
    var keys: Numbers[Self.dtype]
    var values: Numbers[Self.dtype]
    var state: Integers
    var count: Int  # of positions; 0 for the window's own up to the one that is fed
    var heads: Int
    var query: Int
    var window: Int
    var head: Int
    var row: Int

    def attend(self, index: Int):
        var state = self.state.unsafe_offset(index * STATE_SIZE)
        if state.unsafe_load(DONE) != 0:
            return
        var count = self.count if self.count > 0 else Int(state.unsafe_load(POSITION)) + 1
        var glance = Glance[Self.dtype, Self.size](
            self.y.unsafe_offset(index * self.heads * Self.size),
            self.q.unsafe_offset(index * self.query),
            self.keys.unsafe_offset(index * self.window),
            self.values.unsafe_offset(index * self.window),
            count,
            self.head,
            self.row,
            Float32(Self.size) ** -0.5,
        )
        for head in range(self.heads):
            glance.attend(head)

    def run(self, windows: Int):
        if windows == 1:  # threads that are woken in every layer would spin long after the last step
            self.attend(0)
            return
        var job = self

        def work(index: Int) {var job}:
            job.attend(index)

        sync_parallelize(work, windows)


@extensibility.register("asr_step_cross_attention")
struct AsrStepCrossAttention:
    """Registered as asr_step_cross_attention: see custom_ops.cross_attention for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, size: Int, layer: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        q: InputTensor[dtype=DType.float32, rank=2, ...],
        keys: InputTensor[dtype=dtype, rank=5, ...],
        values: InputTensor[dtype=dtype, rank=5, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_step_cross_attention runs on the CPU only"
        var heads = keys.dim_size(2)
        var positions = keys.dim_size(3)
        var of_layer = heads * positions * size
        Glances[dtype, size](
            y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            q.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            keys.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(layer * of_layer),
            values.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(layer * of_layer),
            state.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            positions,
            heads,
            heads * size,
            keys.dim_size(1) * of_layer if keys.dim_size(0) > 1 else 0,
            positions * size,
            size,
        ).run(q.dim_size(0))


@extensibility.register("asr_step_self_attention")
struct AsrStepSelfAttention:
    """Registered as asr_step_self_attention: see custom_ops.self_attention for its meaning."""

    @staticmethod
    def execute[
        size: Int, layer: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        qkv: InputTensor[dtype=DType.float32, rank=2, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        cache: MutableInputTensor[dtype=DType.float32, rank=5, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_step_self_attention runs on the CPU only"
        var n = y.dim_size(1)
        var query = qkv.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var positions = cache.dim_size(3)
        var window = cache.dim_size(1) * 2 * positions * n
        var states = state.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var keys = cache.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(
            layer * 2 * positions * n
        )
        var values = keys.unsafe_offset(positions * n)
        for index in range(y.dim_size(0)):
            if states.unsafe_load(index * STATE_SIZE + DONE) != 0:
                continue
            var at = Int(states.unsafe_load(index * STATE_SIZE + POSITION))
            if at < 0 or at >= positions:
                raise Error("asr_step_self_attention: there is no such position")
            var to = index * window + at * n
            var source = query.unsafe_offset(index * 3 * n + n)
            for i in range(n):
                keys.unsafe_store(to + i, source.unsafe_load(i))
                values.unsafe_store(to + i, source.unsafe_load(n + i))
        Glances[DType.float32, size](
            y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            query,
            keys,
            values,
            states,
            0,
            n // size,
            3 * n,
            window,
            size,
            n,
        ).run(y.dim_size(0))


@extensibility.register("asr_embedded")
struct AsrEmbedded:
    """Registered as asr_embedded: see custom_ops.embedded for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, scaled: Bool, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        weight: InputTensor[dtype=dtype, rank=2, ...],
        scale: InputTensor[dtype=DType.float32, rank=1, ...],
        positions: InputTensor[dtype=DType.float32, rank=2, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_embedded runs on the CPU only"
        var n = weight.dim_size(1)
        for index in range(y.dim_size(0)):
            var now = state.unsafe_ptr().unsafe_offset(index * STATE_SIZE)
            var token = Int(now.unsafe_load(TOKEN))
            var position = Int(now.unsafe_load(POSITION))
            var to = y.unsafe_ptr().unsafe_offset(index * n)
            if now.unsafe_load(DONE) != 0:
                for i in range(n):
                    to.unsafe_store(i, 0)
                continue
            if token < 0 or token >= weight.dim_size(0) or position < 0 or position >= positions.dim_size(0):
                raise Error("asr_embedded: there is no such token or position")
            var factor = Float32(1)
            comptime if scaled:
                factor = scale.unsafe_ptr().unsafe_load(token)
            for i in range(n):
                var value = weight.unsafe_ptr().unsafe_load(token * n + i).cast[DType.float32]() * factor
                to.unsafe_store(i, value + positions.unsafe_ptr().unsafe_load(position * n + i))
