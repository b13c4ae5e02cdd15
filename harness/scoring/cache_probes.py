"""Checks that a worker's speed is that of doing the work: nothing is cached or done early or late.

Every worker answers copies that it was never given (unseen), and their clips (seen). A **dithered** copy
is the clip with noise of one 16-bit step added: it sounds the same, costs an honest engine the same, and
matches no cache key. Where the rounds after the first have other copies of the clips, their times tell the
same; then dithered copies are asked for after the last round only of engines whose first round was quick.
Elsewhere all engines are asked for them. A **splice** starts like one clip and ends
like another: a cache that hears knows a clip again whatever its samples, but not a splice. Splices are mixed
into the rounds where the scenario lets them be, so that no engine can tell when it is tested. An engine whose
splices were slow is asked for FURTHER of them, because other work on the machine may have slowed a few: it
comes in bursts, and where threads wait for each other by spinning it costs processor time as well.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness import record
from asrgate.harness.corpus.audio import dithered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics import word_errors
from asrgate.harness.metrics.word_errors import is_timed
from asrgate.harness.record_types import Integrity, ProbeRecord, Sample
from asrgate.harness.scenarios.scenario import Prober

UNSEEN_OVER_SEEN_LIMIT = 1.5  # a dithered copy may take this much longer than the clip itself
# As may later rounds than the first, or else copies are probed. This much longer they take only if the first
# one's clips were known; or by chance in one run of a thousand, on a very busy machine.
LATER_OVER_FIRST_LIMIT = 3.0
SPLICED_OVER_SEEN_LIMIT = 2.0  # and a splice, whose words are others and maybe more
# Other work on the machine may by chance slow only the copies once; with a cache they are slower every time.
ATTEMPTS = 3
PROBED_CLIPS = 5
CUTS = 0.3, 0.7  # where further splices change from one clip to the other, in lengths of the first
FURTHER = 10  # splices of an engine whose first ones were slow
LONGEST_PROBE_SECONDS = 30.0  # one window; a longer clip costs much and shows no more
# Who spends less of a call than this computing, waits for something else: a GPU, a server, a clock.
COMPUTING_FRACTION = 0.5
LEAST_SECONDS = 1e-6  # of a call, so that ratios exist


@dataclass(frozen=True)
class Probe:
    """A copy of a clip that no engine has been given: samples of both, float32, shape (samples,)."""

    kind: str  # "dithered" or "spliced"
    clip: Clip
    seen: np.ndarray
    copy: np.ndarray


class Usual(NamedTuple):
    """An engine's answer to a clip, and the seconds that it usually takes, of wall and processor time."""

    text: str | None
    wall_seconds: float
    cpu_seconds: float

    def slowed(self, call: Mapping[str, Any] | None, usual: Usual | None) -> Usual:
        """Return it as much slower as a call at about the same time was slower than usual, if it was.

        It stays as it is where there is no such call, or nobody knows what it usually takes.
        """
        if call is None or usual is None:
            return self
        wall = max(1.0, call["wall_seconds"] / max(usual.wall_seconds, LEAST_SECONDS))
        cpu = max(1.0, (call["cpu_seconds"] or 0.0) / max(usual.cpu_seconds, LEAST_SECONDS))
        return Usual(self.text, wall * self.wall_seconds, cpu * self.cpu_seconds)


def usual(samples: Sequence[Sample], clip: str) -> Usual | None:
    """Return a clip's first answer and its median times over the rounds, None if it was never answered."""
    own = [sample for sample in samples if sample["clip"] == clip and is_timed(sample)]
    if not own:
        return None
    walls = statistics.median(sample["wall_seconds"] for sample in own)
    return Usual(own[0]["text"], walls, statistics.median(sample["cpu_seconds"] or 0.0 for sample in own))


def prepare(clips: Sequence[Clip], audio: Mapping[str, np.ndarray], seed: int) -> list[Probe]:
    """Return the copies that probe caches; the same ones for every engine.

    Args:
        audio: clip name -> its samples.
        seed: drawn after the engines were loaded, so that none can make the copies itself beforehand.
    """
    with_speech = [clip for clip in clips if clip.reference != ""]
    spoken = [clip for clip in with_speech if clip.audio_seconds <= LONGEST_PROBE_SECONDS]
    spoken.sort(key=lambda clip: (clip.audio_seconds, clip.name))
    if len(spoken) > PROBED_CLIPS:  # evenly over the lengths
        step = (len(spoken) - 1) / (PROBED_CLIPS - 1)
        spoken = [spoken[round(i * step)] for i in range(PROBED_CLIPS)]
    probes = []
    for number, clip in enumerate(spoken):
        samples = audio[clip.name]
        probes.append(Probe("dithered", clip, samples, dithered(samples, seed + number)))
    long = [clip for clip in with_speech if clip.audio_seconds > LONGEST_PROBE_SECONDS]
    if long:  # a cache may be in front of long recordings alone
        spoken.append(min(long, key=lambda clip: (clip.audio_seconds, clip.name)))
    for first in spoken:
        second = _partner(first, with_speech)
        if second is not None:
            samples = audio[first.name]
            probes.append(Probe("spliced", first, samples, splice(samples, audio[second.name])))
    return probes


