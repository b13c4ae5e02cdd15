"""The server scenario: arrivals, the queue and its waiting, the search for a rate, the gate over it all."""

from __future__ import annotations

import copy
import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_run import make_run, result_of

from asrgate.harness import record
from asrgate.harness.cli import history as history_command
from asrgate.harness.cli.baseline import BaselineError, save
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.regression import preconditions
from asrgate.harness.regression.compare import NotComparable, compare
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.report import columns, context, history, rows
from asrgate.harness.report.race import RaceError, race
from asrgate.harness.scenarios import registry, server_requests
from asrgate.harness.scenarios.scenario import Answered, Load, ScenarioError
from asrgate.harness.scenarios.server_sessions import ServerGenerator, largest_queue
from asrgate.harness.scoring import gate, score

REQUESTS, RATE = 15, 12.0
CHEATS = {  # name -> what its row must say
    "caches-answers": r"splices of two clips took \d+\.\d times as long as a clip",
    "returns-before-device": r"it worked for \d+\.\d+ s after its calls had returned",
}
TEXTS = ["red apple white table", "stone river north", "paper letter number", "window winter west water"]


class FakeWorker:
    """Answers request after request in so many seconds, on the clock of the server that asks it."""

    variant = "fake@cpu/float32"

    def __init__(self, *service_seconds: float, error: str | None = None):
        self.clock = 0.0
        self.error = error
        self.settled: list[int] = []
        self._service_seconds = service_seconds
        self._asked = 0

    def sleep(self, seconds: float) -> None:
        self.clock += seconds + 1e-9  # a sleep is never shorter than asked for

    def request(self, samples: np.ndarray, language: str, what: str) -> dict[str, Any]:
        seconds = self._service_seconds[min(self._asked, len(self._service_seconds) - 1)]
        self._asked += 1
        self.clock += seconds
        return {"error": self.error, "text": what, "wall_seconds": seconds, "late_work_seconds": None}

    def settle(self, what: str) -> float:
        self.settled.append(self._asked - 1)
        return 0.0


def held_by(worker: FakeWorker, terms: Any) -> ServerGenerator:
    audio = dict.fromkeys(("c0", "c1"), np.zeros(16, np.float32))
    load = Load(clips(3.0, 4.0), audio, rounds=1, seed=0, audio_seed=1, stage=lambda *_: None)
    return ServerGenerator(terms, load, clock=lambda: worker.clock, sleep=worker.sleep)


def requests_of(worker: FakeWorker, terms: Any, sessions: list[dict[str, Any]]) -> Iterator[Answered]:
    """Hold the sessions of one round; their entries of the record are added to `sessions`."""
    generator: Any = held_by(worker, terms)
    found: Iterator[Answered] = generator.measure(worker, 0, lambda _: False, {"sessions": sessions})
    return found


# --- one session


def session(
    monkeypatch: pytest.MonkeyPatch, due: list[float], worker: FakeWorker, limit: float = 300.0
) -> list[Any]:
    monkeypatch.setattr("asrgate.harness.scenarios.server_sessions.arrivals", lambda *_: due)
    monkeypatch.setattr("asrgate.harness.scenarios.server_sessions.drawn", lambda *_: [0] * len(due))
    terms = server_requests.Terms(1.0, None, len(due), limit)
    return list(requests_of(worker, terms, []))


def test_a_request_waits_for_the_one_before_and_its_waiting_is_on_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = session(monkeypatch, [1.0, 1.5, 9.0], FakeWorker(2.0, 1.0, 0.5))
    assert [r.fields["start_seconds"] for r in found] == pytest.approx([1.0, 3.0, 9.0])
    assert [r.fields["finish_seconds"] for r in found] == pytest.approx([3.0, 4.0, 9.5])
    assert [r.fields["arrival_seconds"] for r in found] == [1.0, 1.5, 9.0]
    assert [r.answer["text"] for r in found] == [f"answering request {n}" for n in (1, 2, 3)]


def test_late_work_is_looked_for_only_where_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FakeWorker(1.0)
    found = session(monkeypatch, [0.0, 0.5, 9.0], worker)
    assert worker.settled == [1, 2], "after request 0 the next one waits already"
    assert [r.answer["late_work_seconds"] for r in found] == [None, 0.0, 0.0]


def test_nothing_is_begun_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(monkeypatch, [0.0] * 5, FakeWorker(1.0), limit=2.5)
    assert [r.fields["request"] for r in found] == [0, 1, 2]


# --- what is asked


def clips(*seconds: float) -> list[Clip]:
    return [Clip(f"c{n}", Path(f"c{n}.wav"), s, "0" * 64, "en", None, {}) for n, s in enumerate(seconds)]


