"""Turns a model's name into a verified checkpoint on this machine, without importing an engine."""

from __future__ import annotations

import ast
import importlib.util
import lzma
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from asrgate.backends.base import AsrgateError, Checkpoint, did_you_mean
from asrgate.backends.checkpoints import containers, sources
from asrgate.backends.checkpoints.cache import cache_dir, locked, temporary_beside, user_cache_dir
from asrgate.backends.checkpoints.download import Progress
from asrgate.backends.checkpoints.file import DIMENSIONS, CheckpointError, load_state_dict
from asrgate.backends.checkpoints.identity import dimensions_of, file_tensors_sha256
from asrgate.backends.checkpoints.sha256 import HASH_BLOCK_BYTES, SHA256, file_sha256, hash_now
from asrgate.backends.installation import shipped

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
    "identified",
    "imported_folder",
    "load_state_dict",
    "openai_table",
    "own_files",
    "resolve",
    "unknown",
    "weights_folders",
]

SHIPPED_FOLDER = shipped(
    "weights/catalog.toml", Path(__file__).resolve().parent / "shipped" / "catalog.toml"
).parent
# The checkout's folder, also for an editable install. A wheel contains no weights: then the folder is absent
# and only OpenAI's models are in the catalogue.
CATALOG_VERSION = 2
DEFAULT_MODEL = "tiny.en"
FALLBACK_MODEL = "nano.en"

REVISION = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Entry:
    """One model that the catalogue knows by name.

    A checkpoint is this model if its file has `sha256`, or if its tensors have `tensors_sha256` and its
    dimensions are `dimensions`.
    """

    name: str
    sha256: str  # of the .pt file that its author published
    file_name: str  # that file's name in the folders that are searched
    url: str | None = None  # None: bundled with the project
    archive: Path | None = None  # the bundled .pt.xz
    archive_sha256: str | None = None
    licence: str = "MIT"
    source: str = "OpenAI"
    note: str = ""
    tensors_sha256: str | None = None  # see asrgate.backends.checkpoints.tensor_digest; None if unknown
    dimensions: Mapping[str, int] = field(default_factory=dict)  # known if tensors_sha256 is
    hub: tuple[str, str] | None = None  # repository and revision on the Hugging Face hub
    packages: tuple[str, ...] = ()  # requirements whose wheels contain CTranslate2's model.bin, in parts

    def is_model(self, sha256: str, tensors_sha256: str | None, dimensions: Mapping[str, int]) -> bool:
        """Whether a checkpoint with these digests and dimensions is this model."""
        if sha256 == self.sha256:
            return True
        return (
            self.tensors_sha256 is not None
            and tensors_sha256 == self.tensors_sha256
            and dict(dimensions) == dict(self.dimensions)
        )


def catalogue() -> dict[str, Entry]:
    """Return every model known by name: OpenAI's in openai-whisper's order, then the bundled ones.

    Raises:
        CheckpointError: openai-whisper is missing, its table has changed, or catalog.toml is broken.
    """
    content = _catalog_file()
    entries = {}
    for name, url in openai_table("_MODELS").items():
        sha256, file_name = url.split("/")[-2:]
        beside = _beside_openai(name, content.get("openai", {}).get(name, {}))
        entry = Entry(name, sha256, file_name, url=url, **beside)
        entries[name] = sources.accepted(entry, cached_path(entry))
    return {**entries, **{name: _shipped(name, table) for name, table in content.get("models", {}).items()}}


def openai_table(variable: str) -> dict[str, Any]:
    """Return a table of `whisper/__init__.py` ("_MODELS" or "_ALIGNMENT_HEADS") without importing whisper.

    Raises:
        CheckpointError: openai-whisper is not installed, or its source no longer has the table.
    """
    spec = importlib.util.find_spec("whisper")
    if spec is None or spec.origin is None:
        raise CheckpointError(
            "openai-whisper is not installed, and it provides the table of models; pip install openai-whisper"
        )
    return dict(_openai_table(spec.origin, variable))


def weights_folders() -> list[Path]:
    """Return the folders that `$ASRGATE_WEIGHTS` names, separated as in `$PATH`.

    Raises:
        CheckpointError: one of them is not a folder.
    """
    folders = [Path(text) for text in os.environ.get("ASRGATE_WEIGHTS", "").split(os.pathsep) if text]
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"ASRGATE_WEIGHTS names {folder}, which is not a folder")
    return folders


