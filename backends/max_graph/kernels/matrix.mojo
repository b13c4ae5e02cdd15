"""Products of many rows and attention over many positions, as the encoder needs them; arithmetic limits their speed."""

import extensibility
from extensibility import InputTensor, ManagedTensorSlice, OutputTensor
from std.math import ceildiv, erf, exp
from std.memory.alloc import unsafe_alloc
from std.sys import simd_width_of

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

comptime Floats = Pointer[Float32, MutUntrackedOrigin]
comptime LANES = simd_width_of[DType.float32]()
# Columns of a packed panel, the layout that asrgate.backends.max_graph.encoder_ops.panels writes.
comptime PANEL = 32
comptime VECTORS = PANEL // LANES
# Rows of a register tile: of 32 registers, 24 hold sums and the others a panel's row and a factor.
comptime ROWS = 12 if LANES == 16 else 2
comptime PARTS_PER_THREAD = 4
# The number of terms that are summed in one go. Silence repeats the same number, and so the same rounding error: in one
# go over 1,500 positions, the error grew to 1e-5 of the sum.
comptime CHUNK = 128


@always_inline
def tile[
    rows: Int
](a: Floats, lda: Int, b: Floats, ldb: Int, k: Int) -> Array[SIMD[DType.float32, LANES], rows * VECTORS]:
    """Rows of a (k wide, lda apart) times 32 columns of b (k rows, ldb apart)."""
    var totals = Array[SIMD[DType.float32, LANES], rows * VECTORS](fill=0)
    for start in range(0, k, CHUNK):
        var sums = Array[SIMD[DType.float32, LANES], rows * VECTORS](fill=0)
        for p in range(start, min(start + CHUNK, k)):
            var panel = Array[SIMD[DType.float32, LANES], VECTORS](fill=0)
            comptime for v in range(VECTORS):
                panel[v] = b.unsafe_load[width=LANES](p * ldb + v * LANES)
            comptime for r in range(rows):
                var x = SIMD[DType.float32, LANES](a.unsafe_load(r * lda + p))
                comptime for v in range(VECTORS):
                    sums[r * VECTORS + v] = x.fma(panel[v], sums[r * VECTORS + v])
        comptime for i in range(rows * VECTORS):
            totals[i] += sums[i]
    return totals^


@always_inline
def finished[
    biased: Bool, residual: Bool, gelu: Bool
](sums: SIMD[DType.float32, LANES], bias: Floats, added: Floats) -> SIMD[DType.float32, LANES]:
    """act(sums + bias) + added."""
    var value = sums
    comptime if biased:
        value += bias.unsafe_load[width=LANES](0)
    comptime if gelu:
        value = 0.5 * value * (1 + erf(value * Float32(0.7071067811865476)))
    comptime if residual:
        value += added.unsafe_load[width=LANES](0)
    return value


