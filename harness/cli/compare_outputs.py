"""`asrgate compare-outputs RUN`: what each engine wrote beside the reference, word by word, token by token.

asrgate compare-outputs results/latest --margins
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from asrgate.harness import record
from asrgate.harness.cli import run_options
from asrgate.harness.diagnose import transcripts_report
from asrgate.harness.diagnose.margins import with_margins
from asrgate.harness.diagnose.transcripts import compare_outputs


def add_parser(subparsers: Any) -> None:
    """Add the `compare-outputs` subcommand."""
    parser = subparsers.add_parser(
        "compare-outputs",
        help="what each engine wrote beside the reference: words, first other token, margin",
        description="Show what the variants of a stored run wrote beside its reference: the rate of exact "
        "matches, word differences, the first token that differs and, asked for, how narrowly the reference "
        "chose its own.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run.json or its folder, e.g. results/latest")
    parser.add_argument(
        "--reference", metavar="NAME", help="variant or backend of the run (default: the run's own reference)"
    )
    parser.add_argument(
        "--all", action="store_true", help="also clips that are the same, and every text in full"
    )
    parser.add_argument(
        "--margins",
        action="store_true",
        help="decode the clips whose tokens differ again with the reference, for its margin at the first of "
        "them; needs audio and weights",
    )
    parser.add_argument(
        "--audio",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="for --margins: where the clips are, as `asrgate run --audio` takes it (default: where the "
        "run's command says, and the bundled ones)",
    )
    parser.add_argument(
        "--model", metavar="NAME|PATH", help="for --margins: the run's weights (default: as the run says)"
    )
    parser.add_argument(
        "--timeout",
        type=run_options.positive,
        default=600.0,
        metavar="S",
        help="for --margins: seconds loading or one clip may take (default 600)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it there as Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it there as one JSON document")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write; return 0.

    Raises:
        RecordError, OutputsError: nothing was compared, for a reason the message tells.
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
