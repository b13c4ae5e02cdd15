"""Greedy selection of a token under Whisper's timestamp rules, without copying or masking the logits."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility.managed_tensor_slice import _MutableInputTensor as MutableInputTensor
from std.math import exp, log

from max.gpu.host import DeviceContext

from .linear import LANES, Floats, floats
from .window import BEGIN, COUNT, DONE, NO_SPEECH, POSITION, SOT_INDEX, TIMESTAMPS, Window

comptime Lanes = SIMD[DType.float32, LANES]
comptime NEVER = Float32.MIN  # minus infinity


@fieldwise_init
struct Choice(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """Logits plus a mask, over ranges of tokens."""

    var logits: Floats
    var mask: Floats

    @always_inline
    def at[width: Int](self, index: Int) -> SIMD[DType.float32, width]:
        return self.logits.unsafe_load[width=width](index) + self.mask.unsafe_load[width=width](index)

    def top(self, start: Int, end: Int) -> Float32:
        """Return the highest of a range, or minus infinity if none is allowed."""
        var highest = Lanes(NEVER)
        var whole = start + max(end - start, 0) // LANES * LANES
        for i in range(start, whole, LANES):
            highest = max(highest, self.at[LANES](i))
        var result = highest.reduce_max()
        for i in range(whole, end):
            result = max(result, self.at[1](i))
        return result

    def weight(self, start: Int, end: Int, top: Float32) -> Float32:
        """Return the sum of exponentials of a range, relative to `top`."""
        var sums = Lanes(0)
        var whole = start + max(end - start, 0) // LANES * LANES
        for i in range(start, whole, LANES):
            sums += exp(self.at[LANES](i) - top)
        var total = sums.reduce_add()
        for i in range(whole, end):
            total += exp(self.at[1](i) - top)
        return total

    def first(self, start: Int, end: Int, value: Float32) raises -> Int:
        var whole = start + max(end - start, 0) // LANES * LANES
        for i in range(start, whole, LANES):
            var same = self.at[LANES](i).eq(Lanes(value))
            if same.reduce_or():
                for lane in range(LANES):
                    if same[lane]:
                        return i + lane
        for i in range(whole, end):
            if self.at[1](i) == value:
                return i
        raise Error("asr_select: the logits are not numbers")


@extensibility.register("asr_select")
struct AsrSelect:
    """Registered as asr_select: see custom_ops.select for its meaning."""

    @staticmethod
    def execute[target: StaticString](
        token: OutputTensor[dtype=DType.int64, rank=1, ...],
        logprob: OutputTensor[dtype=DType.float32, rank=1, ...],
        quiet: OutputTensor[dtype=DType.float32, rank=1, ...],
        logits: InputTensor[dtype=DType.float32, rank=1, ...],
        masks: InputTensor[dtype=DType.float32, rank=2, ...],
        rules: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_select runs on the CPU only"
        var size = logits.dim_size(0)
        if rules.dim_size(0) != 6 or masks.dim_size(1) != size:
            raise Error("asr_select: needs six rules and masks as long as the logits")
        var numbers = rules.unsafe_ptr()
        var text_start = Int(numbers.unsafe_load(0))
        var begin = Int(numbers.unsafe_load(1))
        var stamp_start = Int(numbers.unsafe_load(2))
        var weighed = numbers.unsafe_load(3) != 0
        var no_speech = Int(numbers.unsafe_load(4))
        if text_start < 0 or begin < 0 or begin > size or stamp_start < begin or no_speech >= size:
            raise Error("asr_select: a rule names a token outside the vocabulary")
        var row = Int(numbers.unsafe_load(5))
        if row < 0 or row >= masks.dim_size(0):
            raise Error("asr_select: there is no such mask")
        var choice = Choice(floats(logits), floats(masks).unsafe_offset(row * size))
        var text_top = choice.top(text_start, begin)
        var stamp_top = choice.top(stamp_start, size)
        var top = max(text_top, stamp_top)
        var stamps = choice.weight(stamp_start, size, top)
        if not top > NEVER or stamps != stamps:
            raise Error("asr_select: no token is allowed, or the logits are not numbers")
        if weighed and stamps > exp(text_top - top):
            token.unsafe_ptr().unsafe_store(0, Int64(choice.first(stamp_start, size, stamp_top)))
            logprob.unsafe_ptr().unsafe_store(0, stamp_top - top - log(stamps))
        else:
            var total = stamps + choice.weight(text_start, begin, top)
            var chosen = (
                choice.first(text_start, begin, top) if text_top >= stamp_top else choice.first(
                    stamp_start, size, top
                )
            )
            token.unsafe_ptr().unsafe_store(0, Int64(chosen))
            logprob.unsafe_ptr().unsafe_store(0, -log(total))
        var chance = Float32(0)
        if no_speech >= 0:
            var all = Lanes(NEVER)
            var whole = size // LANES * LANES
            var raw = floats(logits)
            for i in range(0, whole, LANES):
                all = max(all, raw.unsafe_load[width=LANES](i))
            var highest = all.reduce_max()
            for i in range(whole, size):
                highest = max(highest, raw.unsafe_load(i))
            var sums = Lanes(0)
            for i in range(0, whole, LANES):
                sums += exp(raw.unsafe_load[width=LANES](i) - highest)
            var sum = sums.reduce_add()
            for i in range(whole, size):
                sum += exp(raw.unsafe_load(i) - highest)
            chance = exp(raw.unsafe_load(no_speech) - highest) / sum
        quiet.unsafe_ptr().unsafe_store(0, chance)


@always_inline
def window_of(
    state: MutableInputTensor[dtype=DType.int64, rank=1, ...],
    sums: MutableInputTensor[dtype=DType.float32, rank=1, ...],
    sampled: MutableInputTensor[dtype=DType.int64, rank=1, ...],
    prompt: InputTensor[dtype=DType.int64, rank=1, ...],
    numbers: InputTensor[dtype=DType.int64, rank=1, ...],
) -> Window:
    return Window(
        state.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        sums.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        sampled.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        prompt.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
        numbers.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
    )


@extensibility.register("asr_rules")
struct AsrRules:
    """Registered as asr_rules: see custom_ops.rules for its meaning."""

    @staticmethod
    def execute[size: Int, target: StaticString](
        rules: OutputTensor[dtype=DType.int64, rank=1, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        sums: MutableInputTensor[dtype=DType.float32, rank=1, ...],
        sampled: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        prompt: InputTensor[dtype=DType.int64, rank=1, ...],
        numbers: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_rules runs on the CPU only"
        var window = window_of(state, sums, sampled, prompt, numbers)
        var at_start = window.now(POSITION) == window.rule(SOT_INDEX)
        var found = rules.unsafe_ptr()
        found.unsafe_store(0, Int64(window.text_start()))
        found.unsafe_store(1, Int64(window.rule(BEGIN)))
        found.unsafe_store(2, Int64(window.stamp_start(size)))
        found.unsafe_store(3, Int64(window.rule(TIMESTAMPS)))
        found.unsafe_store(4, Int64(window.rule(NO_SPEECH) if at_start else -1))
        found.unsafe_store(5, Int64(1 if window.now(COUNT) == 0 else 0))


@extensibility.register("asr_advance")
struct AsrAdvance:
    """Registered as asr_advance: see custom_ops.advance for its meaning."""

    @staticmethod
    def execute[target: StaticString](
        running: OutputTensor[dtype=DType.bool, rank=1, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        sums: MutableInputTensor[dtype=DType.float32, rank=1, ...],
        sampled: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        prompt: InputTensor[dtype=DType.int64, rank=1, ...],
        numbers: InputTensor[dtype=DType.int64, rank=1, ...],
        token: InputTensor[dtype=DType.int64, rank=1, ...],
        logprob: InputTensor[dtype=DType.float32, rank=1, ...],
        quiet: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_advance runs on the CPU only"
        var window = window_of(state, sums, sampled, prompt, numbers)
        if window.now(POSITION) == window.rule(SOT_INDEX):
            window.sums.unsafe_store(1, quiet.unsafe_ptr().unsafe_load(0))
        if not window.feed_prompt():
            window.take(Int(token.unsafe_ptr().unsafe_load(0)), logprob.unsafe_ptr().unsafe_load(0))
        running.unsafe_ptr().unsafe_store(0, Scalar[DType.bool](window.now(DONE) == 0))
