"""Kernels for GPUs whose logic can be tested without one.

A kernel is a sequence of phases. In each, every thread of a block does its part, and none goes on before all have done
theirs: on a GPU a barrier sees to that; on the CPU one thread plays them all in turn.

What a GPU runs is a function around `run_on_gpu` that names the threads of its blocks: without
MAX_THREADS_PER_BLOCK_METADATA the compiler may give each more registers than so many can have.
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
    """What each thread of a GPU runs."""
    var shared = stack_allocation[Job.SHARED, Float32, address_space=AddressSpace.SHARED, alignment=16]()
    var floats = shared.unsafe_address_space_cast[AddressSpace.GENERIC]().unsafe_origin_cast[MutUntrackedOrigin]()
    comptime for number in range(Job.PHASES):
        job.phase[number](floats, Int(block_idx.x), Int(thread_idx.x))
        barrier()


def run_on_cpu[Job: Block](job: Job, blocks: Int):
    """All threads of all blocks, by one."""
    var shared = unsafe_alloc[Float32](Job.SHARED).unsafe_origin_cast[MutUntrackedOrigin]()
    for block in range(blocks):
        comptime for number in range(Job.PHASES):
            for thread in range(Job.THREADS):
                job.phase[number](shared, block, thread)
    shared.unsafe_free()