def asked(**changes: Any) -> server_requests.Terms:
    given = {"rate": 2.0, "find_max_rate": False, "p99": None, "requests": None, "limit_seconds": None}
    return server_requests.terms(**{**given, "clips": clips(3.0, 4.0), "rounds": 1, **changes})


def test_arrivals_are_poisson_of_the_rate_asked_for_and_seeded() -> None:
    found = np.array(server_requests.arrivals(4000, 5.0, seed=3))
    gaps = np.diff(found)
    assert 4000 / found[-1] == pytest.approx(5.0, rel=0.01)
    assert np.mean(gaps) == pytest.approx(np.std(gaps), rel=0.06), "of exponential gaps both are the same"
    assert found.tolist() == server_requests.arrivals(4000, 5.0, seed=3)
    assert found.tolist() != server_requests.arrivals(4000, 5.0, seed=4)
    doubled = server_requests.arrivals(4000, 10.0, seed=3)
    assert doubled == pytest.approx(found / 2), "one seed, another rate: the same arrivals, nearer together"


def test_each_clip_is_asked_for_before_any_is_asked_for_again() -> None:
    order = server_requests.drawn(7, 50, seed=0)
    assert sorted(order[:7]) == list(range(7))
    assert len(order) == 50 and set(order[7:]) <= set(range(7))
    assert order != server_requests.drawn(7, 50, seed=1)


def test_there_are_enough_requests_for_a_99th_percentile_and_for_every_clip() -> None:
    assert asked().requests == 100
    assert asked(clips=clips(*[1.0] * 130)).requests == 130


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": None}, "needs either --rate R"),
        ({"find_max_rate": True, "p99": 1.0}, "needs either --rate R"),
        ({"rate": None, "find_max_rate": True}, "needs --p99 S"),
        ({"p99": 1.0}, "--p99 is the limit for --find-max-rate"),
        ({"rate": None, "find_max_rate": True, "p99": 1.0, "rounds": 2}, "searches once"),
        ({"requests": 1}, "less than the 2 clips"),
        ({"rate": 0.1}, "take 1000 s, more than --server-seconds 300"),
        ({"clips": clips(*[3600.0] * 5)}, r"need 1\.1 GiB"),
    ],
)
def test_contradictions_are_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        asked(**changes)


def test_options_of_a_server_need_the_scenario(asrgate: Callable[..., int], capsys: Any) -> None:
    assert asrgate("--backends", "twin", "--rate", "2") == 2
    assert "--rate works only with --scenario server" in capsys.readouterr().err
    assert asrgate("--backends", "twin", "--scenario", "server") == 2
    assert "needs either --rate R" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("starts", "expected"), [([0.0, 3.0, 6.0, 9.0], 1), ([0.0, 1.0, 2.0, 8.0], 0), ([0.0], 2), ([], 3)]
)
def test_the_queue_is_what_a_request_finds_waiting(starts: list[float], expected: int) -> None:
    assert largest_queue([0.0, 1.0, 2.0, 8.0], starts) == expected


# --- the search, with a worker of known speed


def search(
    service_seconds: float, p99: float, limit_seconds: float = 300.0, error: str | None = None
) -> list[dict[str, Any]]:
    terms = asked(rate=None, find_max_rate=True, p99=p99, limit_seconds=limit_seconds)
    worker = FakeWorker(service_seconds, error=error)
    sessions: list[dict[str, Any]] = []
    requests = list(requests_of(worker, terms, sessions))
    assert len(requests) == 100
    return sessions


def test_the_search_ends_at_the_largest_rate_that_keeps_the_limit_and_confirms_it() -> None:
    sessions = search(0.1, p99=0.35)
    purposes = [s["purpose"] for s in sessions]
    assert purposes[:7] == ["capacity"] + ["search"] * 6 and set(purposes[7:]) == {"confirm"}
    found = sessions[-1]
    assert found["is_kept"] and found["is_within"] and found["p99_seconds"] <= 0.35
    assert [s["is_kept"] for s in sessions[:-1]] == [False] * (len(sessions) - 1)
    assert found["rate_per_second"] < 10, "the engine answers 10 requests a second, without any pause"
    tried = {s["rate_per_second"]: s["is_within"] for s in sessions if s["purpose"] == "search"}
    passed, failed = ([rate for rate, within in tried.items() if within is kept] for kept in (True, False))
    assert max(passed) < min(failed), "one seed: what a rate keeps, a lower one keeps"
    assert min(failed) - max(passed) == pytest.approx(10 / 2**6)
    assert {s["seed"] for s in sessions[:7]} == {0}
    assert 0 not in {s["seed"] for s in sessions[7:]}, "confirmed with arrivals the search has not seen"


