"""asrgate: compares speech recognition engines on the same audio, weights and decoding.

`asrgate.backends` holds the engines, `asrgate.harness` measures, judges and reports them. In a checkout both
are links to the folders `backends/` and `harness/` beside this one.
"""

from asrgate import old_names

old_names.adopt()
