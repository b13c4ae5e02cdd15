"""What is known about a backend before it is loaded, and how a plug-in is described without its import here.

A plug-in's code runs only in separate processes. `of_plugins` starts one process, which forks another for
each plug-in (asrgate.backends.description_process), and takes nothing from it but small, checked data.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from asrgate.backends import child_process
from asrgate.backends.base import BackendUnavailable, ModelIdentity

LIMIT_SECONDS = 60.0  # for importing a plug-in and checking all its variants
SPARE_SECONDS = 30.0  # for the process that starts the others
MOST_AT_ONCE = 16  # plug-ins described at once, so that one that hangs does not keep the others waiting
MOST_VARIANTS = 100  # of one plug-in; also the limit for the modules in its `imports`
LONGEST_NAME = 100
LONGEST_MESSAGE = 2000
LARGEST_ANSWER = 4 << 20  # bytes of JSON per plug-in: MOST_VARIANTS reasons and remedies, escaped
MEND = "repair or uninstall the package that provides it"
METHODS = {  # field of a Description -> the optional method of the class that it is about
    "takes_batches": "transcribe_batch",
    "streams": "stream",
    "times_words": "transcribe_words",
    "traces_encoder": "encoder_trace",
    "decides": "decision",
    "brings_model": "model_identity",
}


@dataclass(frozen=True)
class Description:
    """What a backend offers.

    Attributes:
        name: as the user writes it.
        devices: device -> precisions, the default one first; see base.Backend.
        imports: the engine's modules.
        check: called with a device and a precision; raises BackendUnavailable if this machine
            cannot run them.
        takes_batches, streams, times_words, traces_encoder, decides, brings_model: whether its class has the
            method that METHODS names.
        model_identity: returns the model that it brings along, None if it has none; raises
            BackendUnavailable if it cannot tell.
    """

    name: str
    devices: Mapping[str, tuple[str, ...]]
    imports: tuple[str, ...]
    check: Callable[[str, str], None]
    takes_batches: bool
    streams: bool
    times_words: bool
    traces_encoder: bool
    decides: bool
    brings_model: bool
    model_identity: Callable[[], ModelIdentity | None]


def of_class(name: str, backend_class: Any) -> Description:
    """Describe one of our own classes."""
    return Description(
        name,
        {device: tuple(precisions) for device, precisions in backend_class.devices.items()},
        tuple(backend_class.imports),
        backend_class.check,
        **methods_of(backend_class),
        model_identity=getattr(backend_class, "model_identity", _brings_none),
    )


def of_plugins(
    targets: Mapping[str, str], limit_seconds: float | None = None
) -> dict[str, Description | BackendUnavailable]:
    """Describe classes of other packages, all at once, in separate processes.

    Args:
        targets: name of the backend -> where its class is, "module:class".
        limit_seconds: for each of them; None stands for LIMIT_SECONDS.

    Returns:
        name -> its description, or why there is none. A plug-in that fails does not affect the others.
    """
    limit = LIMIT_SECONDS if limit_seconds is None else limit_seconds
    turns = -(-len(targets) // MOST_AT_ONCE)
    answers = _answers({"targets": dict(targets), "limit_seconds": limit}, turns * limit + SPARE_SECONDS)
    results: dict[str, Description | BackendUnavailable] = {}
    for name in targets:
        try:
            results[name] = _read(name, answers.get(name))
        except BackendUnavailable as error:
            results[name] = error
    return results


def methods_of(backend_class: Any) -> dict[str, bool]:
    """Return which optional methods a class has, by the fields of Description."""
    return {name: callable(getattr(backend_class, method, None)) for name, method in METHODS.items()}


def checked_devices(value: Any) -> dict[str, tuple[str, ...]]:
    """Return a plain copy of a plug-in's `devices`.

    Raises:
        BackendUnavailable: they are not as base.Backend defines them, or there are too many.
    """
    if not isinstance(value, Mapping):
        raise BackendUnavailable(f"its `devices` are a {type(value).__name__}, not a mapping", MEND)
    devices: dict[str, tuple[str, ...]] = {}
    for device, precisions in islice(value.items(), MOST_VARIANTS + 1):
        _require_name(device, "device")
        if not isinstance(precisions, (list, tuple)):
            raise BackendUnavailable(
                f"the precisions of {device} are a {type(precisions).__name__}, not a list or a tuple", MEND
            )
        for precision in precisions[: MOST_VARIANTS + 1]:
            _require_name(precision, "precision")
        if not precisions:
            raise BackendUnavailable(f"its device {device} has no precision", MEND)
        devices[str(device)] = tuple(map(str, precisions[: MOST_VARIANTS + 1]))
    if not devices:
        raise BackendUnavailable("it names no device", MEND)
    if sum(map(len, devices.values())) > MOST_VARIANTS:
        raise BackendUnavailable(
            f"it names more than {MOST_VARIANTS} pairs of a device and a precision", MEND
        )
    return devices


def checked_imports(value: Any) -> tuple[str, ...]:
    """Return a plain copy of a plug-in's `imports`.

    Raises:
        BackendUnavailable: they are not names of modules, or there are too many.
    """
    if not isinstance(value, (list, tuple)) or len(value) > MOST_VARIANTS:
        raise BackendUnavailable("its `imports` are not a list of modules, or there are too many", MEND)
    for module in value:
        _require_name(module, "module")
        if not all(part.isidentifier() for part in module.split(".")):
            raise BackendUnavailable(f"its `imports` name {module!r}, which is no module's name", MEND)
    return tuple(map(str, value))


def _brings_none() -> None:
    return None


def checked_identity(value: Any) -> dict[str, Any]:
    """Return a plain copy of a plug-in's `model_identity`, as the arguments of another.

    Raises:
        BackendUnavailable: it is not as base.ModelIdentity defines it.
    """
    fields = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    languages = fields.get("languages")
    if not isinstance(languages, (list, tuple)) or not 0 < len(languages) <= MOST_VARIANTS:
        raise BackendUnavailable("its `model_identity` names no languages, or too many", MEND)
    found: dict[str, Any] = {"languages": tuple(map(str, languages))}
    for name, least in (("name", 1), ("revision", 1), ("sha256", 64), ("licence", 1), ("server", 0)):
        text = fields.get(name, None if least else "")
        if not isinstance(text, str) or not least <= len(text) <= LONGEST_NAME or not text.isprintable():
            raise BackendUnavailable(
                f"its `model_identity` has no {name} of {least} to {LONGEST_NAME} printable characters", MEND
            )
        found[name] = text
    if len(found["sha256"]) != 64 or set(found["sha256"]) - set("0123456789abcdef"):
        raise BackendUnavailable("the sha256 of its `model_identity` is no SHA-256 in hex", MEND)
    return found


def message(text: Any) -> str:
    """Return a plug-in's text in a form that can be shown: cut, and with unprintable characters escaped."""
    if not isinstance(text, str):
        return f"a {type(text).__name__} instead of a message"
    shown = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in shown)


