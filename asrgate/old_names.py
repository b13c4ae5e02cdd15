"""The names of version 0.1, when this project was called asrbench. They work for one release more.

- environment variables `ASRBENCH_…`, read where `ASRGATE_…` is not set;
- entry point groups `asrbench.…`;
- the packages `backends` and `harness`, for plug-ins that import them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

END = "stops working with the next release"
PACKAGES = ("backends", "harness")
_log = logging.getLogger(__name__)
_adopted: list[str] = []


def adopt() -> None:
    """Give old environment variables their new names, and let old packages be imported."""
    for name in [name for name in os.environ if name.startswith("ASRBENCH_")]:
        if _new(name) not in os.environ:
            os.environ[_new(name)] = os.environ.pop(name)
            _adopted.append(name)
    if not any(isinstance(finder, _Submodules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Submodules())
        sys.meta_path.append(_Packages())  # last: a package of the user's own called `harness` comes first


def replace(module: str) -> None:
    """Put `asrgate.harness` where a checkout's folder was imported as `harness`: there must not be two."""
    if module in PACKAGES:
        sys.modules[module] = importlib.import_module(f"asrgate.{module}")


def warnings_of_variables() -> list[str]:
    """Return a warning of each old environment variable that is in use."""
    return [f"{name} is now called {_new(name)}; the old name {END}" for name in _adopted]


def points(group: str) -> dict[str, EntryPoint]:
    """Return what packages declare in an entry point group, by name, and in its old one.

    Args:
        group: as `asrgate.backends`.
    """
    old = group.replace("asrgate", "asrbench", 1)
    found = {point.name: point for point in entry_points(group=old)}
    if found:
        _warn_of_group(old, group, ", ".join(found))
    return found | {point.name: point for point in entry_points(group=group)}


@cache
def _warn_of_group(old: str, new: str, names: str) -> None:
    _log.warning(
        f"%s: declared in the entry point group %s, now called %s; the old one {END}", names, old, new
    )


def _new(name: str) -> str:
    return name.replace("ASRBENCH", "ASRGATE", 1)


class _Alias(importlib.abc.Loader):
    """Loads `backends.base` by returning `asrgate.backends.base`."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        warnings.warn(
            f"{spec.name} is now called asrgate.{spec.name}; the old name {END}",
            DeprecationWarning,
            stacklevel=2,
        )
        module = importlib.import_module(f"asrgate.{spec.name}")
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just put the old name's there


class _Packages(importlib.abc.MetaPathFinder):
    """Finds `backends` and `harness` where nothing else is called so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, _Alias()) if fullname in PACKAGES else None


class _Submodules(importlib.abc.MetaPathFinder):
    """Finds the modules of `backends` and `harness` where those two are ours."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, dot, _ = fullname.partition(".")
        if not dot or package not in PACKAGES:
            return None
        if sys.modules.get(package) is not sys.modules.get(f"asrgate.{package}"):
            return None
        return importlib.machinery.ModuleSpec(fullname, _Alias())