def imported_folder() -> Path:
    """Where `asrgate weights import` puts its checkpoints, as NAME.pt."""
    return cache_dir() / "weights" / "imported"


def own_files() -> list[Path]:
    """Return the .pt files in `$ASRGATE_WEIGHTS` and the imported ones, whatever they contain."""
    folders = (*weights_folders(), imported_folder())
    return [path for folder in folders for path in sorted(folder.glob("*.pt"))]


def identified(path: Path) -> Entry | None:
    """Return the catalogue's model that a .pt file contains, by the file's hash or its tensors' digest.

    Raises:
        CheckpointError: the file is not a checkpoint.
    """
    return _known(file_sha256(path), file_tensors_sha256(path), dimensions_of(path))


def _known(sha256: str, tensors_sha256: str | None, dimensions: Mapping[str, int]) -> Entry | None:
    entries = catalogue().values() if importlib.util.find_spec("whisper") else []
    return next((entry for entry in entries if entry.is_model(sha256, tensors_sha256, dimensions)), None)


def find(entry: Entry) -> Path | None:
    """Return where the model's .pt file is on this machine, before checking its digest; None if nowhere.

    A file with a different name counts if its tensors have the model's digest.
    """
    places = [folder / name for folder in weights_folders() for name in (f"{entry.name}.pt", entry.file_name)]
    if entry.url is not None:
        places.append(user_cache_dir() / "whisper" / entry.file_name)  # openai-whisper's own cache
    places.append(cached_path(entry))
    named = next((place for place in places if place.is_file()), None)
    return named or next((path for path in own_files() if _holds(path, entry)), None)


def _holds(path: Path, entry: Entry) -> bool:
    if entry.tensors_sha256 is None:
        return False
    try:
        # dimensions first: they cost nothing, and a model of another size need not be hashed
        return dimensions_of(path) == entry.dimensions and file_tensors_sha256(path) == entry.tensors_sha256
    except AsrgateError:
        return False  # a broken file with another name is no reason to stop


def cached_path(entry: Entry) -> Path:
    """Where asrgate puts the model's file after downloading or unpacking it."""
    return cache_dir() / "weights" / entry.file_name


def resolve(name_or_path: str, *, download: bool = False, progress: Progress | None = None) -> Checkpoint:
    """Return a verified checkpoint for a name, or for a path to a .pt file or to another container.

    Another container is imported on first use, see asrgate.backends.checkpoints.containers.

    A name is looked for in `$ASRGATE_WEIGHTS`, in openai-whisper's cache and in asrgate's own. A bundled
    model is unpacked on first use. A name outside the catalogue may be a file in `$ASRGATE_WEIGHTS` or an
    imported one. A file under a catalogue name must be that model, by its hash or by its tensors' digest. A
    file that is a model of the catalogue goes by the catalogue's name, whatever its own.

    Args:
        name_or_path: "tiny.en", "my-model", "folder/my-model.pt" or "folder/my-huggingface-model".
        download: whether to download one of OpenAI's models, from any source, if it is not on this machine.
        progress: called with (bytes, total bytes or None) while it downloads.

    Raises:
        CheckpointError: unknown, missing, damaged, with the wrong hash, or not Whisper's.
        DownloadError: it could not be downloaded.
    """
    if os.sep in name_or_path or name_or_path.endswith(".pt"):
        return _from_path(Path(name_or_path).expanduser())
    entries = catalogue()
    entry = entries.get(name_or_path)
    if entry is None:
        for path in own_files():
            if path.stem == name_or_path:
                return _from_path(path)
        if Path(name_or_path).exists():
            return _from_path(Path(name_or_path))
        raise CheckpointError(unknown(name_or_path))
    path = find(entry) or _fetched(entry, download, progress)
    if path == cached_path(entry):
        entry = sources.accepted(entry, path)
    if path == cached_path(entry) and entry.archive is not None and file_sha256(path) != entry.sha256:
        path = unpack(entry)  # left by another version of the project
    return _checkpoint(entry.name, path, entry)


