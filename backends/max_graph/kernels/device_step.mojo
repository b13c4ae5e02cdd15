"""What a step of greedy decoding on a GPU needs besides products: attention of one position, and choice of a token.

No step depends on the host, so that it can be captured and replayed.
"""

import extensibility
from extensibility import InputTensor, OutputTensor
from extensibility.managed_tensor_slice import _MutableInputTensor as MutableInputTensor
from std.math import exp, log
from std.sys import size_of
from std.utils import StaticTuple

from max.gpu import MAX_THREADS_PER_BLOCK_METADATA
from max.gpu.host import DeviceContext

from .block import Block, Floats, Integers, Numbers, run_on_cpu, run_on_gpu
from .window import BEGIN, COUNT, DONE, FAILED, NO_SPEECH, POSITION, SOT_INDEX, TIMESTAMPS, Window

comptime ATTENTION_THREADS = 512  # per block
comptime CHOICE_THREADS = 512
comptime NEVER = Float32.MIN  # minus infinity


@fieldwise_init
struct Attention[dtype: DType, size: Int, room: Int](Block, TrivialRegisterPassable):
    """One query's attention, one block per head; rows of keys and values lie `row` apart, heads `head` apart.

    It attends to at most `room` positions. If there is a `state`, it stores the new key and value first, and attends to
    the positions up to that of the state.
    """

    var y: Numbers[Self.dtype]
    var q: Numbers[Self.dtype]
    var new_key: Numbers[Self.dtype]
    var new_value: Numbers[Self.dtype]
    var keys: Numbers[Self.dtype]
    var values: Numbers[Self.dtype]
    var state: Integers
    var grows: Int32
    var head: Int32
    var row: Int32

    comptime THREADS = ATTENTION_THREADS
    comptime LEVELS = 9
    comptime WIDTH = 16 // size_of[Self.dtype]()  # numbers per widest load
    comptime PAIRS = Self.size // 2
    comptime GROUPS = Self.THREADS // Self.PAIRS
    # offsets in shared memory
    comptime SCORES = Self.size
    comptime TOPS = Self.SCORES + Self.room
    comptime SUMS = Self.TOPS + Self.THREADS
    comptime MIXED = Self.SUMS + Self.THREADS
    comptime SHARED = Self.MIXED + Self.GROUPS * Self.size
    # numbers of the phases
    comptime WEIGH = 2 + Self.LEVELS
    comptime MIX = Self.WEIGH + 1 + Self.LEVELS
    comptime PHASES = Self.MIX + 2

    @always_inline
    def positions(self) -> Int:
        if self.grows == 0:
            return Self.room
        return Int(self.state.unsafe_load(POSITION)) + 1

    @always_inline
    def phase[number: Int](self, shared: Floats, block: Int, thread: Int):
        comptime if number == 0:
            self.take(shared, block, thread)
        elif number == 1:
            self.score(shared, block, thread)
        elif number < Self.WEIGH:
            var other = Self.THREADS >> (number - 1)
            if thread < other:
                var top = shared.unsafe_load(Self.TOPS + thread)
                shared.unsafe_store(Self.TOPS + thread, max(top, shared.unsafe_load(Self.TOPS + thread + other)))
        elif number == Self.WEIGH:
            self.weigh(shared, thread)
        elif number < Self.MIX:
            var other = Self.THREADS >> (number - Self.WEIGH)
            if thread < other:
                var sum = shared.unsafe_load(Self.SUMS + thread)
                shared.unsafe_store(Self.SUMS + thread, sum + shared.unsafe_load(Self.SUMS + thread + other))
        elif number == Self.MIX:
            self.mix(shared, block, thread)
        else:
            self.write(shared, block, thread)

    @always_inline
    def take(self, shared: Floats, block: Int, thread: Int):
        if thread >= Self.size:
            return
        var at = block * Self.size + thread
        var scale = Float32(Self.size) ** -0.5
        shared.unsafe_store(thread, self.q.unsafe_load(at).cast[DType.float32]() * scale)
        if self.grows != 0:
            var place = block * Int(self.head) + (self.positions() - 1) * Int(self.row) + thread
            self.keys.unsafe_store(place, self.new_key.unsafe_load(at))
            self.values.unsafe_store(place, self.new_value.unsafe_load(at))

    @always_inline
    def score(self, shared: Floats, block: Int, thread: Int):
        var top = NEVER
        for position in range(thread, self.positions(), Self.THREADS):
            var key = self.keys.unsafe_offset(block * Int(self.head) + position * Int(self.row))
            var sums = SIMD[DType.float32, Self.WIDTH](0)
            comptime for part in range(Self.size // Self.WIDTH):
                var numbers = key.unsafe_load[width=Self.WIDTH, alignment=16](part * Self.WIDTH)
                var query = shared.unsafe_load[width=Self.WIDTH, alignment=16](part * Self.WIDTH)
                sums = numbers.cast[DType.float32]().fma(query, sums)
            var score = sums.reduce_add()
            shared.unsafe_store(Self.SCORES + position, score)
            top = max(top, score)
        shared.unsafe_store(Self.TOPS + thread, top)

    @always_inline
    def weigh(self, shared: Floats, thread: Int):
        var top = shared.unsafe_load(Self.TOPS)
        var sum = Float32(0)
        for position in range(thread, self.positions(), Self.THREADS):
            var weight = exp(shared.unsafe_load(Self.SCORES + position) - top)
            shared.unsafe_store(Self.SCORES + position, weight)
            sum += weight
        shared.unsafe_store(Self.SUMS + thread, sum)

    @always_inline
    def mix(self, shared: Floats, block: Int, thread: Int):
        var group = thread // Self.PAIRS
        var column = 2 * (thread % Self.PAIRS)
        var value = self.values.unsafe_offset(block * Int(self.head) + column)
        var mixed = SIMD[DType.float32, 2](0)
        for position in range(group, self.positions(), Self.GROUPS):
            var numbers = value.unsafe_load[width=2, alignment=2 * size_of[Self.dtype]()](
                position * Int(self.row)
            )
            mixed = numbers.cast[DType.float32]().fma(
                SIMD[DType.float32, 2](shared.unsafe_load(Self.SCORES + position)), mixed
            )
        shared.unsafe_store(Self.MIXED + group * Self.size + column, mixed)

    @always_inline
    def write(self, shared: Floats, block: Int, thread: Int):
        if thread >= Self.size:
            return
        var sum = Float32(0)
        for group in range(Self.GROUPS):
            sum += shared.unsafe_load(Self.MIXED + group * Self.size + thread)
        var result = sum / shared.unsafe_load(Self.SUMS)
        self.y.unsafe_store(block * Self.size + thread, result.cast[Self.dtype]())


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(ATTENTION_THREADS)))
def attention_on_gpu[dtype: DType, size: Int, room: Int](
    y: Numbers[dtype],
    q: Numbers[dtype],
    new_key: Numbers[dtype],
    new_value: Numbers[dtype],
    keys: Numbers[dtype],
    values: Numbers[dtype],
    state: Integers,
    grows: Int32,
    head: Int32,
    row: Int32,
):
    run_on_gpu(
        Attention[dtype, size, room](y, q, new_key, new_value, keys, values, state, grows, head, row)
    )


