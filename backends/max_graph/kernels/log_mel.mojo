"""Whisper's log-mel spectrogram before its clamp: one FFT of 400 samples per frame, one frame per SIMD lane."""

import extensibility
from extensibility import InputTensor, OutputTensor
from std.math import ceildiv, cos, log, sin
from std.memory.alloc import unsafe_alloc

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext
from max.runtime.asyncrt import parallelism_level

from .linear import LANES, Floats, floats

comptime N_FFT = 400
comptime HOP = 160
comptime HALF = N_FFT // 2
comptime BINS = HALF + 1
comptime FLOOR = Float32(1e-10)
comptime PI = 3.141592653589793
comptime Lanes = SIMD[DType.float32, LANES]
# The smallest share of a thread: computing fewer frames takes less time than waking another thread.
comptime GROUPS_PER_PART = 512 // LANES


@fieldwise_init
struct Complex(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """LANES complex numbers."""

    var re: Lanes
    var im: Lanes

    @always_inline
    def __add__(self, other: Self) -> Self:
        return Self(self.re + other.re, self.im + other.im)

    @always_inline
    def __sub__(self, other: Self) -> Self:
        return Self(self.re - other.re, self.im - other.im)

    @always_inline
    def scaled(self, factor: Float32) -> Self:
        return Self(self.re * factor, self.im * factor)

    @always_inline
    def by(self, re: Float32, im: Float32) -> Self:
        return Self(self.re * re - self.im * im, self.re * im + self.im * re)

    @always_inline
    def turned(self) -> Self:
        """Return the numbers times -i."""
        return Self(self.im, -self.re)


@always_inline
def load(source: Floats, index: Int) -> Complex:
    var at = source.unsafe_offset(2 * index * LANES)
    return Complex(at.unsafe_load[width=LANES](), at.unsafe_load[width=LANES](LANES))


@always_inline
def store(target: Floats, index: Int, value: Complex):
    var at = target.unsafe_offset(2 * index * LANES)
    at.unsafe_store(0, value.re)
    at.unsafe_store(LANES, value.im)


@always_inline
def butterfly[radix: Int](mut x: Array[Complex, radix]):
    """The discrete Fourier transform of 2, 4 or 5 numbers, in place."""
    comptime if radix == 2:
        var sum = x[0] + x[1]
        x[1] = x[0] - x[1]
        x[0] = sum
    elif radix == 4:
        var a = x[0] + x[2]
        var b = x[0] - x[2]
        var c = x[1] + x[3]
        var d = (x[1] - x[3]).turned()
        x[0] = a + c
        x[1] = b + d
        x[2] = a - c
        x[3] = b - d
    else:
        comptime C1 = Float32(cos(2 * PI / 5))
        comptime C2 = Float32(cos(4 * PI / 5))
        comptime S1 = Float32(sin(2 * PI / 5))
        comptime S2 = Float32(sin(4 * PI / 5))
        var a = x[1] + x[4]
        var b = x[2] + x[3]
        var c = (x[1] - x[4]).turned()
        var d = (x[2] - x[3]).turned()
        var e = x[0] + a.scaled(C1) + b.scaled(C2)
        var f = x[0] + a.scaled(C2) + b.scaled(C1)
        var g = c.scaled(S1) + d.scaled(S2)
        var h = c.scaled(S2) - d.scaled(S1)
        x[0] = x[0] + a + b
        x[1] = e + g
        x[4] = e - g
        x[2] = f + h
        x[3] = f - h


@always_inline
def stage[radix: Int, length: Int](source: Floats, target: Floats, table: Floats):
    """One pass of Stockham's FFT of 200 numbers, from transforms of `length` to those of length / radix."""
    comptime stride = HALF // length
    comptime step = length // radix
    for p in range(step):
        var turns_re = Array[Float32, radix](fill=1)
        var turns_im = Array[Float32, radix](fill=0)
        comptime for j in range(1, radix):
            # the table has N_FFT steps per turn
            var at = p * j * (N_FFT // length)
            turns_re[j] = table.unsafe_load(2 * at)
            turns_im[j] = table.unsafe_load(2 * at + 1)
        for q in range(stride):
            var x = Array[Complex, radix](fill=Complex(0, 0))
            comptime for j in range(radix):
                x[j] = load(source, q + stride * (p + step * j))
            butterfly[radix](x)
            comptime for j in range(radix):
                store(target, q + stride * (radix * p + j), x[j].by(turns_re[j], turns_im[j]))


@fieldwise_init
struct LogMel[reflect: Bool](Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """Turns audio into log10 of the filtered power, at least -10: (n_mels, frames)."""

    var y: Floats
    var audio: Floats
    var filters: Floats
    var table: Floats
    """Cosine and minus sine of each of the N_FFT steps of a turn, then a window of N_FFT samples."""
    var ranges: Pointer[Int64, MutUntrackedOrigin]
    """Each filter's first bin, and the bin after its last one."""
    var samples: Int
    var frames: Int
    var n_mels: Int

    @always_inline
    def sample(self, frame: Int, index: Int) -> Float32:
        comptime if Self.reflect:
            var at = frame * HOP + index - HALF
            if at < 0:
                at = -at
            elif at >= self.samples:
                at = 2 * (self.samples - 1) - at
            return self.audio.unsafe_load(at)
        else:
            return self.audio.unsafe_load(frame * HOP + index)

    @always_inline
    def read(self, first: Int, target: Floats):
        """Write the windowed samples of LANES frames, one frame per lane."""
        comptime for lane in range(LANES):
            var frame = min(first + lane, self.frames - 1)
            var start = frame * HOP
            comptime if Self.reflect:
                start -= HALF
            if start >= 0 and start + N_FFT <= self.samples:
                for i in range(N_FFT):
                    target.unsafe_store(i * LANES + lane, self.audio.unsafe_load(start + i))
            else:
                for i in range(N_FFT):
                    target.unsafe_store(i * LANES + lane, self.sample(frame, i))
        for i in range(N_FFT):
            var at = target.unsafe_offset(i * LANES)
            at.unsafe_store(0, at.unsafe_load[width=LANES]() * self.table.unsafe_load(2 * N_FFT + i))

    @always_inline
    def powers(self, spectrum: Floats, target: Floats):
        """Compute the power in each bin from a transform of the even samples as real and the odd as imaginary parts."""
        for k in range(BINS):
            var here = load(spectrum, k % HALF)
            var there = load(spectrum, (HALF - k) % HALF)
            there.im = -there.im
            var even = here + there
            var odd = (here - there).turned().by(
                self.table.unsafe_load(2 * k), self.table.unsafe_load(2 * k + 1)
            )
            var sum = even + odd
            target.unsafe_store(k * LANES, Float32(0.25) * (sum.re * sum.re + sum.im * sum.im))

    def group(self, first: Int, one: Floats, other: Floats):
        """Compute LANES frames from `first` on; `one` and `other` are scratch memory for N_FFT + 2 lanes each."""
        comptime LOG10_E = Float32(0.4342944819032518)
        self.read(first, one)
        stage[4, 200](one, other, self.table)
        stage[2, 50](other, one, self.table)
        stage[5, 25](one, other, self.table)
        stage[5, 5](other, one, self.table)
        self.powers(one, other)
        for m in range(self.n_mels):
            var sum = Lanes(0)
            for k in range(Int(self.ranges.unsafe_load(2 * m)), Int(self.ranges.unsafe_load(2 * m + 1))):
                sum = other.unsafe_load[width=LANES](k * LANES).fma(
                    Lanes(self.filters.unsafe_load(m * BINS + k)), sum
                )
            var decades = log(max(sum, Lanes(FLOOR))) * LOG10_E
            var at = self.y.unsafe_offset(m * self.frames + first)
            if first + LANES <= self.frames:
                at.unsafe_store(0, decades)
            else:
                for lane in range(self.frames - first):
                    at.unsafe_store(lane, decades[lane])

    def part(self, start: Int, end: Int):
        var one = unsafe_alloc[Float32]((N_FFT + 2) * LANES)
        var other = unsafe_alloc[Float32]((N_FFT + 2) * LANES)
        for index in range(start, end):
            self.group(index * LANES, one, other)
        one.unsafe_free()
        other.unsafe_free()

    def run(self):
        for i in range(N_FFT):
            var angle = 2 * PI * Float64(i) / N_FFT
            self.table.unsafe_store(2 * i, Float32(cos(angle)))
            self.table.unsafe_store(2 * i + 1, Float32(-sin(angle)))
            self.table.unsafe_store(2 * N_FFT + i, Float32(0.5 - 0.5 * cos(angle)))
        for m in range(self.n_mels):
            var first = 0
            var end = BINS
            while first < end and self.filters.unsafe_load(m * BINS + first) == 0:
                first += 1
            while end > first and self.filters.unsafe_load(m * BINS + end - 1) == 0:
                end -= 1
            self.ranges.unsafe_store(2 * m, Int64(first))
            self.ranges.unsafe_store(2 * m + 1, Int64(end))
        var groups = ceildiv(self.frames, LANES)
        var parts = min(2 * parallelism_level(None), ceildiv(groups, GROUPS_PER_PART))
        var each = ceildiv(groups, max(parts, 1))
        var job = self

        def work(index: Int) {var job, var each, var groups}:
            job.part(index * each, min((index + 1) * each, groups))

        sync_parallelize(work, ceildiv(groups, max(each, 1)))


def scaled(y: Floats, count: Int) -> Float32:
    """Scale decades as whisper does, cut off 8 below the loudest; return what digital silence becomes."""
    comptime LOWEST = Float32(-10)  # decades of FLOOR
    var whole = count // LANES * LANES
    var highest = Lanes(LOWEST)
    for i in range(0, whole, LANES):
        highest = max(highest, y.unsafe_load[width=LANES](i))
    var loudest = highest.reduce_max()
    for i in range(whole, count):
        loudest = max(loudest, y.unsafe_load(i))
    var quietest = max(loudest - 8, LOWEST)
    for i in range(0, whole, LANES):
        y.unsafe_store(i, (max(y.unsafe_load[width=LANES](i), Lanes(quietest)) + 4) * Float32(0.25))
    for i in range(whole, count):
        y.unsafe_store(i, (max(y.unsafe_load(i), quietest) + 4) * Float32(0.25))
    return (quietest + 4) * Float32(0.25)


@extensibility.register("asr_log_mel")
struct AsrLogMel:
    """Registered as asr_log_mel: see custom_ops.log_mel for its meaning."""

    @staticmethod
    def execute[
        reflect: Bool, target: StaticString
    ](
        y: OutputTensor[dtype=DType.float32, rank=2, ...],
        silence: OutputTensor[dtype=DType.float32, rank=2, ...],
        audio: InputTensor[dtype=DType.float32, rank=1, ...],
        filters: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_log_mel runs on the CPU only"
        var samples = audio.dim_size(0)
        var frames = y.dim_size(1)
        if filters.dim_size(1) != BINS:
            raise Error("asr_log_mel: filters must have 201 bins")
        comptime if reflect:
            if samples <= HALF:
                raise Error("asr_log_mel: audio must be longer than the 200 samples it is mirrored by")
            if frames > samples // HOP + 1:
                raise Error("asr_log_mel: more frames than the audio has")
        else:
            if (frames - 1) * HOP + N_FFT > samples:
                raise Error("asr_log_mel: more frames than the audio has")
        var table = unsafe_alloc[Float32](3 * N_FFT)
        var ranges = unsafe_alloc[Int64](2 * y.dim_size(0))
        var job = LogMel[reflect](
            floats(y), floats(audio), floats(filters), table, ranges, samples, frames, y.dim_size(0)
        )
        job.run()
        silence.unsafe_ptr().unsafe_store(0, scaled(floats(y), y.dim_size(0) * frames))
        table.unsafe_free()
        ranges.unsafe_free()
