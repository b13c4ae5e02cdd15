"""The process in which another package's report format runs: the one that makes the record imports none.

asrgate.harness.report.formats starts it. It reads one JSON document, {"target", "path", "denied", "private",
"run"}, and writes one: {"text"} or {"failed"}. Before any of the format's code it shuts itself in, so that
what is denied (the stored run) can be neither read nor changed where the system can see to that. It
stands here because the package of reports imports numpy, whose threads would be outside by then.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import EntryPoint
from typing import Any

from asrgate.harness.worker import sandbox

# Bound before the format is imported: one that patches them gains nothing, but keeps its traceback apart.
_write, _dumps, _exit = os.write, json.dumps, os._exit


def main() -> None:
    """Carry out one request."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a format prints must not become part of the answer
    request = json.loads(sys.stdin.buffer.read())
    sys.path[:] = request["path"]
    sandbox.apply(request["denied"], request["private"])
    answer = _dumps(_rendered(request["target"], request["run"])).encode()
    while answer:
        answer = answer[_write(answers, answer) :]
    _exit(0)  # what the format left behind, threads and exit handlers, does not run on


def _rendered(target: str, run: Any) -> dict[str, str]:
    try:
        text = EntryPoint("", target, "").load()(run)
    except BaseException as error:
        return {"failed": f"failed: {type(error).__name__}: {error}"}
    if type(text) is not str:
        return {"failed": f"returned a {type(text).__name__}, not a str"}
    return {"text": text}


if __name__ == "__main__":
    main()
