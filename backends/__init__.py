"""The table of backends, and how names become classes. Engines are not imported until a backend is chosen.

To add a backend:

1. write one file here with a class that follows `asrgate.backends.base.Backend`;
2. add a line to BUILTIN below (another package declares an entry point in the group `asrgate.backends`);
3. run `asrgate list`, then `asrgate run --backends NAME`; the gate decides whether its rows may be ranked.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from asrgate import old_names
from asrgate.backends.base import REMOTE, BackendError, BackendUnavailable, did_you_mean

old_names.replace(__name__)
ENTRY_POINT_GROUP = "asrgate.backends"

BUILTIN = {  # name -> "module:class", in the order in which tables show them
    "whisper-cpu": "asrgate.backends.openai_whisper:WhisperCpu",
    "whisper-cuda": "asrgate.backends.openai_whisper:WhisperCuda",
    "faster-whisper": "asrgate.backends.faster_whisper:FasterWhisper",
    "torch-fast": "asrgate.backends.torch_fast:TorchFast",
    "max-hybrid": "asrgate.backends.max_hybrid:MaxHybrid",
    "max": "asrgate.backends.max_whisper:MaxWhisper",
    "openai-api": "asrgate.backends.openai_api:OpenAiApi",
    "faster-whisper-batched": "asrgate.backends.faster_whisper_batched:FasterWhisperBatched",
    "whisper-cpp": "asrgate.backends.whisper_cpp:WhisperCpp",
    "transformers": "asrgate.backends.transformers_whisper:TransformersWhisper",
}


class UnknownBackend(BackendError):
    """No backend has that name; the message lists those that exist."""


@dataclass(frozen=True)
class Variant:
    """A backend on a device at a precision, written `name@device/precision`."""

    backend: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend}@{self.device}/{self.precision}"


def names() -> list[str]:
    """Names of all registered backends: the built-in ones, then those of other packages."""
    return [*BUILTIN, *(name for name in _plugins() if name not in BUILTIN)]


def load(name: str) -> Any:
    """Import and return the backend class called `name`.

    Raises:
        UnknownBackend: no backend is registered under the name.
        BackendUnavailable: the module that defines it cannot be imported.
    """
    target = BUILTIN.get(name)
    plugin = _plugins().get(name)
    if target is None and plugin is None:
        raise UnknownBackend(_unknown(name))
    try:
        if target is None:
            assert plugin is not None
            return plugin.load()
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendUnavailable(
            f"its module cannot be imported: {error}", "reinstall the package that provides it"
        ) from error


def parse(text: str, device: str = "auto") -> list[Variant]:
    """Turn one `name[@device[/precision]]` into variants.

    Without a device, the backend's own devices are used, narrowed by `device` ("cpu" or "cuda"; "auto" keeps
    all of them). Without a precision, the device's default precision is used.

    Raises:
        UnknownBackend, BackendUnavailable: as `load`.
        BackendError: the backend has no such device or precision.
    """
    name, _, place = text.strip().partition("@")
    backend = load(name)
    chosen, _, precision = place.partition("/")
    if chosen and chosen not in backend.devices:
        raise BackendError(f"{name} has no device {chosen!r}; it has {_either(backend.devices)}")
    if precision and precision not in backend.devices[chosen]:
        raise BackendError(
            f"{name}@{chosen} has no precision {precision!r}; it has {_either(backend.devices[chosen])}"
        )
    places = [chosen] if chosen else [d for d in backend.devices if device in ("auto", d)]
    if not places:
        raise BackendError(f"{name} does not run on {device}; it has {_either(backend.devices)}")
    return [Variant(name, d, precision or backend.devices[d][0]) for d in places]


def every(device: str = "auto") -> list[Variant]:
    """All variants of all importable backends, every precision, in table order.

    Remote ones are left out: audio goes to a server only when the user names the backend that sends it.
    """
    found = []
    for name in names():
        with contextlib.suppress(BackendUnavailable):
            found += [v for v in of(name) if device in ("auto", v.device) and v.device != REMOTE]
    return found


def defaults(device: str = "auto") -> list[Variant]:
    """The variants of a run that names no backends: each backend on every device in its first precision."""
    found: dict[tuple[str, str], Variant] = {}
    for variant in every(device):
        found.setdefault((variant.backend, variant.device), variant)
    return list(found.values())


def of(name: str) -> list[Variant]:
    """All variants of one backend.

    Raises:
        UnknownBackend, BackendUnavailable: as `load`.
    """
    return [Variant(name, d, p) for d, precisions in load(name).devices.items() for p in precisions]


def _plugins() -> dict[str, EntryPoint]:
    return old_names.points(ENTRY_POINT_GROUP)


def _unknown(name: str) -> str:
    known = names()
    return f"no backend is called {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}"


def _either(choices: Any) -> str:
    return " or ".join(choices)
