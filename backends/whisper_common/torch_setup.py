"""What every engine on PyTorch needs in the same way: threads, a usable GPU, and float32 without TF32."""

from __future__ import annotations

from contextlib import suppress

from asrgate.backends.base import BackendError, BackendUnavailable
from asrgate.backends.devices import CUDA_TORCH


def set_threads(threads: int) -> None:
    """Make torch run `threads` threads; raise BackendError if torch does not comply."""
    import torch

    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        # torch allows this once, before its first parallel work; applied_settings shows the result
        with suppress(RuntimeError):
            torch.set_num_interop_threads(1)
    if torch.get_num_threads() != threads:
        raise BackendError(f"torch runs {torch.get_num_threads()} threads although {threads} were requested")


def require_cuda() -> None:
    """Raise BackendUnavailable if torch cannot use a GPU."""
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailable(f"torch {torch.__version__} cannot use a CUDA device", CUDA_TORCH)


def forbid_tf32() -> None:
    """Disable TF32 in matrix products and convolutions, because float32 must mean float32."""
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def uses_tf32() -> bool:
    """Return whether any float32 product in this process may round to TF32."""
    import torch

    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
