"""The files that `asrgate new-backend` writes, with {placeholders}: see harness/cli/new_backend.py."""

from __future__ import annotations

BACKEND = '''"""{name}: to be filled in. Name the engine, what it runs on and which weights it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asrgate.backends.base import Backend, BackendUnavailable, Checkpoint, Settings, Transcript
from asrgate.backends.whisper_common.decoding import require_honourable, require_language


class {class_name}:
    """asrgate.backends.base.Backend says what each method must do; docs/backends.md has an example."""

    devices: ClassVar[Mapping[str, Sequence[str]]] = {{"cpu": ("float32",)}}  # the default precision first
    imports: ClassVar[Sequence[str]] = ()  # modules of the engine; asrgate imports and times them

    def __init__(self, checkpoint: Checkpoint, settings: Settings):
        self._checkpoint = checkpoint
        self._settings = settings

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if a package or a device is missing; do not import the engine."""
        raise BackendUnavailable(
            "{name} is not written yet",
            "fill in {path}",
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Backend:
        """Load the checkpoint's own weights; raise BackendError for a setting that cannot be honoured."""
        require_honourable(checkpoint, settings)
        # import the engine here, load checkpoint.path or a conversion of it, and pass on every setting
        raise NotImplementedError("load")

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """Every field of Settings as it really ran, read back from the engine if possible."""
        return self._settings.as_dict()

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Return the finished text; only read the samples."""
        require_language(self._checkpoint, language)
        raise NotImplementedError("transcribe")

    def synchronize(self) -> None:
        """Wait until the device is idle; do nothing if calls return only when their work is done."""
'''

TEST = '''"""{name} keeps the contract of a backend.

Fails until {path} is filled in.
"""

from __future__ import annotations

from asrgate.harness.testing import BackendContract


class Test{class_name}(BackendContract):
    """What every backend must do. Add your own tests for what is special about this one."""

    variant = "{name}@cpu/float32"
'''

PYPROJECT = """[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "asrgate-{name}"
version = "0.1.0"
description = "The backend {name} for asrgate"
readme = "README.md"
requires-python = ">=3.10"
dependencies = ["asrgate", "numpy"]

[project.optional-dependencies]
dev = ["pytest>=8"]

[project.entry-points."asrgate.backends"]
{name} = "{package}.backend:{class_name}"

[tool.hatch.build.targets.wheel]
packages = ["src/{package}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

README = """# {name} for asrgate

```sh
pip install --editable ".[dev]"     # in the environment that has asrgate
pytest                              # asrgate's contract: fails until src/{package}/backend.py is filled in
asrgate list                        # shows {name}, and why it cannot run yet
asrgate run --backends {name}       # measures it and applies the gate
```
"""

PACKAGE = '''"""The backend {name} for asrgate."""
'''
