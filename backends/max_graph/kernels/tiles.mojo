"""Products of bfloat16 and int8 in the processor's matrix tiles (AMX), eight times as fast as its vectors.

A tile holds 16 rows of 64 bytes. Only processors that have tiles compile any of this.
"""

from std.ffi import external_call
from std.memory import bitcast
from std.memory.alloc import unsafe_alloc
from std.sys import CompilationTarget, llvm_intrinsic

from .linear import Floats, Weights

comptime Halves = Weights[DType.bfloat16]
comptime Bytes = Weights[DType.int8]
# no processor has the one without the other
comptime HAS_TILES = CompilationTarget._has_feature["amx-bf16"]() and CompilationTarget._has_feature["amx-int8"]()
comptime TILE_ROWS = 32  # of a block: two tiles
comptime TILE_COLUMNS = 32
comptime TILE_DEPTH = 32  # numbers of bfloat16 of a row in one tile
comptime BYTE_DEPTH = 64  # the same of int8
comptime TILES = TILE_ROWS * TILE_DEPTH  # numbers of bfloat16 of two tiles of 16 rows
# Linux gives a process the tiles only when it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
comptime ARCH_PRCTL = 158
comptime ARCH_REQ_XCOMP_PERM = 0x1023
comptime XFEATURE_XTILEDATA = 18


