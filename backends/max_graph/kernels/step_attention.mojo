"""Attention of one position over keys and values already there: bound by reading them."""

import extensibility
from extensibility import InputTensor, OutputTensor, _MutableInputTensor as MutableInputTensor
from std.math import ceildiv, exp
from std.memory.alloc import unsafe_alloc
from std.sys import simd_width_of, size_of

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import GRAIN_BYTES, LANES, Floats, Weights, floats


@fieldwise_init
struct StepAttention[dtype: DType, size: Int](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """One query a head over that head's keys and values, each (positions, size) and contiguous."""

    comptime WIDTH = LANES if Self.size % LANES == 0 else 1
    comptime VECTORS = Self.size // Self.WIDTH

    var y: Floats
    var q: Floats
    var keys: Weights[Self.dtype]
    var values: Weights[Self.dtype]
    var stride: Int
    """Elements from one head's keys to the next's."""

    @always_inline
    def dot[count: Int](
        self, query: Array[SIMD[DType.float32, Self.WIDTH], Self.VECTORS], keys: Weights[Self.dtype]
    ) -> SIMD[DType.float32, count]:
        var totals = SIMD[DType.float32, count](0)
        comptime for i in range(count):
            var sum = SIMD[DType.float32, Self.WIDTH](0)
            comptime for v in range(Self.VECTORS):
                var key = keys.unsafe_load[width=Self.WIDTH](i * Self.size + v * Self.WIDTH)
                sum = key.cast[DType.float32]().fma(query[v], sum)
            totals[i] = sum.reduce_add()
        return totals

    @always_inline
    def head(self, index: Int, positions: Int, scores: Floats):
        var keys = self.keys.unsafe_offset(index * self.stride)
        var values = self.values.unsafe_offset(index * self.stride)
        var query = Array[SIMD[DType.float32, Self.WIDTH], Self.VECTORS](fill=0)
        comptime for v in range(Self.VECTORS):
            query[v] = self.q.unsafe_load[width=Self.WIDTH](index * Self.size + v * Self.WIDTH)
            query[v] *= Float32(Self.size) ** -0.5
        var whole = positions // LANES * LANES
        var highest = SIMD[DType.float32, LANES](Float32.MIN)
        for p in range(0, whole, LANES):
            var found = self.dot[LANES](query, keys.unsafe_offset(p * Self.size))
            scores.unsafe_store(p, found)
            highest = max(highest, found)
        var top = highest.reduce_max()
        for p in range(whole, positions):
            var found = self.dot[1](query, keys.unsafe_offset(p * Self.size))
            scores.unsafe_store(p, found)
            top = max(top, found)
        var sums = SIMD[DType.float32, LANES](0)
        for p in range(0, whole, LANES):
            var weight = exp(scores.unsafe_load[width=LANES](p) - top)
            scores.unsafe_store(p, weight)
            sums += weight
        var total = sums.reduce_add()
        for p in range(whole, positions):
            var weight = exp(scores.unsafe_load(p) - top)
            scores.unsafe_store(p, weight)
            total += weight
        # two sums, for one would wait for itself
        var mixed = Array[SIMD[DType.float32, Self.WIDTH], 2 * Self.VECTORS](fill=0)
        for p in range(0, positions - 1, 2):
            comptime for u in range(2):
                var weight = SIMD[DType.float32, Self.WIDTH](scores.unsafe_load(p + u))
                comptime for v in range(Self.VECTORS):
                    var value = values.unsafe_load[width=Self.WIDTH]((p + u) * Self.size + v * Self.WIDTH)
                    comptime j = u * Self.VECTORS + v
                    mixed[j] = value.cast[DType.float32]().fma(weight, mixed[j])
        if positions % 2 == 1:
            var weight = SIMD[DType.float32, Self.WIDTH](scores.unsafe_load(positions - 1))
            comptime for v in range(Self.VECTORS):
                var value = values.unsafe_load[width=Self.WIDTH](
                    (positions - 1) * Self.size + v * Self.WIDTH
                )
                mixed[v] = value.cast[DType.float32]().fma(weight, mixed[v])
        comptime for v in range(Self.VECTORS):
            self.y.unsafe_store(
                index * Self.size + v * Self.WIDTH, (mixed[v] + mixed[Self.VECTORS + v]) / total
            )

    def cross(self, heads: Int, positions: Int):
        """All heads, over the same number of positions; in parallel where that pays."""
        var bytes = 2 * heads * positions * Self.size * size_of[Self.dtype]()
        var parts = min(heads, parallelism_level(None), ceildiv(bytes, GRAIN_BYTES))
        var each = ceildiv(heads, parts)
        var job = self

        def work(part: Int) {var job, var each, var heads, var positions}:
            var scores = unsafe_alloc[Float32](positions)
            for index in range(part * each, min((part + 1) * each, heads)):
                job.head(index, positions, scores)
            scores.unsafe_free()

        sync_parallelize(work, parts)


@extensibility.register("asr_cross_attention")
struct AsrCrossAttention:
    """Registered as asr_cross_attention: see custom_ops.cross_attention for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, size: Int, layer: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        q: InputTensor[dtype=DType.float32, rank=2, ...],
        keys: InputTensor[dtype=dtype, rank=4, ...],
        values: InputTensor[dtype=dtype, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_cross_attention runs on the CPU only"
        var heads = keys.dim_size(1)
        var positions = keys.dim_size(2)
        var first = layer * heads * positions * size
        var job = StepAttention[dtype, size](
            floats(y),
            floats(q),
            keys.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(first),
            values.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(first),
            positions * size,
        )
        job.cross(heads, positions)


@extensibility.register("asr_self_attention")
struct AsrSelfAttention:
    """Registered as asr_self_attention: see custom_ops.self_attention for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, size: Int, layer: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        cache: MutableInputTensor[dtype=dtype, rank=5, ...],
        q: InputTensor[dtype=DType.float32, rank=2, ...],
        k: InputTensor[dtype=DType.float32, rank=2, ...],
        v: InputTensor[dtype=DType.float32, rank=2, ...],
        position: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_self_attention runs on the CPU only"
        var batch = q.dim_size(0)
        var heads = cache.dim_size(2) // batch
        var room = cache.dim_size(3)
        var half = cache.dim_size(2) * room * size
        var keys = cache.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(layer * 2 * half)
        var values = keys.unsafe_offset(half)
        var job = StepAttention[dtype, size](floats(y), floats(q), keys, values, room * size)
        var scores = unsafe_alloc[Float32](room)
        for row in range(batch):
            var at = Int(position.unsafe_ptr().unsafe_load(row))
            if at < 0 or at >= room:
                scores.unsafe_free()
                raise Error("asr_self_attention: position outside the cache")
            for head in range(heads):
                var index = row * heads + head
                var target_offset = (index * room + at) * size
                for i in range(size):
                    keys.unsafe_store(
                        target_offset + i, floats(k).unsafe_load(index * size + i).cast[dtype]()
                    )
                    values.unsafe_store(
                        target_offset + i, floats(v).unsafe_load(index * size + i).cast[dtype]()
                    )
                job.head(index, at + 1, scores)
        scores.unsafe_free()
