"""Models of the Hugging Face hub, by `owner/name@commit`: from its own cache, or else downloaded into it.

huggingface_hub does the work, so its variables hold: HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from asrgate.backends.base import BackendUnavailable
from asrgate.backends.checkpoints.sources import OFFLINE
from asrgate.backends.devices import require_package

# What speech models of transformers are read from: not the same weights in other formats, nor any code.
PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "README.md")
HUB_OFFLINE = "HF_HUB_OFFLINE"
ANSWER_SECONDS = 10.0
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>\S+))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A model of the hub at one commit."""

    name: str
    commit: str

    def __str__(self) -> str:
        return f"{self.name}@{self.commit}"


def parse(text: str, variable: str) -> HubModel | None:
    """Return the model that a text names, None if it is no name of the hub.

    Args:
        variable: of the environment, that holds the text; errors name it.

    Raises:
        BackendUnavailable: it names no commit. Branches and tags move, so a row could not be made again. The
            hub is asked for the commit to name.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    name, revision = found["name"], found["revision"]
    if revision is not None and _COMMIT.fullmatch(revision):
        return HubModel(name, revision)
    require_package("huggingface_hub", "huggingface_hub")
    lack = "names no revision" if revision is None else f"names the revision {revision}, which is no commit"
    lack = f"{variable} is no folder, and as a name of the hub it {lack}"
    commit, why = _current_commit(name, revision)
    if commit is None:
        written = f"{name}@COMMIT, with the commit of 40 hexadecimal digits from the model's page"
        raise BackendUnavailable(
            f"{lack}; what it is now is not known ({why})", f"set {variable} to {written}"
        )
    raise BackendUnavailable(
        f"{lack}, so what it stands for can change",
        f"set {variable}={name}@{commit}, what it is now",
    )


def folder(model: HubModel, may_download: bool) -> Path:
    """Return the folder of a model's files in the hub's cache.

    Args:
        may_download: whether files that the cache lacks are downloaded.

    Raises:
        BackendUnavailable: the cache lacks them, and the hub cannot be reached, refuses, or may not be asked.
    """
    require_package("huggingface_hub", "huggingface_hub")
    import huggingface_hub
    from huggingface_hub import errors

    offline = _offline()
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                model.name,
                revision=model.commit,
                allow_patterns=list(PATTERNS),
                local_files_only=not may_download or offline is not None,
            )
        )
    except errors.GatedRepoError as error:
        raise BackendUnavailable(
            f"the hub gives {model.name} only to those who accept its terms",
            "accept them on the model's page, then log in with `hf auth login`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise BackendUnavailable(*_unknown(model.name)) from error
    except errors.RevisionNotFoundError as error:
        raise BackendUnavailable(
            f"the hub has no commit {model.commit} of {model.name}", "name one from the model's page"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        part = "only a part of " if isinstance(error, errors.IncompleteSnapshotError) else "no "
        where = huggingface_hub.constants.HF_HUB_CACHE
        why = f"{offline} is set" if offline else "nothing is downloaded here"
        if may_download and not offline:
            why = "the hub cannot be reached"
        raise BackendUnavailable(
            f"{where} has {part}{model}, and {why}",
            f"where the hub can be reached, run `hf download {model.name} --revision {model.commit}`"
            + (f", or unset {offline}" if offline else ""),
        ) from error
    except Exception as error:  # its client's errors are of several libraries
        raise BackendUnavailable(
            f"{model} cannot be downloaded: {_first_line(error)}", "try again, or name a folder"
        ) from error


def is_offline() -> bool:
    """Whether a variable forbids asking the hub."""
    return _offline() is not None


def files(snapshot: Path) -> Iterator[Path]:
    """Yield the files of a model that count: the cache may hold further ones, fetched by others."""
    for path in snapshot.rglob("*"):
        name = path.relative_to(snapshot).as_posix()
        if path.is_file() and any(fnmatch(name, pattern) for pattern in PATTERNS):
            yield path


def _current_commit(name: str, revision: str | None) -> tuple[str | None, str]:
    """Return the commit of a model's branch or tag, or None and why it is not known."""
    import huggingface_hub
    from huggingface_hub import errors

    if (offline := _offline()) is not None:
        return None, f"{offline} is set"
    try:
        found = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=ANSWER_SECONDS)
    except errors.RevisionNotFoundError:
        return None, "the hub has no such revision"
    except errors.RepositoryNotFoundError as error:
        raise BackendUnavailable(*_unknown(name)) from error
    except Exception as error:  # its client's errors are of several libraries
        return None, f"the hub cannot be reached: {_first_line(error)}"
    return found.sha, "the hub does not say"


def _offline() -> str | None:
    """Return the variable that forbids asking the hub, if one does."""
    from huggingface_hub import constants

    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        return OFFLINE
    return HUB_OFFLINE if constants.is_offline_mode() else None


def _unknown(name: str) -> tuple[str, str]:
    return (
        f"the hub has no model {name}, or shows it only to those who may see it",
        "correct the name, name a folder that exists, or log in with `hf auth login`",
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