def default_model(progress: Progress | None = None) -> tuple[Checkpoint, str]:
    """Return the model to benchmark if none is named, and one line that says which and why.

    It is tiny.en if it is on this machine or any source has it (which takes five seconds at most), or else
    the bundled nano.en, or else the first checkpoint in `$ASRGATE_WEIGHTS`.

    Raises:
        CheckpointError: none of these exists.
    """
    entries = catalogue()
    default = entries[DEFAULT_MODEL]
    if find(default) is not None:
        checkpoint = resolve(DEFAULT_MODEL)
        return checkpoint, f"model {DEFAULT_MODEL}: found at {checkpoint.path}"
    try:
        title = sources.fetch(default, cached_path(default), progress=progress)
        checkpoint = resolve(DEFAULT_MODEL)
        return checkpoint, f"model {DEFAULT_MODEL}: fetched from {title} to {checkpoint.path}"
    except sources.NoSourceError as error:
        told = "; ".join(f"{name}: {reason}" for name, reason in error.reasons.items())
        found_none = f"no source gave it ({told})" if told else f"{sources.OFFLINE} is set"
    except AsrgateError as error:
        found_none = f"could not be stored ({error})"
    why = f"{DEFAULT_MODEL} is not on this machine and {found_none}"
    if FALLBACK_MODEL in entries:
        note = entries[FALLBACK_MODEL].note
        return resolve(FALLBACK_MODEL), f"model {FALLBACK_MODEL} ({note}): {why}"
    for folder in weights_folders():
        for path in sorted(folder.glob("*.pt")):
            return resolve(path.stem), f"model {path.stem}, the first in ASRGATE_WEIGHTS: {why}"
    raise CheckpointError(
        f"no model: {why}. With a connection, run `asrgate weights fetch {DEFAULT_MODEL}`; without one, "
        "pass a .pt file with --model, or set ASRGATE_WEIGHTS to a folder that has one"
    )


def unpack(entry: Entry) -> Path:
    """Unpack a bundled model into the cache, checking it before and after, and return the .pt file.

    Raises:
        CheckpointError: the archive or its contents are not what the catalogue says.
    """
    target, archive = cached_path(entry), entry.archive
    assert archive is not None
    with locked(target):
        if target.is_file() and hash_now(target) == entry.sha256:
            return target  # another process was first
        if file_sha256(archive) != entry.archive_sha256:
            raise CheckpointError(
                f"{archive} is not the file that its catalog.toml describes; check it out again"
            )
        temporary = temporary_beside(target)
        try:
            with lzma.open(archive) as packed, temporary.open("wb") as file:
                while block := packed.read(HASH_BLOCK_BYTES):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if hash_now(temporary) != entry.sha256:
                raise CheckpointError(
                    f"the contents of {archive} are not the catalogue's {entry.name}; check it out again"
                )
            os.replace(temporary, target)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise CheckpointError(f"cannot unpack {archive} to {target}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
    return target


def _fetched(entry: Entry, may_download: bool, progress: Progress | None) -> Path:
    if entry.archive is not None:
        return unpack(entry)
    if may_download:
        sources.fetch(entry, cached_path(entry), progress=progress)
        return cached_path(entry)
    raise CheckpointError(
        f"{entry.name} is not on this machine; looked in ASRGATE_WEIGHTS, {user_cache_dir() / 'whisper'} "
        f"and {cached_path(entry).parent}. Run `asrgate weights fetch {entry.name}`"
    )


def _from_path(path: Path) -> Checkpoint:
    name = containers.default_name(path)
    if containers.kind_of(path) not in (None, "openai"):
        path = containers.imported(path)
    checkpoint = _checkpoint(name, path)
    entry = _known(checkpoint.sha256, checkpoint.tensors_sha256, checkpoint.dimensions)
    if entry is not None:
        return replace(checkpoint, name=entry.name, note=entry.note)
    called = catalogue().get(name) if importlib.util.find_spec("whisper") else None
    if called is not None:
        return replace(
            checkpoint, note=f"has the name of {called.source}'s {called.name}, but is a different model"
        )
    return checkpoint


def _checkpoint(name: str, path: Path, entry: Entry | None = None) -> Checkpoint:
    dimensions, found = dimensions_of(path), file_sha256(path)
    if entry is not None and entry.tensors_sha256 is None and found != entry.sha256:
        raise _not_that_model(path, entry, f"its SHA-256 is {found[:12]}…, expected {entry.sha256[:12]}…")
    tensors = file_tensors_sha256(path)
    if entry is not None and not entry.is_model(found, tensors, dimensions):
        raise _not_that_model(
            path, entry, f"the digest of its tensors is {tensors[:12]}…, expected {entry.tensors_sha256:.12}…"
        )
    return Checkpoint(name, path.absolute(), found, dimensions, entry.note if entry else "", tensors)


def _not_that_model(path: Path, entry: Entry, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not {entry.name}: {why}. "
        "Delete a broken copy and fetch it again; rename a different model, or pass its path"
    )


def unknown(name: str) -> str:
    """Return the message for a name that no model has: the closest name and all choices."""
    choices = list(dict.fromkeys([*catalogue(), *(path.stem for path in own_files())]))
    return (
        f"no model is called {name!r}.{did_you_mean(name, choices)} "
        f"Available: {', '.join(choices)}; or the path of a .pt file, of "
        "a CTranslate2 or Hugging Face folder or of a whisper.cpp file; or the name of a .pt file in a "
        "folder that ASRGATE_WEIGHTS names"
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
            f"{source} does not have openai-whisper's {variable} as asrgate expects it (another package "
            "called whisper, or a newer layout); install openai-whisper 20250625"
        ) from error
    return table


def _catalog_file() -> dict[str, Any]:
    path = SHIPPED_FOLDER / "catalog.toml"
    if not path.exists():
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if content.get("schema_version") != CATALOG_VERSION:
        raise CheckpointError(f"{path} must have schema_version {CATALOG_VERSION}")
    return content


def _shipped(name: str, table: Any) -> Entry:
    path = SHIPPED_FOLDER / "catalog.toml"
    texts = {"file", "file_sha256", "sha256", "tensors_sha256", "licence", "source", "note"}
    if not isinstance(table, dict) or set(table) != texts | {"dimensions"}:
        raise CheckpointError(f"{path}: {name} must have exactly {', '.join(sorted(texts))} and dimensions")
    if not all(isinstance(table[key], str) for key in texts):
        raise CheckpointError(f"{path}: {', '.join(sorted(texts))} of {name} must be strings")
    if not all(SHA256.fullmatch(table[key]) for key in ("file_sha256", "sha256", "tensors_sha256")):
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
        tensors_sha256=table["tensors_sha256"],
        dimensions=_known_dimensions(path, name, table["dimensions"]),
    )


