"""`asrgate compare-outputs RUN`: compare what each engine wrote with the reference, by word and by token.

asrgate compare-outputs results/latest --margins
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from asrgate.harness import record
from asrgate.harness.argument_types import positive
from asrgate.harness.cli import run_options
from asrgate.harness.diagnose import transcripts_report
from asrgate.harness.diagnose.margins import with_margins
from asrgate.harness.diagnose.transcripts import compare_outputs


def add_parser(subparsers: Any) -> None:
    """Add the `compare-outputs` subcommand."""
    parser = subparsers.add_parser(
        "compare-outputs",
        help="compare each engine's text with the reference's: words, first differing token, margin",
        description="Compare what the variants of a stored run wrote with its reference. Shows the rate of "
        "exact matches, word differences, the first token that differs and, with --margins, how narrowly the "
        "reference chose its own.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run.json or its folder, e.g. results/latest")
    parser.add_argument(
        "--reference", metavar="NAME", help="variant or backend of the run (default: the run's own reference)"
    )
    parser.add_argument(
        "--all", action="store_true", help="also show clips that do not differ, and every text in full"
    )
    parser.add_argument(
        "--margins",
        action="store_true",
        help="decode the clips whose tokens differ again with the reference, to get its margin at the first "
        "differing token; needs audio and weights",
    )
    parser.add_argument(
        "--audio",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="for --margins: where the clips are, as `asrgate run --audio` takes it (default: where the "
        "run's command says, and the bundled clips)",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|PATH",
        help="for --margins: the run's weights (default: those that the run names)",
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=600.0,
        metavar="S",
        help="for --margins: seconds that loading, or one clip, may take (default 600)",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also write the comparison there as Markdown"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the comparison there as one JSON document"
    )
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write; return 0.

    Raises:
        RecordError, OutputsError: nothing was compared; the message says why.
    """
    stored = record.read(arguments.run)
    found = compare_outputs(stored, arguments.reference)
    if arguments.margins:
        found = with_margins(
            found,
            stored,
            run_options.of_command(stored["command"]),
            arguments.audio,
            arguments.model,
            arguments.timeout,
        )
    transcripts_report.print_outputs(found, Console(), arguments.all)
    if arguments.markdown is not None:
        record.write_text(arguments.markdown, transcripts_report.as_markdown(found, arguments.all))
    if arguments.json is not None:
        record.write_text(arguments.json, transcripts_report.as_json(found))
    return 0