@fieldwise_init
struct Product[biased: Bool, residual: Bool, gelu: Bool](
    Copyable, ImplicitlyCopyable, TrivialRegisterPassable
):
    """The operands of y[i, j] = act(x[i] . w[j] + bias[j]) + added[i, j]; rows of x lie lda apart."""

    var y: Floats
    var x: Floats
    var w: Floats
    var bias: Floats
    var added: Floats
    var n: Int
    var k: Int
    var lda: Int

    @always_inline
    def block[rows: Int](self, row: Int, panel: Int):
        var sums = tile[rows](
            self.x.unsafe_offset(row * self.lda),
            self.lda,
            self.w.unsafe_offset(panel * PANEL * self.k),
            PANEL,
            self.k,
        )
        comptime for r in range(rows):
            comptime for v in range(VECTORS):
                var column = panel * PANEL + v * LANES
                var at = (row + r) * self.n + column
                var value = finished[Self.biased, Self.residual, Self.gelu](
                    sums[r * VECTORS + v], self.bias.unsafe_offset(column), self.added.unsafe_offset(at)
                )
                self.y.unsafe_store(at, value)

    def part(self, start: Int, end: Int):
        for panel in range(self.n // PANEL):
            var row = start
            while row + ROWS <= end:
                self.block[ROWS](row, panel)
                row += ROWS
            while row < end:
                self.block[1](row, panel)
                row += 1

    def run(self, m: Int):
        var parts = parallelism_level(None) * PARTS_PER_THREAD
        var rows = ceildiv(ceildiv(m, parts), ROWS) * ROWS
        var job = self

        def work(index: Int) {var job, var rows, var m}:
            job.part(index * rows, min((index + 1) * rows, m))

        sync_parallelize(work, ceildiv(m, rows))


@fieldwise_init
struct Attention(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The operands of softmax(q kT scale) v, heads side by side in rows of n.

    `keys` is scratch memory for the packed keys of all heads.
    """

    var y: Floats
    var q: Floats
    var k: Floats
    var v: Floats
    var keys: Floats
    var positions: Int
    var n: Int
    var size: Int
    var scale: Float32

    @always_inline
    def panels(self) -> Int:
        return ceildiv(self.positions, PANEL)

    def pack(self, head: Int):
        """Pack a head's keys as panels of 32 positions, (panels, size, 32); positions beyond the end are zero."""
        var packed = self.keys.unsafe_offset(head * self.panels() * PANEL * self.size)
        for position in range(self.panels() * PANEL):
            var target = packed.unsafe_offset(
                position // PANEL * PANEL * self.size + position % PANEL
            )
            for i in range(self.size):
                var value = Float32(0)
                if position < self.positions:
                    value = self.k.unsafe_load(position * self.n + head * self.size + i)
                target.unsafe_store(i * PANEL, value)

    @always_inline
    def block[rows: Int](self, head: Int, row: Int, scores: Floats):
        var width = self.panels() * PANEL
        var column = head * self.size
        for panel in range(self.panels()):
            var sums = tile[rows](
                self.q.unsafe_offset(row * self.n + column),
                self.n,
                self.keys.unsafe_offset((head * self.panels() + panel) * PANEL * self.size),
                PANEL,
                self.size,
            )
            comptime for r in range(rows):
                comptime for v in range(VECTORS):
                    scores.unsafe_store(r * width + panel * PANEL + v * LANES, sums[r * VECTORS + v])
        var totals = Array[Float32, rows](fill=0)
        comptime for r in range(rows):
            totals[r] = self.softmax(scores.unsafe_offset(r * width))
        for start in range(0, self.size, PANEL):
            var sums = tile[rows](
                scores, width, self.v.unsafe_offset(column + start), self.n, self.positions
            )
            comptime for r in range(rows):
                comptime for v in range(VECTORS):
                    self.y.unsafe_store(
                        (row + r) * self.n + column + start + v * LANES, sums[r * VECTORS + v] / totals[r]
                    )

    @always_inline
    def softmax(self, scores: Floats) -> Float32:
        """Turn scores into exponentials and return their sum."""
        var whole = self.positions // LANES * LANES
        var highest = SIMD[DType.float32, LANES](Float32.MIN)
        for i in range(0, whole, LANES):
            highest = max(highest, scores.unsafe_load[width=LANES](i))
        var top = highest.reduce_max()
        for i in range(whole, self.positions):
            top = max(top, scores.unsafe_load(i))
        var sums = SIMD[DType.float32, LANES](0)
        for i in range(0, whole, LANES):
            var value = exp((scores.unsafe_load[width=LANES](i) - top) * self.scale)
            scores.unsafe_store(i, value)
            sums += value
        var total = sums.reduce_add()
        for i in range(whole, self.positions):
            var value = exp((scores.unsafe_load(i) - top) * self.scale)
            scores.unsafe_store(i, value)
            total += value
        return total

    def part(self, head: Int, start: Int, end: Int):
        var scores = unsafe_alloc[Float32](ROWS * self.panels() * PANEL)
        var row = start
        while row + ROWS <= end:
            self.block[ROWS](head, row, scores)
            row += ROWS
        while row < end:
            self.block[1](head, row, scores)
            row += 1
        scores.unsafe_free()

    def run(self):
        var heads = self.n // self.size
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
def floats(tensor: ManagedTensorSlice[dtype=DType.float32, ...]) -> Floats:
    return tensor.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()


@extensibility.register("asr_product")
struct AsrProduct:
    """Registered as asr_product: see encoder_ops.product for its meaning."""

    @staticmethod
    def execute[
        biased: Bool, residual: Bool, gelu: Bool, step: Int, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=DType.float32, rank=3, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        added: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_product runs on the CPU only"
        var job = Product[biased, residual, gelu](
            floats(y), floats(x), floats(w), floats(bias), floats(added), y.dim_size(1), w.dim_size(1), step
        )
        job.run(y.dim_size(0))


@extensibility.register("asr_attention")
struct AsrAttention:
    """Registered as asr_attention: see encoder_ops.attention for its meaning."""

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
        comptime assert target == "cpu", "asr_attention runs on the CPU only"
        var n = y.dim_size(1)
        var positions = y.dim_size(0)
        var keys = unsafe_alloc[Float32](ceildiv(positions, PANEL) * PANEL * n)
        var job = Attention(
            floats(y), floats(q), floats(k), floats(v), keys, positions, n, size, Float32(size) ** -0.5
        )
        job.run()
        keys.unsafe_free()
