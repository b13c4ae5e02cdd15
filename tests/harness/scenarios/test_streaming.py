"""The streaming scenario: audio fed in real time, the emulation, stability, the gate, what reports say."""

from __future__ import annotations

import copy
import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tones
from make_run import make_run, result_of

from asrgate.backends.base import SAMPLE_RATE_HZ, Transcript
from asrgate.harness import record
from asrgate.harness.regression import preconditions
from asrgate.harness.regression.compare import NotComparable, compare
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.report import columns, context, rows
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import ScenarioError
from asrgate.harness.scenarios.streaming import Streaming, unstable_words
from asrgate.harness.scoring import gate, score
from asrgate.harness.worker.child import _finished
from asrgate.harness.worker.messages import MessageError
from asrgate.harness.worker.spoken import MOST_PARTIALS, Spoken
from asrgate.harness.worker.streaming_session import Feed, emulated, listen

NATIVE, EMULATED = "streams@cpu/float32", "honest@cpu/float32"
CHEATS = {  # name -> what its row must say
    "stream-ends-early": r"stream\(\) ended after it had taken 0\.\d s of the audio",
    "stream-caches": r"copies that it had not heard took \d+\.\d times as long",
}
CHUNK_SECONDS = 0.4  # two words of the fakes
SPOKEN = {"apples": "red apple white table", "bridge": "stone river north summer cloud"}


class Clock:
    """Time that passes only when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def ns(self) -> int:
        return round(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Line:
    """What connects the two halves of a stream: the worker's feed asks, the parent's clip answers."""

    def __init__(self, spoken: Spoken):
        self.spoken = spoken
        self.chunks: list[np.ndarray] = []

    def send(self, message: dict[str, Any]) -> None:
        if message["event"] == "partial":
            self.spoken.heard(message["text"])
        else:
            self.chunks.append(self.spoken.next_chunk(all_so_far=message["event"] == "spoken"))

    def receive(self) -> dict[str, Any]:
        return {"clips": [self.chunks[-1]], "is_last": self.spoken.is_over}


def stream(
    seconds: float, chunk_seconds: float, clock: Clock, is_paced: bool = True
) -> tuple[Spoken, Feed, Line]:
    audio = np.arange(round(seconds * SAMPLE_RATE_HZ), dtype=np.float32)
    spoken = Spoken(audio, chunk_seconds, is_paced, clock.ns, clock.sleep)
    line = Line(spoken)
    return spoken, Feed(line), line  # type: ignore[arg-type]


def heard(spoken: Spoken, answers: Iterator[Any], feed: Feed) -> dict[str, Any]:
    """Listen to a stream to its end; return the answer with the parent's figures."""
    answer = listen(answers, feed, _finished)
    return answer | spoken.figures(spoken.now_seconds, answer["text"])


# --- the two halves


def test_a_chunk_is_there_when_its_last_sample_has_been_spoken() -> None:
    clock = Clock()
    spoken, feed, _ = stream(2.5, 1.0, clock)
    found = []
    for chunk in feed:
        found.append((clock.now, len(chunk) / SAMPLE_RATE_HZ, chunk[0]))
    assert found == [
        (pytest.approx(1.0), 1.0, 0.0),
        (pytest.approx(2.0), 1.0, SAMPLE_RATE_HZ),
        (pytest.approx(2.5), 0.5, 2 * SAMPLE_RATE_HZ),
    ]
    assert spoken.is_over and spoken.figures(2.5, "")["busy_seconds"] == pytest.approx(0)


def test_who_comes_late_does_not_wait() -> None:
    clock = Clock()
    spoken, feed, _ = stream(3.0, 1.0, clock)
    next(feed)
    clock.sleep(1.5)  # work until 2.5 s
    next(feed)
    assert clock.now == pytest.approx(2.5)
    next(feed)
    assert clock.now == pytest.approx(3.0)
    waited = 3.0 - spoken.figures(3.0, "")["busy_seconds"]
    assert waited == pytest.approx(1.5), "1.0 for the first chunk, 0.5 for the last"


