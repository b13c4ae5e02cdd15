"""What is known of a backend before it is loaded, and how a plug-in is asked for it without being imported.

A plug-in's code runs in processes of its own alone: `of_plugins` starts one that forks one for each plug-in
(asrgate.backends.description_process) and takes from it small, checked data and nothing else.
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
from asrgate.backends.base import BackendUnavailable

LIMIT_SECONDS = 60.0  # for a plug-in to be imported and to check all its variants
SPARE_SECONDS = 30.0  # for the process that starts the others
MOST_AT_ONCE = 16  # plug-ins: one that hangs must not keep the others waiting
MOST_VARIANTS = 100  # of one plug-in; also of the modules in its `imports`
LONGEST_NAME = 100
LONGEST_MESSAGE = 2000
LARGEST_ANSWER = 4 << 20  # bytes of JSON of one plug-in: MOST_VARIANTS reasons and remedies, escaped
MEND = "repair or uninstall the package that provides it"
METHODS = {  # field of a Description -> the optional method of the class it tells of
    "takes_batches": "transcribe_batch",
    "streams": "stream",
    "traces_encoder": "encoder_trace",
    "decides": "decision",
}


@dataclass(frozen=True)
class Description:
    """What a backend offers.

    Attributes:
        name: as the user writes it.
        devices: device -> precisions, the default one first; see base.Backend.
        imports: modules of the engine.
        check: called with a device and a precision; raises BackendUnavailable if this machine
            cannot run them.
        takes_batches, streams, traces_encoder, decides: whether it has the method that METHODS names.
    """

    name: str
    devices: Mapping[str, tuple[str, ...]]
    imports: tuple[str, ...]
    check: Callable[[str, str], None]
    takes_batches: bool
    streams: bool
    traces_encoder: bool
    decides: bool


def of_class(name: str, backend_class: Any) -> Description:
    """Describe a class of our own."""
    return Description(
        name,
        {device: tuple(precisions) for device, precisions in backend_class.devices.items()},
        tuple(backend_class.imports),
        backend_class.check,
        **methods_of(backend_class),
    )


def of_plugins(
    targets: Mapping[str, str], limit_seconds: float | None = None
) -> dict[str, Description | BackendUnavailable]:
    """Describe classes of other packages, all at once, in other processes.

    Args:
        targets: name of the backend -> where its class is, "module:class".
        limit_seconds: for each of them; None: LIMIT_SECONDS.

    Returns:
        name -> its description, or why there is none. A plug-in that fails costs only itself.
    """
    limit = LIMIT_SECONDS if limit_seconds is None else limit_seconds
    turns = -(-len(targets) // MOST_AT_ONCE)
    answers = _asked({"targets": dict(targets), "limit_seconds": limit}, turns * limit + SPARE_SECONDS)
    found: dict[str, Description | BackendUnavailable] = {}
    for name in targets:
        try:
            found[name] = _read(name, answers.get(name))
        except BackendUnavailable as error:
            found[name] = error
    return found


def methods_of(backend_class: Any) -> dict[str, bool]:
    """Return which optional methods a class has, by the fields of Description."""
    return {name: callable(getattr(backend_class, method, None)) for name, method in METHODS.items()}


def checked_devices(value: Any) -> dict[str, tuple[str, ...]]:
    """Return a plain copy of a plug-in's `devices`.

    Raises:
        BackendUnavailable: they are not what base.Backend says, or too many.
    """
    if not isinstance(value, Mapping):
        raise BackendUnavailable(f"its `devices` are a {type(value).__name__}, not a mapping", MEND)
    found: dict[str, tuple[str, ...]] = {}
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
        found[str(device)] = tuple(map(str, precisions[: MOST_VARIANTS + 1]))
    if not found:
        raise BackendUnavailable("it names no device", MEND)
    if sum(map(len, found.values())) > MOST_VARIANTS:
        raise BackendUnavailable(
            f"it names more than {MOST_VARIANTS} pairs of a device and a precision", MEND
        )
    return found


def checked_imports(value: Any) -> tuple[str, ...]:
    """Return a plain copy of a plug-in's `imports`.

    Raises:
        BackendUnavailable: they are no names of modules, or too many.
    """
    if not isinstance(value, (list, tuple)) or len(value) > MOST_VARIANTS:
        raise BackendUnavailable("its `imports` are no list of modules, or too many", MEND)
    for module in value:
        _require_name(module, "module")
        if not all(part.isidentifier() for part in module.split(".")):
            raise BackendUnavailable(f"its `imports` name {module!r}, which is no module", MEND)
    return tuple(map(str, value))


def message(text: Any) -> str:
    """Return what a plug-in says as a text that can be shown: cut, and with odd characters made visible."""
    if not isinstance(text, str):
        return f"a {type(text).__name__} in place of a message"
    shown = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in shown)


def _require_name(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise BackendUnavailable(f"it names a {what} that is a {type(value).__name__}, not a text", MEND)
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


def _asked(request: Mapping[str, Any], limit_seconds: float) -> dict[str, Any]:
    """Have the request carried out; return name -> {"answer": JSON text} or {"ended": what happened}."""
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
        found = dict(json.loads(process.stdout.read()))  # each answer is bounded where it is collected
    except (OSError, ValueError, TypeError):
        process.kill()
        trouble = f"the process that looks at plug-ins ended with status {process.wait()}"
        found = {name: {"ended": trouble} for name in targets}
    finally:
        watchdog.cancel()
        with contextlib.suppress(OSError):
            process.stdin.close()  # it ends what it started, and itself
        process.stdout.close()
        process.wait()
    return found


def _read(name: str, reply: Any) -> Description:
    """Return what a plug-in's process answered, checked.

    Raises:
        BackendUnavailable: the plug-in or its answer is broken.
    """
    if not isinstance(reply, dict) or "answer" not in reply:
        ended = reply.get("ended") if isinstance(reply, dict) else None
        raise BackendUnavailable(message(ended or "nothing was answered"), MEND)
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
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise BackendUnavailable(f"its answer is broken: {type(error).__name__}", MEND) from error

    def check(device: str, precision: str) -> None:
        refusal = refusals.get((device, precision), (f"it has no {device}/{precision}", None))
        if refusal is not None:
            raise BackendUnavailable(*refusal)

    return Description(name, devices, imports, check, **has)


def _refusal(outcome: Any) -> tuple[str, str | None] | None:
    """Return the reason and the remedy that a plug-in's process gives, fit to be shown; None stays None."""
    if outcome is None:
        return None
    reason, remedy = outcome
    return message(reason), None if remedy is None else message(remedy)
