"""`asrgate doctor`: what this machine has, what it lacks for the default benchmark, and how to fix that."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from asrgate.backends.base import AsrgateError
from asrgate.harness.cli.doctor_checks import CHECKS, FAIL, OK, WARN

COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    status: str
    detail: str
    remedy: str | None = None


def add_parser(subparsers: Any) -> None:
    """Add the `doctor` subcommand."""
    parser = subparsers.add_parser(
        "doctor", help="show what this machine lacks, and the command that fixes it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="where runs will be stored (default results)",
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; return 1 if the default benchmark cannot run here, else 0."""
    findings = examine(arguments.results)
    can_run = all(finding.status != FAIL for finding in findings)
    if arguments.json:
        print(json.dumps({"can_run": can_run, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        _print(findings)
    return 0 if can_run else 1


def examine(results: Path) -> list[Finding]:
    """Run all checks; a check that fails to run is a finding too."""
    findings = []
    for name, check in CHECKS:
        try:
            findings += [Finding(name, *line) for line in check(results)]
        except AsrgateError as error:
            findings.append(Finding(name, FAIL, str(error)))
        except Exception as error:
            findings.append(Finding(name, FAIL, f"the check itself failed: {type(error).__name__}: {error}"))
    return findings


def _print(findings: Sequence[Finding]) -> None:
    console = Console()
    if not console.is_terminal:
        for finding in findings:
            print(f"{finding.status:4}  {finding.check}: {finding.detail}")
            if finding.remedy:
                print(f"      -> {finding.remedy}")
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    last = None
    for finding in findings:
        remedy = f"\n[bold]{escape(finding.remedy)}[/bold]" if finding.remedy else ""
        status = f"[{COLOURS[finding.status]}]{finding.status}[/]"
        table.add_row(status, "" if finding.check == last else finding.check, escape(finding.detail) + remedy)
        last = finding.check
    console.print(table)
