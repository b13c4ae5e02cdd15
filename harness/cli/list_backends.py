"""`asrgate list`: every registered backend, and whether this machine can run it or what it lacks."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asrgate import backends
from asrgate.backends.base import BackendUnavailable


def add_parser(subparsers: Any) -> None:
    """Add the `list` subcommand."""
    parser = subparsers.add_parser("list", help="list backends and whether this machine can run them")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; always return 0, because a backend that cannot run here is not an error."""
    found = rows()
    if arguments.json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return 0
    console = Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("variant", "runs here", "if not, why and what helps"):
        table.add_column(heading, overflow="fold")
    for row in found:
        remedy = f"; {row['remedy']}" if row["remedy"] else ""
        table.add_row(
            escape(row["variant"]),
            "[green]yes[/green]" if row["available"] else "[yellow]no[/yellow]",
            "" if row["available"] else escape(f"{row['reason']}{remedy}"),
        )
    console.print(table)
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
