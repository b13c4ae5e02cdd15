"""Kernels for GPUs whose logic can be tested without a GPU.

A kernel is a sequence of phases. In each phase every thread of a block does its part, and no thread goes on before all
have done theirs. On a GPU a barrier ensures this; on the CPU one thread does the parts of all threads in turn.

A GPU runs a function around `run_on_gpu` that states the number of threads per block. Without
MAX_THREADS_PER_BLOCK_METADATA the compiler may give each thread more registers than that many threads can have.
"""

from std.memory import AddressSpace, stack_allocation
from std.memory.alloc import unsafe_alloc

from max.gpu import barrier, block_idx, thread_idx

comptime Numbers[dtype: DType] = Pointer[Scalar[dtype], MutUntrackedOrigin]
comptime Floats = Numbers[DType.float32]
comptime Integers = Numbers[DType.int64]


trait Block(Copyable, ImplicitlyCopyable):
    comptime THREADS: Int
    comptime PHASES: Int
    comptime SHARED: Int  # floats that the threads of a block share

    def phase[number: Int](self, shared: Floats, block: Int, thread: Int):
        ...


@always_inline
def run_on_gpu[Job: Block](job: Job):
    """Run the part of one thread of a GPU."""
    var shared = stack_allocation[Job.SHARED, Float32, address_space=AddressSpace.SHARED, alignment=16]()
    var floats = shared.unsafe_address_space_cast[AddressSpace.GENERIC]().unsafe_origin_cast[MutUntrackedOrigin]()
    comptime for number in range(Job.PHASES):
        job.phase[number](floats, Int(block_idx.x), Int(thread_idx.x))
        barrier()


def run_on_cpu[Job: Block](job: Job, blocks: Int):
    """Run the parts of all threads of all blocks on one thread of the CPU."""
    var shared = unsafe_alloc[Float32](Job.SHARED).unsafe_origin_cast[MutUntrackedOrigin]()
    for block in range(blocks):
        comptime for number in range(Job.PHASES):
            for thread in range(Job.THREADS):
                job.phase[number](shared, block, thread)
    shared.unsafe_free()
