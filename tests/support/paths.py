"""Where the tests find the checkout and what lies beside it."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
FAKES = SUPPORT / "fakes"
ROOT = SUPPORT.parents[1]
SHARED = Path(os.environ.get("ASRGATE_SHARED", ROOT.parent / "shared"))
SHARED_AUDIO = SHARED / "audio"
TINY_EN = SHARED / "weights" / "tiny.en-openai.pt"
