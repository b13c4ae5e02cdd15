"""Products of many rows and attention over many positions in bfloat16, summed in float32.

It uses the processor's dot products of bfloat16 pairs (AVX512-BF16). If the processor lacks them, the same numbers are
multiplied as float32.
"""

import extensibility
from extensibility import InputTensor, ManagedTensorSlice, OutputTensor
from std.math import ceildiv, erf
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.sys import CompilationTarget, llvm_intrinsic, simd_width_of

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats, Weights, floats

comptime Halves = Weights[DType.bfloat16]
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
def exp2_roughly[width: SIMDLength](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """Two to the power of x <= 0, to 4e-6: a thousandth of the error of rounding to bfloat16."""
    var bounded = max(x, SIMD[DType.float32, width](-126))
    var whole = round(bounded)
    var rest = bounded - whole
    # Chebyshev interpolation of 2^x over [-1/2, 1/2]
    var power = rest.fma(SIMD[DType.float32, width](9.66637e-3), SIMD[DType.float32, width](5.592198e-2))
    power = rest.fma(power, SIMD[DType.float32, width](2.4022349e-1))
    power = rest.fma(power, SIMD[DType.float32, width](6.9312105e-1))
    power = rest.fma(power, SIMD[DType.float32, width](1))
    var exponent = whole.cast[DType.int32]() << 23
    return bitcast[DType.float32, width](bitcast[DType.int32, width](power) + exponent)


@fieldwise_init
struct Product[in_dtype: DType, out_dtype: DType, biased: Bool, residual: Bool, gelu: Bool](
    Copyable, ImplicitlyCopyable, TrivialRegisterPassable
):
    """Rows act(x[i] . w[j] + bias[j]) + added[i, j]; rows of x may overlap, lda apart."""

    var y: Weights[Self.out_dtype]
    var x: Weights[Self.in_dtype]
    var w: Halves
    var bias: Floats
    var added: Floats
    var n: Int
    var k: Int
    var lda: Int

    @always_inline
    def block[rows: Int](self, x: Halves, row: Int, panel: Int):
        var sums = tile[rows](x, self.lda, self.w.unsafe_offset(panel * PANEL * self.k), self.k // 2)
        comptime for r in range(rows):
            comptime for v in range(VECTORS):
                var column = panel * PANEL + v * LANES
                var value = sums[r * VECTORS + v]
                comptime if Self.biased:
                    value += self.bias.unsafe_load[width=LANES](column)
                comptime if Self.gelu:
                    value = 0.5 * value * (1 + erf(value * Float32(0.7071067811865476)))
                comptime if Self.residual:
                    value += self.added.unsafe_load[width=LANES]((row + r) * self.n + column)
                self.y.unsafe_store((row + r) * self.n + column, value.cast[Self.out_dtype]())

    def part(self, start: Int, end: Int):
        var count = (end - start - 1) * self.lda + self.k
        var x = unsafe_alloc[BFloat16](count)
        narrow(self.x.unsafe_offset(start * self.lda), x, count)
        for panel in range(self.n // PANEL):
            var row = start
            while row + ROWS <= end:
                self.block[ROWS](x.unsafe_offset((row - start) * self.lda), row, panel)
                row += ROWS
            while row < end:
                self.block[1](x.unsafe_offset((row - start) * self.lda), row, panel)
                row += 1
        x.unsafe_free()

    def run(self, m: Int):
        var parts = parallelism_level(None) * PARTS_PER_THREAD
        var rows = ceildiv(ceildiv(m, parts), ROWS) * ROWS
        var job = self

        def work(index: Int) {var job, var rows, var m}:
            job.part(index * rows, min((index + 1) * rows, m))

        sync_parallelize(work, ceildiv(m, rows))


@fieldwise_init
struct Attention[dtype: DType, size: Int](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """Rows softmax(q kT scale) v, heads side by side in rows of n."""

    var y: Weights[Self.dtype]
    var q: Weights[Self.dtype]
    var k: Weights[Self.dtype]
    var v: Weights[Self.dtype]
    var keys: Halves
    var values: Halves
    var positions: Int
    var n: Int

    @always_inline
    def panels(self) -> Int:
        return ceildiv(self.positions, PANEL)

    @always_inline
    def head_elements(self) -> Int:
        """The size of a head's packed keys, and of its packed values."""
        return self.panels() * PANEL * Self.size

    def pack(self, head: Int):
        """Pack a head's keys as (panels of positions, size / 2, 32, 2) and values as (size / 32, positions / 2, 32, 2).

        Positions beyond the end, up to a whole panel, are zero.
        """
        var keys = self.keys.unsafe_offset(head * self.head_elements())
        var values = self.values.unsafe_offset(head * self.head_elements())
        var padded = self.panels() * PANEL
        for position in range(padded):
            var there = position < self.positions
            var source = position * self.n + head * Self.size
            var key_at = position // PANEL * PANEL * Self.size + position % PANEL * 2
            for i in range(0, Self.size, 2):
                var pair = SIMD[DType.bfloat16, 2](0)
                if there:
                    pair = self.k.unsafe_load[width=2](source + i).cast[DType.bfloat16]()
                keys.unsafe_store(key_at + i * PANEL, pair)
            for i in range(Self.size):
                var value = BFloat16(0)
                if there:
                    value = self.v.unsafe_load(source + i).cast[DType.bfloat16]()
                values.unsafe_store(
                    (i // PANEL * padded + position // 2 * 2) * PANEL + i % PANEL * 2 + position % 2, value
                )

    @always_inline
    def block[rows: Int](self, head: Int, row: Int, query: Halves, scores: Floats, weights: Halves):
        var width = self.panels() * PANEL
        for r in range(rows):
            narrow(
                self.q.unsafe_offset((row + r) * self.n + head * Self.size),
                query.unsafe_offset(r * Self.size),
                Self.size,
            )
        for panel in range(self.panels()):
            var sums = tile[rows](
                query,
                Self.size,
                self.keys.unsafe_offset(head * self.head_elements() + panel * PANEL * Self.size),
                Self.size // 2,
            )
            comptime for r in range(rows):
                comptime for v in range(VECTORS):
                    scores.unsafe_store(r * width + panel * PANEL + v * LANES, sums[r * VECTORS + v])
        var totals = Array[Float32, rows](fill=0)
        comptime for r in range(rows):
            totals[r] = self.softmax(scores.unsafe_offset(r * width), weights.unsafe_offset(r * width))
        comptime for part in range(Self.size // PANEL):
            var sums = tile[rows](
                weights,
                width,
                self.values.unsafe_offset(head * self.head_elements() + part * width * PANEL),
                width // 2,
            )
            comptime for r in range(rows):
                comptime for v in range(VECTORS):
                    self.y.unsafe_store(
                        (row + r) * self.n + head * Self.size + part * PANEL + v * LANES,
                        (sums[r * VECTORS + v] / totals[r]).cast[Self.dtype](),
                    )

    @always_inline
    def softmax(self, scores: Floats, weights: Halves) -> Float32:
        """Write exponentials of scores as bfloat16, zero beyond the positions, and return the sum of all written."""
        comptime SCALE = Float32(Self.size) ** -0.5 * Float32(1.4426950408889634)  # to powers of two
        var whole = self.positions // LANES * LANES
        var highest = SIMD[DType.float32, LANES](Float32.MIN)
        for i in range(0, whole, LANES):
            highest = max(highest, scores.unsafe_load[width=LANES](i))
        var top = highest.reduce_max()
        for i in range(whole, self.positions):
            top = max(top, scores.unsafe_load(i))
        var sums = SIMD[DType.float32, LANES](0)
        for i in range(0, whole, LANES):
            var value = exp2_roughly((scores.unsafe_load[width=LANES](i) - top) * SCALE).cast[DType.bfloat16]()
            weights.unsafe_store(i, value)
            sums += value.cast[DType.float32]()
        var total = sums.reduce_add()
        for i in range(whole, self.panels() * PANEL):
            var value = BFloat16(0)
            if i < self.positions:
                value = exp2_roughly((scores.unsafe_load(i) - top) * SCALE).cast[DType.bfloat16]()
            weights.unsafe_store(i, value)
            total += value.cast[DType.float32]()
        return total

    def part(self, head: Int, start: Int, end: Int):
        var width = self.panels() * PANEL
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

    def run(self):
        var heads = self.n // Self.size
        var job = self

        def pack(head: Int) {var job}:
            job.pack(head)

        sync_parallelize(pack, heads)
        var parts = ceildiv(parallelism_level(None) * PARTS_PER_THREAD, heads)
        var rows = ceildiv(ceildiv(self.positions, parts), ROWS) * ROWS
        var chunks = ceildiv(self.positions, rows)

        def work(index: Int) {var job, var rows, var chunks}:
            var start = index % chunks * rows
            job.part(index // chunks, start, min(start + rows, job.positions))

        sync_parallelize(work, heads * chunks)


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
        var job = Product[in_dtype, out_dtype, biased, residual, gelu](
            elements(y), elements(x), elements(w), floats(bias), floats(added),
            y.dim_size(1), 2 * w.dim_size(1), step,
        )
        job.run(y.dim_size(0))


@extensibility.register("asr_attention_bf16")
struct AsrAttentionBf16:
    """Registered as asr_attention_bf16: see bfloat16_ops.attention for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, size: Int, target: StaticString
    ](
        y: OutputTensor[dtype=dtype, rank=2, ...],
        q: InputTensor[dtype=dtype, rank=2, ...],
        k: InputTensor[dtype=dtype, rank=2, ...],
        v: InputTensor[dtype=dtype, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_attention_bf16 runs on the CPU only"
        comptime assert size % PANEL == 0, "asr_attention_bf16 needs heads of a multiple of 32"
        var n = y.dim_size(1)
        var positions = y.dim_size(0)
        var room = ceildiv(positions, PANEL) * PANEL * n
        var packed = unsafe_alloc[BFloat16](2 * room)
        var job = Attention[dtype, size](
            elements(y), elements(q), elements(k), elements(v), packed, packed.unsafe_offset(room),
            positions, n,
        )
        job.run()
        packed.unsafe_free()
