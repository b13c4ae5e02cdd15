"""`asrgate compare BASE NEW`: 0 if nothing is worse, 1 on a regression, 2 if they are not comparable."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from asrgate.backends.base import AsrgateError
from asrgate.harness import record
from asrgate.harness.cli import baseline, streams
from asrgate.harness.regression import report
from asrgate.harness.regression.compare import NotComparable, compare
from asrgate.harness.regression.preconditions import KINDS
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.scoring import verify

DEFAULTS = Limits()


class CompareError(AsrgateError):
    """An argument of `asrgate compare` makes no sense; the message lists the choices."""


def add_parser(subparsers: Any) -> None:
    """Add the `compare` subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="check whether a run is slower or makes more errors than an earlier one",
        description="Judge the run NEW against the run BASE, backend by backend. Exits with 0 if none is "
        "worse, with 1 on a regression, and with 2 if the runs cannot be compared.",
    )
    parser.add_argument(
        "base",
        metavar="BASE",
        help="run.json or its folder, or `baseline` for the one saved for NEW's model and kind of host",
    )
    parser.add_argument("new", type=Path, metavar="NEW", help="run.json or its folder, e.g. results/latest")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-slowdown",
        type=_ratio,
        default=DEFAULTS.max_slowdown,
        metavar="RATIO",
        help=f"allowed ratio of NEW's time to BASE's for one backend (default {DEFAULTS.max_slowdown})",
    )
    limits.add_argument(
        "--max-shared-slowdown",
        type=_ratio,
        default=DEFAULTS.max_shared_slowdown,
        metavar="RATIO",
        help="the same if every backend is slower at once, as on a slower machine "
        f"(default {DEFAULTS.max_shared_slowdown})",
    )
    limits.add_argument(
        "--max-wer-increase",
        type=_points,
        default=100 * DEFAULTS.max_wer_increase,
        metavar="POINTS",
        help=f"allowed increase of the word error rate (default {100 * DEFAULTS.max_wer_increase})",
    )
    limits.add_argument(
        "--alpha",
        type=_probability,
        default=DEFAULTS.alpha,
        metavar="P",
        help=f"a slowdown counts if its p-value is below P (default {DEFAULTS.alpha})",
    )
    limits.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KIND,…",
        help=f"compare even if these differ: {', '.join(KINDS)}",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=list(report.FORMATS),
        help="format of --output, or else of stdout (default: by the ending of --output, or else text)",
    )
    output.add_argument(
        "--output", type=Path, metavar="FILE", help="write the report there and also print it as text"
    )
    output.add_argument(
        "--baselines",
        type=Path,
        default=baseline.FOLDER,
        metavar="FOLDER",
        help=f"where `baseline` looks (default {baseline.FOLDER})",
    )
    parser.set_defaults(func=run, reads_records=True)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write; return 0 or 1.

    Raises:
        RecordError, BaselineError, NotComparable, CompareError: nothing was compared.
    """
    format_of_file = _format_of_file(arguments)
    allowed = _allowed(arguments.allow)
    on_github = os.environ.get("GITHUB_ACTIONS", "") not in ("", "false")
    new = verify.read(arguments.new)
    limits = Limits(
        max_slowdown=arguments.max_slowdown,
        max_shared_slowdown=arguments.max_shared_slowdown,
        max_wer_increase=arguments.max_wer_increase / 100,
        alpha=arguments.alpha,
    )
    try:
        if arguments.base == "baseline":
            base = baseline.find(arguments.baselines, new)
        else:
            base = verify.read(Path(arguments.base))
        found = compare(base, new, limits, allowed)
    except (NotComparable, baseline.BaselineError) as error:
        if on_github:
            print(report.annotation("error", "asrgate: nothing was compared", str(error)))
        raise
    printed = "text" if arguments.output is not None else arguments.format or "text"
    streams.write(report.FORMATS[printed](found))
    if format_of_file is not None:
        record.write_text(arguments.output, report.FORMATS[format_of_file](found))
    if on_github:
        # keep a document on stdout whole; GitHub reads both streams
        stream = sys.stdout if printed == "text" else sys.stderr
        for line in report.github_annotations(found):
            print(line, file=stream)
    return 1 if found.regressed else 0


def _format_of_file(arguments: argparse.Namespace) -> str | None:
    if arguments.output is None:
        return None
    if arguments.format is not None:
        return str(arguments.format)
    known = report.ENDINGS.get(arguments.output.suffix.lower())
    if known is None:
        raise CompareError(
            f"--output {arguments.output}: its ending is not a known format; use one of "
            f"{', '.join(report.ENDINGS)} or pass --format"
        )
    return known


def _allowed(given: list[str]) -> list[str]:
    kinds = [
        kind.strip().lower().replace("normaliser", "normalizer") for part in given for kind in part.split(",")
    ]
    unknown = [kind for kind in kinds if kind and kind not in KINDS]
    if unknown:
        raise CompareError(f"--allow {unknown[0]!r} is not one of {', '.join(KINDS)}")
    return kinds


def _ratio(text: str) -> float:
    value = float(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a ratio of at least 1, such as 1.05, not {text}")
    return value


def _points(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more points, not {text}")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, not {text}")
    return value
