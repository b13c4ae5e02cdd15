"""Products of many rows and attention over many positions in float32, in the processor's tiles of bfloat16 (AMX).

A float32 number is a sum of three bfloat16 numbers, each of 8 bits, and a float16 number of two. Of the six products
of such parts, the one below 2^-24 is left out; float32 rounds there anyway. Sums are float32.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from std.math import ceildiv, iota
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats
from .matrix import CHUNK, PANEL, PARTS_PER_THREAD, finished, floats
from .matrix_bf16 import GLANCE, elements
from .tiles import (
    HAS_TILES,
    TILE_COLUMNS,
    TILE_DEPTH,
    TILE_ROWS,
    Halves,
    add_products,
    begin_tiles,
    clear_tiles,
    end_tiles,
    load_columns,
    load_rows,
    may_use_tiles,
    store_tiles,
)

comptime BLOCK = TILE_ROWS * TILE_COLUMNS
comptime TILES = TILE_ROWS * TILE_DEPTH  # numbers of two tiles of 16 rows
comptime PARTS = 3  # of a float32 number
comptime MOST_BYTES = 1280 * 1024  # of the rows that one thread keeps near, beside a panel's weights


@always_inline
def first_part[width: SIMDLength](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The first 8 of a number's 24 bits: what remains of it is exact, and three such parts are all of it."""
    return bitcast[DType.float32, width](bitcast[DType.uint32, width](x) & 0xFFFF0000)


@always_inline
def split(value: SIMD[DType.float32, 2 * LANES], target: Halves, distance: Int):
    """Write numbers as three parts, `distance` apart, whose sum they are."""
    var rest = value
    comptime for part in range(PARTS):
        var first = first_part(rest)
        # bfloat16 is the higher half of float32
        var halves = bitcast[DType.bfloat16, 4 * LANES](first).deinterleave()[1]
        target.unsafe_store(part * distance, rebind[SIMD[DType.bfloat16, 2 * LANES]](halves))
        rest -= first


