"""What a machine lacks is found without importing an engine, and named with its remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest
from paths import ROOT

from asrgate.backends import devices
from asrgate.backends.base import BackendUnavailable
from asrgate.backends.faster_whisper import FasterWhisper
from asrgate.backends.openai_whisper import WhisperCuda


def test_checking_imports_no_engine() -> None:
    code = (
        "import sys; from asrgate.backends.base import BackendUnavailable;"
        "from asrgate.backends.openai_whisper import WhisperCpu, WhisperCuda;"
        "from asrgate.backends.faster_whisper import FasterWhisper;"
        "WhisperCpu.check('cpu', 'float32'); FasterWhisper.check('cpu', 'int8')\n"
        "for engine in (WhisperCuda, FasterWhisper):\n"
        "    try: engine.check('cuda', 'float16')\n"
        "    except BackendUnavailable: pass\n"
        "print(sorted({'torch', 'whisper', 'ctranslate2', 'faster_whisper'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def without(package: str, folder: Path, backend: str) -> str:
    """Return the error of `backend`'s check in a process where `package` cannot be found."""
    (folder / "sitecustomize.py").write_text(
        "import importlib.machinery as m\n"
        "find = m.PathFinder.find_spec.__func__\n"
        "m.PathFinder.find_spec = classmethod(\n"
        f"    lambda cls, name, *a: None if name == {package!r} else find(cls, name, *a))\n"
    )
    code = (
        "from asrgate import backends; from asrgate.backends.base import BackendUnavailable\n"
        f"try: backends.load({backend!r}).check('cpu', 'float32')\n"
        "except BackendUnavailable as error: print(error.reason, '|', error.remedy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("package", "distribution", "backend"),
    [
        ("whisper", "openai-whisper", "whisper-cpu"),
        ("torch", "torch", "whisper-cpu"),
        ("ctranslate2", "ctranslate2", "faster-whisper"),
        ("faster_whisper", "faster-whisper", "faster-whisper"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    package: str, distribution: str, backend: str, tmp_path: Path
) -> None:
    expected = f"the package {distribution} is not installed | pip install {distribution}"
    assert without(package, tmp_path, backend) == expected


def has_gpu() -> bool:
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetCount() > 0
    except pynvml.NVMLError:
        return False


@pytest.mark.parametrize("engine", [WhisperCuda, FasterWhisper])
def test_without_a_gpu_cuda_is_unavailable(engine: Any) -> None:
    if has_gpu():
        pytest.skip("needs a machine without an NVIDIA GPU")
    with pytest.raises(BackendUnavailable, match="NVIDIA") as refused:
        engine.check("cuda", "float16")
    assert "NVIDIA GPU" in refused.value.remedy


def test_a_cpu_build_of_torch_is_told_by_its_version_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(
        "__version__ = '2.9.0+cpu'\ncuda: Optional[str] = None\nhip = None\n"
    )
    monkeypatch.setattr(devices, "require_package", lambda *_: tmp_path / "__init__.py")
    with pytest.raises(BackendUnavailable, match=r"torch 2\.9\.0\+cpu is a CPU build") as refused:
        devices.require_cuda_torch()
    assert "pytorch.org" in refused.value.remedy
    (tmp_path / "version.py").write_text("__version__ = '2.9.0'\ncuda: Optional[str] = '12.8'\nhip = None\n")
    devices.require_cuda_torch()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/self/maps, which Linux has")
def test_libraries_of_cuda_packages_are_loaded_from_where_they_lie(tmp_path: Path) -> None:
    import _soundfile_data

    (real,) = Path(_soundfile_data.__file__).parent.glob("*.so")  # any shared library does
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcublas.so.12").write_bytes(real.read_bytes())
    code = (
        "from asrgate.backends.devices import load_cuda_12_libraries as load;"
        "print(*load(), sep='\\n'); print('libcublas.so.12' in open('/proc/self/maps').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(folder / "libcublas.so.12"), "True"]
