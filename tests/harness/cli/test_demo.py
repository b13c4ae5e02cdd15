"""`asrgate demo`: a race that shows what was measured, at the speed it was measured."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from make_run import REFERENCE, VARIANTS, add_unavailable, make_run, result_of
from rich.console import Console

from asrgate.harness import record
from asrgate.harness.cli import main
from asrgate.harness.cli.demo import CLIP
from asrgate.harness.record import Run
from asrgate.harness.report import race
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]
SHORT = "stops-early@cpu/float32"
WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture
def run() -> Run:
    """A clip of 10 s that three variants answer in 2, 1 and 0.5 s, the last with four of ten words."""
    made = make_run(
        (*VARIANTS, SHORT),
        [WORDS, None],
        texts={REFERENCE: [WORDS] * 2, OTHER: [WORDS] * 2, SHORT: ["one two three four", "too long"]},
        audio_seconds=[10.0, 40.0],
        rounds=3,
    )
    for variant, seconds in ((REFERENCE, 2.0), (OTHER, 1.0), (SHORT, 0.5)):
        for sample, factor in zip(result_of(made, variant)["samples"][::2], (1.5, 1.0, 0.5), strict=True):
            sample["wall_seconds"] = seconds * factor
    made["warnings"] = ["other programs were busy"]
    add_unavailable(made, "absent@cuda/float16", "no CUDA device")
    score.score(made, "none", replicates=20)
    gate.judge(made)
    return made


def terminal(width: int = 160) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, height=60, force_terminal=True, color_system=None), file


def seen(shown: race.Race, elapsed: float) -> str:
    console, file = terminal()
    console.print(race.frame(shown, elapsed, 1.0, console))
    return file.getvalue()


def line_of(text: str, variant: str, nth: int = 0) -> str:
    return [line for line in text.splitlines() if line.startswith(variant)][nth]


def test_lanes_are_the_measured_calls_with_the_gates_verdict(run: Run) -> None:
    shown = race.race(run)
    assert (shown.clip, shown.audio_seconds, shown.reference) == ("clip-000", 10.0, WORDS)
    lanes = {lane.variant: lane for lane in shown.lanes}
    assert [lane.variant for lane in shown.lanes] == [OTHER, REFERENCE, SHORT]
    assert (lanes[REFERENCE].seconds, lanes[OTHER].seconds, lanes[SHORT].seconds) == (2.0, 1.0, 0.5)
    assert lanes[OTHER].rtfx == pytest.approx(10.0)
    assert lanes[SHORT].wer_percent == pytest.approx(60.0)
    assert lanes[OTHER].verdict == "rank 1"
    assert lanes[SHORT].verdict.startswith("not ranked: WER 60.0% is above the ceiling")
    assert shown.absent == ["absent@cuda/float16: no CUDA device"]
    assert shown.seconds == 2.0


def test_text_appears_with_time_and_figures_at_the_end(run: Run) -> None:
    shown = race.race(run)
    start, middle, end = (seen(shown, elapsed) for elapsed in (0.0, 1.0, 2.0))
    assert "one" not in line_of(start, REFERENCE, 1)
    assert line_of(middle, REFERENCE, 1).split(maxsplit=1)[1].strip() == "one two three four five"
    assert line_of(middle, OTHER, 1).endswith(WORDS)
    assert "1.00" in line_of(middle, REFERENCE) and "running" in line_of(middle, REFERENCE)
    assert "rank" not in line_of(middle, REFERENCE) and "rank 1" in line_of(middle, OTHER)
    finished = line_of(end, REFERENCE).split()
    assert finished[-5:] == ["2.00", "5.00", "0.00", "rank", "2"]
    assert "measured alone, one after the other" in start
    assert "at true speed" in start
    assert "Warning: other programs were busy" in start
    for fact in ("tiny.en", "greedy", "Imaginary 9000"):
        assert fact in start


def test_it_lasts_as_long_as_the_slowest_took(run: Run) -> None:
    for speed, expected in ((1.0, 2.0), (4.0, 0.5)):
        now, (console, file) = [100.0], terminal()

        def sleep(seconds: float, now: list[float] = now) -> None:
            now[0] += seconds

        race.show(race.race(run), console, speed, clock=lambda now=now: now[0], sleep=sleep)
        assert now[0] - 100 == pytest.approx(expected, abs=2 / race.FRAMES_A_SECOND)
        last = file.getvalue().rpartition("verdict of the gate")[2]
        assert "rank 2" in last and "running" not in last


def test_no_terminal_gets_one_line_a_finish_without_waiting(run: Run) -> None:
    file = io.StringIO()

    def sleep(seconds: float) -> None:
        raise AssertionError("nobody watches")

    race.show(race.race(run), Console(file=file, width=80), sleep=sleep)
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    assert [line.split(":")[0] for line in lines[2:5]] == [SHORT, OTHER, REFERENCE]
    assert lines[3] == f"{OTHER}: 1.00 s, RTFx 10.0, WER 0.00 %, rank 1; {WORDS}"


def test_clip_that_failed_is_told_without_a_time(run: Run) -> None:
    for sample in result_of(run, SHORT)["samples"]:
        sample |= {"text": None, "text_sha256": None, "wall_seconds": None, "error": "ValueError: [red]no"}
    score.score(run, "none", replicates=20)
    gate.judge(run)
    lane = race.race(run).lanes[-1]
    assert (lane.variant, lane.seconds, lane.rtfx) == (SHORT, None, None)
    assert "no answer: ValueError: [red]no" in seen(race.race(run), 0.0)


def test_texts_that_were_not_stored(run: Run) -> None:
    assert "(text not stored)" in seen(race.race(record.without_texts(run)), 2.0)


def test_replay_of_a_stored_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write(run, tmp_path / "run.json")
    assert main(["demo", "--replay", str(tmp_path), "--clip", "clip-001"]) == 0
    assert capsys.readouterr().out.startswith("clip-001, 40.0 s of audio")
    assert main(["demo", "--replay", str(tmp_path), "--clip", "clip-009"]) == 2
    assert "has no clip 'clip-009'; it has clip-000, clip-001" in capsys.readouterr().err


def test_demo_measures_like_any_run(
    spoken: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = spoken / "letter.wav"
    status = main(
        ["demo", "--audio", str(clip), "--model", str(model), "--reference", "honest", "--threads", "1"]
        + ["--backends", "twin,stops-early", "--rounds", "1", "--results", str(tmp_path / "results")]
    )
    assert status == 0
    out = capsys.readouterr().out
    run = record.read(tmp_path / "results" / "latest")
    assert {row["backend"]: row["gate"]["ranked"] for row in run["results"]} == {
        "honest": True,
        "twin": True,
        "stops-early": False,
    }
    assert "twin@cpu/float32: " in out and "; paper letter number train" in out
    assert f"asrgate demo --replay {tmp_path / 'results' / run['run_id']}" in out


def test_bundled_clip_has_its_text() -> None:
    from asrgate.harness.corpus.clips import load_clips

    (clip,) = load_clips([CLIP])
    assert 5 < clip.audio_seconds <= 30
    assert len((clip.reference or "").split()) > 10
