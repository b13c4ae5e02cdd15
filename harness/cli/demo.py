"""`asrgate demo`: measure every backend on one clip and show the race, or replay a stored run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from asrgate.harness.argument_types import at_least, positive
from asrgate.harness.cli import run as run_command
from asrgate.harness.cli import run_options
from asrgate.harness.corpus.clips import BUNDLED_MANIFEST
from asrgate.harness.report import race
from asrgate.harness.runner import progress
from asrgate.harness.scoring import verify

CLIP = BUNDLED_MANIFEST.with_name("slow.flac")  # long enough to read along, numbers and all


def add_parser(subparsers: Any) -> None:
    """Add the `demo` subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="show a race of all backends on one clip",
        description="Measure the backends on one clip, one after the other as in every run. Then show them "
        "side by side at the measured speed, each with its WER and the gate's verdict.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--audio",
        type=Path,
        metavar="FILE",
        help="the clip, with name.txt next to it; default: a bundled one",
    )
    source.add_argument("--replay", type=Path, metavar="RUN", help="show a stored run; nothing is measured")
    parser.add_argument(
        "--clip", metavar="NAME", help="a clip of the stored run; default: its longest of up to 30 s"
    )
    parser.add_argument(
        "--speed",
        type=positive,
        default=1.0,
        metavar="X",
        help="play at X times the true speed (default 1)",
    )
    parser.add_argument("--backends", metavar="A,B", help="as `asrgate run` takes them; default: all")
    parser.add_argument("--model", metavar="NAME|PATH", help="as `asrgate run` takes it")
    parser.add_argument("--reference", metavar="VARIANT", help="the variant that the gate compares with")
    parser.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--threads", type=at_least(1), metavar="N", help="default: the number of physical cores"
    )
    parser.add_argument("--results", type=Path, default=run_options.RESULTS, metavar="FOLDER")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate demo`; return 0, or 1 if a row failed, or 130 if interrupted."""
    console = Console()
    if arguments.replay is not None:
        race.show(race.race(verify.read(arguments.replay), arguments.clip), console, arguments.speed)
        return 0
    asked = run_command.defaults()
    asked.argv = arguments.argv
    for name in ("backends", "rounds", "threads", "results"):
        setattr(asked, name, getattr(arguments, name))
    asked.model = arguments.model and [arguments.model]
    asked.reference = arguments.reference or asked.reference
    asked.audio = [arguments.audio or CLIP]
    stored, folder = run_command.measure(asked, progress.choose)
    race.show(race.race(stored, arguments.clip), console, arguments.speed)
    print(f"\nTo see it again: asrgate demo --replay {folder}    Full report: {folder / 'report.html'}")
    return run_command.status(asked, stored)
