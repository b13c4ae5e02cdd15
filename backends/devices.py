"""What this machine offers an engine, found out without importing the engine."""

from __future__ import annotations

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

from asrgate.backends.base import BackendUnavailable

CUDA_TORCH = "install a CUDA build of PyTorch (https://pytorch.org/get-started/locally)"

CUDA_12_LIBRARIES = (  # of nvidia-cublas-cu12 and nvidia-cudnn-cu12; each comes before those that need it
    ("nvidia.cublas", "libcublasLt.so.12"),
    ("nvidia.cublas", "libcublas.so.12"),
    ("nvidia.cudnn", "libcudnn.so.9"),
)


def load_cuda_12_libraries() -> list[Path]:
    """Load CUDA 12's libraries from Python packages, if these are installed; return the files.

    CTranslate2 opens the libraries by name, which finds only those that are system-wide or already loaded.
    """
    loaded = []
    for package, name in CUDA_12_LIBRARIES:
        try:
            spec = find_spec(package)
        except ImportError:
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / "lib" / name
            if path.exists():
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
                loaded.append(path)
    return loaded


def require_package(module: str, distribution: str) -> Path:
    """Return the file that `import module` would run, or raise BackendUnavailable naming what to install."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise BackendUnavailable(
            f"the package {distribution} is not installed", f"pip install {distribution}"
        )
    return Path(spec.origin)


def require_nvidia_gpu() -> None:
    """Raise BackendUnavailable unless NVML, the driver's own library, finds at least one GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise BackendUnavailable(
            f"no NVIDIA driver was found (NVML: {error})",
            "run it on a machine with an NVIDIA GPU and its driver",
        ) from error
    try:
        if pynvml.nvmlDeviceGetCount() == 0:
            raise BackendUnavailable("the NVIDIA driver sees no GPU", "make a GPU visible to this machine")
    except pynvml.NVMLError as error:
        raise BackendUnavailable(f"the NVIDIA driver cannot count its GPUs (NVML: {error})") from error
    finally:
        pynvml.nvmlShutdown()


def require_torch(device: str) -> None:
    """Raise BackendUnavailable unless torch is installed; on "cuda" it needs a GPU and a build with CUDA."""
    require_package("torch", "torch")
    if device == "cuda":
        require_nvidia_gpu()
        require_cuda_torch()


def require_cuda_torch() -> None:
    """Raise BackendUnavailable if torch was built without CUDA, according to its version file."""
    text = (require_package("torch", "torch").parent / "version.py").read_text(encoding="utf-8")
    if re.search(r"^cuda\b[^=\n]*=\s*None\b", text, re.MULTILINE):
        version = re.search(r"^__version__\s*=\s*'([^']*)'", text, re.MULTILINE)
        raise BackendUnavailable(
            f"the installed torch {version[1] if version else ''} is a CPU build", CUDA_TORCH
        )