@always_inline
def attend[
    dtype: DType, size: Int, room: Int, target: StaticString
](
    y: Numbers[dtype],
    q: Numbers[dtype],
    new_key: Numbers[dtype],
    new_value: Numbers[dtype],
    keys: Numbers[dtype],
    values: Numbers[dtype],
    state: Integers,
    grows: Bool,
    head: Int,
    row: Int,
    heads: Int,
    ctx: DeviceContext,
) raises:
    comptime Job = Attention[dtype, size, room]
    comptime assert size % Job.WIDTH == 0 and Job.THREADS % Job.PAIRS == 0 and size <= Job.THREADS
    var grown, apart, between = Int32(1 if grows else 0), Int32(head), Int32(row)
    comptime if target == "cpu":
        run_on_cpu(Job(y, q, new_key, new_value, keys, values, state, grown, apart, between), heads)
    else:
        ctx.enqueue_function[attention_on_gpu[dtype, size, room]](
            y, q, new_key, new_value, keys, values, state, grown, apart, between,
            grid_dim=heads,
            block_dim=Job.THREADS,
        )


@extensibility.register("asr_device_self_attention")
struct AsrDeviceSelfAttention:
    """Registered as asr_device_self_attention: see device_ops.self_attention for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, size: Int, layer: Int, room: Int, target: StaticString
    ](
        y: OutputTensor[dtype=dtype, rank=2, ...],
        qkv: InputTensor[dtype=dtype, rank=2, ...],
        cache: MutableInputTensor[dtype=dtype, rank=4, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var n = y.dim_size(1)
        var keys = cache.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(layer * 2 * room * n)
        var query = qkv.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        attend[dtype, size, room, target](
            y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            query,
            query.unsafe_offset(n),
            query.unsafe_offset(2 * n),
            keys,
            keys.unsafe_offset(room * n),
            state.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            True,
            size,
            n,
            n // size,
            ctx,
        )


@extensibility.register("asr_device_cross_attention")
struct AsrDeviceCrossAttention:
    """Registered as asr_device_cross_attention: see device_ops.cross_attention for its meaning."""

    @staticmethod
    def execute[
        dtype: DType, //, size: Int, layer: Int, room: Int, target: StaticString
    ](
        y: OutputTensor[dtype=dtype, rank=2, ...],
        q: InputTensor[dtype=dtype, rank=2, ...],
        keys: InputTensor[dtype=dtype, rank=4, ...],
        values: InputTensor[dtype=dtype, rank=4, ...],
        ctx: DeviceContext,
    ) raises:
        var heads = keys.dim_size(1)
        var start = layer * heads * room * size
        var query = q.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        attend[dtype, size, room, target](
            y.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin](),
            query,
            query,
            query,
            keys.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(start),
            values.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]().unsafe_offset(start),
            query.unsafe_bitcast[Int64](),
            False,
            room * size,
            size,
            heads,
            ctx,
        )


@fieldwise_init
struct Best(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The highest of some numbers, its index, and the sum of all exponentials relative to it."""

    var top: Float32
    var sum: Float32
    var at: Float32

    @always_inline
    def add(mut self, value: Float32, at: Int):
        if value == NEVER:
            return
        if value > self.top:
            self.sum = self.sum * exp(self.top - value) + 1
            self.top = value
            self.at = Float32(at)
        else:
            self.sum += exp(value - self.top)

    @always_inline
    def join(mut self, other: Self):
        if other.top == NEVER:
            self.sum += other.sum  # zero, or not a number
            return
        var higher = other.top > self.top or (other.top == self.top and other.at < self.at)
        var top = max(self.top, other.top)
        self.sum = self.sum * exp(self.top - top) + other.sum * exp(other.top - top)
        self.top = top
        self.at = other.at if higher else self.at