def test_what_has_not_been_spoken_is_not_handed_over() -> None:
    """Nobody can look at it: it is in another process."""
    clock = Clock()
    _, feed, line = stream(3.0, 1.0, clock)
    next(feed)
    feed.take_spoken()
    assert [len(chunk) for chunk in line.chunks] == [SAMPLE_RATE_HZ, 0]
    clock.sleep(1.2)
    feed.take_spoken()
    assert len(line.chunks[-1]) == SAMPLE_RATE_HZ and len(feed.heard) == 2 * SAMPLE_RATE_HZ
    with pytest.raises(ValueError, match="read-only"):
        feed.heard[0] = 1.0


def test_emulation_transcribes_all_audio_so_far_whenever_the_engine_is_free() -> None:
    clock = Clock()
    spoken, feed, _ = stream(5.0, 1.0, clock)
    lengths = []

    def transcribe(audio: np.ndarray) -> Transcript:
        assert audio[0] == 0, "from the beginning, each time"
        lengths.append(len(audio) / SAMPLE_RATE_HZ)
        clock.sleep(1.7)
        return Transcript(f"{len(lengths)} texts")

    answer = heard(spoken, emulated(transcribe, feed), feed)
    # free at 2.7, 4.4, then 6.1, when all had been spoken
    assert lengths == [1.0, 2.0, 4.0, 5.0]
    assert [p["seconds"] for p in answer["partials"]] == pytest.approx([2.7, 4.4, 6.1])
    assert answer["text"] == "4 texts"
    assert answer["first_text_seconds"] == pytest.approx(2.7)
    assert answer["final_latency_seconds"] == pytest.approx(6.1 + 1.7 - 5.0)
    assert answer["busy_seconds"] == pytest.approx(4 * 1.7)


def test_a_stream_that_need_not_wait_is_one_call() -> None:
    clock = Clock()
    spoken, feed, _ = stream(5.0, 1.0, clock, is_paced=False)
    answer = heard(spoken, emulated(lambda audio: Transcript(str(len(audio))), feed), feed)
    assert answer["text"] == str(5 * SAMPLE_RATE_HZ) and answer["partials"] == []
    assert clock.now == 0


def test_the_first_text_is_the_first_with_a_word_and_the_last_is_the_answer() -> None:
    spoken, feed, _ = stream(3.0, 1.0, Clock())

    def said() -> Iterator[Transcript]:
        for text in ("", "  ", "red", ""):
            next(feed, None)
            yield Transcript(text)

    answer = heard(spoken, said(), feed)
    assert answer["first_text_seconds"] == pytest.approx(3.0)
    assert answer["text"] == ""
    assert [p["audio_seconds"] for p in answer["partials"]] == pytest.approx([1.0, 2.0, 3.0])


def test_a_stream_without_any_word_has_no_first_text() -> None:
    spoken, feed, _ = stream(1.0, 1.0, Clock())
    assert heard(spoken, (Transcript("") for _ in feed), feed)["first_text_seconds"] is None


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda feed: (None for _ in feed if False), "gave no Transcript"),
        (lambda feed: ("red" for _ in feed), "returned a str, not a Transcript"),
        (lambda feed: (Transcript(word for word in ["red"]) for _ in feed), "it must be a finished str"),
    ],
)
def test_what_is_no_stream_is_refused(answers: Callable[[Feed], Iterator[Any]], message: str) -> None:
    _, feed, _ = stream(1.0, 1.0, Clock())
    with pytest.raises(TypeError, match=message):
        listen(answers(feed), feed, _finished)


def test_texts_without_end_are_refused() -> None:
    spoken, _, _ = stream(1.0, 1.0, Clock())
    with pytest.raises(MessageError, match="more than 100,000 partial texts"):
        for _ in range(MOST_PARTIALS + 1):
            spoken.heard("red")


# --- stability


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["red", "red apple", "red apple white"], 0),
        (["red", "read apple", "read apple white"], 1),
        (["red apple white", "red chair white"], 2),  # what follows a change moved, too
        (["red apple", ""], 2),
        (["red", "read", "red"], 2),
        (["red"], 0),
    ],
)
def test_a_word_is_unstable_if_the_next_text_takes_it_back(said: list[str], expected: int) -> None:
    assert unstable_words([text.split() for text in said]) == expected


