"""What `asrgate compare` finds and how often it is wrong, by simulation or from real runs.

    python benchmarks/regression_power.py                        # print the tables of docs/regression.md
    python benchmarks/regression_power.py --write docs/regression.md
    python benchmarks/regression_power.py --runs results/2026*   # like runs, really measured
    python benchmarks/regression_power.py --runs A B C --slowed D E F   # D, E, F: with something slowed

Every comparison goes through `asrgate.harness.regression.compare.compare`, as the command does.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asrgate.backends.base import Settings
from asrgate.harness import record
from asrgate.harness.record import Run, text_sha256
from asrgate.harness.regression.compare import compare
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.runner.stopping import Stopping
from asrgate.harness.scoring import round_ratios

COMPARISONS = 200
AUTO = "auto"
QUIET = {"foreign_cpu_fraction": None}  # the entry of a round
CLIPS = 20
WORDS_A_CLIP = 15
BACKENDS = ("first@cpu/float32", "second@cpu/float32", "third@cpu/int8")
SLOWED = BACKENDS[1]
LITERAL = Limits(max_slowdown=1.10)
CALL_SECONDS = np.exp(np.random.default_rng(5).normal(0, 0.6, CLIPS))  # clips differ in length


@dataclass(frozen=True)
class Machine:
    """How a machine disturbs times, in logarithms: 0.01 is about one percent.

    Attributes:
        between_runs: standard deviation of what a whole run shares (heat, neighbours, clock).
        process: of what one backend's process keeps through a run (memory layout, placement).
        drift: of what changes slowly inside a run and is shared by those measured one after the other.
        memory: correlation of that drift from one backend's turn to the next.
        call: of what each call has to itself.
        spikes: share of calls that take 1.3 to 3 times as long.
    """

    between_runs: float
    process: float
    drift: float
    memory: float
    call: float
    spikes: float


MACHINES = {
    "quiet": Machine(0.003, 0.003, 0.005, 0.8, 0.02, 0.002),
    "ordinary": Machine(0.015, 0.005, 0.015, 0.8, 0.04, 0.01),
    "noisy": Machine(0.04, 0.01, 0.03, 0.9, 0.08, 0.02),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comparisons", type=int, default=COMPARISONS, metavar="N")
    parser.add_argument("--runs", type=Path, nargs="+", metavar="RUN", help="like runs")
    parser.add_argument("--slowed", type=Path, nargs="+", metavar="RUN", help="compare --runs with these")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between its markers")
    arguments = parser.parse_args()
    if arguments.runs:
        runs = [record.read(path) for path in arguments.runs]
        slowed = [record.read(path) for path in arguments.slowed or ()]
        print(real_table(runs, slowed, arguments.comparisons))
        return
    tables = {
        "time": time_table(arguments.comparisons),
        "rounds": rounds_table(arguments.comparisons),
        "words": words_table(arguments.comparisons),
    }
    for name, table in tables.items():
        print(table)
        if arguments.write:
            put_between_markers(arguments.write, name, table)


# Time


def simulate(
    rng: np.random.Generator, machine: Machine, rounds: int, slowdowns: Mapping[str, float] | None = None
) -> Run:
    """Return a record of BACKENDS on the machine; texts and words are the same in all."""
    level = rng.normal(0, machine.between_runs)
    own = {name: rng.normal(0, machine.process) for name in BACKENDS}
    drift = rng.normal(0, machine.drift)
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in BACKENDS}
    for number in range(rounds):
        shift = number % len(BACKENDS)
        for name in BACKENDS[shift:] + BACKENDS[:shift]:
            step = machine.drift * np.sqrt(1 - machine.memory**2)
            drift = machine.memory * drift + rng.normal(0, step)
            logs = level + own[name] + drift + rng.normal(0, machine.call, CLIPS)
            hit = rng.random(CLIPS) < machine.spikes
            logs += np.where(hit, rng.uniform(np.log(1.3), np.log(3), CLIPS), 0)
            walls = CALL_SECONDS * np.exp(logs) * (slowdowns or {}).get(name, 1.0)
            samples[name] += [_sample(i, number, float(wall)) for i, wall in enumerate(walls)]
    run = _run(rounds, {name: _result(name, found) for name, found in samples.items()})
    truth = own[BACKENDS[0]] - own[SLOWED] - np.log((slowdowns or {}).get(SLOWED, 1.0))
    return {**run, "true_speedup": float(np.exp(truth))}


def time_table(comparisons: int) -> str:
    """False alarms and slowdowns found, by machine and rounds."""
    lines = [
        "| machine | rounds | backends | false alarms | 10 % found | 25 % found "
        "| 10 % found at 1.10 | 25 % found at 1.10 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, machine in MACHINES.items():
        for rounds in (5, 7, 10):
            pairs = {
                slowdown: list(_pairs(machine, rounds, slowdown, comparisons)) for slowdown in (1, 1.1, 1.25)
            }
            for backends in (BACKENDS, (SLOWED,)):
                cells = [
                    f"{_share(pairs[slowdown], limits, backends):.1%}"
                    for limits, slowdowns in ((Limits(), (1, 1.1, 1.25)), (LITERAL, (1.1, 1.25)))
                    for slowdown in slowdowns
                ]
                lines.append(f"| {name} | {rounds} | {len(backends)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rounds_table(comparisons: int) -> str:
    """What `--rounds auto` does to the interval of the speed-up, and to comparisons, beside fixed rounds."""
    lines = [
        "| machine | rounds | rounds, mean | interval holds the truth | half its width, median "
        "| false alarms | 10 % found |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, machine in MACHINES.items():
        for rounds in (AUTO, 3, 7, 15):
            alike, slowed = (
                [
                    (_stopped(base, rounds), _stopped(new, rounds))
                    for base, new in _pairs(machine, Stopping.most, slowdown, comparisons)
                ]
                for slowdown in (1, 1.1)
            )
            runs = [run for pair in alike for run in pair]
            found = [round_ratios.over_reference(run, _of(run, SLOWED)) for run in runs]
            holds = [
                ratio.interval[0] <= run["true_speedup"] <= ratio.interval[1]
                for ratio, run in zip(found, runs, strict=True)
            ]
            width = float(np.median([ratio.half_width for ratio in found]))
            cells = [
                f"{np.mean([run['settings']['rounds'] for run in runs]):.1f}",
                f"{np.mean(holds):.1%}",
                f"{width:.1%}",
                *(f"{_share(pairs, Limits(), BACKENDS):.1%}" for pairs in (alike, slowed)),
            ]
            lines.append(f"| {name} | {rounds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _stopped(run: Run, rounds: int | str) -> Run:
    """Return the run as it would have been with so many rounds, or with those that AUTO asks for."""
    rule = Stopping(budget_seconds=float("inf"))
    counts = range(1, rule.most + 1) if rounds == AUTO else [rounds]
    for count in counts:
        results = [
            {**result, "samples": [s for s in result["samples"] if s["round"] < count]}
            for result in run["results"]
        ]
        settings = {**run["settings"], "rounds": count}
        found = {**run, "results": results, "rounds": [QUIET] * count, "settings": settings}
        if rounds != AUTO or rule.reason(found, 0.0):
            break
    return found


def _pairs(machine: Machine, rounds: int, slowdown: float, count: int) -> Iterator[tuple[Run, Run]]:
    for seed in range(count):
        rng = np.random.default_rng([seed, rounds, round(100 * slowdown)])
        yield simulate(rng, machine, rounds), simulate(rng, machine, rounds, {SLOWED: slowdown})


def _share(pairs: Sequence[tuple[Run, Run]], limits: Limits, backends: Sequence[str]) -> float:
    """Share of comparisons of those backends in which the slowed one is called a regression."""
    found = 0
    for pair in pairs:
        base, new = ({**run, "results": [_of(run, name) for name in backends]} for run in pair)
        found += SLOWED in [row.variant for row in compare(base, new, limits).regressed]
    return found / len(pairs)


# Words


def words_table(comparisons: int) -> str:
    """What is found when words of the second backend go wrong, on 20 clips of 15 words."""
    lines = [
        "| words that go wrong, of 300 | WER increase, points | reported as changed text | regression |",
        "|---|---|---|---|",
    ]
    for words in (0, 1, 2, 3, 6, 15):
        reported = failed = 0
        for seed in range(comparisons):
            rng = np.random.default_rng([seed, words])
            before = rng.random((CLIPS, WORDS_A_CLIP)) < 0.05  # the backend was never perfect
            after = before.copy()
            after.flat[rng.choice(np.flatnonzero(~before), words, replace=False)] = True
            base, new = (_worded(wrong) for wrong in (before, after))
            (row,) = compare(base, new, Limits()).rows
            assert row.texts is not None
            reported += bool(row.texts.changed)
            failed += row.verdict == "regression"
        points = 100 * words / (CLIPS * WORDS_A_CLIP)
        lines.append(
            f"| {words} | {points:.2f} | {reported / comparisons:.1%} | {failed / comparisons:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _worded(wrong: np.ndarray) -> Run:
    """Return a run whose second backend got those words wrong; `wrong` is bool, shape (clips, words)."""
    hashes = [text_sha256("".join("01"[word] for word in clip)) for clip in wrong.astype(int)]
    samples = [_sample(i, 0, 1.0, text) for i, text in enumerate(hashes)]
    result = _result(SLOWED, samples)
    result["wer"] = {
        "per_clip": [
            {
                "clip": _clip_name(i),
                "substitutions": int(clip.sum()),
                "deletions": 0,
                "insertions": 0,
                "reference_words": WORDS_A_CLIP,
            }
            for i, clip in enumerate(wrong)
        ]
    }
    return _run(1, {SLOWED: result})


# Real runs


def real_table(runs: Sequence[Run], slowed: Sequence[Run], comparisons: int) -> str:
    """Verdicts by variant: each run with each other, rounds drawn anew, each run with each slowed one."""
    rng = np.random.default_rng(0)
    kinds = {
        "each with each": list(itertools.permutations(runs, 2)),
        "rounds drawn anew": [_redrawn(rng, runs) for _ in range(comparisons)],
        "each with each slowed": list(itertools.product(runs, slowed)),
    }
    lines = [
        "| compared | backend | comparisons | regression | unclear | same or better |",
        "|---|---|---|---|---|---|",
    ]
    for kind, pairs in kinds.items():
        found: dict[str, list[str]] = {}
        for base, new in pairs:
            for row in compare(base, new, Limits()).rows:
                if row.time is not None:
                    found.setdefault(row.variant, []).append(row.verdict)
        for variant, verdicts in found.items():
            bad, unclear = (verdicts.count(v) for v in ("regression", "unclear"))
            good = len(verdicts) - bad - unclear
            lines.append(f"| {kind} | {variant} | {len(verdicts)} | {bad} | {unclear} | {good} |")
    return "\n".join(lines) + "\n"


def _redrawn(rng: np.random.Generator, runs: Sequence[Run]) -> tuple[Run, Run]:
    """Return two runs made of rounds drawn from all of them, none twice."""
    rounds = runs[0]["settings"]["rounds"]
    pool = [(i, entry["round"]) for i, run in enumerate(runs) for entry in run["rounds"]]
    drawn = [pool[i] for i in rng.choice(len(pool), 2 * rounds, replace=False)]
    return _of_rounds(runs, drawn[:rounds]), _of_rounds(runs, drawn[rounds:])


def _of_rounds(runs: Sequence[Run], drawn: Sequence[tuple[int, int]]) -> Run:
    results = []
    for result in runs[0]["results"]:
        samples = [
            {**sample, "round": place}
            for place, (i, number) in enumerate(drawn)
            for sample in _of(runs[i], result["variant"])["samples"]
            if sample["round"] == number
        ]
        results.append({**result, "samples": samples})
    return {**runs[0], "results": results}


# Records: no more than `compare` reads


def _run(rounds: int, results: Mapping[str, dict[str, Any]]) -> Run:
    settings = {"reference": BACKENDS[0], "wer_tolerance": 0.01, "max_wer": 0.5, "length_tolerance": 0.1}
    return {
        "run_id": "simulated",
        "complete": True,
        "interrupted": None,
        "host": {"host_class": "simulated"},
        "versions": {},
        "settings": {"decoding": Settings().as_dict(), "rounds": rounds, **settings},
        "checkpoint": {"name": "simulated", "sha256": "0" * 64, "tensors_sha256": "0" * 64, "dimensions": {}},
        "scoring": {"normalizer": {"name": "none", "version": "", "sha256": "0" * 64}},
        "clips": [
            {"name": _clip_name(i), "sha256": "0" * 64, "language": "en", "reference_sha256": None}
            for i in range(CLIPS)
        ],
        "rounds": [],
        "warnings": [],
        "results": list(results.values()),
    }


def _result(variant: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    gate = {"ranked": True, "rank": 1, "reasons": []}
    return {
        "variant": variant,
        "backend": variant.partition("@")[0],
        "status": "ok",
        "error": None,
        "gate": gate,
        "wer": None,
        "samples": samples,
    }


def _sample(clip: int, number: int, wall_seconds: float, text: str = "0" * 64) -> dict[str, Any]:
    return {
        "clip": _clip_name(clip),
        "round": number,
        "wall_seconds": wall_seconds,
        "text_sha256": text,
        "stage_seconds": {},
        "error": None,
    }


def _clip_name(number: int) -> str:
    return f"clip-{number:02}"


def _of(run: Run, variant: str) -> dict[str, Any]:
    return next(result for result in run["results"] if result["variant"] == variant)


def put_between_markers(path: Path, name: str, table: str) -> None:
    """Replace what stands between <!-- power:NAME --> and <!-- /power:NAME -->."""
    start, end = f"<!-- power:{name} -->", f"<!-- /power:{name} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.S)
    text, count = pattern.subn(lambda _: f"{start}\n{table}{end}", path.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{path} has no {start} … {end}")
    record.write_text(path, text)


if __name__ == "__main__":
    main()
