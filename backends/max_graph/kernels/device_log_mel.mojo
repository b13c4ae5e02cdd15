"""Log-mel spectrogram on a GPU: one block per frame, one thread per frequency, no products that could round to TF32."""

import extensibility
from extensibility import InputTensor, OutputTensor
from std.math import log
from std.utils import StaticTuple

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA
from max.gpu.host import DeviceContext

from .block import Block, Floats, run_on_cpu, run_on_gpu

comptime FFT = 400
comptime BINS = FFT // 2 + 1
comptime HOP = 160
comptime LOG_MEL_THREADS = 256  # per block: at least one per frequency


@fieldwise_init
struct LogMel(Block, TrivialRegisterPassable):
    """Frame i is samples 160 i to 160 i + 399; `tables` holds the window and one period of the cosine."""

    var log_mel: Floats
    var audio: Floats
    var tables: Floats
    var filters: Floats
    var n_mels: Int32
    var frames: Int32

    comptime THREADS = LOG_MEL_THREADS
    comptime PHASES = 3
    # offsets in shared memory
    comptime COSINE = FFT
    comptime POWER = 2 * FFT
    comptime SHARED = 2 * FFT + BINS

    @always_inline
    def phase[number: Int](self, shared: Floats, block: Int, thread: Int):
        comptime if number == 0:
            for n in range(thread, FFT, Self.THREADS):
                var sample = self.audio.unsafe_load(block * HOP + n)
                shared.unsafe_store(n, sample * self.tables.unsafe_load(n))
                shared.unsafe_store(Self.COSINE + n, self.tables.unsafe_load(FFT + n))
        elif number == 1:
            if thread < BINS:
                self.transform(shared, thread)
        else:
            for band in range(thread, Int(self.n_mels), Self.THREADS):
                var power = Float32(0)
                for bin in range(BINS):
                    power += self.filters.unsafe_load(band * BINS + bin) * shared.unsafe_load(Self.POWER + bin)
                var decades = log(max(power, Float32(1e-10))) * Float32(0.4342944819032518)
                self.log_mel.unsafe_store(band * Int(self.frames) + block, decades)

    @always_inline
    def transform(self, shared: Floats, bin: Int):
        var real = SIMD[DType.float32, 4](0)
        var imaginary = SIMD[DType.float32, 4](0)
        var at = 0  # bin * n modulo FFT
        for n in range(0, FFT, 4):
            comptime for part in range(4):
                var sample = shared.unsafe_load(n + part)
                var quarter_before = at + 3 * FFT // 4
                if quarter_before >= FFT:
                    quarter_before -= FFT
                real[part] = sample.fma(shared.unsafe_load(Self.COSINE + at), real[part])
                imaginary[part] = sample.fma(shared.unsafe_load(Self.COSINE + quarter_before), imaginary[part])
                at += bin
                if at >= FFT:
                    at -= FFT
        var x = real.reduce_add()
        var y = imaginary.reduce_add()
        shared.unsafe_store(Self.POWER + bin, x * x + y * y)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(LOG_MEL_THREADS)))
def log_mel_on_gpu(
    log_mel: Floats, audio: Floats, tables: Floats, filters: Floats, n_mels: Int32, frames: Int32
):
    run_on_gpu(LogMel(log_mel, audio, tables, filters, n_mels, frames))


@extensibility.register("asr_device_log_mel")
struct AsrDeviceLogMel:
    """Registered as asr_device_log_mel: see device_ops.log_mel for its meaning."""

    @staticmethod
    def execute[target: StaticString](
        log_mel: OutputTensor[dtype=DType.float32, rank=2, ...],
        hops: InputTensor[dtype=DType.float32, rank=2, ...],
        tables: InputTensor[dtype=DType.float32, rank=2, ...],
        filters: InputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        var mel = log_mel.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var audio = hops.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var given = tables.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var bands = filters.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var n_mels = Int32(log_mel.dim_size(0))
        var frames = log_mel.dim_size(1)
        if (frames + 2) * HOP > hops.dim_size(0) * hops.dim_size(1):
            raise Error("asr_device_log_mel: there is not enough audio for the frames")
        comptime if target == "cpu":
            run_on_cpu(LogMel(mel, audio, given, bands, n_mels, Int32(frames)), frames)
        else:
            ctx.enqueue_function[log_mel_on_gpu](
                mel, audio, given, bands, n_mels, Int32(frames),
                grid_dim=frames,
                block_dim=LogMel.THREADS,
            )
