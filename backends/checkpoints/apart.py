"""Opens files of weights in a process of its own, so that no file can take the caller's memory or time.

`answer` runs a module of this package there, whose main calls `serve`. What comes back is JSON, and is to be
checked like any other data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from asrgate import lifeline
from asrgate.backends import child_process
from asrgate.backends.base import AsrgateError
from asrgate.backends.checkpoints.file import CheckpointError

MOST_BYTES = 1 << 20  # of an answer
LONGEST_MESSAGE = 2000
START_SECONDS, BYTES_A_SECOND = 60.0, 1e6  # far slower than any disk, so that only what hangs is ended
MEMORY_BYTES = 512 << 20  # for a file's description, which takes some 30 MB
CONVERSION_BYTES = 2 << 30  # the same for a conversion, with the libraries that write formats
KILLED = "the process that reads the weights was killed; is there enough memory?"


def answer(module: str, *arguments: object, size_bytes: int) -> Any:
    """Run a module's `serve` and return what its work returned, as read from JSON.

    Args:
        module: its full name.
        arguments: its command line.
        size_bytes: of the files that it reads; it has a minute, and a second for each megabyte.

    Raises:
        CheckpointError: the work failed, was killed or took too long.
    """
    process = subprocess.Popen(
        child_process.command(module, *arguments),
        env=child_process.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    seconds, is_late = START_SECONDS + size_bytes / BYTES_A_SECOND, threading.Event()

    def end() -> None:
        is_late.set()
        process.kill()

    watchdog = threading.Timer(seconds, end)
    watchdog.daemon = True
    watchdog.start()
    try:
        said = process.stdout.read(MOST_BYTES)
        process.stdout.close()  # a process that says more ends by that
        process.wait()
    finally:
        watchdog.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
    try:
        message = json.loads(said)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict) and "answer" in message:
        return message["answer"]
    if isinstance(message, dict) and isinstance(message.get("failed"), str):
        raise CheckpointError(message["failed"][:LONGEST_MESSAGE])
    if is_late.is_set():
        raise CheckpointError(f"the process that reads the weights was ended after {seconds:.0f} s")
    if process.returncode >= 0:
        raise CheckpointError(
            f"the process that reads the weights ended without an answer (exit code {process.returncode})"
        )
    raise CheckpointError(KILLED)


def serve(work: Callable[[], Any], about: object) -> int:
    """Do the work in this process, print {"answer"} or {"failed": the reason}, and return the exit status.

    Args:
        work: returns what JSON can hold.
        about: the file, for messages.
    """
    lifeline.die_with_parent()
    output = os.dup(sys.stdout.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what libraries print is no part of the answer
    try:
        message = {"answer": work()}
    except MemoryError:
        message = {"failed": f"{about} takes more memory than weights of its size need, or than there is"}
    except (AsrgateError, OSError) as error:
        message = {"failed": str(error)}
    except Exception as error:  # a hostile file can fail in any way; in any case it has no model
        why = " ".join(f"{type(error).__name__}: {error}".split())
        message = {"failed": f"{about} cannot be read: {why}"}
    with os.fdopen(output, "w") as file:
        file.write(json.dumps(message))
    return 0 if "answer" in message else 1
