"""`python -m asrgate`: the same as the command `asrgate`."""

import sys

from asrgate.harness.cli import main

sys.exit(main())