@fieldwise_init
struct Choice(Block, TrivialRegisterPassable):
    """The next token under whisper.decoding's rules, and the state after it, in one block."""

    var logits: Floats
    var masks: Floats
    var window: Window
    var size: Int32

    comptime THREADS = CHOICE_THREADS
    comptime LEVELS = 9
    comptime PHASES = 2 + Self.LEVELS
    comptime SHARED = 9 * Self.THREADS
    # the three kinds of Best that each thread has
    comptime ALL = 0
    comptime STAMPS = 3 * Self.THREADS
    comptime TEXT = 6 * Self.THREADS

    @always_inline
    def load(self, shared: Floats, kind: Int, thread: Int) -> Best:
        var at = kind + thread
        return Best(
            shared.unsafe_load(at),
            shared.unsafe_load(at + Self.THREADS),
            shared.unsafe_load(at + 2 * Self.THREADS),
        )

    @always_inline
    def store(self, shared: Floats, kind: Int, thread: Int, best: Best):
        var at = kind + thread
        shared.unsafe_store(at, best.top)
        shared.unsafe_store(at + Self.THREADS, best.sum)
        shared.unsafe_store(at + 2 * Self.THREADS, best.at)

    @always_inline
    def phase[number: Int](self, shared: Floats, block: Int, thread: Int):
        comptime if number == 0:
            self.scan(shared, thread)
        elif number <= Self.LEVELS:
            var other = Self.THREADS >> number
            if thread < other:
                comptime for kind in range(3):
                    var best = self.load(shared, 3 * kind * Self.THREADS, thread)
                    best.join(self.load(shared, 3 * kind * Self.THREADS, thread + other))
                    self.store(shared, 3 * kind * Self.THREADS, thread, best)
        else:
            if thread == 0 and self.window.now(DONE) == 0:
                self.advance(shared)

    @always_inline
    def scan(self, shared: Floats, thread: Int):
        var all = Best(NEVER, 0, 0)
        var stamps = Best(NEVER, 0, 0)
        var text = Best(NEVER, 0, 0)
        var size = Int(self.size)
        var begin = self.window.rule(BEGIN)
        var text_start = self.window.text_start()
        var stamp_start = self.window.stamp_start(size)
        var mask = self.masks.unsafe_offset(size if self.window.now(COUNT) == 0 else 0)
        for index in range(thread, size, Self.THREADS):
            var logit = self.logits.unsafe_load(index)
            all.add(logit, index)
            if index >= stamp_start:
                stamps.add(logit + mask.unsafe_load(index), index)
            elif index >= text_start and index < begin:
                text.add(logit + mask.unsafe_load(index), index)
        self.store(shared, Self.ALL, thread, all)
        self.store(shared, Self.STAMPS, thread, stamps)
        self.store(shared, Self.TEXT, thread, text)

    @always_inline
    def advance(self, shared: Floats):
        var window = self.window
        var all = self.load(shared, Self.ALL, 0)
        if window.now(POSITION) == window.rule(SOT_INDEX):
            var quiet = self.logits.unsafe_load(window.rule(NO_SPEECH))
            window.sums.unsafe_store(1, exp(quiet - all.top) / all.sum)
        if window.feed_prompt():
            return
        var stamps = self.load(shared, Self.STAMPS, 0)
        var text = self.load(shared, Self.TEXT, 0)
        var top = max(stamps.top, text.top)
        var stamps_sum = stamps.sum * exp(stamps.top - top)
        var sum = stamps_sum + text.sum * exp(text.top - top)
        if not (top > NEVER and sum > 0):
            window.state.unsafe_store(FAILED, 1)
            window.state.unsafe_store(DONE, 1)
            return
        var chosen = Int(text.at if text.top >= stamps.top else stamps.at)
        var logprob = -log(sum)
        if window.rule(TIMESTAMPS) == 1 and stamps_sum > exp(text.top - top):
            chosen = Int(stamps.at)
            logprob = stamps.top - top - log(stamps_sum)
        window.take(chosen, logprob)


