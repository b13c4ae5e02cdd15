"""Products of many rows in int8, summed in int32: one scale for each row of the weights and of the other factor.

They use the processor's matrix tiles (AMX), or else its dot products of four bytes (AVX512-VNNI). If the processor
lacks both, the same numbers are multiplied as int32.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from std.math import ceildiv
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.sys import CompilationTarget, llvm_intrinsic

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats, Weights, floats
from .matrix_bf16 import PANEL, PARTS_PER_THREAD, VECTORS, Results, elements
from .tiles import (
    BYTE_DEPTH,
    HAS_TILES,
    TILE_COLUMNS,
    TILE_ROWS,
    Bytes,
    begin_tiles,
    clear_tiles,
    end_tiles,
    may_use_tiles,
    multiply_bytes,
    store_tiles,
)

comptime Sums = Pointer[Int32, MutUntrackedOrigin]
comptime ROWS = 12 if LANES == 16 else 2  # of a register tile: see matrix_bf16.mojo
comptime HAS_QUADS = LANES == 16 and CompilationTarget._has_feature["avx512vnni"]()
# What vectors multiply by int8 is unsigned: a number of the left factor, and this.
comptime OFFSET = UInt8(128)


@always_inline
def add_quads(
    sums: SIMD[DType.int32, LANES], a: SIMD[DType.uint8, 4 * LANES], b: SIMD[DType.int8, 4 * LANES]
) -> SIMD[DType.int32, LANES]:
    """Add the products of four bytes to the sums, lane by lane."""
    comptime if HAS_QUADS:
        return rebind[SIMD[DType.int32, LANES]](
            llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", SIMD[DType.int32, 16]](
                rebind[SIMD[DType.int32, 16]](sums),
                rebind[SIMD[DType.uint8, 64]](a),
                rebind[SIMD[DType.int8, 64]](b),
            )
        )
    else:
        var products = (a.cast[DType.int32]() * b.cast[DType.int32]()).deinterleave()
        var pairs = (products[0] + products[1]).deinterleave()
        return sums + rebind[SIMD[DType.int32, LANES]](pairs[0] + pairs[1])


@always_inline
def tile[rows: Int](a: Bytes, lda: Int, b: Bytes, quads: Int, starts: Sums, sums: Sums):
    """Write rows of `a` (of unsigned bytes, lda apart) times a panel (quads, 32 columns, 4), minus a row of starts."""
    var found = Array[SIMD[DType.int32, LANES], rows * VECTORS](fill=0)
    for p in range(quads):
        var panel = Array[SIMD[DType.int8, 4 * LANES], VECTORS](fill=0)
        comptime for v in range(VECTORS):
            panel[v] = b.unsafe_load[width=4 * LANES](4 * (p * PANEL + v * LANES))
        comptime for r in range(rows):
            var quad = a.unsafe_offset(r * lda + 4 * p).unsafe_bitcast[UInt32]().unsafe_load()
            var x = bitcast[DType.uint8, 4 * LANES](SIMD[DType.uint32, LANES](quad))
            comptime for v in range(VECTORS):
                found[r * VECTORS + v] = add_quads(found[r * VECTORS + v], x, panel[v])
    comptime for r in range(rows):
        comptime for v in range(VECTORS):
            var start = starts.unsafe_load[width=LANES](v * LANES)
            sums.unsafe_store(r * PANEL + v * LANES, found[r * VECTORS + v] - start)


@always_inline
def whole_numbers[
    offset: UInt8, width: SIMDLength
](x: SIMD[DType.float32, width], factor: Float32) -> SIMD[DType.int8, width]:
    """Round x times a factor, at most 127 in size, to nearest even; its bits are those of the sum with `offset`."""
    comptime Wide = SIMD[DType.float32, width]
    comptime WHOLE = Float32(12582912)  # 3 * 2^22: what is added to it is rounded to a whole number, in the lowest bits
    var bits = bitcast[DType.uint32, width](x.fma(Wide(factor), Wide(WHOLE)))
    return bitcast[DType.int8, width](bits.cast[DType.uint8]() ^ SIMD[DType.uint8, width](offset))


@fieldwise_init
struct Product[
    in_dtype: DType, out_dtype: DType, biased: Bool, residual: Bool, gelu: Bool
](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """Rows act(x[i] . w[j] + bias[j]) + added[i, j]; rows of w are filled up to k numbers, and have one scale each."""

    var results: Results[Self.out_dtype, Self.biased, Self.residual, Self.gelu]
    var x: Weights[Self.in_dtype]
    var w: Bytes
    var scales: Floats
    var n_in: Int
    var k: Int

    @always_inline
    def quantize[offset: UInt8](self, row: Int, target: Bytes, distance: Int) -> Float32:
        """Write a row of x as int8, 64 numbers at a time, `distance` apart, and return its scale.

        The scale of a row with a number that is none, or infinite, is no number.
        """
        var x = self.x.unsafe_offset(row * self.n_in)
        var whole = self.n_in // LANES * LANES
        var highest = SIMD[DType.float32, LANES](0)
        var wrong = SIMD[DType.float32, LANES](0)
        for i in range(0, whole, LANES):
            var value = x.unsafe_load[width=LANES](i).cast[DType.float32]()
            highest = max(highest, abs(value))
            wrong = value.fma(SIMD[DType.float32, LANES](0), wrong)
        var top = highest.reduce_max()
        var extra = wrong.reduce_add()
        for i in range(whole, self.n_in):
            var value = x.unsafe_load(i).cast[DType.float32]()
            top = max(top, abs(value))
            extra += value * 0
        var factor = 127 / top if top > Float32(1e-30) else Float32(0)
        for i in range(0, whole, LANES):
            var value = x.unsafe_load[width=LANES](i).cast[DType.float32]()
            var to = i // BYTE_DEPTH * distance + i % BYTE_DEPTH
            target.unsafe_store(to, whole_numbers[offset](value, factor))
        for i in range(whole, self.k):
            var value = x.unsafe_load(i).cast[DType.float32]() if i < self.n_in else Float32(0)
            var to = i // BYTE_DEPTH * distance + i % BYTE_DEPTH
            target.unsafe_store(to, whole_numbers[offset](SIMD[DType.float32, 1](value), factor))
        return top / 127 + extra

    def part[in_tiles: Bool](self, start: Int, end: Int):
        """Compute rows, whole blocks of them; what lies beyond the end is computed and not kept."""
        comptime rows = TILE_ROWS if in_tiles else ROWS
        comptime offset = UInt8(0) if in_tiles else OFFSET
        var lda = BYTE_DEPTH if in_tiles else self.k
        var distance = rows * BYTE_DEPTH if in_tiles else BYTE_DEPTH
        var blocks = ceildiv(end - start, rows)
        var x = unsafe_alloc[Int8](blocks * rows * self.k, alignment=64)
        var scales = unsafe_alloc[Float32](blocks * rows)
        for i in range(end - start):
            var target = x.unsafe_offset(i // rows * rows * self.k + i % rows * lda)
            scales.unsafe_store(i, self.quantize[offset](start + i, target, distance))
        for i in range(end - start, blocks * rows):
            var target = x.unsafe_offset(i // rows * rows * self.k + i % rows * lda)
            for j in range(self.k):
                target.unsafe_store(j // BYTE_DEPTH * distance + j % BYTE_DEPTH, Int8(0))
        var sums = unsafe_alloc[Int32](rows * PANEL, alignment=64)
        var offsets = unsafe_alloc[Int8](self.k)
        var starts = unsafe_alloc[Int32](2 * PANEL)
        for i in range(self.k):
            offsets.unsafe_store(i, bitcast[DType.int8, 1](OFFSET))
        for i in range(2 * PANEL):
            starts.unsafe_store(i, Int32(0))
        comptime if in_tiles:
            begin_tiles()
        for panel in range(self.results.n // PANEL):
            var w = self.w.unsafe_offset(panel * PANEL * self.k)
            comptime if not in_tiles:
                # what the offset adds to each column
                tile[1](offsets, self.k, w, self.k // 4, starts.unsafe_offset(PANEL), starts)
            for block in range(blocks):
                var factor = x.unsafe_offset(block * rows * self.k)
                comptime if in_tiles:
                    clear_tiles()
                    for at in range(0, self.k, BYTE_DEPTH):
                        multiply_bytes(factor.unsafe_offset(at * rows), w.unsafe_offset(at * PANEL))
                    store_tiles(sums.unsafe_bitcast[Float32](), TILE_COLUMNS)
                else:
                    tile[rows](factor, self.k, w, self.k // 4, starts, sums)
                var row = start + block * rows
                for r in range(min(rows, end - row)):
                    var scale = scales.unsafe_load(block * rows + r)
                    comptime for v in range(VECTORS):
                        var column = panel * PANEL + v * LANES
                        var sum = sums.unsafe_load[width=LANES](r * PANEL + v * LANES).cast[DType.float32]()
                        var value = sum * (self.scales.unsafe_load[width=LANES](column) * scale)
                        self.results.put(value, row + r, column)
        comptime if in_tiles:
            end_tiles()
        x.unsafe_free()
        scales.unsafe_free()
        sums.unsafe_free()
        offsets.unsafe_free()
        starts.unsafe_free()

    def run[tiles: Bool](self, m: Int):
        var in_tiles = tiles and may_use_tiles()
        var step = TILE_ROWS if in_tiles else ROWS
        var rows = ceildiv(ceildiv(m, parallelism_level(None) * PARTS_PER_THREAD), step) * step
        var job = self

        def work(index: Int) {var job, var rows, var m, var in_tiles}:
            var start = index * rows
            var end = min(start + rows, m)
            comptime if HAS_TILES:
                if in_tiles:
                    job.part[True](start, end)
                    return
            job.part[False](start, end)

        sync_parallelize(work, ceildiv(m, rows))


@extensibility.register("asr_product_int8")
struct AsrProductInt8:
    """Registered as asr_product_int8: see int8_ops.product for its meaning."""

    @staticmethod
    def execute[
        in_dtype: DType, out_dtype: DType, //,
        biased: Bool, residual: Bool, gelu: Bool, tiles: Bool, target: StaticString,
    ](
        y: OutputTensor[dtype=out_dtype, rank=2, ...],
        x: InputTensor[dtype=in_dtype, rank=2, ...],
        w: InputTensor[dtype=DType.int8, rank=4, ...],
        scales: InputTensor[dtype=DType.float32, rank=1, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        added: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_product_int8 runs on the CPU only"
        if x.dim_size(1) > 4 * w.dim_size(1):
            raise Error("asr_product_int8: the rows of both factors differ in length")
        var results = Results[out_dtype, biased, residual, gelu](
            elements(y), floats(bias), floats(added), y.dim_size(1)
        )
        var job = Product[in_dtype, out_dtype, biased, residual, gelu](
            results, elements(x), elements(w), floats(scales), x.dim_size(1), 4 * w.dim_size(1)
        )
        job.run[tiles](y.dim_size(0))
