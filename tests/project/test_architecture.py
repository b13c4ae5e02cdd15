"""Who may import whom inside `asrgate`: docs/architecture.md draws it, this table holds it."""

from __future__ import annotations

import ast
from pathlib import Path

from paths import ROOT

# What the harness sees of the backends.
BACKENDS = {"backends", "backends.base", "backends.checkpoints", "backends.inspection"}
MAY_IMPORT = {  # package or module -> those of this project it may import; from the ground up
    "harness.escape": set(),
    "harness.argument_types": set(),
    "harness.column": set(),
    "harness.record_types": set(),
    "harness.record": {"backends.base", "harness.record_types"},
    "harness.worker": {
        *("backends", "backends.base", "backends.child_process", "backends.installation"),
        "backends.temporary",
    },
    "harness.metrics": {"backends.base", "harness.record", "harness.record_types"},
    "harness.corpus": {
        *("backends.base", "backends.checkpoints", "backends.installation"),
        *("harness.metrics", "harness.record"),
    },
    "harness.scenarios": {
        *("backends", "backends.base"),
        *("harness.argument_types", "harness.column", "harness.corpus", "harness.metrics"),
        *("harness.record_types", "harness.worker"),
    },
    "harness.scoring": {
        *("backends.base", "harness.corpus", "harness.metrics", "harness.record", "harness.record_types"),
        "harness.scenarios",
    },
    "harness.regression": {
        *("backends.base", "harness.escape", "harness.metrics", "harness.record", "harness.record_types"),
        *("harness.scenarios", "harness.scoring"),
    },
    "harness.report": {
        *("backends.base", "backends.child_process", "backends.temporary"),
        *("harness.column", "harness.corpus", "harness.escape", "harness.metrics"),
        *("harness.record", "harness.record_types"),
        *("harness.regression", "harness.scenarios", "harness.scoring"),
    },
    "harness.diagnose": {
        *BACKENDS,
        *("harness.corpus", "harness.escape", "harness.metrics", "harness.record", "harness.record_types"),
        "harness.worker",
    },
    "harness.runner": {
        *("backends", "backends.base", "backends.checkpoints"),
        *("harness.column", "harness.corpus", "harness.metrics", "harness.record", "harness.record_types"),
        *("harness.scenarios", "harness.scoring", "harness.worker"),
    },
    "harness.testing": {"backends", "backends.base", "backends.checkpoints", "harness.corpus"},
    "harness.cli": {
        *BACKENDS,
        *("harness.argument_types", "harness.corpus", "harness.diagnose", "harness.escape"),
        *("harness.metrics", "harness.record", "harness.record_types", "harness.regression"),
        *("harness.report", "harness.runner", "harness.scenarios", "harness.scoring"),
        *("harness.worker", "backends.description", "backends.temporary"),
    },
    "backends": {"backends.base", "backends.description"},
    "backends.base": set(),
    "backends.devices": {"backends.base"},
    "backends.installation": set(),
    "backends.child_process": {"backends.installation"},
    "backends.description": {"backends.base", "backends.child_process"},
    "backends.description_process": {"backends.base", "backends.description"},
    "backends.temporary": set(),
    "backends.checkpoints": {
        *("backends.base", "backends.child_process", "backends.installation", "backends.temporary"),
    },
    "backends.inspection": {"backends.base", "backends.whisper_common"},
    "backends.whisper_common": {"backends.base", "backends.devices"},
    "backends.torch_whisper": {"backends.whisper_common"},
    "backends.max_graph": {
        *("backends.base", "backends.checkpoints", "backends.devices", "backends.inspection"),
        "backends.whisper_common",
    },
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_of(path): path for package in ("harness", "backends") for path in (ROOT / package).rglob("*.py")
}


def room(module: str) -> str:
    """Return the package or module under harness/ or backends/ that a module belongs to."""
    return ".".join(module.split(".")[:2])


def imports(module: str) -> set[str]:
    """Return the rooms that a module imports, at its top or anywhere inside; not its own."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name.removeprefix("asrgate.") in MODULES for name in inner]
            names = [name if known else node.module for name, known in zip(inner, known, strict=True)]
        else:
            continue
        names = [name.removeprefix("asrgate.") for name in names]
        found.update(room(name) for name in names if name.split(".")[0] in ("harness", "backends"))
    return found - {room(module)}


def test_who_imports_whom() -> None:
    too_far = {}
    for module in MODULES:
        if room(module) in MAY_IMPORT:
            beyond = imports(module) - MAY_IMPORT[room(module)]
            if beyond:
                too_far[module] = sorted(beyond)
    assert too_far == {}, "docs/architecture.md says who may import whom"


def test_every_room_of_the_harness_is_in_the_table() -> None:
    """An engine's own file in backends/ needs no line; a package, or anything in harness/, does."""
    rooms = {room(module) for module in MODULES} - {"harness"}
    engines = {name for name in rooms if name.startswith("backends.") and name in MODULES}
    engines -= {name for name in engines if MODULES[name].name == "__init__.py"}
    assert rooms - engines <= set(MAY_IMPORT)
    assert set(MAY_IMPORT) <= rooms


def test_the_table_has_no_circle() -> None:
    order = list(MAY_IMPORT)
    left = {name: MAY_IMPORT[name] & set(order) for name in order}
    while left:
        free = [name for name, wanted in left.items() if not wanted & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_no_line_of_the_table_is_idle() -> None:
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for module in MODULES:
        if room(module) in used:
            used[room(module)] |= imports(module)
    idle = {
        name: sorted(MAY_IMPORT[name] - used[name]) for name in MAY_IMPORT if MAY_IMPORT[name] - used[name]
    }
    assert idle == {}


def test_backends_never_import_the_harness() -> None:
    """A backend that imports the harness could not stand alone."""
    assert [
        module
        for module in MODULES
        if module.startswith("backends") and any(name.startswith("harness") for name in imports(module))
    ] == []