@always_inline
def exp2_exactly[width: SIMDLength](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Two to the power of x <= 0, to 1e-7; below 2^-126 it is that."""
    comptime Wide = SIMD[DType.float32, width]
    comptime WHOLE = Float32(12582912)  # 3 * 2^22: what is added to it is rounded to a whole number, in the lowest bits
    var bounded = max(x, Wide(-126))
    var shifted = bounded + WHOLE
    var rest = bounded - (shifted - WHOLE)
    # Chebyshev interpolation of 2^x over [-1/2, 1/2]
    var power = rest.fma(Wide(1.546144472e-4), Wide(1.340042818e-3))
    power = rest.fma(power, Wide(9.618056678e-3))
    power = rest.fma(power, Wide(5.550327227e-2))
    power = rest.fma(power, Wide(2.402265092e-1))
    power = rest.fma(power, Wide(6.931472067e-1))
    power = rest.fma(power, Wide(1))
    var exponent = bitcast[DType.int32, width](shifted) << 23
    return bitcast[DType.float32, width](bitcast[DType.int32, width](power) + exponent)


@fieldwise_init
struct Product[biased: Bool, residual: Bool, gelu: Bool](
    Copyable, ImplicitlyCopyable, TrivialRegisterPassable
):
    """The operands of y[i, j] = act(x[i] . w[j] + bias[j]) + added[i, j]; rows of x lie lda apart.

    `w` holds the higher parts of all panels, then the lower ones; each row is filled up with zeros to k numbers.
    """

    var y: Floats
    var x: Floats
    var w: Halves
    var bias: Floats
    var added: Floats
    var n: Int
    var k: Int
    var lda: Int
    var numbers: Int  # of x

    def pack(self, row: Int, rows: Int, target: Halves):
        """Split up to 32 rows into (k / 32, parts, 32 rows, 32)."""
        for r in range(TILE_ROWS):
            var first = (row + r) * self.lda
            for at in range(0, self.k, 2 * LANES):
                var to = target.unsafe_offset(
                    at // TILE_DEPTH * PARTS * TILES + r * TILE_DEPTH + at % TILE_DEPTH
                )
                var left = self.numbers - first - at if r < rows else 0
                var value = SIMD[DType.float32, 2 * LANES](0)
                if left >= 2 * LANES:
                    value = self.x.unsafe_load[width=2 * LANES](first + at)
                else:
                    for i in range(max(left, 0)):
                        value[i] = self.x.unsafe_load(first + at + i)
                split(value, to, TILES)

    def part(self, start: Int, end: Int):
        var blocks = ceildiv(end - start, TILE_ROWS)
        var packed = unsafe_alloc[BFloat16](PARTS * TILE_ROWS * self.k * blocks, alignment=64)
        var each = PARTS * TILE_ROWS * self.k
        for i in range(blocks):
            var row = start + i * TILE_ROWS
            self.pack(row, min(TILE_ROWS, end - row), packed.unsafe_offset(i * each))
        var sums = unsafe_alloc[Float32](2 * BLOCK, alignment=64)
        begin_tiles()
        for panel in range(self.n // PANEL):
            for i in range(blocks):
                self.block(packed.unsafe_offset(i * each), panel, sums)
                var row = start + i * TILE_ROWS
                self.finish(sums, row, min(TILE_ROWS, end - row), panel)
        end_tiles()
        sums.unsafe_free()
        packed.unsafe_free()

    @always_inline
    def block(self, a: Halves, panel: Int, sums: Floats):
        """Write 32 rows times a panel, CHUNK terms at a time: see matrix.mojo."""
        var high = self.w.unsafe_offset(panel * PANEL * self.k)
        var low = high.unsafe_offset(self.n * self.k)
        for start in range(0, self.k, CHUNK):
            clear_tiles()
            comptime if HAS_TILES:
                for at in range(start, min(start + CHUNK, self.k), TILE_DEPTH):
                    var rows = a.unsafe_offset(at * TILE_ROWS * PARTS)
                    load_columns(low.unsafe_offset(at * PANEL))
                    load_rows(rows.unsafe_offset(TILES), TILE_DEPTH)
                    add_products()
                    load_rows(rows, TILE_DEPTH)
                    add_products()
                    load_columns(high.unsafe_offset(at * PANEL))
                    add_products()
                    load_rows(rows.unsafe_offset(TILES), TILE_DEPTH)
                    add_products()
                    load_rows(rows.unsafe_offset(2 * TILES), TILE_DEPTH)
                    add_products()
            if start == 0:
                store_tiles(sums, TILE_COLUMNS)
            else:
                store_tiles(sums.unsafe_offset(BLOCK), TILE_COLUMNS)
                for i in range(0, BLOCK, LANES):
                    var more = sums.unsafe_load[width=LANES](BLOCK + i)
                    sums.unsafe_store(i, sums.unsafe_load[width=LANES](i) + more)

    @always_inline
    def finish(self, sums: Floats, row: Int, rows: Int, panel: Int):
        for r in range(rows):
            for i in range(0, PANEL, LANES):
                var column = panel * PANEL + i
                var at = (row + r) * self.n + column
                var value = finished[Self.biased, Self.residual, Self.gelu](
                    sums.unsafe_load[width=LANES](r * TILE_COLUMNS + i),
                    self.bias.unsafe_offset(column),
                    self.added.unsafe_offset(at),
                )
                self.y.unsafe_store(at, value)

    def run(self, m: Int):
        var blocks = ceildiv(ceildiv(m, parallelism_level(None) * PARTS_PER_THREAD), TILE_ROWS)
        var rows = min(blocks, max(1, MOST_BYTES // (2 * PARTS * TILE_ROWS * self.k))) * TILE_ROWS
        var job = self

        def work(index: Int) {var job, var rows, var m}:
            job.part(index * rows, min((index + 1) * rows, m))

        sync_parallelize(work, ceildiv(m, rows))


@always_inline
def add_split_products(a: Halves, b: Halves):
    """Add products of 32 rows in three parts and 32 columns in three parts, the one of both low parts left out."""
    comptime if HAS_TILES:
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
struct Attention[size: Int](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The operands of softmax(q kT scale) v, heads side by side in rows of n.

    `keys` and `values` is scratch memory for the packed keys and values of all heads, both (panels of 32 positions,
    size / 32, parts, 16, 32, 2) for each.
    """

    var y: Floats
    var q: Floats
    var k: Floats
    var v: Floats
    var keys: Halves
    var values: Halves
    var positions: Int
    var n: Int

    comptime SCALE = Float32(Self.size) ** -0.5 * Float32(1.4426950408889634)  # to powers of two
    comptime DEPTHS = Self.size // TILE_DEPTH
    comptime EACH = PARTS * TILE_DEPTH * Self.size  # numbers of 32 positions, packed

    @always_inline
    def panels(self) -> Int:
        return ceildiv(self.positions, PANEL)

    def pack(self, head: Int, panel: Int):
        """Pack a head's keys and values of 32 positions; beyond the last they are zero."""
        var keys = self.keys.unsafe_offset((head * self.panels() + panel) * Self.EACH)
        var values = self.values.unsafe_offset((head * self.panels() + panel) * Self.EACH)
        for i in range(PANEL):
            var position = panel * PANEL + i
            var at = position * self.n + head * Self.size
            for j in range(0, Self.size, 2):
                var rest = self.k.unsafe_load[width=2](at + j) if position < self.positions else 0
                var to = keys.unsafe_offset(j // TILE_DEPTH * PARTS * TILES + j % TILE_DEPTH * PANEL + 2 * i)
                comptime for part in range(PARTS):
                    var first = first_part(rest)
                    to.unsafe_store(part * TILES, first.cast[DType.bfloat16]())
                    rest -= first
        for i in range(0, PANEL, 2):
            for j in range(0, Self.size, LANES):
                var one = self.value(panel * PANEL + i, head * Self.size + j)
                var two = self.value(panel * PANEL + i + 1, head * Self.size + j)
                var to = values.unsafe_offset(j // PANEL * PARTS * TILES + i * PANEL + 2 * (j % PANEL))
                comptime for part in range(PARTS):
                    var first = first_part(one)
                    var second = first_part(two)
                    # the first of a pair of bfloat16 is the lower half of 32 bits
                    var pairs = bitcast[DType.uint32, LANES](first) >> 16 | bitcast[DType.uint32, LANES](second)
                    to.unsafe_store(part * TILES, bitcast[DType.bfloat16, 2 * LANES](pairs))
                    one -= first
                    two -= second

    @always_inline
    def value(self, position: Int, column: Int) -> SIMD[DType.float32, LANES]:
        """Some columns of a position's values, or zeros beyond the last position."""
        if position >= self.positions:
            return SIMD[DType.float32, LANES](0)
        return self.v.unsafe_load[width=LANES](position * self.n + column)

    def block(self, head: Int, row: Int, rows: Int, query: Halves, scores: Floats, weights: Halves, mixed: Floats):
        """Attend with up to 32 rows, to GLANCE positions at a time, so that their scores stay close to the core.

        What lies beyond `rows` is computed and not kept.
        """
        for r in range(rows):
            for i in range(0, Self.size, 2 * LANES):
                var to = i // TILE_DEPTH * PARTS * TILES + r * TILE_DEPTH + i % TILE_DEPTH
                var numbers = self.q.unsafe_load[width=2 * LANES]((row + r) * self.n + head * Self.size + i)
                split(numbers, query.unsafe_offset(to), TILES)
        var keys = self.keys.unsafe_offset(head * self.panels() * Self.EACH)
        var values = self.values.unsafe_offset(head * self.panels() * Self.EACH)
        var tops = Array[Float32, TILE_ROWS](fill=Float32.MIN_FINITE)
        var totals = Array[Float32, TILE_ROWS](fill=0)
        var added = mixed.unsafe_offset(TILE_ROWS * Self.size)
        var padded = self.panels() * PANEL
        for start in range(0, padded, GLANCE):
            var width = min(GLANCE, padded - start)
            for at in range(0, width, PANEL):
                var near = keys.unsafe_offset((start + at) // PANEL * Self.EACH)
                clear_tiles()
                comptime for depth in range(Self.DEPTHS):
                    comptime here = depth * PARTS * TILES
                    add_split_products(query.unsafe_offset(here), near.unsafe_offset(here))
                store_tiles(scores.unsafe_offset(at), GLANCE)
            for r in range(rows):
                var sum = self.weigh(
                    scores.unsafe_offset(r * GLANCE), weights.unsafe_offset(r * TILE_DEPTH), width,
                    self.positions - start, tops[r],
                )
                # what was summed relative to a lower top
                var shrunk = exp2_exactly(SIMD[DType.float32, 1]((tops[r] - sum[0]) * Self.SCALE))[0]
                tops[r] = sum[0]
                totals[r] = totals[r] * shrunk + sum[1]
                for i in range(0, Self.size, LANES):
                    var at = r * Self.size + i
                    mixed.unsafe_store(at, mixed.unsafe_load[width=LANES](at) * shrunk if start > 0 else 0)
            comptime for column in range(Self.DEPTHS):
                clear_tiles()
                for at in range(0, width, PANEL):
                    var near = values.unsafe_offset((start + at) // PANEL * Self.EACH + column * PARTS * TILES)
                    add_split_products(weights.unsafe_offset(at * PARTS * TILE_ROWS), near)
                store_tiles(added, TILE_COLUMNS)
                for r in range(rows):
                    for i in range(0, PANEL, LANES):
                        var at = r * Self.size + column * PANEL + i
                        var sum = added.unsafe_load[width=LANES](r * TILE_COLUMNS + i)
                        mixed.unsafe_store(at, mixed.unsafe_load[width=LANES](at) + sum)
        for r in range(rows):
            for i in range(0, Self.size, LANES):
                var result = mixed.unsafe_load[width=LANES](r * Self.size + i) / totals[r]
                self.y.unsafe_store((row + r) * self.n + head * Self.size + i, result)

    @always_inline
    def weigh(
        self, scores: Floats, weights: Halves, width: Int, left: Int, before: Float32
    ) -> SIMD[DType.float32, 2]:
        """Write exponentials of scores relative to their top, or to the one before if that is higher.

        Beyond the positions that are left, they are zero. Returns the top and the sum of all written.
        """
        comptime Wide = SIMD[DType.float32, 2 * LANES]
        var whole = min(width, left) // (2 * LANES) * 2 * LANES
        var is_there = iota[DType.int32, 2 * LANES]().lt(SIMD[DType.int32, 2 * LANES](left - whole))
        var highest = Wide(before)
        for i in range(0, whole, 2 * LANES):
            highest = max(highest, scores.unsafe_load[width=2 * LANES](i))
        if whole < width:
            highest = max(highest, is_there.select(scores.unsafe_load[width=2 * LANES](whole), highest))
        var top = highest.reduce_max()
        var sums = Wide(0)
        for i in range(0, whole, 2 * LANES):
            var value = exp2_exactly((scores.unsafe_load[width=2 * LANES](i) - top) * Self.SCALE)
            sums += value
            split(value, weights.unsafe_offset(i * PARTS * TILE_ROWS), TILES)
        if whole < width:
            var value = exp2_exactly((scores.unsafe_load[width=2 * LANES](whole) - top) * Self.SCALE)
            value = is_there.select(value, Wide(0))
            sums += value
            split(value, weights.unsafe_offset(whole * PARTS * TILE_ROWS), TILES)
        return SIMD[DType.float32, 2](top, sums.reduce_add())

    def part(self, head: Int, start: Int, end: Int):
        var query = unsafe_alloc[BFloat16](PARTS * TILE_ROWS * Self.size, alignment=64)
        var scores = unsafe_alloc[Float32](TILE_ROWS * GLANCE, alignment=64)
        var weights = unsafe_alloc[BFloat16](PARTS * TILE_ROWS * GLANCE, alignment=64)
        var mixed = unsafe_alloc[Float32](TILE_ROWS * (Self.size + TILE_COLUMNS), alignment=64)
        for i in range(PARTS * TILE_ROWS * Self.size):
            query.unsafe_store(i, BFloat16(0))
        for i in range(PARTS * TILE_ROWS * GLANCE):
            weights.unsafe_store(i, BFloat16(0))
        begin_tiles()
        for row in range(start, end, TILE_ROWS):
            self.block(head, row, min(TILE_ROWS, end - row), query, scores, weights, mixed)
        end_tiles()
        query.unsafe_free()
        scores.unsafe_free()
        weights.unsafe_free()
        mixed.unsafe_free()

    def run(self):
        var heads = self.n // Self.size
        var job = self

        def pack(head: Int) {var job}:
            for panel in range(job.panels()):
                job.pack(head, panel)

        sync_parallelize(pack, heads)
        var parts = ceildiv(parallelism_level(None) * PARTS_PER_THREAD, heads)
        var rows = ceildiv(ceildiv(self.positions, parts), TILE_ROWS) * TILE_ROWS
        var chunks = ceildiv(self.positions, rows)

        def work(index: Int) {var job, var rows, var chunks}:
            var start = index % chunks * rows
            job.part(index // chunks, start, min(start + rows, job.positions))

        sync_parallelize(work, heads * chunks)


@always_inline
def require_tiles() raises:
    if not may_use_tiles():
        raise Error("products in parts need a processor with tiles of bfloat16 (AMX)")


@extensibility.register("asr_attention_split")
struct AsrAttentionSplit:
    """Registered as asr_attention_split: see split_ops.attention for its meaning."""

    @staticmethod
    def execute[
        size: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        q: InputTensor[dtype=DType.float32, rank=2, ...],
        k: InputTensor[dtype=DType.float32, rank=2, ...],
        v: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_attention_split runs on the CPU only"
        comptime assert size % PANEL == 0, "asr_attention_split needs heads of a multiple of 32"
        require_tiles()
        var n = y.dim_size(1)
        var positions = y.dim_size(0)
        var room = PARTS * ceildiv(positions, PANEL) * PANEL * n
        var packed = unsafe_alloc[BFloat16](2 * room, alignment=64)
        Attention[size](
            floats(y), floats(q), floats(k), floats(v), packed, packed.unsafe_offset(room), positions, n
        ).run()
        packed.unsafe_free()


@extensibility.register("asr_product_split")
struct AsrProductSplit:
    """Registered as asr_product_split: see split_ops.product for its meaning."""

    @staticmethod
    def execute[
        biased: Bool, residual: Bool, gelu: Bool, step: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.bfloat16, rank=5, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        added: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_product_split runs on the CPU only"
        require_tiles()
        var job = Product[biased, residual, gelu](
            floats(y), floats(x), elements(w), floats(bias), floats(added),
            y.dim_size(1), 2 * w.dim_size(2), step, x.dim_size(0) * x.dim_size(1),
        )
        job.run(y.dim_size(0))
