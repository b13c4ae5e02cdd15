"""Products of many rows in bfloat16, summed in float32.

It uses the processor's matrix tiles (AMX), or else its dot products of bfloat16 pairs (AVX512-BF16). If the processor
lacks both, the same numbers are multiplied as float32.
"""

import extensibility
from extensibility import InputTensor, ManagedTensorSlice, OutputTensor
from std.math import ceildiv
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.sys import CompilationTarget, llvm_intrinsic, simd_width_of

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats, Weights, floats
from .tiles import (
    HAS_TILES,
    TILE_COLUMNS,
    TILE_DEPTH,
    TILE_ROWS,
    Halves,
    begin_tiles,
    end_tiles,
    may_use_tiles,
    tile_block,
)

comptime Sums[rows: Int] = Array[SIMD[DType.float32, LANES], rows * VECTORS]
# Columns of a packed panel, the layout that asrgate.backends.max_graph.bfloat16_ops.pairs writes.
comptime PANEL = 32
comptime VECTORS = PANEL // LANES
# Rows of a register tile: of 32 registers, 24 hold sums and the others a panel's row and a factor.
comptime ROWS = 12 if LANES == 16 else 2
comptime PARTS_PER_THREAD = 4
comptime HAS_PAIRS = LANES == 16 and CompilationTarget._has_feature["avx512bf16"]()


@always_inline
def add_pairs(
    sums: SIMD[DType.float32, LANES],
    a: SIMD[DType.bfloat16, 2 * LANES],
    b: SIMD[DType.bfloat16, 2 * LANES],
) -> SIMD[DType.float32, LANES]:
    """Add the products of two pairs to the sums, lane by lane."""
    comptime if HAS_PAIRS:
        return rebind[SIMD[DType.float32, LANES]](
            llvm_intrinsic["llvm.x86.avx512bf16.dpbf16ps.512", SIMD[DType.float32, 16]](
                rebind[SIMD[DType.float32, 16]](sums),
                rebind[SIMD[DType.bfloat16, 32]](a),
                rebind[SIMD[DType.bfloat16, 32]](b),
            )
        )
    else:
        var x = a.cast[DType.float32]().deinterleave()
        var y = b.cast[DType.float32]().deinterleave()
        comptime Half = SIMD[DType.float32, LANES]
        return rebind[Half](x[1]).fma(
            rebind[Half](y[1]), rebind[Half](x[0]).fma(rebind[Half](y[0]), sums)
        )


@always_inline
def tile[rows: Int](a: Halves, lda: Int, b: Halves, pairs: Int) -> Sums[rows]:
    """Rows of a (pairs wide, lda elements apart) times a panel (pairs, 32 columns, 2)."""
    var sums = Sums[rows](fill=0)
    for p in range(pairs):
        var panel = Array[SIMD[DType.bfloat16, 2 * LANES], VECTORS](fill=0)
        comptime for v in range(VECTORS):
            panel[v] = b.unsafe_load[width=2 * LANES](2 * (p * PANEL + v * LANES))
        comptime for r in range(rows):
            var pair = a.unsafe_offset(r * lda + 2 * p).unsafe_bitcast[UInt32]().unsafe_load()
            var x = bitcast[DType.bfloat16, 2 * LANES](SIMD[DType.uint32, LANES](pair))
            comptime for v in range(VECTORS):
                sums[r * VECTORS + v] = add_pairs(sums[r * VECTORS + v], x, panel[v])
    return sums^


@always_inline
def narrow[dtype: DType](source: Weights[dtype], target: Halves, count: Int):
    """Copy numbers as bfloat16."""
    var whole = count // LANES * LANES
    for i in range(0, whole, LANES):
        target.unsafe_store(i, source.unsafe_load[width=LANES](i).cast[DType.bfloat16]())
    for i in range(whole, count):
        target.unsafe_store(i, source.unsafe_load(i).cast[DType.bfloat16]())