def _require_name(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise BackendUnavailable(f"it names a {what} that is a {type(value).__name__}, not a string", MEND)
    if (
        not 0 < len(value) <= LONGEST_NAME
        or not value.isprintable()
        or value != value.strip()
        or set("@/,") & set(value)
    ):
        raise BackendUnavailable(
            f"it names the {what} {value[:LONGEST_NAME]!a}; a name has 1 to {LONGEST_NAME} printable "
            "characters, none of them @, / or a comma, and no space at its ends",
            MEND,
        )


def _answers(request: Mapping[str, Any], limit_seconds: float) -> dict[str, Any]:
    """Run the process for a request; return name -> {"answer": JSON text} or {"ended": what happened}."""
    targets = request["targets"]
    process = subprocess.Popen(
        child_process.command("asrgate.backends.description_process"),
        env=child_process.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None and process.stdout is not None
    watchdog = threading.Timer(limit_seconds, process.kill)
    watchdog.start()
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answers = dict(json.loads(process.stdout.read()))  # that process limits the size of each answer
    except (OSError, ValueError, TypeError):
        process.kill()
        trouble = f"the process that looks at plug-ins ended with status {process.wait()}"
        answers = {name: {"ended": trouble} for name in targets}
    finally:
        watchdog.cancel()
        with contextlib.suppress(OSError):
            process.stdin.close()  # the process then ends its forks and itself
        process.stdout.close()
        process.wait()
    return answers


def _read(name: str, reply: Any) -> Description:
    """Return the description in the answer of a plug-in's process, after checking it.

    Raises:
        BackendUnavailable: the plug-in or its answer is broken.
    """
    if not isinstance(reply, dict) or "answer" not in reply:
        ended = reply.get("ended") if isinstance(reply, dict) else None
        raise BackendUnavailable(message(ended or "it did not answer"), MEND)
    try:
        answer = json.loads(reply["answer"])
        if "trouble" in answer:
            raise BackendUnavailable(*_refusal(answer["trouble"]) or ())
        outcomes = {(device, precision): outcome for device, precision, outcome in answer["outcomes"]}
        devices, imports = checked_devices(answer["devices"]), checked_imports(answer["imports"])
        refusals = {
            (device, precision): _refusal(outcomes[device, precision])
            for device, precisions in devices.items()
            for precision in precisions
        }
        has = {field: answer[field] is True for field in METHODS}
        stated = answer.get("model_identity")
        identity = _brings_none if stated is None else _identity_in(stated)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BackendUnavailable(f"its answer is broken: {type(error).__name__}", MEND) from error

    def check(device: str, precision: str) -> None:
        refusal = refusals.get((device, precision), (f"it has no {device}/{precision}", None))
        if refusal is not None:
            raise BackendUnavailable(*refusal)

    return Description(name, devices, imports, check, **has, model_identity=identity)


def _identity_in(stated: Any) -> Callable[[], ModelIdentity | None]:
    """Return what returns or refuses the identity that a plug-in's process stated."""
    if isinstance(stated, list):
        reason = _refusal(stated) or ("it was not told", None)
    else:
        try:
            found = ModelIdentity(**checked_identity(stated))
            return lambda: found
        except BackendUnavailable as error:
            reason = error.reason, error.remedy

    def refuse() -> ModelIdentity:
        raise BackendUnavailable(*reason)

    return refuse


def _refusal(outcome: Any) -> tuple[str, str | None] | None:
    """Return the reason and the remedy from a plug-in's process, in a form that can be shown, or None."""
    if outcome is None:
        return None
    reason, remedy = outcome
    return message(reason), None if remedy is None else message(remedy)
