"""What an encoder's or decoder's layer does besides products and attention, all of it quick.

MAX has operations for these too, but each takes several seconds to compile.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from std.math import ceildiv, sqrt

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats, Weights, floats

comptime Lanes = SIMD[DType.float32, LANES]
# Fewer numbers than this stay on the calling thread.
comptime ONE_THREAD_NUMBERS = 65536


@always_inline
def rows_per_part(rows: Int, width: Int) -> Int:
    if rows * width < ONE_THREAD_NUMBERS:
        return rows
    return ceildiv(rows, parallelism_level(None) * 2)


@fieldwise_init
struct Norm[dtype: DType](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The operands of a layer norm of rows of n; the mean is taken off before anything is squared."""

    var y: Weights[Self.dtype]
    var x: Floats
    var weight: Floats
    var bias: Floats
    var n: Int

    def row(self, index: Int):
        var x = self.x.unsafe_offset(index * self.n)
        var y = self.y.unsafe_offset(index * self.n)
        var whole = self.n // LANES * LANES
        var sums = Lanes(0)
        for i in range(0, whole, LANES):
            sums += x.unsafe_load[width=LANES](i)
        var total = sums.reduce_add()
        for i in range(whole, self.n):
            total += x.unsafe_load(i)
        var mean = total / Float32(self.n)
        var squares = Lanes(0)
        for i in range(0, whole, LANES):
            var rest = x.unsafe_load[width=LANES](i) - mean
            squares = rest.fma(rest, squares)
        var square = squares.reduce_add()
        for i in range(whole, self.n):
            square += (x.unsafe_load(i) - mean) * (x.unsafe_load(i) - mean)
        var factor = 1 / sqrt(square / Float32(self.n) + Float32(1e-5))
        for i in range(0, whole, LANES):
            var value = (x.unsafe_load[width=LANES](i) - mean) * factor
            value = value.fma(self.weight.unsafe_load[width=LANES](i), self.bias.unsafe_load[width=LANES](i))
            y.unsafe_store(i, value.cast[Self.dtype]())
        for i in range(whole, self.n):
            var value = (x.unsafe_load(i) - mean) * factor
            value = value * self.weight.unsafe_load(i) + self.bias.unsafe_load(i)
            y.unsafe_store(i, value.cast[Self.dtype]())

    def run(self, rows: Int):
        var each = rows_per_part(rows, self.n)
        var job = self

        def work(index: Int) {var job, var each, var rows}:
            for row in range(index * each, min((index + 1) * each, rows)):
                job.row(row)

        sync_parallelize(work, ceildiv(rows, each))


@extensibility.register("asr_layer_norm")
struct AsrLayerNorm:
    """Registered as asr_layer_norm: see custom_ops.layer_norm for its meaning."""

    @staticmethod
    def execute[dtype: DType, //, target: StaticString](
        y: OutputTensor[dtype=dtype, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        weight: InputTensor[dtype=DType.float32, rank=1, ...],
        bias: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_layer_norm runs on the CPU only"
        var to = y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        Norm[dtype](to, floats(x), floats(weight), floats(bias), x.dim_size(1)).run(x.dim_size(0))


@fieldwise_init
struct Padding(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """Rows of n between a row of zeros before and one behind; column i of `x` becomes row i if it is `turned`."""

    var y: Floats
    var x: Floats
    var rows: Int
    var n: Int
    var turned: Bool

    def row(self, index: Int):
        var y = self.y.unsafe_offset(index * self.n)
        if index == 0 or index == self.rows + 1:
            for i in range(self.n):
                y.unsafe_store(i, 0)
        elif self.turned:
            for i in range(self.n):
                y.unsafe_store(i, self.x.unsafe_load(i * self.rows + index - 1))
        else:
            for i in range(self.n):
                y.unsafe_store(i, self.x.unsafe_load((index - 1) * self.n + i))

    def run(self):
        var rows = self.rows + 2
        var each = rows_per_part(rows, self.n)
        var job = self

        def work(index: Int) {var job, var each, var rows}:
            for row in range(index * each, min((index + 1) * each, rows)):
                job.row(row)

        sync_parallelize(work, ceildiv(rows, each))


@extensibility.register("asr_padded")
struct AsrPadded:
    """Registered as asr_padded: see encoder_ops.padded for its meaning."""

    @staticmethod
    def execute[turned: Bool, target: StaticString](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_padded runs on the CPU only"
        Padding(floats(y), floats(x), y.dim_size(0) - 2, y.dim_size(1), turned).run()


@extensibility.register("asr_sum_of_rows")
struct AsrSumOfRows:
    """Registered as asr_sum_of_rows: see encoder_ops.sum_of_rows for its meaning."""

    @staticmethod
    def execute[target: StaticString](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        added: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_sum_of_rows runs on the CPU only"
        if added.dim_size(0) < x.dim_size(0) or added.dim_size(1) != x.dim_size(1):
            raise Error("asr_sum_of_rows: there are too few rows to add")
        var count = x.dim_size(0) * x.dim_size(1)
        var whole = count // LANES * LANES
        var to = floats(y)
        var one = floats(x)
        var other = floats(added)
        for i in range(0, whole, LANES):
            to.unsafe_store(i, one.unsafe_load[width=LANES](i) + other.unsafe_load[width=LANES](i))
        for i in range(whole, count):
            to.unsafe_store(i, one.unsafe_load(i) + other.unsafe_load(i))


@fieldwise_init
struct Heads[dtype: DType](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """Keys and values of all layers, side by side in rows, to (layers, heads, positions, size) each."""

    var keys: Weights[Self.dtype]
    var values: Weights[Self.dtype]
    var x: Floats
    var layers: Int
    var heads: Int
    var positions: Int
    var size: Int

    def head(self, index: Int):
        """Copy one head of one layer: of its keys if the index is even, else of its values."""
        var layer = index // 2 // self.heads
        var head = index // 2 % self.heads
        var row = 2 * self.layers * self.heads * self.size
        var column = ((2 * layer + index % 2) * self.heads + head) * self.size
        var target = self.keys if index % 2 == 0 else self.values
        var start = (layer * self.heads + head) * self.positions * self.size
        for position in range(self.positions):
            for i in range(0, self.size, LANES):
                var numbers = self.x.unsafe_load[width=LANES](position * row + column + i)
                target.unsafe_store(start + position * self.size + i, numbers.cast[Self.dtype]())

    def run(self):
        var job = self

        def work(index: Int) {var job}:
            job.head(index)

        sync_parallelize(work, 2 * self.layers * self.heads)


@extensibility.register("asr_heads")
struct AsrHeads:
    """Registered as asr_heads: see encoder_ops.heads for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, target: StaticString
    ](
        keys: OutputTensor[dtype=dtype, rank=4, ...],
        values: OutputTensor[dtype=dtype, rank=4, ...],
        x: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_heads runs on the CPU only"
        if keys.dim_size(3) % LANES != 0:
            raise Error("asr_heads: heads must be a multiple of a vector's numbers")
        Heads[dtype](
            keys.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            values.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            floats(x), keys.dim_size(0), keys.dim_size(1), keys.dim_size(2), keys.dim_size(3),
        ).run()