@pytest.mark.parametrize("asked", [0.001, 31.0])
def test_impossible_chunks_are_one_clear_error(asked: float) -> None:
    with pytest.raises(ScenarioError, match=r"must be between 0\.01 and 30"):
        Streaming(asked)


def test_chunks_need_the_scenario(asrgate: Callable[..., int], capsys: Any) -> None:
    assert asrgate("--backends", "twin", "--chunk-seconds", "2") == 2
    assert "--chunk-seconds works only with --scenario streaming" in capsys.readouterr().err


# --- figures, gate and reports, from a record

REFERENCE, OTHER = "whisper-cpu@cpu/float32", "faster-whisper@cpu/int8"
WORDS = ["Red apple, white table.", "stone river north"]


def streaming_run(final_latency_seconds: dict[str, float]) -> Any:
    """A scored and judged run whose variants end their streams so long after the audio."""
    run = make_run(
        list(final_latency_seconds),
        WORDS,
        rounds=1,
        audio_seconds=[2.0, 3.0],
        texts=dict.fromkeys(final_latency_seconds, WORDS),
        settings={"scenario": "streaming", "chunk_seconds": 1.0},
    )
    for result in run["results"]:
        late = final_latency_seconds[result["variant"]]
        result.update(is_emulated=result["variant"] == REFERENCE, streaming=None)
        for sample, clip in zip(result["samples"], run["clips"], strict=True):
            wall = clip["audio_seconds"] + late
            sample.update(
                wall_seconds=wall,
                partials=[
                    {"seconds": 1.2, "audio_seconds": 1.0, "text": sample["text"].split()[0].lower()},
                    {"seconds": 2.2, "audio_seconds": 2.0, "text": f"{sample['text'].split()[0]} chair"},
                ],
                first_text_seconds=1.2,
                final_latency_seconds=late,
                busy_seconds=0.4,
            )
    score.score(run, "whisper", replicates=50)
    gate.judge(run)
    record.validate(run)
    return run


def test_figures_are_of_all_streams_and_letters_that_do_not_count_are_no_change() -> None:
    run = streaming_run({REFERENCE: 0.5, OTHER: 0.2})
    found = result_of(run, OTHER)["streaming"]
    # "red", "Red chair", then "Red apple, white table.": "chair" is taken back, here and in the other clip
    assert found["unstable_partial_word_ratio"] == pytest.approx(2 / 7)
    assert found["partials"] == 4 and found["first_text_median_seconds"] == 1.2
    assert found["busy_fraction"] == pytest.approx(0.8 / 5.4)
    assert result_of(run, OTHER)["latency"]["median_seconds"] == pytest.approx(0.2)
    assert result_of(run, OTHER)["rtfx"] is None, "the audio sets the pace"


def test_the_rank_is_by_final_latency() -> None:
    run = streaming_run({REFERENCE: 0.5, OTHER: 0.2})
    assert [row["variant"] for row in rows(run)] == [OTHER, REFERENCE]
    assert [row["rank"] for row in rows(run)] == [1, 2]
    assert "median final latency" in registry.of(run).order.by in context.scenario(run)
    headings = [c.heading for c in columns.shown(columns.FIGURES, rows(run))]
    assert {"final s", "first text s", "UPWR", "streams"} <= set(headings)
    assert not {"RTFx", "speed-up", "median s", "req/s"} & set(headings)


def test_late_work_is_weighed_against_work_not_against_waiting_for_audio() -> None:
    run = streaming_run({REFERENCE: 0.5, OTHER: 0.2})
    result_of(run, OTHER)["integrity"]["late_work_seconds"] = 0.1  # 2 % of the streams, 12 % of their work
    gate.judge(run)
    assert "it worked for 0.10 s" in str(result_of(run, OTHER)["gate"]["reasons"])


def test_without_texts_partials_are_left_out_too_and_their_figures_stay() -> None:
    run = streaming_run({REFERENCE: 0.5, OTHER: 0.2})
    bare = record.without_texts(run)
    record.validate(bare)
    assert "chair" not in record.dumps(bare)
    assert result_of(bare, OTHER)["streaming"] == result_of(run, OTHER)["streaming"]