def _partner(first: Clip, clips: Sequence[Clip]) -> Clip | None:
    """Return the clip to splice with: of the same language and of like length, if there is one."""
    others = [c for c in clips if c.sha256 != first.sha256]
    return min(
        others,
        key=lambda c: (c.language != first.language, abs(c.audio_seconds - first.audio_seconds), c.name),
        default=None,
    )


def later_over_first(samples: Sequence[Sample]) -> float | None:
    """Return how much longer clips took after the first round, when all their copies are new.

    The median over clips, of wall or processor time, whichever is smaller, as of probes. None if there is no
    such round, or the first was not timed.
    """
    timed = [sample for sample in samples if is_timed(sample)]
    first = {sample["clip"]: sample for sample in timed if sample["round"] == 0}
    later: dict[str, list[Sample]] = {}
    for sample in timed:
        if sample["round"] > 0 and sample["clip"] in first:
            later.setdefault(sample["clip"], []).append(sample)
    if not later:
        return None

    def over_first(seconds: Callable[[Sample], float]) -> float:
        return statistics.median(
            statistics.median(map(seconds, of_clip)) / max(seconds(first[clip]), LEAST_SECONDS)
            for clip, of_clip in later.items()
        )

    over_walls = over_first(lambda sample: sample["wall_seconds"])
    calls = [(s["wall_seconds"], s["cpu_seconds"]) for s in timed if s["round"] > 0]
    if not _computes(calls):
        return over_walls
    return min(over_walls, over_first(lambda sample: sample["cpu_seconds"] or 0.0))


def were_splices_slow(probes: Sequence[ProbeRecord]) -> bool:
    """Return whether splices took longer than they may."""
    ratio = _over_seen(probes, "spliced")
    return ratio is not None and ratio > SPLICED_OVER_SEEN_LIMIT


def another_splice(splices: Sequence[Probe], seed: int) -> Probe:
    """Return a splice of two clips that are probed, not longer than a window if there are such."""
    rng = np.random.default_rng(seed)
    longest = int(LONGEST_PROBE_SECONDS * SAMPLE_RATE_HZ)
    short = [probe for probe in splices if len(probe.seen) <= longest] or splices
    first = short[int(rng.integers(len(short)))]
    others = [probe for probe in splices if len(first.seen) <= 2 * len(probe.seen) and probe is not first]
    second = others[int(rng.integers(len(others)))].seen if others else first.copy
    # cut anywhere in the middle, so that it has words which no splice before had
    return replace(first, copy=dithered(splice(first.seen, second, rng.uniform(*CUTS)), seed))


def schedule(
    probes: Sequence[Probe], rounds: Sequence[int], calls: int, seed: int
) -> dict[int, list[tuple[int, Probe]]]:
    """Spread probes over rounds at random; return round -> (after how many answers, probe), ascending.

    Args:
        rounds: numbers of the rounds that have a place for probes.
        calls: answers that a round has.
    """
    rng = np.random.default_rng(seed)
    found: dict[int, list[tuple[int, Probe]]] = {}
    for probe in probes:
        place = int(rng.integers(1, calls, endpoint=True)), probe
        found.setdefault(int(rng.choice(list(rounds))), []).append(place)
    return {number: sorted(of, key=lambda entry: entry[0]) for number, of in found.items()}


def run(prober: Prober, probes: Sequence[Probe], normalize: Callable[[str, str], str]) -> list[ProbeRecord]:
    """Run the probes on one worker; return one record entry each.

    If the copies took too long, new ones are made and tried, up to ATTEMPTS times in all. The times are those
    of the attempt in which the copies took least relative to the clips.

    Raises:
        WorkerError: the worker died or hung.
    """
    attempts = [_attempt(prober, probes, normalize)]
    while _wall_ratio(attempts[-1]) > UNSEEN_OVER_SEEN_LIMIT and len(attempts) < ATTEMPTS:
        # copies that no engine has been given, this one in an attempt before or another in its turn
        fresh = [
            replace(
                probe,
                copy=dithered(probe.seen if probe.kind == "dithered" else probe.copy, secrets.randbits(64)),
            )
            for probe in probes
        ]
        attempts.append(_attempt(prober, fresh, normalize))
    best = min(attempts, key=_wall_ratio)
    for entry, timed in zip(attempts[0], best, strict=True):
        for key in ("seen_seconds", "unseen_seconds", "seen_cpu_seconds", "unseen_cpu_seconds"):
            entry[key] = timed[key]
    return attempts[0]


