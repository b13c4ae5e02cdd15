"""The state of a window that is being decoded, and how it goes from one token to the next: on the CPU and on GPUs."""

comptime Numbers[dtype: DType] = Pointer[Scalar[dtype], MutUntrackedOrigin]
comptime Floats = Numbers[DType.float32]
comptime Integers = Numbers[DType.int64]

comptime STATE_SIZE = 8
comptime NUMBERS_SIZE = 8

# indices in `state`; asrgate.backends.max_graph.decoder.WindowState has the same order
comptime POSITION = 0  # of the next token to feed
comptime TOKEN = 1  # the next token to feed
comptime COUNT = 2  # the number of tokens sampled, without the end of the text
comptime LAST = 3  # whether the last token sampled is a timestamp
comptime BEFORE = 4  # the same for the token before it; 1 if there is none
comptime STAMP = 5  # the last timestamp sampled; before the first one, one less than the lowest
comptime DONE = 6
comptime FAILED = 7  # no token was allowed, or the logits were not numbers

# indices in `numbers`
comptime SOT_INDEX = 0
comptime EOT = 1
comptime BEGIN = 2  # the first timestamp
comptime NO_SPEECH = 3
comptime SAMPLE_LIMIT = 4
comptime TIMESTAMPS = 5  # whether the rules of timestamps apply
comptime LAST_POSITION = 6
comptime PROMPT = 7  # the prompt's length


@fieldwise_init
struct Window(Copyable, ImplicitlyCopyable, TrivialRegisterPassable):
    """The window's tensors; device_ops.choose describes them."""

    var state: Integers
    var sums: Floats
    var sampled: Integers
    var prompt: Integers
    var numbers: Integers

    @always_inline
    def now(self, index: Int) -> Int:
        return Int(self.state.unsafe_load(index))

    @always_inline
    def rule(self, index: Int) -> Int:
        return Int(self.numbers.unsafe_load(index))

    @always_inline
    def pair_is_open(self) -> Bool:
        """Whether the last token ended a segment, so that only a timestamp or the end of text may follow."""
        return self.rule(TIMESTAMPS) == 1 and self.now(LAST) == 1 and self.now(BEFORE) == 0

    @always_inline
    def text_start(self) -> Int:
        """The first text token that the timestamp rules allow."""
        return self.rule(EOT) if self.pair_is_open() else 0

    @always_inline
    def stamp_start(self, size: Int) -> Int:
        """The first timestamp that the timestamp rules allow, or the vocabulary's size."""
        if self.rule(TIMESTAMPS) != 1:
            return self.rule(BEGIN)
        if self.now(LAST) == 1 and self.now(BEFORE) == 1:
            return size
        return self.now(STAMP) if self.pair_is_open() else self.now(STAMP) + 1

    @always_inline
    def feed_prompt(self) -> Bool:
        """Go to the next position; return whether the prompt says which token comes there."""
        var following = self.now(POSITION) + 1
        self.state.unsafe_store(POSITION, Int64(following))
        if following < self.rule(PROMPT):
            self.state.unsafe_store(TOKEN, self.prompt.unsafe_load(following))
            return True
        return False

    @always_inline
    def take(self, token: Int, logprob: Float32):
        """Keep the token sampled for the position that `feed_prompt` went to."""
        self.sums.unsafe_store(0, self.sums.unsafe_load(0) + logprob)
        self.state.unsafe_store(TOKEN, Int64(token))
        if token == self.rule(EOT):
            self.state.unsafe_store(DONE, 1)
            return
        var count = self.now(COUNT)
        self.sampled.unsafe_store(count, Int64(token))
        self.state.unsafe_store(BEFORE, Int64(1) if count == 0 else self.state.unsafe_load(LAST))
        var is_stamp = token >= self.rule(BEGIN)
        self.state.unsafe_store(LAST, Int64(1 if is_stamp else 0))
        if is_stamp:
            self.state.unsafe_store(STAMP, Int64(token))
        self.state.unsafe_store(COUNT, Int64(count + 1))
        if count + 1 >= self.rule(SAMPLE_LIMIT) or self.now(POSITION) >= self.rule(LAST_POSITION):
            self.state.unsafe_store(DONE, 1)