def test_an_engine_slower_than_the_limit_is_not_tried_at_all_rates() -> None:
    sessions = search(0.5, p99=0.4)
    assert [s["purpose"] for s in sessions] == ["capacity"]
    assert sessions[0]["is_within"] is False and sessions[0]["is_kept"]


def test_no_rate_is_kept_by_requests_that_fail_or_by_a_queue_that_only_grows() -> None:
    assert not any(s["is_within"] for s in search(0.1, p99=0.35, error="the engine broke"))
    sessions = search(0.1, p99=60.0)  # a limit that even all requests at once would keep
    assert sessions[0]["purpose"] == "capacity" and sessions[0]["p99_seconds"] < 60
    assert not sessions[0]["is_within"]
    assert all(s["busy_seconds"] <= s["arrivals_seconds"] for s in sessions if s["is_within"])


def test_the_search_is_bounded_by_the_seconds_of_a_session() -> None:
    sessions = search(0.1, p99=0.1000001, limit_seconds=25.0)
    assert all(s["arrivals_seconds"] <= 25.0 for s in sessions), "no trial outlasts the limit"
    assert not any(s["is_within"] for s in sessions)


def test_a_session_that_runs_out_of_time_says_so_and_has_asked_for_every_clip() -> None:
    terms = asked(rate=10.0, limit_seconds=12.0)
    worker = FakeWorker(0.5)
    sessions: list[dict[str, Any]] = []
    requests = list(requests_of(worker, terms, sessions))
    assert {request.clip.name for request in requests[:2]} == {"c0", "c1"}
    (held,) = sessions
    assert held["is_cut_off"] and held["is_kept"] and held["answered"] == len(requests) == 24
    assert held["largest_queue"] > 50


def test_a_session_that_something_ended_is_none() -> None:
    worker = FakeWorker(0.1)
    sessions: list[dict[str, Any]] = []
    requests = requests_of(worker, asked(), sessions)
    next(requests)
    requests.close()  # type: ignore[attr-defined]
    assert sessions == []


# --- figures, gate and reports, from a record


def in_turn(arrivals: list[float], seconds: float) -> list[dict[str, float]]:
    """Return when each request is begun and answered if each takes so long, one after the other."""
    found = []
    free = 0.0
    for arrival in arrivals:
        begun = max(arrival, free)
        free = begun + seconds
        found.append({"start_seconds": begun, "finish_seconds": free})
    return found


def server_run(service_seconds: dict[str, float], rate: float | None = 5.0, p99: float | None = None) -> Any:
    """A scored and judged run whose variants answer in the given seconds."""
    terms = {"rate_per_second": rate, "p99_seconds": p99, "requests": 40, "limit_seconds": 60.0}
    run = make_run(
        list(service_seconds),
        TEXTS,
        rounds=1,
        texts=dict.fromkeys(service_seconds, TEXTS),
        settings={"scenario": "server", "server": terms, "rounds": 1},
    )
    for result in run["results"]:
        seconds = service_seconds[result["variant"]]
        arrivals = server_requests.arrivals(40, rate or 5.0, 0)
        served = in_turn(arrivals, seconds)
        firsts = {sample["clip"]: sample for sample in result["samples"]}
        result["samples"] = [
            firsts[f"clip-{n % 4:03}"]
            | {"request": n, "arrival_seconds": arrivals[n], "wall_seconds": seconds}
            | {"cpu_seconds": 0.9 * seconds}
            | {"late_work_seconds": None if n % 2 else 0.0}
            | {name: served[n][name] for name in ("start_seconds", "finish_seconds")}
            for n in range(40)
        ]
        latencies = [s["finish_seconds"] - s["arrival_seconds"] for s in result["samples"]]
        result["sessions"] = [
            {
                "purpose": "confirm" if rate is None else "measure",
                "round": 0,
                "is_kept": True,
                "rate_per_second": rate or 5.0,
                "seed": 0,
                "requests": 40,
                "answered": 40,
                "failed": 0,
                "arrivals_seconds": arrivals[-1],
                "finish_seconds": served[-1]["finish_seconds"],
                "busy_seconds": 40 * seconds,
                "largest_queue": largest_queue(arrivals, [s["start_seconds"] for s in served]),
                "median_seconds": float(np.median(latencies)),
                "p99_seconds": float(np.percentile(latencies, 99)),
                "is_cut_off": False,
                "is_within": None if p99 is None else bool(np.percentile(latencies, 99) <= p99),
            }
        ]
        result["server"] = None
    score.score(run, replicates=50)
    gate.judge(run)
    record.validate(run)
    return run


