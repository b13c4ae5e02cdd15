"""What the processor can multiply in hardware, which decides how the CPU's graphs compute."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path

ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18


def has_tiles() -> bool:
    """Whether it has tiles of bfloat16 and int8 (AMX) and Linux lets this process use them."""
    if not {"amx_bf16", "amx_int8"} <= _flags():
        return False
    asked = (ctypes.c_long(value) for value in (ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
    return ctypes.CDLL(None).syscall(*asked) == 0


def multiplies_bytes() -> bool:
    """Whether one instruction sums products of int8: in tiles, or in vectors of 512 bits (AVX512-VNNI)."""
    return has_tiles() or "avx512_vnni" in _flags()


def _flags() -> set[str]:
    """Return what Linux says an x86-64 processor has; nothing elsewhere."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return set()
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].split())
    except OSError:
        return set()
