"""A few rows times a big matrix, as a decoder's step needs it; reading the matrix limits its speed."""

import extensibility
from extensibility import InputTensor, ManagedTensorSlice, OutputTensor
from std.math import ceildiv, erf
from std.sys import simd_width_of, size_of
from std.sys.intrinsics import PrefetchOptions, prefetch

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

comptime Floats = Pointer[Float32, MutUntrackedOrigin]
comptime Weights[dtype: DType] = Pointer[Scalar[dtype], MutUntrackedOrigin]
comptime LANES = simd_width_of[DType.float32]()
# Smaller matrices stay on the calling thread. More threads would be faster from less than 1 MiB on. But the more often
# threads are woken in a step, the longer they keep spinning after the last one.
comptime ONE_THREAD_BYTES = 16 * 1024 * 1024
comptime PART_BYTES = 4 * 1024 * 1024
# A core reads faster if it reads at several places in turn, and asks for what comes next at each of them.
comptime STREAMS = 4
comptime AHEAD_BYTES = 1536
comptime LINE_BYTES = 64
# More than one part per thread, so that a thread that other programs delay does not delay the others.
comptime PARTS_PER_THREAD = 4


@always_inline
def ask_ahead[dtype: DType, count: Int](at: Weights[dtype]):
    """Have the numbers fetched that a reader of the next `count` of them will reach soon; there may be none."""
    comptime each = LINE_BYTES // size_of[dtype]()
    comptime for line in range(max(count // each, 1)):
        prefetch[PrefetchOptions().for_read().high_locality().to_data_cache()](
            at.unsafe_offset(AHEAD_BYTES // size_of[dtype]() + line * each)
        )


@always_inline
def dot_products[
    dtype: DType, rows: Int, batch: Int, unroll: Int
](x: Floats, w: Weights[dtype], k: Int) -> SIMD[DType.float32, rows * batch]:
    """Dot products of `rows` rows of w with `batch` rows of x; the batch is the fastest index."""
    comptime STEP = LANES * unroll
    var sums = Array[SIMD[DType.float32, LANES], rows * batch * unroll](fill=0)

    @always_inline
    def add[count: Int](at: Int) {mut sums, imm}:
        comptime for u in range(count):
            comptime for r in range(rows):
                var weights = w.unsafe_load[width=LANES](r * k + at + u * LANES).cast[DType.float32]()
                comptime for b in range(batch):
                    comptime j = (r * batch + b) * unroll + u
                    sums[j] = weights.fma(x.unsafe_load[width=LANES](b * k + at + u * LANES), sums[j])

    var stepped = k // STEP * STEP
    var whole = k // LANES * LANES
    for at in range(0, stepped, STEP):
        ask_ahead[dtype, STEP](w.unsafe_offset(at))
        add[unroll](at)
    for at in range(stepped, whole, LANES):
        add[1](at)
    var totals = SIMD[DType.float32, rows * batch](0)
    comptime for j in range(rows * batch):
        var sum = sums[j * unroll]
        comptime for u in range(1, unroll):
            sum += sums[j * unroll + u]
        totals[j] = sum.reduce_add()
    for at in range(whole, k):
        comptime for r in range(rows):
            var weight = w.unsafe_load(r * k + at).cast[DType.float32]()
            comptime for b in range(batch):
                totals[r * batch + b] += weight * x.unsafe_load(b * k + at)
    return totals


@fieldwise_init
struct Linear[dtype: DType, scaled: Bool, biased: Bool, residual: Bool, gelu: Bool](
    Copyable, ImplicitlyCopyable, TrivialRegisterPassable
):
    """The operands of one product: y[b, n] = act(scale[n] x[b] . w[n] + bias[n]) + residual[b, n]."""

    var y: Floats
    var x: Floats
    var w: Weights[Self.dtype]
    var scale: Floats
    var bias: Floats
    var added: Floats
    var n: Int
    var k: Int

    @always_inline
    def block[rows: Int, batch: Int, unroll: Int](self, first_row: Int, first_batch: Int):
        var totals = dot_products[Self.dtype, rows, batch, unroll](
            self.x.unsafe_offset(first_batch * self.k), self.w.unsafe_offset(first_row * self.k), self.k
        )
        comptime for r in range(rows):
            comptime for b in range(batch):
                var row = first_row + r
                var at = (first_batch + b) * self.n + row
                var value = totals[r * batch + b]
                comptime if Self.scaled:
                    value *= self.scale.unsafe_load(row)
                comptime if Self.biased:
                    value += self.bias.unsafe_load(row)
                comptime if Self.residual and not Self.gelu:
                    value += self.added.unsafe_load(at)
                self.y.unsafe_store(at, value)

    @always_inline
    def activate[width: Int](self, at: Int):
        var value = self.y.unsafe_load[width=width](at)
        value = 0.5 * value * (1 + erf(value * Float32(0.7071067811865476)))
        comptime if Self.residual:
            value += self.added.unsafe_load[width=width](at)
        self.y.unsafe_store(at, value)

    @always_inline
    def rows_of[batch: Int](self, start: Int, end: Int, first_batch: Int):
        comptime unroll = 4 if batch <= 4 else 2
        var each = (end - start) // STREAMS
        for row in range(start, start + each):
            for stream in range(STREAMS):
                self.block[1, batch, unroll](row + stream * each, first_batch)
        for row in range(start + STREAMS * each, end):
            self.block[1, batch, unroll](row, first_batch)

    def part(self, start: Int, end: Int, batch: Int):
        var done = 0
        while batch - done >= 8:
            self.rows_of[8](start, end, done)
            done += 8
        if batch - done >= 4:
            self.rows_of[4](start, end, done)
            done += 4
        if batch - done >= 2:
            self.rows_of[2](start, end, done)
            done += 2
        if batch - done >= 1:
            self.rows_of[1](start, end, done)
        comptime if Self.gelu:
            var whole = start + (end - start) // LANES * LANES
            for row in range(batch):
                for i in range(start, whole, LANES):
                    self.activate[LANES](row * self.n + i)
                for i in range(whole, end):
                    self.activate[1](row * self.n + i)

    def run(self, batch: Int):
        var size = self.n * self.k * size_of[Self.dtype]()
        var parts = 1
        if size > ONE_THREAD_BYTES:
            parts = min(parallelism_level(None) * PARTS_PER_THREAD, ceildiv(size, PART_BYTES))
        # whole blocks of rows, so that only the last part has a remainder
        var rows = ceildiv(ceildiv(self.n, parts), 8) * 8
        var job = self

        def work(index: Int) {var job, var rows, var batch}:
            var start = index * rows
            job.part(start, min(start + rows, job.n), batch)

        sync_parallelize(work, ceildiv(self.n, rows))


@always_inline
def floats(tensor: ManagedTensorSlice[dtype=DType.float32, ...]) -> Floats:
    return tensor.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()


@extensibility.register("asr_linear")
struct AsrLinear:
    """Registered as asr_linear: see custom_ops.linear for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, scaled: Bool, biased: Bool, residual: Bool, gelu: Bool, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        w: InputTensor[dtype=dtype, rank=2, ...],
        scale: InputTensor[dtype=DType.float32, rank=1, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        added: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_linear runs on the CPU only"
        var job = Linear[dtype, scaled, biased, residual, gelu](
            floats(y), floats(x), w.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            floats(scale), floats(bias), floats(added), w.dim_size(0), w.dim_size(1),
        )
        job.run(x.dim_size(0))