@__llvm_metadata(MAX_THREADS_PER_BLOCK_METADATA=StaticTuple[Int32, 1](Int32(CHOICE_THREADS)))
def choice_on_gpu(
    logits: Floats,
    masks: Floats,
    state: Integers,
    sums: Floats,
    sampled: Integers,
    prompt: Integers,
    numbers: Integers,
    size: Int32,
):
    run_on_gpu(Choice(logits, masks, Window(state, sums, sampled, prompt, numbers), size))


@extensibility.register("asr_device_choice")
struct AsrDeviceChoice:
    """Registered as asr_device_choice: see device_ops.choose for its meaning."""

    @staticmethod
    def execute[target: StaticString](
        logits: InputTensor[dtype=DType.float32, rank=1, ...],
        masks: InputTensor[dtype=DType.float32, rank=2, ...],
        state: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        sums: MutableInputTensor[dtype=DType.float32, rank=1, ...],
        sampled: MutableInputTensor[dtype=DType.int64, rank=1, ...],
        prompt: InputTensor[dtype=DType.int64, rank=1, ...],
        numbers: InputTensor[dtype=DType.int64, rank=1, ...],
        ctx: DeviceContext,
    ) raises:
        var logits_at = logits.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var masks_at = masks.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var state_at = state.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var sums_at = sums.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var sampled_at = sampled.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var prompt_at = prompt.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var numbers_at = numbers.unsafe_ptr().unsafe_origin_cast[MutUntrackedOrigin]()
        var size = Int32(logits.dim_size(0))
        comptime if target == "cpu":
            var window = Window(state_at, sums_at, sampled_at, prompt_at, numbers_at)
            run_on_cpu(Choice(logits_at, masks_at, window, size), 1)
        else:
            ctx.enqueue_function[choice_on_gpu](
                logits_at, masks_at, state_at, sums_at, sampled_at, prompt_at, numbers_at, size,
                grid_dim=1,
                block_dim=Choice.THREADS,
            )