@always_inline
def exp2[exact: Bool, width: SIMDLength](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Two to the power of x <= 0; below 2^-126 it is that.

    If it is `exact`, it is right to 1e-7, else to 4e-6: a thousandth of the error of rounding to bfloat16.
    """
    comptime Wide = SIMD[DType.float32, width]
    comptime WHOLE = Float32(12582912)  # 3 * 2^22: what is added to it is rounded to a whole number, in the lowest bits
    var bounded = max(x, Wide(-126))
    var shifted = bounded + WHOLE
    var rest = bounded - (shifted - WHOLE)
    var power: Wide
    # Chebyshev interpolation of 2^x over [-1/2, 1/2]
    comptime if exact:
        power = rest.fma(Wide(1.546144472e-4), Wide(1.340042818e-3))
        power = rest.fma(power, Wide(9.618056678e-3))
        power = rest.fma(power, Wide(5.550327227e-2))
        power = rest.fma(power, Wide(2.402265092e-1))
        power = rest.fma(power, Wide(6.931472067e-1))
    else:
        power = rest.fma(Wide(9.66637e-3), Wide(5.592198e-2))
        power = rest.fma(power, Wide(2.4022349e-1))
        power = rest.fma(power, Wide(6.9312105e-1))
    power = rest.fma(power, Wide(1))
    var exponent = bitcast[DType.int32, width](shifted) << 23
    return bitcast[DType.float32, width](bitcast[DType.int32, width](power) + exponent)


@always_inline
def gelu_roughly(x: SIMD[DType.float32, LANES]) -> SIMD[DType.float32, LANES]:
    """The erf-based GELU, to 4e-6 of x: erf after Abramowitz and Stegun 7.1.26, with `exp2`."""
    comptime Wide = SIMD[DType.float32, LANES]
    comptime HALF_LOG2_E = Float32(0.7213475204444817)
    var size = abs(x)
    var t = 1 / size.fma(Wide(0.3275911 * 0.7071067811865476), Wide(1))
    var tail = t.fma(Wide(1.061405429), Wide(-1.453152027))
    tail = t.fma(tail, Wide(1.421413741))
    tail = t.fma(tail, Wide(-0.284496736))
    tail = t.fma(tail, Wide(0.254829592))
    tail *= t * Float32(0.5) * exp2[False](-HALF_LOG2_E * x * x)  # the normal distribution beyond |x|
    return x * x.lt(Wide(0)).select(tail, 1 - tail)


@fieldwise_init
struct Results[dtype: DType, biased: Bool, residual: Bool, gelu: Bool](
    Copyable, ImplicitlyCopyable, TrivialRegisterPassable
):
    """Where a product's rows of n numbers go: act(sums + bias) + added, in `dtype`."""

    var y: Weights[Self.dtype]
    var bias: Floats
    var added: Floats
    var n: Int

    @always_inline
    def put(self, sums: SIMD[DType.float32, LANES], row: Int, column: Int):
        var value = sums
        comptime if Self.biased:
            value += self.bias.unsafe_load[width=LANES](column)
        comptime if Self.gelu:
            value = gelu_roughly(value)
        comptime if Self.residual:
            value += self.added.unsafe_load[width=LANES](row * self.n + column)
        self.y.unsafe_store(row * self.n + column, value.cast[Self.dtype]())


@fieldwise_init
struct Product[in_dtype: DType, out_dtype: DType, biased: Bool, residual: Bool, gelu: Bool](
    Copyable, ImplicitlyCopyable, TrivialRegisterPassable
):
    """Rows act(x[i] . w[j] + bias[j]) + added[i, j]; rows of x may overlap, lda apart."""

    var results: Results[Self.out_dtype, Self.biased, Self.residual, Self.gelu]
    var x: Weights[Self.in_dtype]
    var w: Halves
    var k: Int
    var lda: Int

    @always_inline
    def block[rows: Int](self, x: Halves, row: Int, panel: Int):
        var sums = tile[rows](x, self.lda, self.w.unsafe_offset(panel * PANEL * self.k), self.k // 2)
        comptime for r in range(rows):
            comptime for v in range(VECTORS):
                self.results.put(sums[r * VECTORS + v], row + r, panel * PANEL + v * LANES)

    def part(self, start: Int, end: Int):
        var count = (end - start - 1) * self.lda + self.k
        var x = unsafe_alloc[BFloat16](count)
        narrow(self.x.unsafe_offset(start * self.lda), x, count)
        for panel in range(self.results.n // PANEL):
            var row = start
            while row + ROWS <= end:
                self.block[ROWS](x.unsafe_offset((row - start) * self.lda), row, panel)
                row += ROWS
            while row < end:
                self.block[1](x.unsafe_offset((row - start) * self.lda), row, panel)
                row += 1
        x.unsafe_free()

    def part_in_tiles(self, start: Int, end: Int):
        var rows = ceildiv(end - start, TILE_ROWS) * TILE_ROWS
        comptime if Self.in_dtype == DType.bfloat16:
            if self.k % TILE_DEPTH == 0 and start + rows == end:
                self.blocks_in_tiles(rebind[Halves](self.x).unsafe_offset(start * self.lda), start, end)
                return
        var count = (end - start - 1) * self.lda + self.k
        var room = (rows - 1) * self.lda + ceildiv(self.k, TILE_DEPTH) * TILE_DEPTH
        var x = unsafe_alloc[BFloat16](room)
        narrow(self.x.unsafe_offset(start * self.lda), x, count)
        for i in range(count, room):
            x.unsafe_store(i, BFloat16(0))
        self.blocks_in_tiles(x, start, end)
        x.unsafe_free()

    def blocks_in_tiles(self, x: Halves, start: Int, end: Int):
        """Compute rows of which whole blocks of 32 can be read, and behind each row as many numbers as a tile is deep."""
        var rest = unsafe_alloc[BFloat16](TILE_DEPTH * TILE_COLUMNS)
        for i in range(TILE_DEPTH * TILE_COLUMNS):
            rest.unsafe_store(i, BFloat16(0))
        var sums = unsafe_alloc[Float32](TILE_ROWS * TILE_COLUMNS)
        var whole = self.k // TILE_DEPTH * TILE_DEPTH
        begin_tiles()
        for panel in range(self.results.n // PANEL):
            var w = self.w.unsafe_offset(panel * PANEL * self.k)
            for i in range((self.k - whole) * PANEL):
                rest.unsafe_store(i, w.unsafe_load(whole * PANEL + i))
            for row in range(start, end, TILE_ROWS):
                var factor = x.unsafe_offset((row - start) * self.lda)
                tile_block(factor, self.lda, w, self.k, rest, sums, TILE_COLUMNS)
                for r in range(min(TILE_ROWS, end - row)):
                    comptime for v in range(VECTORS):
                        var sum = sums.unsafe_load[width=LANES](r * TILE_COLUMNS + v * LANES)
                        self.results.put(sum, row + r, panel * PANEL + v * LANES)
        end_tiles()
        sums.unsafe_free()
        rest.unsafe_free()

    def run(self, m: Int):
        var parts = parallelism_level(None) * PARTS_PER_THREAD
        var in_tiles = may_use_tiles()
        var step = TILE_ROWS if in_tiles else ROWS
        var rows = ceildiv(ceildiv(m, parts), step) * step
        var job = self

        def work(index: Int) {var job, var rows, var m, var in_tiles}:
            var start = index * rows
            var end = min(start + rows, m)
            comptime if HAS_TILES:
                if in_tiles:
                    job.part_in_tiles(start, end)
                    return
            job.part(start, end)

        sync_parallelize(work, ceildiv(m, rows))


@always_inline
def elements[dtype: DType](tensor: ManagedTensorSlice[dtype=dtype, ...]) -> Weights[dtype]:
    return tensor.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()


@extensibility.register("asr_product_bf16")
struct AsrProductBf16:
    """Registered as asr_product_bf16: see bfloat16_ops.product for its meaning."""

    @staticmethod
    def execute[
        in_dtype: DType, out_dtype: DType, //,
        biased: Bool, residual: Bool, gelu: Bool, step: Int, target: StaticString,
    ](
        y: OutputTensor[dtype=out_dtype, rank=2, ...],
        x: InputTensor[dtype=in_dtype, rank=2, ...],
        w: InputTensor[dtype=DType.bfloat16, rank=4, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        added: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_product_bf16 runs on the CPU only"
        var results = Results[out_dtype, biased, residual, gelu](
            elements(y), floats(bias), floats(added), y.dim_size(1)
        )
        var job = Product[in_dtype, out_dtype, biased, residual, gelu](
            results, elements(x), elements(w), 2 * w.dim_size(1), step
        )
        job.run(y.dim_size(0))
