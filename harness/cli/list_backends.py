"""`asrgate list`: every registered backend, and whether this machine can run it or what it lacks."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from asrgate import backends
from asrgate.backends.base import BackendUnavailable, how_to_fix


def add_parser(subparsers: Any) -> None:
    """Add the `list` subcommand."""
    parser = subparsers.add_parser("list", help="list backends and whether this machine can run them")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what runs here and what does not; return 0, because a backend that cannot is not an error."""
    found = rows()
    if arguments.json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return 0
    console = Console()
    console.print("Runs here:", style="bold")
    for variant in (row["variant"] for row in found if row["available"]):
        console.print(Padding(Text(variant), (0, 0, 0, 2)))
    causes: dict[tuple[str, str | None], list[str]] = {}
    for row in found:
        if not row["available"]:
            causes.setdefault((row["reason"], row["remedy"]), []).append(row["variant"])
    for (reason, remedy), variants in causes.items():
        console.print()
        console.print(Text(f"Not here: {reason}{how_to_fix(remedy)}", style="bold yellow"))
        for variant in variants:
            console.print(Padding(Text(variant), (0, 0, 0, 2)))
    return 0


def rows() -> list[dict[str, Any]]:
    """Return one entry per variant: variant, available, reason, remedy."""
    found = []
    for name, described in backends.describe_all(backends.names()).items():
        if isinstance(described, BackendUnavailable):
            found.append(
                {"variant": name, "available": False, "reason": described.reason, "remedy": described.remedy}
            )
            continue
        for variant in backends.variants_of(described):
            row: dict[str, Any] = {"variant": str(variant), "available": True, "reason": None, "remedy": None}
            try:
                described.check(variant.device, variant.precision)
            except BackendUnavailable as error:
                row.update(available=False, reason=error.reason, remedy=error.remedy)
            found.append(row)
    return found
