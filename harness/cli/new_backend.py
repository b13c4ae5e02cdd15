"""`asrgate new-backend NAME`: writes the skeleton of a backend, in this project or as a package."""

from __future__ import annotations

import argparse
import ast
import contextlib
import keyword
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asrgate import backends
from asrgate.backends.base import AsrgateError
from asrgate.harness import record
from asrgate.harness.cli import backend_templates

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

LONGEST_NAME = 25  # keeps its line in the table within the line length
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TABLE = Path("backends") / "__init__.py"


class NewBackendError(AsrgateError):
    """The name or the folder cannot be used; the message says why and what can."""


def add_parser(subparsers: Any) -> None:
    """Add the `new-backend` subcommand."""
    parser = subparsers.add_parser(
        "new-backend",
        help="write the skeleton of a backend, and a test that fails until it is complete",
        description="In a checkout of asrgate, this writes one file in backends/, its line in the table, and "
        "a test. Anywhere else, it writes a separate package, which asrgate finds once it is installed.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="the name for --backends: lower case, words-with-hyphens"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where to write it (default: the current folder)",
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate new-backend`; print what was written and what to do next."""
    written, following = create(arguments.name, arguments.directory)
    for path in written:
        print(path)
    print("\nnext:")
    for step in following:
        print(f"  {step}")
    return 0


def create(name: str, directory: Path) -> tuple[list[Path], list[str]]:
    """Write the files for a backend called `name`; return them, and what to do next.

    Either all of them are written or none.

    Raises:
        NewBackendError: the name is bad or taken, or the folder cannot be used.
        OSError, RecordError: a file cannot be written.
    """
    _require_good_name(name)
    if not directory.is_dir():
        raise NewBackendError(
            f"the folder {directory} does not exist; create it, or pass another --directory"
        )
    root = next(filter(_is_checkout, [directory.resolve(), *directory.resolve().parents]), None)
    if root is None:
        return _create_package(name, directory)
    if root != directory.resolve():
        raise NewBackendError(
            f"{directory} is inside a checkout of asrgate; pass --directory {root} to add {name} to it, "
            "or a folder outside it to make a separate package"
        )
    return _create_in_checkout(name, directory)


def _require_good_name(name: str) -> None:
    if not NAME.fullmatch(name):
        hint = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789").rstrip("-")
        raise NewBackendError(
            f"{name!r} is not a valid backend name; use lower-case letters, digits, single hyphens, and "
            "start with a letter" + (f"; for example {hint!r}" if NAME.fullmatch(hint) else "")
        )
    if len(name) > LONGEST_NAME:
        raise NewBackendError(f"{name!r} has {len(name)} characters; at most {LONGEST_NAME} are allowed")
    if keyword.iskeyword(name):
        raise NewBackendError(f"{name!r} is a Python keyword; choose another name")
    _require_free(name, backends.names())


def _require_free(name: str, taken: list[str]) -> None:
    if name in taken:
        raise NewBackendError(f"{name!r} is taken; choose a name other than {', '.join(taken)}")


def _is_checkout(folder: Path) -> bool:
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return project.get("project", {}).get("name") == "asrgate" and (folder / TABLE).is_file()


def _create_in_checkout(name: str, root: Path) -> tuple[list[Path], list[str]]:
    module = name.replace("-", "_")
    source, test, table = Path("backends") / f"{module}.py", Path("tests") / f"test_{module}.py", root / TABLE
    names = {"name": name, "class_name": _class_name(name), "path": source.as_posix()}
    before = table.read_text(encoding="utf-8")
    after = _with_line(before, name, f"asrgate.backends.{module}:{names['class_name']}", table)
    if (root / "backends" / module).exists():
        raise NewBackendError(f"backends/{module} already exists; choose another name")
    files = {
        root / source: backend_templates.BACKEND.format(**names),
        root / test: backend_templates.TEST.format(**names),
    }
    with _all_or_nothing(files):
        record.write_text(table, after)
    return [*files, table], [
        f"fill in {source}",
        f"pytest {test}     fails until the backend meets the contract",
        f"asrgate run --backends {name}",
    ]


def _with_line(text: str, name: str, target: str, path: Path) -> str:
    """Return the table's source with one more line at the end of BUILTIN.

    Raises:
        NewBackendError: the name is already in it, or there is no table of the usual form.
    """
    try:
        nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
        node = next(n for n in nodes if isinstance(n.targets[0], ast.Name) and n.targets[0].id == "BUILTIN")
        keys = list(ast.literal_eval(node.value))
    except (SyntaxError, StopIteration, ValueError, TypeError) as error:
        raise NewBackendError(f"{path} has no table BUILTIN to which a line could be added") from error
    _require_free(name, keys)
    lines = text.splitlines(keepends=True)
    assert node.value.end_lineno is not None
    closing = node.value.end_lineno - 1
    if lines[closing].strip() != "}" or not lines[closing - 1].rstrip().split("#")[0].rstrip().endswith(
        (",", "{")
    ):
        raise NewBackendError(f"the table BUILTIN in {path} does not end with a brace on its own line")
    lines.insert(closing, f'    "{name}": "{target}",\n')
    return "".join(lines)


def _create_package(name: str, directory: Path) -> tuple[list[Path], list[str]]:
    package = f"asrgate_{name.replace('-', '_')}"
    folder = directory / f"asrgate-{name}"
    if folder.exists():
        raise NewBackendError(f"{folder} already exists; choose another name or another --directory")
    source = Path("src") / package / "backend.py"
    names = {
        "name": name,
        "class_name": _class_name(name),
        "package": package,
        "path": source.as_posix(),
    }
    files = {
        folder / "pyproject.toml": backend_templates.PYPROJECT.format(**names),
        folder / "README.md": backend_templates.README.format(**names),
        folder / "src" / package / "__init__.py": backend_templates.PACKAGE.format(**names),
        folder / source: backend_templates.BACKEND.format(**names),
        folder / "tests" / f"test_{package}.py": backend_templates.TEST.format(**names),
    }
    with _all_or_nothing(files):
        pass
    return list(files), [
        f"cd {folder} && pip install --editable '.[dev]'",
        f"fill in {source}",
        "pytest     fails until the backend meets the contract",
        f"asrgate run --backends {name}",
    ]


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-")) + "Backend"


@contextlib.contextmanager
def _all_or_nothing(files: Mapping[Path, str]) -> Any:
    """Write files that must not exist, then run the block; if anything fails, remove them all."""
    written: list[Path] = []
    made: list[Path] = []
    try:
        for path, text in files.items():
            for folder in reversed([f for f in path.parents if not f.exists()]):
                folder.mkdir()
                made.append(folder)
            try:
                with path.open("x", encoding="utf-8") as file:
                    written.append(path)
                    file.write(text)
            except FileExistsError as error:
                raise NewBackendError(f"{path} already exists; choose another name") from error
        yield
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
