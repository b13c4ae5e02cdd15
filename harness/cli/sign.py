"""`asrgate sign`: signs a stored run with the user's SSH key."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from asrgate.harness.record import RecordError
from asrgate.harness.scoring import signature, verify


def add_parser(subparsers: Any) -> None:
    """Add the `sign` subcommand."""
    parser = subparsers.add_parser("sign", help="sign a stored run, so that tables say who measured it")
    parser.add_argument("run", type=Path, metavar="RUN", help="a run.json or its folder")
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        metavar="KEYFILE",
        help="your SSH key, or the public key of one in your SSH agent",
    )
    parser.set_defaults(func=run, reads_records=True)


def run(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate sign`."""
    stored = verify.agreeing(arguments.run)
    if not stored["complete"]:
        raise RecordError(f"{arguments.run} is not complete; finish it with `asrgate run --resume` first")
    if "digest" not in stored:
        raise RecordError(f"{arguments.run} has no digest, because an older asrgate wrote it; measure again")
    signed = signature.sign(arguments.run, arguments.key)
    print(f"{signed}: {signature.check(arguments.run)}")
    return 0
