"""From a model's name to a verified checkpoint on this machine. Imports no engine."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import lzma
import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from backends.base import Checkpoint
from backends.cache import cache_dir, locked, temporary_beside, user_cache_dir
from backends.checkpoint_file import CheckpointError, load_state_dict, read_dimensions
from backends.download import DownloadError, Progress, download, reachable
from backends.sha256 import HASH_BLOCK_BYTES, file_sha256, hash_now

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Entry",
    "cache_dir",
    "catalogue",
    "default_model",
    "find",
    "load_state_dict",
    "openai_table",
    "resolve",
    "unknown",
    "weights_folders",
]

SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "weights"
# The project runs from its checkout, so this is the checkout's folder, also for an editable install. A wheel
# holds no weights: the folder is absent then, and only OpenAI's models are in the catalogue.
CATALOG_VERSION = 1
DEFAULT_MODEL = "tiny.en"
FALLBACK_MODEL = "nano.en"
OFFLINE_AFTER_SECONDS = 3.0

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One model the catalogue knows by name."""

    name: str
    sha256: str  # of the .pt file
    file_name: str  # what that file is called in the folders that are searched
    url: str | None = None  # None: shipped with the project
    archive: Path | None = None  # the shipped .pt.xz
    archive_sha256: str | None = None
    licence: str = "MIT"
    source: str = "OpenAI"
    note: str = ""


def catalogue() -> dict[str, Entry]:
    """Return every model known by name: OpenAI's in openai-whisper's order, then what the project ships.

    Raises:
        CheckpointError: openai-whisper is absent or its table is not what it was, or catalog.toml is broken.
    """
    entries = {}
    for name, url in openai_table("_MODELS").items():
        sha256, file_name = url.split("/")[-2:]
        entries[name] = Entry(name, sha256, file_name, url=url)
    return {**entries, **_shipped()}


def openai_table(variable: str) -> dict[str, Any]:
    """Return a table of `whisper/__init__.py` ("_MODELS" or "_ALIGNMENT_HEADS") without importing whisper.

    Raises:
        CheckpointError: openai-whisper is not installed, or its source no longer holds the table.
    """
    spec = importlib.util.find_spec("whisper")
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "openai-whisper is not installed, and the table of models is its own; pip install it"
        )
    return dict(_openai_table(spec.origin, variable))


def weights_folders() -> list[Path]:
    """Return the folders that `$ASRBENCH_WEIGHTS` names, separated as in `$PATH`.

    Raises:
        CheckpointError: one of them is no folder.
    """
    folders = [Path(text) for text in os.environ.get("ASRBENCH_WEIGHTS", "").split(os.pathsep) if text]
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"ASRBENCH_WEIGHTS names {folder}, which is no folder")
    return folders


def find(entry: Entry) -> Path | None:
    """Return where the model's .pt file lies on this machine, its hash not yet checked; None if nowhere."""
    places = [folder / name for folder in weights_folders() for name in (f"{entry.name}.pt", entry.file_name)]
    if entry.url is not None:
        places.append(user_cache_dir() / "whisper" / entry.file_name)  # openai-whisper's own cache
    places.append(cached_path(entry))
    return next((place for place in places if place.is_file()), None)


def cached_path(entry: Entry) -> Path:
    """Where asrbench puts the model's file when it downloads or unpacks it."""
    return cache_dir() / "weights" / entry.file_name


