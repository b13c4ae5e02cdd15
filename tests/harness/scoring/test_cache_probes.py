"""The probes of caches: a disturbance of one attempt is forgiven, a cache is not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asrgate.harness.corpus.clips import Clip
from asrgate.harness.scoring import cache_probes


class Engine:
    """Answers at once, and says that it took `seconds(samples, number of the call)`; 0 for a failure."""

    def __init__(self, seconds: Any):
        self.seconds = seconds
        self.heard: list[bytes] = []

    def ask(self, clip: Clip, audio: np.ndarray, is_copy: bool, what: str) -> dict[str, Any]:
        samples = audio.tobytes()
        self.heard.append(samples)
        took = self.seconds(samples, len(self.heard))
        return {"text": "river" if took else None, "wall_seconds": took, "cpu_seconds": took}


@pytest.fixture
def probes() -> list[cache_probes.Probe]:
    audio, clips = {}, []
    for number in range(3):
        name = f"clip{number}"
        audio[name] = np.sin(np.arange(1600 + number, dtype=np.float32))
        clips.append(Clip(name, Path(name), 0.1 + number, "", "en", "river"))
    return cache_probes.prepare(clips, audio, seed=1)


def ratio(engine: Engine, probes: list[cache_probes.Probe]) -> float:
    entries = cache_probes.run(engine, probes, lambda text, language: text)
    return cache_probes.summarise(entries, [])["unseen_over_seen"]


def test_caches_take_longer_for_copies_in_every_attempt(probes: list[cache_probes.Probe]) -> None:
    """Each engine that is asked after the others too: it must not be given a copy twice."""
    clips = {probe.seen.tobytes() for probe in probes}
    for _ in range(3):
        known = set(clips)

        def cached(samples: bytes, number: int, known: set[bytes] = known) -> float:
            found = samples in known
            known.add(samples)  # it learns the copies too: only new ones give it away
            return 0.1 if found else 1.0

        engine = Engine(cached)
        assert ratio(engine, probes) > cache_probes.UNSEEN_OVER_SEEN_LIMIT
        assert len(engine.heard) == cache_probes.ATTEMPTS * 2 * len(probes)


def test_one_disturbed_attempt_is_forgiven(probes: list[cache_probes.Probe]) -> None:
    seen = {probe.seen.tobytes() for probe in probes}
    engine = Engine(lambda samples, n: 1.0 if n > 2 * len(probes) or samples in seen else 1.6)
    assert ratio(engine, probes) == 1.0
    assert len(engine.heard) == 2 * 2 * len(probes)


def probed(wall: tuple[float, float], cpu: tuple[float, float]) -> list[dict[str, Any]]:
    """Two probes of an engine that takes as long for the clip, and for its copy, as stated."""
    seen, unseen = zip(wall, cpu, strict=True)
    seconds = {"seen_seconds": seen[0], "seen_cpu_seconds": seen[1]}
    seconds |= {"unseen_seconds": unseen[0], "unseen_cpu_seconds": unseen[1]}
    return [{"kind": "dithered", "text": "river"} | seconds] * 2


def test_processor_time_excuses_an_engine_that_computes() -> None:
    disturbed = probed(wall=(1.0, 1.8), cpu=(1.0, 1.0))
    assert cache_probes.summarise(disturbed, [])["unseen_over_seen"] == 1.0


def test_processor_time_says_nothing_of_an_engine_that_waits_for_its_work() -> None:
    """A cache in front of a GPU, say: what the worker itself computes is the same with and without it."""
    cached = probed(wall=(0.002, 0.030), cpu=(0.001, 0.0012))
    assert cache_probes.summarise(cached, [])["unseen_over_seen"] == pytest.approx(15.0)


def test_one_quick_answer_is_no_sign_of_an_engine_that_computes() -> None:
    """A splice that happens to be known is looked up, which is all computing; the others wait for a GPU."""
    waiting = probed(wall=(0.002, 0.030), cpu=(0.001, 0.0012))
    quick = probed(wall=(0.002, 0.0007), cpu=(0.001, 0.0006))[:1]
    assert cache_probes.summarise(waiting + quick, [])["unseen_over_seen"] == pytest.approx(15.0)


def test_a_call_counts_as_slowed_only_by_what_the_one_before_was() -> None:
    usual = cache_probes.Usual("river", 2.0, 1.0)
    before = {"wall_seconds": 3.0, "cpu_seconds": 0.5}
    assert usual.slowed(before, cache_probes.Usual("", 1.0, 1.0)) == ("river", 6.0, 1.0)
    assert usual.slowed(before, cache_probes.Usual("", 6.0, 0.1)) == ("river", 2.0, 5.0)


def samples(wall: list[float], cpu: list[float]) -> list[dict[str, Any]]:
    """Samples of two clips, which take alike, in rounds that take so long."""
    return [
        {"clip": clip, "round": number, "wall_seconds": wall[number], "cpu_seconds": cpu[number]}
        | {"error": None, "text_sha256": "f" * 64}
        for number in range(len(wall))
        for clip in ("one", "other")
    ]


@pytest.mark.parametrize(
    ("wall", "cpu", "found"),
    [
        ([1.0, 1.1, 5.0, 1.2], [1.0] * 4, 1.0),  # processor time, where it tells
        ([1.0, 1.1, 5.0, 1.2], [0.0] * 4, 1.2),  # the median of later rounds
        ([0.1, 1.0, 1.0], [0.1, 1.0, 1.0], 10.0),
        ([0.1, 1.0, 1.0], [0.001] * 3, 10.0),  # a server computes elsewhere
        ([0.1, 1.0, 1.0], [0.1] * 3, 10.0),  # and looks up what it knew
        ([1.0], [1.0], None),
    ],
)
def test_later_rounds_over_the_first(wall: list[float], cpu: list[float], found: float | None) -> None:
    assert cache_probes.later_over_first(samples(wall, cpu)) == pytest.approx(found)


def test_a_first_round_whose_times_do_not_count_is_none() -> None:
    run = samples([0.1, 1.0], [0.1, 1.0])
    for sample in run[:2]:
        sample["timed"] = False
    assert cache_probes.later_over_first(run) is None


def test_an_honest_engine_is_asked_once(probes: list[cache_probes.Probe]) -> None:
    engine = Engine(lambda samples, number: 1.0)
    assert ratio(engine, probes) == 1.0
    assert len(engine.heard) == 2 * len(probes)


def test_failing_where_it_is_asked_again_does_not_hide_a_cache(probes: list[cache_probes.Probe]) -> None:
    seen = {probe.seen.tobytes() for probe in probes}
    calls = 2 * len(probes)
    engine = Engine(lambda samples, n: 0.1 if samples in seen else (1.0 if n <= calls else 0.0))
    assert ratio(engine, probes) > cache_probes.UNSEEN_OVER_SEEN_LIMIT