def test_runs_of_unlike_chunks_never_meet_and_none_is_compared() -> None:
    run = streaming_run({REFERENCE: 0.5, OTHER: 0.2})
    other = copy.deepcopy(run)
    assert preconditions.differences(run, other) == []
    other["settings"]["chunk_seconds"] = 0.5
    assert [d.kind for d in preconditions.differences(run, other)] == ["scenario"]
    with pytest.raises(NotComparable, match="used the scenario streaming"):
        compare(run, run, Limits())


# --- a whole run with fake engines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run over two short clips: an engine that streams, one that does not, one that flickers, cheats."""
    from asrgate.harness.cli import main

    spoken = tmp_path_factory.mktemp("spoken")
    for name, text in SPOKEN.items():
        soundfile.write(spoken / f"{name}.wav", tones.speak(text), SAMPLE_RATE_HZ, subtype="PCM_16")
        (spoken / f"{name}.txt").write_text(text)
    results = tmp_path_factory.mktemp("streaming")
    status = main(
        ["run", "--audio", str(spoken), "--model", str(model), "--reference", "honest", "--quiet"]
        + ["--backends", ",".join(["streams", "stream-flickers", *CHEATS]), "--results", str(results)]
        + ["--threads", "1", "--scenario", "streaming", "--chunk-seconds", str(CHUNK_SECONDS)]
    )
    assert status == 0
    return results / "latest"


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in record.read(folder)["results"]}


def test_rows_say_whether_they_are_emulated_and_honest_ones_are_ranked(found: dict[str, Any]) -> None:
    assert (found[NATIVE]["is_emulated"], found[EMULATED]["is_emulated"]) == (False, True)
    for name in (NATIVE, EMULATED, "stream-flickers@cpu/float32"):
        assert found[name]["gate"]["ranked"], found[name]["gate"]["reasons"]
        assert [sample["text"] for sample in found[name]["samples"]] == list(SPOKEN.values())


def test_audio_comes_in_real_time(found: dict[str, Any]) -> None:
    for sample, text in zip(found[NATIVE]["samples"], SPOKEN.values(), strict=True):
        seconds = tones.WORD_SECONDS * len(text.split())
        assert sample["wall_seconds"] >= seconds
        assert sample["wall_seconds"] == pytest.approx(seconds + sample["final_latency_seconds"], abs=0.02)
        assert sample["first_text_seconds"] >= CHUNK_SECONDS
        assert sample["partials"][0]["audio_seconds"] == pytest.approx(CHUNK_SECONDS)
        assert sample["partials"][0]["text"] == " ".join(text.split()[:2])
        assert sample["busy_seconds"] < 0.5 * sample["wall_seconds"]


def test_flicker_is_told(found: dict[str, Any]) -> None:
    assert found[NATIVE]["streaming"]["unstable_partial_word_ratio"] == 0
    flicker = found["stream-flickers@cpu/float32"]["streaming"]
    # one wrong word in each text shown: 2 of the first clip, 3 of the second, which have 9 words
    assert flicker["unstable_partial_word_ratio"] == pytest.approx(5 / 9)


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_get_past_the_gate(found: dict[str, Any], name: str) -> None:
    gate_of = found[f"{name}@cpu/float32"]["gate"]
    assert not gate_of["ranked"]
    assert re.search(CHEATS[name], "; ".join(gate_of["reasons"])), gate_of["reasons"]


def test_the_files_tell_the_scenario_and_its_figures(folder: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert "fed in real time, in chunks of 0.4 s" in text and "rank by median final latency" in text
        assert "emulated" in text and "UPWR" in text
    assert (
        "seconds from the end of the audio to the final text" in (folder / "report.html").read_text().lower()
    )
    with (folder / "summary.csv").open(newline="") as file:
        lines = {line["variant"]: line for line in csv.DictReader(file)}
    assert lines[EMULATED]["is_emulated"] == "True" and lines[NATIVE]["is_emulated"] == "False"
    assert float(lines[NATIVE]["first_text_median_seconds"]) >= CHUNK_SECONDS
    with (folder / "samples.csv").open(newline="") as file:
        assert float(next(csv.DictReader(file))["final_latency_seconds"]) > 0