def resolve(name_or_path: str, *, download: bool = False, progress: Progress | None = None) -> Checkpoint:
    """Return a verified checkpoint for a path to a .pt file or for a name.

    A name is looked for in `$ASRBENCH_WEIGHTS`, in openai-whisper's cache and in asrbench's own; a model
    the project ships is unpacked on first use; a name outside the catalogue may be a file in
    `$ASRBENCH_WEIGHTS`. A file under a catalogue name must have the catalogue's hash.

    Args:
        name_or_path: "tiny.en", "my-model" or "folder/my-model.pt".
        download: fetch one of OpenAI's models if it is not on this machine.
        progress: called with (bytes, bytes in all or None) while it downloads.

    Raises:
        CheckpointError: unknown, absent, damaged, of the wrong hash, or not Whisper's.
        DownloadError: it could not be fetched.
    """
    if os.sep in name_or_path or name_or_path.endswith(".pt"):
        return _from_path(Path(name_or_path).expanduser())
    entries = catalogue()
    entry = entries.get(name_or_path)
    if entry is None:
        for folder in weights_folders():
            path = folder / f"{name_or_path}.pt"
            if path.exists():
                return _checkpoint(name_or_path, path)
        if Path(name_or_path).exists():
            return _from_path(Path(name_or_path))
        raise CheckpointError(unknown(name_or_path))
    path = find(entry) or _fetched(entry, download, progress)
    if path == cached_path(entry) and entry.archive is not None and file_sha256(path) != entry.sha256:
        path = unpack(entry)  # left by another version of the project
    return _checkpoint(entry.name, path, entry)


def default_model(progress: Progress | None = None) -> tuple[Checkpoint, str]:
    """Return the model to benchmark when none is named, and one line that says which and why.

    tiny.en where it is or can be had (asked for three seconds at most), else the bundled nano.en, else
    the first checkpoint in `$ASRBENCH_WEIGHTS`.

    Raises:
        CheckpointError: there is none of them.
    """
    entries = catalogue()
    default = entries[DEFAULT_MODEL]
    if find(default) is not None:
        checkpoint = resolve(DEFAULT_MODEL)
        return checkpoint, f"model {DEFAULT_MODEL}: found at {checkpoint.path}"
    why = f"{DEFAULT_MODEL} is not on this machine and its server does not answer"
    if default.url is not None and reachable(default.url, OFFLINE_AFTER_SECONDS):
        try:
            checkpoint = resolve(DEFAULT_MODEL, download=True, progress=progress)
            return checkpoint, f"model {DEFAULT_MODEL}: downloaded to {checkpoint.path}"
        except DownloadError as error:
            why = f"{DEFAULT_MODEL} is not on this machine and could not be downloaded ({error})"
    if FALLBACK_MODEL in entries:
        note = entries[FALLBACK_MODEL].note
        return resolve(FALLBACK_MODEL), f"model {FALLBACK_MODEL} ({note}): {why}"
    for folder in weights_folders():
        for path in sorted(folder.glob("*.pt")):
            return resolve(path.stem), f"model {path.stem}, the first in ASRBENCH_WEIGHTS: {why}"
    raise CheckpointError(
        f"no model: {why}. With a connection, run `asrbench weights fetch {DEFAULT_MODEL}`; without one, "
        "give --model a .pt file, or set ASRBENCH_WEIGHTS to a folder that holds one"
    )


