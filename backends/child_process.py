"""Runs modules of this project in separate processes, whatever files are in the current folder.

`python -m` and `python -c` put the current folder first on the path, so a `numpy.py` there would run instead
of numpy. PYTHONSAFEPATH prevents this, but only from Python 3.11 on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from asrgate.backends.installation import PROJECT_ROOT

PR_SET_PDEATHSIG = 1
WITHOUT_CURRENT_FOLDER = "import sys; sys.path[:] = [path for path in sys.path if path]; "


def command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module as `python -m` does, without the current folder on its path."""
    code = f"{WITHOUT_CURRENT_FOLDER}import runpy; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return this process's environment with this checkout or installation first on the path."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), *others])}


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