REFERENCE, OTHER = "whisper-cpu@cpu/float32", "faster-whisper@cpu/int8"


def test_latency_counts_from_the_arrival_and_rtfx_does_not() -> None:
    run = server_run({REFERENCE: 0.05, OTHER: 0.15})
    result = result_of(run, OTHER)
    waits = [s["finish_seconds"] - s["arrival_seconds"] for s in result["samples"]]
    assert result["latency"]["p99_seconds"] == pytest.approx(np.percentile(waits, 99))
    assert result["latency"]["p99_seconds"] > 0.3, "twice what a call takes"
    assert result["rtfx"]["wall_seconds"] == pytest.approx(40 * 0.15)
    server = result["server"]
    last = result["sessions"][0]["finish_seconds"]
    assert server["utilisation"] == pytest.approx(40 * 0.15 / last)
    assert server["achieved_per_second"] == pytest.approx(40 / last)
    assert (server["max_rate_per_second"], server["is_overloaded"]) == (None, False)


def test_the_rank_is_by_p99_latency_at_a_rate_and_by_the_rate_where_it_is_searched() -> None:
    run = server_run({REFERENCE: 0.15, OTHER: 0.05})
    assert result_of(run, OTHER)["gate"]["rank"] == 1
    assert result_of(run, REFERENCE)["gate"]["rank"] == 2
    assert registry.of(run).order.by == "p99 latency"
    for result, found in zip(run["results"], (9.0, 7.0), strict=True):
        result["server"]["max_rate_per_second"] = found
    run["settings"]["server"].update(rate_per_second=None, p99_seconds=5.0)
    gate.judge(run)
    assert result_of(run, REFERENCE)["gate"]["rank"] == 1, "its rate is the larger one"
    assert [row["speedup"] for row in rows(run)] == [None, None], "RTFx does not rank here"


def test_an_overloaded_row_is_not_ranked_and_as_reference_is_sound_all_the_same() -> None:
    run = server_run({REFERENCE: 0.3, OTHER: 0.05})
    slow, fast = result_of(run, REFERENCE), result_of(run, OTHER)
    assert slow["server"]["is_overloaded"] and not slow["gate"]["ranked"]
    assert re.search(r"overloaded: it answers 3\.\d+ requests/s but 5 arrive", slow["gate"]["reasons"][0])
    assert fast["gate"]["ranked"], fast["gate"]["reasons"]
    cut = slow["sessions"][0]
    cut.update(is_cut_off=True, answered=30)
    assert list(registry.of(run).faults(slow)) == [
        "overloaded at 5 requests/s: 10 of 40 were not started within 60 s"
    ]


def test_a_search_that_found_nothing_has_a_reason_and_no_latency() -> None:
    run = server_run({REFERENCE: 0.05, OTHER: 0.15}, rate=None, p99=0.3)
    reference, slow = result_of(run, REFERENCE), result_of(run, OTHER)
    assert reference["server"]["max_rate_per_second"] == 5.0 and reference["gate"]["ranked"]
    assert slow["latency"] is None and slow["server"]["max_rate_per_second"] is None
    assert "no rate was found at which 99 of 100 requests are answered within 0.3 s" in str(slow["gate"])


def test_late_work_is_weighed_against_the_calls_that_were_looked_at() -> None:
    run = server_run({REFERENCE: 0.05, OTHER: 0.05})
    integrity = result_of(run, OTHER)["integrity"]
    integrity["late_work_seconds"] = 0.06  # of 20 calls of 0.05 s, half of those measured
    gate.judge(run)
    assert "it worked for 0.06 s" in str(result_of(run, OTHER)["gate"]["reasons"])


def test_runs_at_unlike_rates_never_meet_and_none_is_compared(tmp_path: Path) -> None:
    run = server_run({REFERENCE: 0.05, OTHER: 0.1})
    other = copy.deepcopy(run)
    assert preconditions.differences(run, other) == []
    other["settings"]["server"]["rate_per_second"] = 6.0
    assert [d.kind for d in preconditions.differences(run, other)] == ["scenario"]
    with pytest.raises(NotComparable, match="used the scenario server"):
        compare(run, run, Limits())
    with pytest.raises(RaceError, match="used the scenario server"):
        race(run)
    with pytest.raises(BaselineError, match="save a single-stream or offline run"):
        save(tmp_path, run)
    assert not list(tmp_path.iterdir())