def _wall_ratio(entries: Sequence[ProbeRecord]) -> float:
    dithered_entries = [entry for entry in entries if entry["kind"] == "dithered"]
    if any(entry["text"] is None for entry in dithered_entries):
        return math.inf  # failing is quick, so such times must not count as answers
    return _over_walls(dithered_entries) if dithered_entries else 0.0


def _over_walls(entries: Sequence[ProbeRecord]) -> float:
    """Return the wall time of copies over that of clips, the median."""
    return statistics.median(p["unseen_seconds"] / max(p["seen_seconds"], LEAST_SECONDS) for p in entries)


def _over_processors(entries: Sequence[ProbeRecord]) -> float:
    """Return the processor time of copies over that of clips, the median."""
    return statistics.median(
        (p["unseen_cpu_seconds"] or 0.0) / max(p["seen_cpu_seconds"] or 0.0, LEAST_SECONDS) for p in entries
    )


def _attempt(
    prober: Prober, probes: Sequence[Probe], normalize: Callable[[str, str], str]
) -> list[ProbeRecord]:
    entries: list[ProbeRecord] = []
    for number, probe in enumerate(probes):
        asked = [("seen", probe.seen), ("unseen", probe.copy)]
        if number % 2:
            asked.reverse()  # so that a drifting machine favours neither
        what = f"answering a {probe.kind} copy of clip {probe.clip.name}"
        answers = {kind: prober.ask(probe.clip, samples, kind == "unseen", what) for kind, samples in asked}
        entries.append(entry_of(probe, answers["seen"], answers["unseen"], normalize))
    return entries


def entry_of(
    probe: Probe, seen: Mapping[str, Any], unseen: Mapping[str, Any], normalize: Callable[[str, str], str]
) -> ProbeRecord:
    """Return a probe's record entry.

    Args:
        seen, unseen: answers to the clip, or to an altered copy of it, and to the probe's copy.
    """
    normalised = [
        None if text is None else " ".join(normalize(text, probe.clip.language).split())
        for text in (seen["text"], unseen["text"])
    ]
    text = unseen["text"]
    return {
        "kind": probe.kind,
        "clip": probe.clip.name,
        "seen_seconds": seen["wall_seconds"],
        "unseen_seconds": unseen["wall_seconds"],
        "seen_cpu_seconds": seen["cpu_seconds"],
        "unseen_cpu_seconds": unseen["cpu_seconds"],
        "changed_words": _changed_words(*normalised),
        "copy_sha256": hashlib.sha256(probe.copy.tobytes()).hexdigest(),
        "text": text,
        "text_sha256": None if text is None else record.text_sha256(text),
        "text_words": None if normalised[1] is None else len(normalised[1].split()),
    }


def summarise(probes: list[ProbeRecord], samples: Sequence[Sample]) -> Integrity:
    """Return a result's `integrity` from its probes and its measured samples."""
    answered = [sample for sample in samples if sample["error"] is None]
    return {
        "probes": probes,
        "unseen_over_seen": _over_seen(probes, "dithered"),
        "spliced_over_seen": _over_seen(probes, "spliced"),
        "late_work_seconds": sum(sample["late_work_seconds"] or 0.0 for sample in answered)
        if answered
        else None,
    }


def _over_seen(probes: Sequence[ProbeRecord], kind: str) -> float | None:
    """Return how much longer copies of a kind took than their clips, the median; None without answers.

    A cache saves wall time and processor time, and other work on the machine disturbs only wall time, so
    the smaller ratio of the two counts. But processor time says nothing about an engine that waits while
    something else does its work.
    """
    answered = [probe for probe in probes if probe["kind"] == kind and probe["text"] is not None]
    if not answered:
        return None
    computes = _computes([(probe["unseen_seconds"], probe["unseen_cpu_seconds"]) for probe in answered])
    walls = _over_walls(answered)
    return min(walls, _over_processors(answered)) if computes else walls


def _computes(calls: Sequence[tuple[float, float | None]]) -> bool:
    """Whether an engine computes in its calls, of which wall and processor seconds are given.

    One call shows it, for a busy machine leaves few cores; but none of the quicker half: looking up what is
    known is computing, too.
    """
    usual = statistics.median(wall for wall, _ in calls)
    return any(wall >= usual and (cpu or 0.0) >= COMPUTING_FRACTION * wall for wall, cpu in calls)


def splice(first: np.ndarray, second: np.ndarray, cut: float = 0.5) -> np.ndarray:
    """Start like `first` and end like `second`, as long as `first`: words of both, the text of neither.

    Args:
        cut: where the second begins, in lengths of the first.
    """
    start = int(cut * len(first))
    tail = second[-(len(first) - start) :]
    copy = np.concatenate([first[:start], tail])
    return np.pad(copy, (0, len(first) - len(copy)))


def _changed_words(before: str | None, after: str | None) -> int | None:
    return None if before is None or after is None else word_errors.aligned(before, after).edits
