"""How often the limit on splices refuses an honest engine, and how often it finds one that knows clips again.

    python benchmarks/splice_power.py                       # print the table of docs/trust.md
    python benchmarks/splice_power.py --write docs/trust.md

Simulated with a fixed seed, in seconds; each figure is what asrgate.harness.scoring.cache_probes makes of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from regression_power import put_between_markers

from asrgate.harness.record_types import ProbeRecord
from asrgate.harness.scoring import cache_probes

RUNS = 2000
ROUNDS = 3  # the fewest of a run that chooses their number
SPLICES = (1, 3, 5, 6)
# Standard deviation of the logarithm of an honest splice's time over its clip's: other words cost other
# times, and other work disturbs. 0.7 spreads as 18 splices did on a busy machine (0.26 to 3.43).
NOISES = {"idle": 0.15, "busy": 0.3, "very busy": 0.7}
# How much of the time a clip takes that is known again, and the share of clips that are.
CHEATS = {"a tenth of the time": (0.1, 1.0), "a third": (0.33, 1.0), "half": (0.5, 1.0)}
CHEATS |= {"a tenth, half of the clips": (0.1, 0.5)}


def refused(rng: np.random.Generator, splices: int, noise: float, takes: float, known: float) -> bool:
    """Return whether one simulated run's splices took too long, further ones too if it was asked for them.

    Each splice is of another clip, and weighed against its median time in the rounds, and against how much
    slower than usual the call before it was. Further ones are of any of these clips, beside a witness's.

    Args:
        takes: what a known clip takes, of the time of an unknown one.
        known: probability that a clip is known.
    """
    each = noise / np.sqrt(2)  # a splice and its clip are disturbed alike
    shares = np.where(rng.random(splices) < known, takes, 1.0)
    clips = np.exp(rng.normal(0, each, (splices, ROUNDS))) * shares[:, None]
    usual = np.median(clips, axis=1)
    probes = _weighed(rng, each, usual)
    if not cache_probes.were_splices_slow(probes):
        return False
    probes += _weighed(rng, each, usual[rng.integers(splices, size=cache_probes.FURTHER)])
    return cache_probes.were_splices_slow(probes)


def _weighed(rng: np.random.Generator, each: float, usual: np.ndarray) -> list[ProbeRecord]:
    """Return entries of splices of clips that usually take so long."""
    others = np.exp(rng.normal(0, each, (len(usual), ROUNDS)))  # of the clip before, or of a witness's
    calls = np.exp(rng.normal(0, each, len(usual))) / np.median(others, axis=1)
    seen = usual * np.maximum(1.0, calls)
    return [_probe(float(ratio)) for ratio in np.exp(rng.normal(0, each, len(usual))) / seen]


def _probe(ratio: float) -> ProbeRecord:
    """Return an entry of an engine of which only the wall clock tells."""
    return {
        "kind": "spliced",
        "clip": "",
        "seen_seconds": 1.0,
        "unseen_seconds": ratio,
        "seen_cpu_seconds": 0.0,
        "unseen_cpu_seconds": 0.0,
        "changed_words": 5,
        "text": "",
        "text_sha256": None,
        "text_words": 0,
    }


def table(runs: int = RUNS) -> str:
    """Return the share of runs refused, by machine and number of splices."""
    titles = ["machine (spread)", "splices", "honest", *CHEATS]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for machine, noise in NOISES.items():
        for splices in SPLICES:
            shares = []
            for number, (takes, known) in enumerate([(1.0, 0.0), *CHEATS.values()]):
                rng = np.random.default_rng([splices, round(100 * noise), number])
                shares.append(np.mean([refused(rng, splices, noise, takes, known) for _ in range(runs)]))
            cells = " | ".join(f"{share:.1%}" for share in shares)
            lines.append(f"| {machine} ({noise:g}) | {splices} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between its markers")
    arguments = parser.parse_args()
    found = table()
    print(found)
    if arguments.write:
        put_between_markers(arguments.write, "splices", found)


if __name__ == "__main__":
    main()
