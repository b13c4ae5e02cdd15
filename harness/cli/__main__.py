"""`python -m harness.cli`: the same as the command `asrbench`."""

import sys

from harness.cli import main

sys.exit(main())
