"""The table of backends, and how names become classes. No engine is imported before a backend is chosen.

To add a backend:

1. write one file here with a class that follows `asrgate.backends.base.Backend`;
2. add a line to BUILTIN below (another package declares an entry point in the group `asrgate.backends`);
3. run `asrgate list`, then `asrgate run --backends NAME`; the gate decides whether its rows may be ranked.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

from asrgate import old_names
from asrgate.backends import description
from asrgate.backends.base import REMOTE, BackendError, BackendUnavailable, did_you_mean
from asrgate.backends.description import Description

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
    "pocketsphinx": "asrgate.backends.pocketsphinx:PocketSphinx",
    "transformers-asr": "asrgate.backends.transformers_asr:TransformersAsr",
    "sherpa-onnx": "asrgate.backends.sherpa_onnx:SherpaOnnx",
}

# (name of a plug-in, where its class is, PYTHONPATH) -> its description
_described: dict[tuple[str, str, str | None], Description | BackendUnavailable] = {}


class UnknownBackend(BackendError):
    """No backend has that name; the message lists those that exist."""


@dataclass(frozen=True)
class Variant:
    """A backend on a device at a precision, written `name@device/precision`.

    In a run of several models it also has a model, by the name that the run gives it, and is written
    `name@device/precision:model`.
    """

    backend: str
    device: str
    precision: str
    model: str = field(default="", kw_only=True)

    @property
    def without_model(self) -> str:
        """How it is written whatever its model."""
        return f"{self.backend}@{self.device}/{self.precision}"

    def __str__(self) -> str:
        return f"{self.without_model}:{self.model}" if self.model else self.without_model


def names() -> list[str]:
    """Names of all registered backends: the built-in ones, then those of other packages."""
    return [*BUILTIN, *(name for name in _plugins() if name not in BUILTIN)]


def load(name: str) -> Any:
    """Import and return the backend class called `name`, in the process that runs it; others call `describe`.

    Raises:
        UnknownBackend: no backend is registered under the name.
        BackendUnavailable: the module that defines it cannot be imported.
    """
    target = BUILTIN.get(name)
    plugin = None if target is not None else _plugins().get(name)
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


def describe(name: str) -> Description:
    """Return what the backend called `name` offers. The code of a plug-in runs in a separate process.

    Raises:
        UnknownBackend: nothing is registered under the name.
        BackendUnavailable: its module cannot be imported, or it cannot be described.
    """
    result = describe_all([name])[name]
    if isinstance(result, BackendUnavailable):
        raise BackendUnavailable(result.reason, result.remedy)
    return result


def describe_all(wanted: Iterable[str]) -> dict[str, Description | BackendUnavailable]:
    """Describe several backends at once, which is quicker for plug-ins; each is described once per process.

    Returns:
        name -> its description, or why there is none.

    Raises:
        UnknownBackend: nothing is registered under one of the names.
    """
    wanted = list(wanted)
    plugins = {} if all(name in BUILTIN for name in wanted) else _plugins()
    if unknown := [name for name in wanted if name not in BUILTIN and name not in plugins]:
        raise UnknownBackend(_unknown(unknown[0]))
    path = os.environ.get("PYTHONPATH")  # the process that describes plug-ins searches it
    keys = {name: (name, plugins[name].value, path) for name in wanted if name not in BUILTIN}
    missing = {name: plugins[name].value for name, key in keys.items() if key not in _described}
    if missing:
        _described.update({keys[name]: result for name, result in description.of_plugins(missing).items()})
    return {name: _described[keys[name]] if name in keys else _describe_our_own(name) for name in wanted}


def parse(
    text: str, device: str = "auto", devices: Mapping[str, Sequence[str]] | None = None
) -> list[Variant]:
    """Turn one `name[@device[/precision]]` into variants.

    Without a device, the backend's own devices are used, narrowed by `device` ("cpu" or "cuda"; "auto" keeps
    all of them). Without a precision, the device's default precision is used. `devices` are those of the
    backend's class; if None, they are taken from its description.

    Raises:
        UnknownBackend, BackendUnavailable: as `describe`.
        BackendError: the backend has no such device or precision.
    """
    name, _, rest = text.strip().partition("@")
    if devices is None:
        devices = describe(name).devices
    chosen, _, precision = rest.partition("/")
    if chosen and chosen not in devices:
        raise BackendError(f"{name} has no device {chosen!r}; it has {_either(devices)}")
    if precision and precision not in devices[chosen]:
        raise BackendError(
            f"{name}@{chosen} has no precision {precision!r}; it has {_either(devices[chosen])}"
        )
    selected = [chosen] if chosen else [d for d in devices if device in ("auto", d)]
    if not selected:
        raise BackendError(f"{name} does not run on {device}; it has {_either(devices)}")
    return [Variant(name, d, precision or devices[d][0]) for d in selected]


def every(device: str = "auto") -> list[Variant]:
    """All variants of all backends that can be described, in every precision, in the table's order.

    Remote ones are left out: audio goes to a server only when the user names the backend that sends it.
    """
    described = [result for result in describe_all(names()).values() if isinstance(result, Description)]
    variants = [variant for backend in described for variant in variants_of(backend)]
    return [
        variant for variant in variants if device in ("auto", variant.device) and variant.device != REMOTE
    ]


def defaults(device: str = "auto") -> list[Variant]:
    """The variants of a run that names no backends: every backend on each device, in the first precision.

    Those with a model of their own are left out: their rows would compare with no others.
    """
    first: dict[tuple[str, str], Variant] = {}
    for variant in every(device):
        if describe(variant.backend).brings_model:
            continue
        first.setdefault((variant.backend, variant.device), variant)
    return list(first.values())


def of(name: str) -> list[Variant]:
    """All variants of one backend.

    Raises:
        UnknownBackend, BackendUnavailable: as `describe`.
    """
    return variants_of(describe(name))


def variants_of(described: Description) -> list[Variant]:
    """All variants of a described backend."""
    return [Variant(described.name, d, p) for d, precisions in described.devices.items() for p in precisions]


def _describe_our_own(name: str) -> Description | BackendUnavailable:
    try:
        return description.of_class(name, load(name))
    except BackendUnavailable as error:
        return error


def _plugins() -> dict[str, EntryPoint]:
    return old_names.points(ENTRY_POINT_GROUP)


def _unknown(name: str) -> str:
    known = names()
    return f"no backend is called {name!r}.{did_you_mean(name, known)} Available: {', '.join(known)}"


def _either(choices: Any) -> str:
    return " or ".join(choices)