def _beside_openai(name: str, table: Any) -> dict[str, Any]:
    """Return what the catalogue knows about a model of OpenAI's besides its address and its file's hash."""
    path = SHIPPED_FOLDER / "catalog.toml"
    if not isinstance(table, dict) or not set(table) <= {"tensors_sha256", "dimensions", "hub", "packages"}:
        raise CheckpointError(f"{path}: {name} may only have tensors_sha256, dimensions, hub and packages")
    found: dict[str, Any] = {}
    if "tensors_sha256" in table:
        if not SHA256.fullmatch(str(table["tensors_sha256"])):
            raise CheckpointError(f"{path}: tensors_sha256 of {name} must be 64 hexadecimal digits")
        found["tensors_sha256"] = table["tensors_sha256"]
        found["dimensions"] = _known_dimensions(path, name, table.get("dimensions"))
    if "hub" in table:
        repository, _, revision = str(table["hub"]).partition("@")
        if repository.count("/") != 1 or not REVISION.fullmatch(revision):
            raise CheckpointError(f"{path}: hub of {name} must be OWNER/NAME@ and a revision's 40 digits")
        found["hub"] = (repository, revision)
    if "packages" in table:
        packages = table["packages"]
        if not isinstance(packages, list) or not all(isinstance(p, str) and "==" in p for p in packages):
            raise CheckpointError(f"{path}: packages of {name} must be a list of NAME==VERSION")
        found["packages"] = tuple(packages)
    return found


def _known_dimensions(path: Path, name: str, table: Any) -> dict[str, int]:
    if not isinstance(table, dict) or set(table) != set(DIMENSIONS):
        raise CheckpointError(f"{path}: dimensions of {name} must be Whisper's ten: {', '.join(DIMENSIONS)}")
    return {key: int(table[key]) for key in DIMENSIONS}
