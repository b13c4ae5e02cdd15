"""Attention over many positions in products of bfloat16, summed in float32: in bfloat16, or in float32's three parts.

A float32 number is a sum of three bfloat16 numbers, each of 8 bits. Of the products of two such numbers' parts, the
three below 2^-24 are left out. In three parts it needs the processor's matrix tiles (AMX); in one it may also use
its dot products of bfloat16 pairs (AVX512-BF16), or else multiply the same numbers as float32.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from std.math import ceildiv, iota
from std.memory.alloc import unsafe_alloc

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats, Weights
from .matrix_bf16 import PANEL, PARTS_PER_THREAD, ROWS, VECTORS, elements, exp2, narrow, tile
from .tiles import (
    HAS_TILES,
    TILE_COLUMNS,
    TILE_DEPTH,
    TILE_ROWS,
    TILES,
    Halves,
    add_products,
    begin_tiles,
    clear_tiles,
    end_tiles,
    load_columns,
    load_rows,
    may_use_tiles,
    require_tiles,
    split,
    store_tiles,
)

comptime GLANCE = 256  # positions that a block in tiles attends to at a time
comptime STEP = 2 * LANES


@always_inline
def add_part_products[parts: Int](a: Halves, b: Halves):
    """Add products of 32 rows in parts and 32 columns in parts."""
    comptime if HAS_TILES:
        comptime if parts == 1:
            load_columns(b)
            load_rows(a, TILE_DEPTH)
            add_products()
        else:
            comptime for pair in range(6):
                # the smallest first: high with low, with middle, and so on
                comptime row = [0, 0, 1, 1, 0, 2][pair]
                comptime column = [2, 1, 1, 0, 0, 0][pair]
                comptime if pair == 0 or column != [2, 1, 1, 0, 0, 0][pair - 1]:
                    load_columns(b.unsafe_offset(column * TILES))
                comptime if pair == 0 or row != [0, 0, 1, 1, 0, 2][pair - 1]:
                    load_rows(a.unsafe_offset(row * TILES), TILE_DEPTH)
                add_products()


@fieldwise_init
struct Attention[dtype: DType, size: Int, parts: Int](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The operands of softmax(q kT scale) v, heads side by side in rows of n.

    `keys` and `values` is scratch memory for the packed keys and values of all heads. A head's keys are (panels of 32
    positions, size / 32, parts, 16, 32, 2), its values (size / 32, panels, parts, 16, 32, 2).
    """

    var y: Weights[Self.dtype]
    var q: Weights[Self.dtype]
    var k: Weights[Self.dtype]
    var v: Weights[Self.dtype]
    var keys: Halves
    var values: Halves
    var positions: Int
    var n: Int

    comptime SCALE = Float32(Self.size) ** -0.5 * Float32(1.4426950408889634)  # to powers of two
    comptime EXACT = Self.parts > 1
    comptime PACKED = Self.parts * TILES  # numbers of 32 rows or columns of 32 numbers

    @always_inline
    def padded(self) -> Int:
        """The positions up to a whole panel."""
        return ceildiv(self.positions, PANEL) * PANEL

    @always_inline
    def head_elements(self) -> Int:
        """The size of a head's packed keys, and of its packed values."""
        return self.padded() * Self.size * Self.parts

    def pack(self, head: Int):
        """Pack a head's keys and values; positions beyond the end, up to a whole panel, are zero."""
        var keys = self.keys.unsafe_offset(head * self.head_elements())
        var values = self.values.unsafe_offset(head * self.head_elements())
        var panels = self.padded() // PANEL
        for position in range(self.padded()):
            var panel = keys.unsafe_offset(position // PANEL * (Self.size // TILE_DEPTH) * Self.PACKED)
            for i in range(0, Self.size, 2):
                var pair = SIMD[DType.float32, 2](0)
                if position < self.positions:
                    pair = self.k.unsafe_load[width=2](position * self.n + head * Self.size + i).cast[DType.float32]()
                var at = i // TILE_DEPTH * Self.PACKED + i % TILE_DEPTH * PANEL + position % PANEL * 2
                split[Self.parts](pair, panel.unsafe_offset(at), TILES)
        for position in range(0, self.padded(), 2):
            for i in range(0, Self.size, LANES):
                var one = self.value(position, head * Self.size + i)
                var two = self.value(position + 1, head * Self.size + i)
                var panel = values.unsafe_offset((i // PANEL * panels + position // PANEL) * Self.PACKED)
                var at = position % PANEL * PANEL + i % PANEL * 2
                split[Self.parts](one.interleave(two), panel.unsafe_offset(at), TILES)

    @always_inline
    def value(self, position: Int, column: Int) -> SIMD[DType.float32, LANES]:
        """Some columns of a position's values, or zeros beyond the last position."""
        if position >= self.positions:
            return SIMD[DType.float32, LANES](0)
        return self.v.unsafe_load[width=LANES](position * self.n + column).cast[DType.float32]()

    @always_inline
    def weigh(
        self, scores: Floats, weights: Halves, distance: Int, width: Int, left: Int, before: Float32
    ) -> SIMD[DType.float32, 2]:
        """Write exponentials of scores relative to their top, or to the one before if that is higher.

        32 of them lie together, `distance` apart from the next. Beyond the positions that are left, they are zero.
        Returns the top and the sum of all written.
        """
        comptime Wide = SIMD[DType.float32, STEP]
        var whole = min(width, left) // STEP * STEP
        var highest = Wide(before)
        for i in range(0, whole, STEP):
            highest = max(highest, scores.unsafe_load[width=STEP](i))
        for i in range(whole, width, STEP):
            var is_there = iota[DType.int32, STEP]().lt(SIMD[DType.int32, STEP](left - i))
            highest = max(highest, is_there.select(scores.unsafe_load[width=STEP](i), highest))
        var top = highest.reduce_max()
        var sums = Wide(0)
        for i in range(0, width, STEP):
            var value = exp2[Self.EXACT]((scores.unsafe_load[width=STEP](i) - top) * Self.SCALE)
            if i >= whole:
                var is_there = iota[DType.int32, STEP]().lt(SIMD[DType.int32, STEP](left - i))
                value = is_there.select(value, Wide(0))
            comptime if not Self.EXACT:
                value = value.cast[DType.bfloat16]().cast[DType.float32]()
            sums += value
            var at = i // TILE_DEPTH * distance + i % TILE_DEPTH
            split[Self.parts](value, weights.unsafe_offset(at), TILES)
        return SIMD[DType.float32, 2](top, sums.reduce_add())

    @always_inline
    def block[rows: Int](self, head: Int, row: Int, query: Halves, scores: Floats, weights: Halves):
        """Attend with some rows in vectors."""
        var width = self.padded()
        for r in range(rows):
            var source = self.q.unsafe_offset((row + r) * self.n + head * Self.size)
            narrow(source, query.unsafe_offset(r * Self.size), Self.size)
        var keys = self.keys.unsafe_offset(head * self.head_elements())
        for at in range(0, width, PANEL):
            var sums = tile[rows](query, Self.size, keys.unsafe_offset(at * Self.size), Self.size // 2)
            comptime for r in range(rows):
                comptime for v in range(VECTORS):
                    scores.unsafe_store(r * width + at + v * LANES, sums[r * VECTORS + v])
        var totals = Array[Float32, rows](fill=0)
        comptime for r in range(rows):
            totals[r] = self.weigh(
                scores.unsafe_offset(r * width), weights.unsafe_offset(r * width), TILE_DEPTH, width,
                self.positions, Float32.MIN_FINITE,
            )[1]
        var values = self.values.unsafe_offset(head * self.head_elements())
        comptime for part in range(Self.size // PANEL):
            var sums = tile[rows](weights, width, values.unsafe_offset(part * width * PANEL), width // 2)
            comptime for r in range(rows):
                comptime for v in range(VECTORS):
                    var at = (row + r) * self.n + head * Self.size + part * PANEL + v * LANES
                    self.y.unsafe_store(at, (sums[r * VECTORS + v] / totals[r]).cast[Self.dtype]())

    def part(self, head: Int, start: Int, end: Int):
        var width = self.padded()
        var query = unsafe_alloc[BFloat16](ROWS * Self.size)
        var scores = unsafe_alloc[Float32](ROWS * width)
        var weights = unsafe_alloc[BFloat16](ROWS * width)
        var row = start
        while row + ROWS <= end:
            self.block[ROWS](head, row, query, scores, weights)
            row += ROWS
        while row < end:
            self.block[1](head, row, query, scores, weights)
            row += 1
        query.unsafe_free()
        scores.unsafe_free()
        weights.unsafe_free()

    def block_in_tiles(
        self, head: Int, row: Int, rows: Int, query: Halves, scores: Floats, weights: Halves, mixed: Floats
    ):
        """Attend with up to 32 rows, to GLANCE positions at a time, so that their scores stay close to the core.

        What lies beyond `rows` is computed and not kept.
        """
        for r in range(rows):
            for i in range(0, Self.size, STEP):
                var numbers = self.q.unsafe_load[width=STEP]((row + r) * self.n + head * Self.size + i)
                var at = i // TILE_DEPTH * Self.PACKED + r * TILE_DEPTH + i % TILE_DEPTH
                split[Self.parts](numbers.cast[DType.float32](), query.unsafe_offset(at), TILES)
        var keys = self.keys.unsafe_offset(head * self.head_elements())
        var values = self.values.unsafe_offset(head * self.head_elements())
        var tops = Array[Float32, TILE_ROWS](fill=Float32.MIN_FINITE)
        var totals = Array[Float32, TILE_ROWS](fill=0)
        var added = mixed.unsafe_offset(TILE_ROWS * Self.size)
        var padded = self.padded()
        for start in range(0, padded, GLANCE):
            var width = min(GLANCE, padded - start)
            for at in range(0, width, PANEL):
                var near = keys.unsafe_offset((start + at) * Self.size * Self.parts)
                clear_tiles()
                comptime for depth in range(Self.size // TILE_DEPTH):
                    comptime here = depth * Self.PACKED
                    add_part_products[Self.parts](query.unsafe_offset(here), near.unsafe_offset(here))
                store_tiles(scores.unsafe_offset(at), GLANCE)
            for r in range(rows):
                var sum = self.weigh(
                    scores.unsafe_offset(r * GLANCE), weights.unsafe_offset(r * TILE_DEPTH), Self.PACKED, width,
                    self.positions - start, tops[r],
                )
                # what was summed relative to a lower top
                var shrunk = exp2[Self.EXACT](SIMD[DType.float32, 1]((tops[r] - sum[0]) * Self.SCALE))[0]
                tops[r] = sum[0]
                totals[r] = totals[r] * shrunk + sum[1]
                for i in range(0, Self.size, LANES):
                    var at = r * Self.size + i
                    mixed.unsafe_store(at, mixed.unsafe_load[width=LANES](at) * shrunk if start > 0 else 0)
            for column in range(0, Self.size, PANEL):
                var panel = values.unsafe_offset((column // PANEL * padded + start) * PANEL * Self.parts)
                clear_tiles()
                for at in range(0, width, PANEL):
                    var here = at * TILE_ROWS * Self.parts
                    add_part_products[Self.parts](weights.unsafe_offset(here), panel.unsafe_offset(here))
                store_tiles(added, TILE_COLUMNS)
                for r in range(rows):
                    for i in range(0, PANEL, LANES):
                        var at = r * Self.size + column + i
                        var sum = added.unsafe_load[width=LANES](r * TILE_COLUMNS + i)
                        mixed.unsafe_store(at, mixed.unsafe_load[width=LANES](at) + sum)
        for r in range(rows):
            for i in range(0, Self.size, LANES):
                var result = mixed.unsafe_load[width=LANES](r * Self.size + i) / totals[r]
                self.y.unsafe_store((row + r) * self.n + head * Self.size + i, result.cast[Self.dtype]())

    def part_in_tiles(self, head: Int, start: Int, end: Int):
        var query = unsafe_alloc[BFloat16](Self.parts * TILE_ROWS * Self.size, alignment=64)
        var scores = unsafe_alloc[Float32](TILE_ROWS * GLANCE, alignment=64)
        var weights = unsafe_alloc[BFloat16](Self.parts * TILE_ROWS * GLANCE, alignment=64)
        var mixed = unsafe_alloc[Float32](TILE_ROWS * (Self.size + TILE_COLUMNS), alignment=64)
        for i in range(Self.parts * TILE_ROWS * Self.size):
            query.unsafe_store(i, BFloat16(0))
        for i in range(Self.parts * TILE_ROWS * GLANCE):
            weights.unsafe_store(i, BFloat16(0))
        begin_tiles()
        for row in range(start, end, TILE_ROWS):
            self.block_in_tiles(head, row, min(TILE_ROWS, end - row), query, scores, weights, mixed)
        end_tiles()
        query.unsafe_free()
        scores.unsafe_free()
        weights.unsafe_free()
        mixed.unsafe_free()

    def run(self):
        var heads = self.n // Self.size
        var job = self

        def pack(head: Int) {var job}:
            job.pack(head)

        sync_parallelize(pack, heads)
        var in_tiles = may_use_tiles()
        var step = TILE_ROWS if in_tiles else ROWS
        var each = ceildiv(parallelism_level(None) * PARTS_PER_THREAD, heads)
        var rows = ceildiv(ceildiv(self.positions, each), step) * step
        var chunks = ceildiv(self.positions, rows)

        def work(index: Int) {var job, var rows, var chunks, var in_tiles}:
            var start = index % chunks * rows
            var end = min(start + rows, job.positions)
            comptime if HAS_TILES:
                if in_tiles:
                    job.part_in_tiles(index // chunks, start, end)
                    return
            comptime if Self.parts == 1:
                job.part(index // chunks, start, end)

        sync_parallelize(work, heads * chunks)


@extensibility.register("asr_attention_in_parts")
struct AsrAttentionInParts:
    """Registered as asr_attention_in_parts: see bfloat16_ops.attention and split_ops.attention for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, size: Int, parts: Int, target: StaticString
    ](
        y: OutputTensor[dtype=dtype, rank=2, ...],
        q: InputTensor[dtype=dtype, rank=2, ...],
        k: InputTensor[dtype=dtype, rank=2, ...],
        v: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_attention_in_parts runs on the CPU only"
        comptime assert size % PANEL == 0, "asr_attention_in_parts needs heads of a multiple of 32"
        comptime assert parts == 1 or parts == 3, "asr_attention_in_parts takes bfloat16, or float32 in three parts"
        comptime if parts > 1:
            require_tiles()
        var n = y.dim_size(1)
        var positions = y.dim_size(0)
        var room = parts * ceildiv(positions, PANEL) * PANEL * n
        var packed = unsafe_alloc[BFloat16](2 * room, alignment=64)
        var job = Attention[dtype, size, parts](
            elements(y), elements(q), elements(k), elements(v), packed, packed.unsafe_offset(room), positions, n
        )
        job.run()
        packed.unsafe_free()
