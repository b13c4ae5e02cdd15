"""Runs modules of this project in separate processes, whatever files are in the current folder.

`python -m` and `python -c` put the current folder first on the path, so a `numpy.py` there would run instead
of numpy. PYTHONSAFEPATH prevents this, but only from Python 3.11 on.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from asrgate.backends.installation import PROJECT_ROOT

WITHOUT_CURRENT_FOLDER = "import sys; sys.path[:] = [path for path in sys.path if path]; "


def command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module as `python -m` does, without the current folder on its path."""
    code = f"{WITHOUT_CURRENT_FOLDER}import runpy; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-c", code, *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return this process's environment with this checkout or installation first on the path."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT_ROOT), *others])}


def limit_memory(further_bytes: int) -> None:
    """Let this process take only so much address space beyond what it has; after that, MemoryError.

    Only on Linux: elsewhere address space says nothing, or has no limit. Call it after the imports, because
    libraries may map gigabytes that they never use.
    """
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + further_bytes
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
