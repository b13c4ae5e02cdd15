"""`asrbench weights`: list, fetch, verify and convert checkpoints. Try `asrbench weights list`."""

from __future__ import annotations

import argparse
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from backends import checkpoint, ctranslate2_model, download
from backends.base import Checkpoint
from backends.cache import temporary_beside
from backends.checkpoint import CheckpointError, Entry
from backends.checkpoint_file import read_dimensions, read_tensors
from backends.sha256 import file_sha256, hash_now


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `weights` and its own subcommands."""
    parser = subparsers.add_parser("weights", help="list, fetch, verify, convert and export checkpoints")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="the models known by name, and where they are on this machine")
    command.add_argument("--json", action="store_true", help="print JSON, with whole hashes and addresses")
    command.set_defaults(func=_list)

    command = commands.add_parser("fetch", help="download, or unpack what the project ships; resumes")
    command.add_argument("names", nargs="+", metavar="NAME")
    command.set_defaults(func=_fetch)

    command = commands.add_parser(
        "verify", help="hash the files again and compare; exit status 1 if one is bad"
    )
    command.add_argument("names", nargs="*", metavar="NAME", help="default: every model on this machine")
    command.set_defaults(func=_verify)

    command = commands.add_parser("where", help="print the path of a model's file, and nothing else")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(func=_where)

    command = commands.add_parser(
        "convert", help="build an engine's own format in the cache; prints the folder"
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("--to", required=True, choices=["ctranslate2"])
    command.set_defaults(func=_convert)

    command = commands.add_parser("export", help="write every tensor by name into one file")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--format", required=True, choices=["npz"])
    command.add_argument("--output", required=True, type=Path, metavar="FILE")
    command.set_defaults(func=_export)


def _list(args: argparse.Namespace) -> int:
    rows = [_row(entry) for entry in checkpoint.catalogue().values()]
    rows += [
        {"name": path.stem, "sha256": file_sha256(path), "size_bytes": path.stat().st_size, "path": str(path)}
        | {"source": "your own", "licence": None, "note": "", "url": None}
        for path in _own_files()
    ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(str(row["name"])) for row in rows)
    print(f"{'NAME':{width}}  {'SIZE':>8}  {'SHA-256':12}  WHERE")
    for row in rows:
        size = "-" if row["size_bytes"] is None else f"{int(str(row['size_bytes'])) / 1e6:.1f} MB"
        where = row["path"] or f"not here: asrbench weights fetch {row['name']}"
        note = f"  ({row['note']})" if row["note"] else ""
        print(f"{row['name']:{width}}  {size:>8}  {str(row['sha256'])[:12]}  {where}{note}")
    return 0


def _row(entry: Entry) -> dict[str, object]:
    path = checkpoint.find(entry)
    return {
        "name": entry.name,
        "sha256": entry.sha256,
        "size_bytes": path.stat().st_size if path else None,
        "path": str(path) if path else None,
        "source": entry.source,
        "licence": entry.licence,
        "note": entry.note,
        "url": entry.url,
    }


def _fetch(args: argparse.Namespace) -> int:
    for name in args.names:
        entry = checkpoint.catalogue().get(name)
        if entry is None:
            raise CheckpointError(checkpoint.unknown(name))
        with _progress(name) as progress:
            path = checkpoint.find(entry)
            if entry.url is not None and path == checkpoint.cached_path(entry):
                download.download(entry.url, path, entry.sha256, progress)  # repairs it if it is broken
            print(checkpoint.resolve(name, download=True, progress=progress).path)
    return 0


def _verify(args: argparse.Namespace) -> int:
    entries = checkpoint.catalogue()
    own = {path.stem: path for path in _own_files()}
    present = [name for name, entry in entries.items() if checkpoint.find(entry)] + list(own)
    bad = 0
    for name in args.names or present:
        entry = entries.get(name)
        path = checkpoint.find(entry) if entry else own.get(name)
        if path is None:
            raise CheckpointError(f"{name} is not on this machine" if entry else checkpoint.unknown(name))
        with _progress(name) as progress:
            found = hash_now(path, progress)
        if entry is None:
            read_dimensions(path)
            print(f"{name}  {found}  whole, known to no catalogue  {path}")
        elif found == entry.sha256:
            print(f"{name}  {found}  as the catalogue says  {path}")
        else:
            bad += 1
            print(f"{name}  {found}  WRONG, the catalogue says {entry.sha256}  {path}")
    return 1 if bad else 0


def _where(args: argparse.Namespace) -> int:
    print(checkpoint.resolve(args.name).path)
    return 0


def _convert(args: argparse.Namespace) -> int:
    print(ctranslate2_model.convert(checkpoint.resolve(args.name)))
    return 0


def _export(args: argparse.Namespace) -> int:
    write_npz(checkpoint.resolve(args.name), args.output)
    print(args.output)
    return 0


def write_npz(source: Checkpoint, target: Path) -> None:
    """Write every tensor, under its own name and one at a time, as a NumPy archive; atomically.

    Raises:
        CheckpointError: the folder is missing, or the disk is full.
    """
    if not target.parent.is_dir():
        raise CheckpointError(f"there is no folder {target.parent} to write {target.name} into")
    temporary = None
    try:
        temporary = temporary_beside(target)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, values in read_tensors(source.path):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, values, allow_pickle=False)
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _own_files() -> list[Path]:
    entries = checkpoint.catalogue().values()
    known = {name for entry in entries for name in (entry.file_name, f"{entry.name}.pt")}
    return [
        path
        for folder in checkpoint.weights_folders()
        for path in sorted(folder.glob("*.pt"))
        if path.name not in known
    ]


@contextmanager
def _progress(name: str) -> Iterator[download.Progress]:
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None, start=False, visible=False)

        def update(done: int, total: int | None) -> None:
            bar.start_task(task)
            bar.update(task, completed=done, total=total, visible=True)

        yield update
