"""Selection of tokens under Whisper's timestamp rules, without copying or masking the logits."""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility.managed_tensor_slice import _MutableInputTensor as MutableInputTensor
from std.math import exp, log
from std.memory.alloc import unsafe_alloc

from max.algorithm import sync_parallelize
from max.gpu.host import DeviceContext

from .linear import LANES, Floats, floats
from .window import (
    BEGIN,
    COUNT,
    DONE,
    NO_SPEECH,
    NUMBERS_SIZE,
    POSITION,
    SOT_INDEX,
    STATE_SIZE,
    TIMESTAMPS,
    Integers,
    Window,
)

comptime Lanes = SIMD[DType.float32, LANES]
comptime NEVER = Float32.MIN  # minus infinity
comptime RULES_SIZE = 6
comptime NO_SELECTION = -1  # in place of a mask's number


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

    def first(self, start: Int, end: Int, value: Float32) -> Int:
        """Return the first token of a range with that value, or -1."""
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
        return -1


@fieldwise_init
struct Ranking(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The highest numbers so far and their tokens, in descending order; the first of equals comes first."""

    var tokens: Integers
    var values: Floats
    var count: Int

    def begin(self):
        for i in range(self.count):
            self.tokens.unsafe_store(i, 0)
            self.values.unsafe_store(i, NEVER)

    def put(self, token: Int, value: Float32):
        var at = self.count - 1
        if not value > self.values.unsafe_load(at):
            return
        while at > 0 and value > self.values.unsafe_load(at - 1):
            self.values.unsafe_store(at, self.values.unsafe_load(at - 1))
            self.tokens.unsafe_store(at, self.tokens.unsafe_load(at - 1))
            at -= 1
        self.values.unsafe_store(at, value)
        self.tokens.unsafe_store(at, Int64(token))

    def add(self, choice: Choice, start: Int, end: Int):
        """Put what is high enough of a range of tokens."""
        var whole = start + max(end - start, 0) // LANES * LANES
        for i in range(start, whole, LANES):
            var found = choice.at[LANES](i)
            if found.gt(Lanes(self.values.unsafe_load(self.count - 1))).reduce_or():
                for lane in range(LANES):
                    self.put(i + lane, found[lane])
        for i in range(whole, end):
            self.put(i, choice.at[1](i))


# what may be wrong with a window's selection
comptime NOTHING = 0
comptime NO_TOKEN = 1
comptime OUTSIDE = 2
comptime NO_MASK = 3


@fieldwise_init
struct Selection(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The operands of the selection for each window; `wrong` is what is wrong with each."""

    var token: Integers
    var logprob: Floats
    var quiet: Floats
    var logits: Floats
    var masks: Floats
    var rules: Integers
    var wrong: Integers
    var candidates: Integers
    var chances: Floats
    var size: Int
    var masks_there: Int
    var wanted: Int  # candidates of each window

    def select(self, index: Int) -> Int:
        var numbers = self.rules.unsafe_offset(index * RULES_SIZE)
        var text_start = Int(numbers.unsafe_load(0))
        var begin = Int(numbers.unsafe_load(1))
        var stamp_start = Int(numbers.unsafe_load(2))
        var weighed = numbers.unsafe_load(3) != 0
        var no_speech = Int(numbers.unsafe_load(4))
        var row = Int(numbers.unsafe_load(5))
        var size = self.size
        self.token.unsafe_store(index, 0)
        self.logprob.unsafe_store(index, 0)
        self.quiet.unsafe_store(index, 0)
        if row == NO_SELECTION:
            return NOTHING
        if text_start < 0 or begin < 0 or begin > size or stamp_start < begin or no_speech >= size:
            return OUTSIDE
        if row < 0 or row >= self.masks_there:
            return NO_MASK
        var raw = self.logits.unsafe_offset(index * size)
        var choice = Choice(raw, self.masks.unsafe_offset(row * size))
        var text_top = choice.top(text_start, begin)
        var stamp_top = choice.top(stamp_start, size)
        var top = max(text_top, stamp_top)
        var stamps = choice.weight(stamp_start, size, top)
        if not top > NEVER or stamps != stamps:
            return NO_TOKEN
        var chosen: Int
        var total = stamps
        var text_end = text_start
        if weighed and stamps > exp(text_top - top):
            chosen = choice.first(stamp_start, size, stamp_top)
            self.logprob.unsafe_store(index, stamp_top - top - log(stamps))
        else:
            text_end = begin
            total += choice.weight(text_start, begin, top)
            if text_top >= stamp_top:
                chosen = choice.first(text_start, begin, top)
            else:
                chosen = choice.first(stamp_start, size, top)
            self.logprob.unsafe_store(index, -log(total))
        if self.wanted > 1:
            var ranking = Ranking(
                self.candidates.unsafe_offset(index * self.wanted),
                self.chances.unsafe_offset(index * self.wanted),
                self.wanted,
            )
            ranking.begin()
            ranking.add(choice, text_start, text_end)
            ranking.add(choice, stamp_start, size)
            for i in range(self.wanted):
                ranking.values.unsafe_store(i, ranking.values.unsafe_load(i) - top - log(total))
        if chosen < 0:
            return NO_TOKEN
        self.token.unsafe_store(index, Int64(chosen))
        if no_speech >= 0:
            var all = Lanes(NEVER)
            var whole = size // LANES * LANES
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
            self.quiet.unsafe_store(index, exp(raw.unsafe_load(no_speech) - highest) / sum)
        return NOTHING

    def run(self, windows: Int):
        if windows == 1:
            self.wrong.unsafe_store(0, Int64(self.select(0)))
            return
        var job = self

        def work(index: Int) {var job}:
            job.wrong.unsafe_store(index, Int64(job.select(index)))

        sync_parallelize(work, windows)


@extensibility.register("asr_select")
struct AsrSelect:
    """Registered as asr_select: see custom_ops.select for its meaning."""

    @staticmethod
    def execute[target: StaticString](
        token: OutputTensor[dtype=DType.int64, rank=1, ...],
        logprob: OutputTensor[dtype=DType.float32, rank=1, ...],
        quiet: OutputTensor[dtype=DType.float32, rank=1, ...],
        logits: InputTensor[dtype=DType.float32, rank=2, ...],
        masks: InputTensor[dtype=DType.float32, rank=2, ...],
        rules: InputTensor[dtype=DType.int64, rank=2, ...],
        candidates: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        chances: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_select runs on the CPU only"
        var windows = logits.dim_size(0)
        var size = logits.dim_size(1)
        if rules.dim_size(0) != windows or rules.dim_size(1) != RULES_SIZE or masks.dim_size(1) != size:
            raise Error("asr_select: needs six rules for each window and masks as long as the logits")
        if candidates.dim_size(0) != windows or chances.dim_size(0) != windows:
            raise Error("asr_select: needs candidates for each window")
        if candidates.dim_size(1) != chances.dim_size(1):
            raise Error("asr_select: needs a chance for each candidate")
        var wrong = unsafe_alloc[Int64](windows)
        var job = Selection(
            token.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            floats(logprob),
            floats(quiet),
            floats(logits),
            floats(masks),
            rules.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            wrong.unsafe_origin_cast[MutUntrackedOrigin](),
            candidates.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            chances.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            size,
            masks.dim_size(0),
            candidates.dim_size(1),
        )
        job.run(windows)
        var worst = NOTHING
        for index in range(windows):
            worst = max(worst, Int(wrong.unsafe_load(index)))
        wrong.unsafe_free()
        if worst == OUTSIDE:
            raise Error("asr_select: a rule names a token outside the vocabulary")
        if worst == NO_MASK:
            raise Error("asr_select: there is no such mask")
        if worst == NO_TOKEN:
            raise Error("asr_select: no token is allowed, or the logits are not numbers")


@always_inline
def window_of(
    index: Int,
    state: MutableInputTensor[dtype=DType.int64, rank=2, ...],
    sums: MutableInputTensor[dtype=DType.float32, rank=2, ...],
    sampled: MutableInputTensor[dtype=DType.int64, rank=2, ...],
    prompt: InputTensor[dtype=DType.int64, rank=2, ...],
    numbers: InputTensor[dtype=DType.int64, rank=2, ...],
) -> Window:
    return Window(
        state.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(index * STATE_SIZE),
        sums.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(index * 2),
        sampled.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(index * sampled.dim_size(1)),
        prompt.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(index * prompt.dim_size(1)),
        numbers.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(index * NUMBERS_SIZE),
    )


@extensibility.register("asr_rules")
struct AsrRules:
    """Registered as asr_rules: see custom_ops.rules for its meaning."""

    @staticmethod
    def execute[size: Int, target: StaticString](
        rules: OutputTensor[dtype=DType.int64, rank=2, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        sums: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        sampled: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        prompt: InputTensor[dtype=DType.int64, rank=2, ...],
        numbers: InputTensor[dtype=DType.int64, rank=2, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_rules runs on the CPU only"
        for index in range(rules.dim_size(0)):
            var window = window_of(index, state, sums, sampled, prompt, numbers)
            var at_start = window.now(POSITION) == window.rule(SOT_INDEX)
            var mask = Int64(1 if window.now(COUNT) == 0 else 0)
            var found = rules.unsafe_ptr().unsafe_offset(index * RULES_SIZE)
            found.unsafe_store(0, Int64(window.text_start()))
            found.unsafe_store(1, Int64(window.rule(BEGIN)))
            found.unsafe_store(2, Int64(window.stamp_start(size)))
            found.unsafe_store(3, Int64(window.rule(TIMESTAMPS)))
            found.unsafe_store(4, Int64(window.rule(NO_SPEECH) if at_start else -1))
            found.unsafe_store(5, mask if window.now(DONE) == 0 else Int64(NO_SELECTION))


@extensibility.register("asr_advance")
struct AsrAdvance:
    """Registered as asr_advance: see custom_ops.advance for its meaning."""

    @staticmethod
    def execute[target: StaticString](
        running: OutputTensor[dtype=DType.bool, rank=1, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        sums: MutableInputTensor[dtype=DType.float32, rank=2, ...],
        sampled: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        prompt: InputTensor[dtype=DType.int64, rank=2, ...],
        numbers: InputTensor[dtype=DType.int64, rank=2, ...],
        candidates: MutableInputTensor[dtype=DType.int64, rank=2, ...],
        token: InputTensor[dtype=DType.int64, rank=1, ...],
        logprob: InputTensor[dtype=DType.float32, rank=1, ...],
        quiet: InputTensor[dtype=DType.float32, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        comptime assert target == "cpu", "asr_advance runs on the CPU only"
        var windows = token.dim_size(0)
        var count = 0
        for index in range(windows):
            var window = window_of(index, state, sums, sampled, prompt, numbers)
            if window.now(DONE) != 0:
                continue
            if window.now(POSITION) == window.rule(SOT_INDEX):
                window.sums.unsafe_store(1, quiet.unsafe_ptr().unsafe_load(index))
            if not window.feed_prompt():
                if candidates.dim_size(1) > 1:  # which the caller chooses from
                    window.state.unsafe_store(DONE, 1)
                    continue
                window.take(Int(token.unsafe_ptr().unsafe_load(index)), logprob.unsafe_ptr().unsafe_load(index))
            if window.now(DONE) == 0:
                count += 1
        running.unsafe_ptr().unsafe_store(0, Scalar[DType.bool](2 * count > windows))
