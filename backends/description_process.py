"""The process that describes plug-ins, each in its own fork, so that none can spoil another's answer.

asrgate.backends.description starts it. It reads one line of JSON, {"targets", "limit_seconds"}, writes
name -> {"answer"} or {"ended"}, and ends early if its input is closed. It imports no plug-in itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

from asrgate.backends import description
from asrgate.backends.base import BackendUnavailable

TICK_SECONDS = 0.2  # between checks of forks, whose pipes other processes may keep open
ANSWER_FD = 3
MOST_FDS = 1 << 16
REINSTALL = "reinstall the package that provides it"

# Bound before any plug-in is imported: a plug-in that patches os must not let its fork go on as this process.
_exit = os._exit


@dataclass
class _Fork:
    name: str
    pid: int
    pipe: int
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    status: int | None = None  # None until the process has ended and was waited for


def main() -> None:
    """Carry out one request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes the input
    request = json.loads(os.fdopen(os.dup(0), "rb", buffering=0).readline())
    answers = _describe_all(request["targets"], request["limit_seconds"])
    if answers is not None:
        sys.stdout.write(json.dumps(answers))


def _describe_all(targets: Mapping[str, str], limit_seconds: float) -> dict[str, dict[str, str]] | None:
    """Return each plug-in's answer, or None if the parent has closed the input."""
    waiting = list(targets.items())
    answers: dict[str, dict[str, str]] = {}
    running: dict[int, _Fork] = {}
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    try:
        while waiting or running:
            while waiting and len(running) < description.MOST_AT_ONCE:
                fork = _start(*waiting.pop(0), limit_seconds)
                running[fork.pipe] = fork
                selector.register(fork.pipe, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select(TICK_SECONDS)}
            if 0 in ready:
                return None
            for fork in list(running.values()):
                answer = _answer(fork, fork.pipe in ready, limit_seconds)
                if answer is not None:
                    answers[fork.name] = answer
                    selector.unregister(fork.pipe)
                    os.close(fork.pipe)
                    del running[fork.pipe]
    finally:
        for fork in running.values():
            _end(fork)
    return answers


def _answer(fork: _Fork, is_ready: bool, limit_seconds: float) -> dict[str, str] | None:
    """Return the answer of a fork, which is then ended, or None if it has none yet."""
    if is_ready:
        part = os.read(fork.pipe, 1 << 16)
        fork.received += part
        if b"\n" in part:
            _end(fork)
            return {"answer": bytes(fork.received).partition(b"\n")[0].decode(errors="replace")}
        if len(fork.received) > description.LARGEST_ANSWER:
            _end(fork)
            return {"ended": f"it answered with more than {description.LARGEST_ANSWER:,} bytes"}
        return {"ended": _how_it_ended(_end(fork))} if not part else None
    if fork.status is not None:  # anything written before its end would have been ready
        return {"ended": _how_it_ended(_end(fork))}
    pid, status = os.waitpid(fork.pid, os.WNOHANG)
    if pid:
        fork.status = status
    elif time.monotonic() > fork.deadline:
        _end(fork)
        return {"ended": f"its import and its checks took more than {limit_seconds:g} s"}
    return None


def _how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return f"its import or its check ended the process {how}"


def _end(fork: _Fork) -> int:
    """Kill a fork and the processes that it started; return its wait status."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
        os.killpg(fork.pid, signal.SIGKILL)
    if fork.status is None:
        os.kill(fork.pid, signal.SIGKILL)  # it may not have its own group yet
        fork.status = os.waitpid(fork.pid, 0)[1]
    return fork.status


def _start(name: str, target: str, limit_seconds: float) -> _Fork:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os.dup2(write, ANSWER_FD)
            nothing = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):  # what a plug-in prints must not become part of our output
                os.dup2(nothing, standard)
            os.closerange(ANSWER_FD + 1, MOST_FDS)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            answer = json.dumps(_described(target)).encode() + b"\n"
            while answer:
                answer = answer[os.write(ANSWER_FD, answer) :]
        finally:
            _exit(0)
    os.close(write)
    return _Fork(name, pid, read, time.monotonic() + limit_seconds)


def _described(target: str) -> dict[str, Any]:
    """Import a plug-in and return its description as JSON-ready data, or {"trouble": [reason, remedy]}."""
    try:
        backend_class = EntryPoint("", target, "").load()
    except (ImportError, AttributeError) as error:
        return {"trouble": [f"its module cannot be imported: {_text(error)}", REINSTALL]}
    except BaseException as error:
        return {"trouble": [f"its module cannot be imported: {_named(error)}", description.MEND]}
    try:
        for name in ("devices", "imports"):
            if not hasattr(backend_class, name):
                raise BackendUnavailable(f"its class has no `{name}`", description.MEND)
        devices = description.checked_devices(backend_class.devices)
        return {
            "devices": devices,
            "imports": description.checked_imports(backend_class.imports),
            **description.methods_of(backend_class),
            "model_identity": _identity(backend_class),
            "outcomes": [
                [device, precision, _outcome(backend_class, device, precision)]
                for device, precisions in devices.items()
                for precision in precisions
            ],
        }
    except BackendUnavailable as error:
        return {"trouble": [error.reason, error.remedy]}
    except BaseException as error:
        return {"trouble": [f"its class cannot be read: {_named(error)}", description.MEND]}


def _outcome(backend_class: Any, device: str, precision: str) -> list[str | None] | None:
    """Return None if the machine can run the variant, else the reason and the remedy."""
    try:
        backend_class.check(device, precision)
    except BackendUnavailable as error:
        remedy = None if error.remedy is None else description.message(error.remedy)
        return [description.message(error.reason), remedy]
    except BaseException as error:
        return [f"its check failed: {_named(error)}", description.MEND]
    return None


def _identity(backend_class: Any) -> dict[str, Any] | list[str | None] | None:
    """Return the model that the class brings along, the reason and remedy if that fails, None without one."""
    if not callable(getattr(backend_class, "model_identity", None)):
        return None
    try:
        found = backend_class.model_identity()
        return None if found is None else description.checked_identity(found)
    except BackendUnavailable as error:
        remedy = None if error.remedy is None else description.message(error.remedy)
        return [description.message(error.reason), remedy]
    except BaseException as error:
        return [f"its model_identity failed: {_named(error)}", description.MEND]


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    try:
        return description.message(str(error))
    except Exception:
        return "it cannot be shown"


if __name__ == "__main__":
    main()
