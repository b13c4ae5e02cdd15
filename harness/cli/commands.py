"""The `asrgate` command: `asrgate run`, `asrgate list`, `asrgate doctor`, …"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from asrgate import old_names
from asrgate.backends.base import AsrgateError
from asrgate.harness.cli import (
    baseline,
    compare,
    compare_outputs,
    corpus,
    debug_encoder,
    demo,
    doctor,
    history,
    list_backends,
    new_backend,
    report,
    run,
    sign,
    streams,
    weights,
)
from asrgate.harness.record import DOCTORED, doctored
from asrgate.harness.runner import json_events, signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done; 1: something failed; 2: bad input; 130: interrupted.
    """
    with streams.guarded() as has_stdout:
        try:
            with signals.as_interrupts():
                return _main(sys.argv[1:] if argv is None else list(argv), has_stdout)
        except KeyboardInterrupt:  # before the arguments were read, or while the last word was said
            print("asrgate: stopped", file=sys.stderr)
            return 130


def _main(arguments: list[str], has_stdout: bool) -> int:
    parsed = _parsed(arguments)
    parsed.argv = arguments
    for warning in old_names.warnings_of_variables():
        _complain(parsed, warning, "warning")
    try:
        if getattr(parsed, "json", False) and not has_stdout:
            raise AsrgateError("--json prints to stdout, which is closed; leave >&- out, or --json")
        status = parsed.func(parsed)
        sys.stdout.flush()
        return int(status)
    except AsrgateError as error:
        streams.flushed()
        _complain(parsed, str(error))
        return 2
    except BrokenPipeError:
        streams.flushed()  # the reader (`| head`) has closed the pipe
        return 1
    except KeyboardInterrupt:
        _complain(parsed, "stopped")
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        why = streams.flushed()
        _complain(
            parsed, f"{where}{error.strerror or error}" if why is None else f"{streams.UNWRITABLE}: {why}"
        )
        return 2
    except DOCTORED as error:
        if not getattr(parsed, "reads_records", False):
            raise
        _complain(parsed, f"a run cannot be used: {doctored(error)}")
        return 2


def _parsed(arguments: list[str]) -> argparse.Namespace:
    try:
        return _parser().parse_args(arguments)
    except SystemExit:  # --help and --version print
        if (why := streams.flushed()) is None:
            raise
        print(f"asrgate: {streams.UNWRITABLE}: {why}", file=sys.stderr)
        raise SystemExit(2) from None


def _complain(parsed: argparse.Namespace, message: str, event: str = "error") -> None:
    if getattr(parsed, "log_format", "text") == "json":
        json_events.emit(event, message=message)
    else:
        print(f"asrgate: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asrgate",
        description="Compare speech recognition engines on the same audio, weights and decoding. "
        "Speed counts only at equal quality.",
    )
    parser.add_argument("--version", action="version", version=f"asrgate {_version()}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_parser in (
        run.add_parser,
        list_backends.add_parser,
        doctor.add_parser,
        weights.add_parser,
        corpus.add_parser,
        compare.add_parser,
        debug_encoder.add_parser,
        compare_outputs.add_parser,
        baseline.add_parser,
        history.add_parser,
        demo.add_parser,
        new_backend.add_parser,
        sign.add_parser,
    ):
        add_parser(subparsers)
    report.add_parsers(subparsers)
    return parser


def _version() -> str:
    try:
        return version("asrgate")
    except PackageNotFoundError:
        return "(not installed)"
