"""Products of many rows in float32, in the processor's tiles of bfloat16 (AMX).

A float32 number is a sum of three bfloat16 numbers, each of 8 bits, and a float16 number of two. Of the six products
of such parts, the one below 2^-24 is left out; float32 rounds there anyway. Sums are float32.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from std.math import ceildiv
from std.memory.alloc import unsafe_alloc

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats
from .matrix import CHUNK, PANEL, PARTS_PER_THREAD, finished, floats
from .matrix_bf16 import elements
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
    require_tiles,
    split,
    store_tiles,
)

comptime BLOCK = TILE_ROWS * TILE_COLUMNS
comptime PARTS = 3  # of a float32 number
comptime MOST_BYTES = 1280 * 1024  # of the rows that one thread keeps near, beside a panel's weights


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
                split[PARTS](value, to, TILES)

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
