"""The command line: one file per subcommand, and the arguments they share. `main` is the entry point.

No other package imports from here, so each can be used without the command line.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; see asrgate.harness.cli.commands."""
    from asrgate.harness.cli import commands

    return commands.main(argv)