def may_use_tiles() -> Bool:
    """Whether the processor has tiles and the system lets this process use them."""
    comptime if HAS_TILES:
        return external_call["syscall", Int](ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
    else:
        return False


def require_tiles() raises:
    if not may_use_tiles():
        raise Error("products in parts need a processor with tiles of bfloat16 (AMX)")


def begin_tiles():
    """Give the calling thread eight tiles of 16 rows of 64 bytes; `end_tiles` takes them back."""
    comptime if HAS_TILES:
        var shape = unsafe_alloc[UInt8](64, alignment=64)
        for i in range(64):
            shape.unsafe_store(i, UInt8(0))
        shape.unsafe_store(0, UInt8(1))
        for tile in range(8):
            shape.unsafe_store(16 + 2 * tile, UInt8(64))
            shape.unsafe_store(48 + tile, UInt8(16))
        llvm_intrinsic["llvm.x86.ldtilecfg", NoneType](shape)
        shape.unsafe_free()


def end_tiles():
    comptime if HAS_TILES:
        llvm_intrinsic["llvm.x86.tilerelease", NoneType]()


@always_inline
def first_part[width: SIMDLength](x: SIMD[DType.float32, width]) -> SIMD[DType.float32, width]:
    """The first 8 of a number's 24 bits: what remains of it is exact, and three such parts are all of it."""
    return bitcast[DType.float32, width](bitcast[DType.uint32, width](x) & 0xFFFF0000)


@always_inline
def split[parts: Int, width: SIMDLength](value: SIMD[DType.float32, width], target: Halves, distance: Int):
    """Write numbers rounded to bfloat16, or as three parts, `distance` apart, whose sum they are."""
    comptime if parts == 1:
        target.unsafe_store(0, value.cast[DType.bfloat16]())
    else:
        var rest = value
        comptime for part in range(parts):
            var first = first_part(rest)
            # bfloat16 is the higher half of float32
            var halves = bitcast[DType.bfloat16, 2 * width](first).deinterleave()[1]
            target.unsafe_store(part * distance, rebind[SIMD[DType.bfloat16, width]](halves))
            rest -= first


@always_inline
def tile_block(a: Halves, lda: Int, b: Halves, k: Int, rest: Halves, y: Floats, ldy: Int):
    """Write 32 rows of `a` (lda apart) times a panel of 32 columns, (k / 2, 32, 2), to y, whose rows lie ldy apart.

    If k is no multiple of 32, 31 more numbers of each row of `a` are read, and `rest` holds the panel's last k % 32
    numbers of each column, filled up with zeros.
    """
    comptime if HAS_TILES:
        clear_tiles()
        var whole = k // TILE_DEPTH * TILE_DEPTH
        for p in range(0, whole, TILE_DEPTH):
            multiply(a.unsafe_offset(p), lda, b.unsafe_offset(p * TILE_COLUMNS))
        if whole < k:
            multiply(a.unsafe_offset(whole), lda, rest)
        store_tiles(y, ldy)


@always_inline
def clear_tiles():
    """Set the first four tiles to zero."""
    comptime if HAS_TILES:
        comptime for tile in range(4):
            llvm_intrinsic["llvm.x86.tilezero", NoneType](Int8(tile))


@always_inline
def store_tiles(y: Floats, ldy: Int):
    """Write the first four tiles as 32 rows of 32 numbers, ldy apart."""
    comptime if HAS_TILES:
        comptime for tile in range(4):
            llvm_intrinsic["llvm.x86.tilestored64", NoneType](
                Int8(tile), y.unsafe_offset(tile // 2 * 16 * ldy + tile % 2 * 16), Int64(4 * ldy)
            )


@always_inline
def load_rows(a: Halves, lda: Int):
    """Load two tiles of 16 rows, lda apart, as the left factors."""
    comptime load = "llvm.x86.tileloadd64"
    llvm_intrinsic[load, NoneType](Int8(4), a, Int64(2 * lda))
    llvm_intrinsic[load, NoneType](Int8(5), a.unsafe_offset(16 * lda), Int64(2 * lda))


@always_inline
def load_columns(b: Halves):
    """Load 32 columns, of a panel's 16 pairs each, as the right factors."""
    comptime load = "llvm.x86.tileloadd64"
    llvm_intrinsic[load, NoneType](Int8(6), b, Int64(128))
    llvm_intrinsic[load, NoneType](Int8(7), b.unsafe_offset(32), Int64(128))


@always_inline
def add_products():
    """Add the products of what is loaded to the first four tiles."""
    comptime times = "llvm.x86.tdpbf16ps"
    llvm_intrinsic[times, NoneType](Int8(0), Int8(4), Int8(6))
    llvm_intrinsic[times, NoneType](Int8(1), Int8(4), Int8(7))
    llvm_intrinsic[times, NoneType](Int8(2), Int8(5), Int8(6))
    llvm_intrinsic[times, NoneType](Int8(3), Int8(5), Int8(7))


@always_inline
def multiply(a: Halves, lda: Int, b: Halves):
    """Add the product of two tiles of `a` and two of `b` to the first four tiles."""
    comptime load = "llvm.x86.tileloadd64"
    llvm_intrinsic[load, NoneType](Int8(6), b, Int64(128))
    llvm_intrinsic[load, NoneType](Int8(4), a, Int64(2 * lda))
    llvm_intrinsic[load, NoneType](Int8(7), b.unsafe_offset(32), Int64(128))
    llvm_intrinsic[load, NoneType](Int8(5), a.unsafe_offset(16 * lda), Int64(2 * lda))
    comptime times = "llvm.x86.tdpbf16ps"
    llvm_intrinsic[times, NoneType](Int8(0), Int8(4), Int8(6))
    llvm_intrinsic[times, NoneType](Int8(1), Int8(4), Int8(7))
    llvm_intrinsic[times, NoneType](Int8(2), Int8(5), Int8(6))
    llvm_intrinsic[times, NoneType](Int8(3), Int8(5), Int8(7))


@always_inline
def multiply_bytes(a: Bytes, b: Bytes):
    """Add the product of 32 rows of 64 numbers and 32 columns of as many, (16, 32, 4), to the first four tiles.

    What they then hold is int32.
    """
    comptime if HAS_TILES:
        comptime load = "llvm.x86.tileloadd64"
        llvm_intrinsic[load, NoneType](Int8(6), b, Int64(128))
        llvm_intrinsic[load, NoneType](Int8(4), a, Int64(BYTE_DEPTH))
        llvm_intrinsic[load, NoneType](Int8(7), b.unsafe_offset(64), Int64(128))
        llvm_intrinsic[load, NoneType](Int8(5), a.unsafe_offset(16 * BYTE_DEPTH), Int64(BYTE_DEPTH))
        comptime times = "llvm.x86.tdpbssd"
        llvm_intrinsic[times, NoneType](Int8(0), Int8(4), Int8(6))
        llvm_intrinsic[times, NoneType](Int8(1), Int8(4), Int8(7))
        llvm_intrinsic[times, NoneType](Int8(2), Int8(5), Int8(6))
        llvm_intrinsic[times, NoneType](Int8(3), Int8(5), Int8(7))