def test_history_keeps_rates_apart_and_tells_them() -> None:
    run = server_run({REFERENCE: 0.05, OTHER: 0.1})
    other = copy.deepcopy(run)
    other["run_id"] = "20260102T030405Z-ffff"
    other["settings"]["server"]["rate_per_second"] = 6.0
    lines = list(csv.DictReader(history_command.to_csv(history.series([run, other], "latency")).splitlines()))
    assert {(line["series"], line["scenario"]) for line in lines} == {
        ("1", "server at 5 requests/s, 40 requests"),
        ("2", "server at 6 requests/s, 40 requests"),
    }
    median = result_of(run, OTHER)["latency"]["median_seconds"]
    assert float(next(line["value"] for line in lines if line["variant"] == OTHER)) == pytest.approx(median)


def test_latency_columns_say_whose_latency_it_is() -> None:
    run = server_run({REFERENCE: 0.05, OTHER: 0.1})
    built = rows(run)
    shown = {c.heading: c.meaning for c in columns.shown(columns.FIGURES, built)}
    assert "including waiting" in shown["median s"] and "including waiting" in shown["p99 s"]
    assert "queue" in shown and "max req/s" not in shown and "speed-up" not in shown
    times = [c.heading for c in columns.shown(columns.TIMES, built)]
    assert "p99 s" not in times, "the 99th percentile of a call is another figure"
    assert "5 requests/s" in context.scenario(run) and "ranked by p99 latency" in context.scenario(run)


# --- a whole run with fake engines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, spoken: Path, model: Path) -> Path:
    """A run at a rate that the honest engines keep up with: them, and cheats."""
    from asrgate.harness.cli import main

    results = tmp_path_factory.mktemp("server")
    status = main(
        ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest", "--quiet"]
        + ["--backends", ",".join(["twin", *CHEATS]), "--results", str(results), "--threads", "1"]
        + ["--scenario", "server", "--rate", str(RATE), "--server-requests", str(REQUESTS)]
    )
    assert status == 0
    return results / "latest"


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in record.read(folder)["results"]}


def test_honest_engines_are_ranked_by_what_they_were_asked_alike(found: dict[str, Any]) -> None:
    honest, twin = found["honest@cpu/float32"], found["twin@cpu/float32"]
    assert {honest["gate"]["rank"], twin["gate"]["rank"]} == {1, 2}, (honest["gate"], twin["gate"])
    asked_of = [[(s["clip"], s["arrival_seconds"]) for s in row["samples"]] for row in (honest, twin)]
    assert asked_of[0] == asked_of[1] and len(asked_of[0]) == REQUESTS
    for sample in twin["samples"]:
        assert sample["finish_seconds"] >= sample["start_seconds"] >= sample["arrival_seconds"]
        assert sample["wall_seconds"] <= sample["finish_seconds"] - sample["start_seconds"]
    starts = [s["start_seconds"] for s in twin["samples"]]
    ends = [s["finish_seconds"] for s in twin["samples"]]
    assert all(start >= end for start, end in zip(starts[1:], ends, strict=False)), "one at a time"


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_get_past_the_gate(found: dict[str, Any], name: str) -> None:
    gate_of = found[f"{name}@cpu/float32"]["gate"]
    assert not gate_of["ranked"]
    assert re.search(CHEATS[name], "; ".join(gate_of["reasons"])), gate_of["reasons"]


def test_the_files_tell_the_scenario_and_its_figures(folder: Path, found: dict[str, Any]) -> None:
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "requests arrive at random" in text and "rank by p99 latency" in text
    with (folder / "summary.csv").open(newline="") as file:
        lines = {line["variant"]: line for line in csv.DictReader(file)}
    assert lines["twin@cpu/float32"]["scenario"] == "server"
    assert float(lines["twin@cpu/float32"]["utilisation"]) < 1
    with (folder / "samples.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert first["request"] == "0" and float(first["finish_seconds"]) > float(first["arrival_seconds"]) > 0
    assert not (folder / "journal.jsonl").exists()


def test_the_largest_rate_is_found_by_sessions_really_held(
    asrgate: Callable[..., int], tmp_path: Path
) -> None:
    arguments = (
        "--backends twin --no-reference --scenario server --find-max-rate --p99 0.15 --server-requests 5"
    )
    assert asrgate(*arguments.split()) == 0
    (row,) = record.read(tmp_path / "results" / "latest")["results"]
    rate = row["server"]["max_rate_per_second"]
    assert rate is not None and 3 < rate < 40, row["sessions"]
    assert row["latency"]["p99_seconds"] <= 0.15
    assert sum(s["is_kept"] for s in row["sessions"]) == 1 and len(row["samples"]) == 5