def unpack(entry: Entry) -> Path:
    """Unpack a shipped model into the cache, checked before and after, and return the .pt file.

    Raises:
        CheckpointError: the archive or what came out of it is not what the catalogue says.
    """
    target, archive = cached_path(entry), entry.archive
    assert archive is not None
    with locked(target):
        if target.is_file() and hash_now(target) == entry.sha256:
            return target  # another process was first
        if file_sha256(archive) != entry.archive_sha256:
            raise CheckpointError(f"{archive} is not the file its catalog.toml describes; check it out again")
        temporary = temporary_beside(target)
        try:
            with lzma.open(archive) as packed, temporary.open("wb") as file:
                while block := packed.read(HASH_BLOCK_BYTES):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if hash_now(temporary) != entry.sha256:
                raise CheckpointError(f"what {archive} holds is not the {entry.name} of the catalogue")
            os.replace(temporary, target)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise CheckpointError(f"cannot unpack {archive} to {target}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return target


def _fetched(entry: Entry, may_download: bool, progress: Progress | None) -> Path:
    if entry.archive is not None:
        return unpack(entry)
    assert entry.url is not None
    if may_download:
        return download(entry.url, cached_path(entry), entry.sha256, progress)
    raise CheckpointError(
        f"{entry.name} is not on this machine; looked in ASRBENCH_WEIGHTS, {user_cache_dir() / 'whisper'} "
        f"and {cached_path(entry).parent}. Run `asrbench weights fetch {entry.name}`"
    )


def _from_path(path: Path) -> Checkpoint:
    checkpoint = _checkpoint(path.stem, path)
    entry = catalogue().get(path.stem) if importlib.util.find_spec("whisper") else None
    if entry is None:
        return checkpoint
    same = checkpoint.sha256 == entry.sha256
    return replace(
        checkpoint, note=entry.note if same else f"not {entry.source}'s {entry.name}, only called so"
    )


def _checkpoint(name: str, path: Path, entry: Entry | None = None) -> Checkpoint:
    if entry is not None:
        found = file_sha256(path)
        if found != entry.sha256:
            raise CheckpointError(
                f"{path} is not {entry.name}: its SHA-256 is {found[:12]}…, expected {entry.sha256[:12]}…. "
                "Delete a broken copy and fetch it again; rename another model, or give its path"
            )
    dimensions = read_dimensions(path)
    return Checkpoint(name, path.absolute(), file_sha256(path), dimensions, entry.note if entry else "")


def unknown(name: str) -> str:
    """Return what to tell the user about a name that no model has: the nearest one and all there are."""
    own = [path.stem for folder in weights_folders() for path in sorted(folder.glob("*.pt"))]
    choices = list(dict.fromkeys([*catalogue(), *own]))
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"no model is called {name!r}.{hint} Available: {', '.join(choices)}; or the path of a .pt file; or "
        "the name of one in a folder that ASRBENCH_WEIGHTS names"
    )


@lru_cache
def _openai_table(source: str, variable: str) -> dict[str, Any]:
    try:
        tree = ast.parse(Path(source).read_text(encoding="utf-8"))
        literal = next(
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == [variable]
        )
        table = ast.literal_eval(literal)
        assert isinstance(table, dict) and DEFAULT_MODEL in table
        if variable == "_MODELS":
            assert all(SHA256.fullmatch(url.split("/")[-2]) for url in table.values())
            assert all(url.startswith("https://") and url.endswith(".pt") for url in table.values())
    except (
        OSError,
        SyntaxError,
        ValueError,
        StopIteration,
        AssertionError,
        AttributeError,
        IndexError,
    ) as error:
        raise CheckpointError(
            f"{source} does not hold openai-whisper's {variable} as asrbench knows it (another package "
            "called whisper, or a newer layout); install openai-whisper 20250625"
        ) from error
    return table


def _shipped() -> dict[str, Entry]:
    path = SHIPPED_FOLDER / "catalog.toml"
    if not path.exists():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if content.get("schema_version") != CATALOG_VERSION:
        raise CheckpointError(f"{path} has another schema_version than {CATALOG_VERSION}")
    return {name: _shipped_entry(path, name, table) for name, table in content.get("models", {}).items()}


def _shipped_entry(path: Path, name: str, table: Any) -> Entry:
    needed = {"file", "file_sha256", "sha256", "licence", "source", "note"}
    if (
        not isinstance(table, dict)
        or set(table) != needed
        or not all(isinstance(v, str) for v in table.values())
    ):
        raise CheckpointError(f"{path}: {name} must have exactly {', '.join(sorted(needed))}, all texts")
    if not SHA256.fullmatch(table["file_sha256"]) or not SHA256.fullmatch(table["sha256"]):
        raise CheckpointError(f"{path}: the hashes of {name} must be 64 lower-case hexadecimal digits")
    return Entry(
        name,
        table["sha256"],
        f"{name}.pt",
        archive=path.parent / table["file"],
        archive_sha256=table["file_sha256"],
        licence=table["licence"],
        source=table["source"],
        note=table["note"],
    )
