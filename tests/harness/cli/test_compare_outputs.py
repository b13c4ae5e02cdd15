"""compare-outputs: rates, word differences, the first differing token, and the margin there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fake_checkpoint import write_fake_checkpoint
from make_run import REFERENCE, make_run
from paths import ROOT

from asrgate.backends.base import BackendError, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.inspection import token_margins
from asrgate.backends.inspection.token_margins import Decision, Window, decide
from asrgate.backends.openai_whisper import WhisperCpu
from asrgate.harness import record
from asrgate.harness.cli import main
from asrgate.harness.corpus import audio
from asrgate.harness.diagnose import transcripts
from asrgate.harness.diagnose.token_text import token_text
from asrgate.harness.diagnose.transcripts import (
    Chunk,
    Divergence,
    compare_outputs,
    first_divergence,
    word_chunks,
)
from asrgate.harness.diagnose.transcripts_report import as_markdown, is_narrow
from asrgate.harness.record import Run, text_sha256

OTHER = "faster-whisper@cpu/int8"
ENGLISH = 51_864
BEGIN = ENGLISH - 1501


def run_with(reference: list[Any], other: list[Any], tokens: dict[str, list[Any]] | None = None) -> Run:
    """A run of one round whose variants wrote these texts and, if given, these tokens."""
    run = make_run(
        (REFERENCE, OTHER),
        [text or "x" for text in reference],
        rounds=1,
        texts={REFERENCE: reference, OTHER: other},
    )
    for row in run["results"]:
        for sample, ids in zip(row["samples"], (tokens or {}).get(row["variant"], []), strict=False):
            sample["tokens"], sample["token_count"] = ids, ids and len(ids)
    return run


def write(run: Run, tmp_path: Path) -> Path:
    record.write(run, tmp_path / "run.json")
    return tmp_path / "run.json"


# words and tokens


def test_words_are_compared_as_they_were_written() -> None:
    assert word_chunks("The cat sat.", "The cat sat down now.") == [
        Chunk("equal", ["The", "cat"], ["The", "cat"]),
        Chunk("insert", [], ["sat", "down"]),
        Chunk("substitute", ["sat."], ["now."]),
    ]
    assert word_chunks("a b", "a") == [Chunk("equal", ["a"], ["a"]), Chunk("delete", ["b"], [])]
    assert word_chunks("", "") == []


@pytest.mark.parametrize(
    ("reference", "output", "index", "there", "here"),
    [
        ([1, 2, 3], [1, 9, 3], 1, 2, 9),
        ([1, 2, 3], [1, 2], 2, 3, None),
        ([1], [1, 7], 1, None, 7),
        ([], [4], 0, None, 4),
    ],
)
def test_first_other_token(
    reference: list[int], output: list[int], index: int, there: int | None, here: int | None
) -> None:
    found = first_divergence(reference, output, ENGLISH)
    assert found is not None
    assert found.index == index
    assert (found.reference and found.reference.id) == there
    assert (found.output and found.output.id) == here


def test_equal_tokens_do_not_diverge() -> None:
    assert first_divergence([1, 2], (1, 2), ENGLISH) is None


@pytest.mark.parametrize("multilingual", [False, True])
def test_tokens_are_written_as_openai_whisper_writes_them(multilingual: bool) -> None:
    from whisper.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(multilingual, num_languages=99)
    n_vocab = 51_865 if multilingual else ENGLISH
    for token in (0, 262, 7586, 50_255, tokenizer.eot, tokenizer.timestamp_begin, n_vocab - 1):
        expected = tokenizer.decode_with_timestamps([token]) if token >= tokenizer.timestamp_begin else None
        assert token_text(token, n_vocab) == (expected or tokenizer.encoding.decode([token]))
    assert token_text(tokenizer.sot, n_vocab) is None


def test_a_part_of_a_character_is_shown_by_its_bytes() -> None:
    assert token_text(94, 51_865) == "\\xa1"


# what is counted


def test_rates_count_texts_and_tokens_apart() -> None:
    run = run_with(
        ["a b", "c", "d", "e"],
        ["a b", "c", "D", None],
        {REFERENCE: [[1], [2], [3], [4]], OTHER: [[1], [9], [8], None]},
    )
    found = compare_outputs(run)
    (output,) = found.outputs
    assert (found.reference, found.clips) == (REFERENCE, 4)
    assert (output.clips, output.same_text, output.token_clips, output.same_tokens) == (3, 2, 3, 1)
    assert output.unanswered == [run["clips"][3]["name"]]
    assert [answer.clip for answer in output.differences] == [clip["name"] for clip in run["clips"][1:3]]


def test_an_engine_that_tells_no_tokens_is_compared_by_text_and_said_so() -> None:
    run = run_with(["a", "b"], ["a", "x"], {REFERENCE: [[1], [2]], OTHER: [None, None]})
    found = compare_outputs(run)
    assert found.outputs[0].token_clips == 0
    assert any(f"no tokens from {OTHER}" in remark for remark in found.remarks)
    assert found.outputs[0].differences[0].divergence is None


def test_a_run_without_texts_tells_which_differ_and_why_not_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record.without_texts(run_with(["one two", "three"], ["one two", "four"]))
    path = write(run, tmp_path)
    assert main(["compare-outputs", str(path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 (50.0 %)" in out
    assert "stored with --no-texts" in out
    assert run["clips"][1]["name"] in out
    assert main(["compare-outputs", str(path), "--margins"]) == 2
    assert "--no-texts" in capsys.readouterr().err


def test_reference_may_be_any_variant_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with(["a"], ["b"])
    assert compare_outputs(run, "faster-whisper").reference == OTHER
    assert main(["compare-outputs", str(write(run, tmp_path)), "--reference", "max"]) == 2
    err = capsys.readouterr().err
    assert f"the run has no 'max'; variants with answers: {REFERENCE}, {OTHER}" in err


def test_a_reference_that_answered_nothing_is_an_error() -> None:
    with pytest.raises(
        transcripts.OutputsError, match=r"answered no clip .* choose another with --reference: faster"
    ):
        compare_outputs(run_with([None], ["b"]))


# how it looks


TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


@pytest.mark.parametrize("columns", [80, 140])
def test_differences_are_marked_side_by_side_without_colour(
    columns: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run = run_with([f"{TEXT} end stop"], [f"{TEXT} fin stop more"])
    assert main(["compare-outputs", str(write(run, tmp_path))]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    left, right = zip(*(line.split("│") for line in out.splitlines() if "│" in line), strict=True)
    assert "~end~" in " ".join(left)
    assert "~fin~" in " ".join(right)
    assert "{+more+}" in " ".join(right)
    assert "… 8 words …" in " ".join(" ".join(left).split())
    assert "first differing token" in out or "tokens" in out


def test_all_shows_what_is_the_same_too_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with([f"{TEXT} end", "same"], [f"{TEXT} fin", "same"])
    path = write(run, tmp_path)
    assert main(["compare-outputs", str(path)]) == 0
    assert run["clips"][1]["name"] not in capsys.readouterr().out
    assert main(["compare-outputs", str(path), "--all"]) == 0
    out = capsys.readouterr().out
    assert run["clips"][1]["name"] in out
    assert "words …" not in out


def test_hostile_texts_stay_text_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[red]x[/red] | <script> \x1b[31m **b** a_b"
    run = run_with(["plain text"], [hostile])
    shown = tmp_path / "o.md"
    assert main(["compare-outputs", str(write(run, tmp_path)), "--markdown", str(shown)]) == 0
    assert "\x1b[31m" not in capsys.readouterr().out
    written = shown.read_text()
    assert "<script>" not in written
    assert "\x1b" not in written
    (row,) = [line for line in written.splitlines() if "script" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3  # still two cells


def test_markdown_marks_differences_as_github_shows_them() -> None:
    run = run_with(["a b c d e f"], ["a x d e f g"])
    written = as_markdown(compare_outputs(run), everything=False)
    assert "| a **b** <del>c</del> d e f | a **x** d e f <ins>g</ins> |" in written
    assert f"| {OTHER} | 0 of 1 (0.0 %) |" in written


def test_json_is_one_document_with_its_version(tmp_path: Path) -> None:
    run = run_with(["a b"], ["a c"], {REFERENCE: [[64, 275]], OTHER: [[64, 269]]})
    stored = tmp_path / "o.json"
    assert main(["compare-outputs", str(write(run, tmp_path)), "--json", str(stored)]) == 0
    document = json.loads(stored.read_text())
    assert document["schema_version"] == 1
    (answer,) = document["outputs"][0]["answers"]
    assert answer["divergence"]["index"] == 1
    assert answer["divergence"]["reference"] == {"id": 275, "text": " b"}
    assert answer["divergence"]["output"] == {"id": 269, "text": " c"}
    assert answer["divergence"]["decision"] is None


# the margin


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> WhisperCpu:
    path = write_fake_checkpoint(tmp_path_factory.mktemp("margins") / "fake.en.pt")
    return WhisperCpu.load(resolve(str(path)), "cpu", "float32", Settings(threads=1, no_speech_threshold=2.0))


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A bundled clip at half its level, so that it is none of the bundled clips."""
    return soundfile.read(ROOT / "audio_samples" / "short.flac", dtype="float32")[0] * np.float32(0.5)


@pytest.fixture(scope="module")
def tokens(engine: WhisperCpu, speech: np.ndarray) -> list[int]:
    return list(engine.transcribe(speech, "en").tokens or ())


def test_margin_is_that_of_a_plain_forward_pass(
    engine: WhisperCpu, speech: np.ndarray, tokens: list[int]
) -> None:
    """Held against logits computed here, without whisper's decoding."""
    index = 5
    mel = torch.from_numpy(engine.encoder_trace(speech)["log_mel"])
    prefix = torch.tensor([[50_257, 50_362, *tokens[:index]]])  # start of transcript, no timestamps
    with torch.no_grad():
        logits = engine._model.logits(prefix, engine._model.embed_audio(mel[None]))[0, -1]
    other = 262
    found = engine.decision(speech, "en", tokens, index, other)
    assert (found.step, found.window_start_seconds, found.timestamp_rule) == (index, 0.0, False)
    assert (found.chosen, found.other) == (tokens[index], other)
    assert found.margin == pytest.approx(float(logits[tokens[index]] - logits[other]), abs=1e-4)
    assert found.margin > 0


def test_a_token_the_rules_forbid_has_no_margin(
    engine: WhisperCpu, speech: np.ndarray, tokens: list[int]
) -> None:
    speaker_brackets = 58  # "[", one of the symbols that are not speech
    assert engine.decision(speech, "en", tokens, 3, speaker_brackets).margin is None
    assert engine.decision(speech, "en", tokens, 0, None).margin is None  # no window begins with its end


def test_the_end_of_the_other_transcript_is_the_end_of_text(
    engine: WhisperCpu, speech: np.ndarray, tokens: list[int]
) -> None:
    found = engine.decision(speech, "en", tokens, 4, None)
    assert found.other == 50_256
    assert found.margin is not None
    assert found.margin > 0


def test_other_tokens_than_the_record_holds_are_an_error(
    engine: WhisperCpu, speech: np.ndarray, tokens: list[int]
) -> None:
    with pytest.raises(BackendError, match="gives different tokens than the record has"):
        engine.decision(speech, "en", [*tokens[:2], tokens[2] + 1, *tokens[3:]], 2, 262)


def test_the_model_decodes_as_before_afterwards(
    engine: WhisperCpu, speech: np.ndarray, tokens: list[int]
) -> None:
    engine.decision(speech, "en", tokens, 3, 262)
    assert "decode" not in vars(engine._model)
    assert list(engine.transcribe(speech, "en").tokens or ()) == tokens


def window(tokens: list[int], seek: float, logprob: float) -> Window:
    return Window(None, None, tokens, 0.1, logprob)


def segment(seek: int, tokens: list[int], logprob: float) -> dict[str, Any]:
    return {"seek": seek, "tokens": tokens, "avg_logprob": logprob, "no_speech_prob": 0.1}


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, int]]:
    """Record which (number of sampled tokens, second, step) are looked up, instead of running a model."""
    asked: list[tuple[int, float, int]] = []

    def fake(model: Any, window: Window, start: float, step: int, other: int | None) -> Decision:
        asked.append((len(window.tokens), start, step))
        chosen = window.tokens[step] if step < len(window.tokens) else 50_256
        return Decision(start, step, chosen, other or 50_256, 1.0 + len(asked), False)

    monkeypatch.setattr(token_margins, "_decision", fake)
    return asked


T = BEGIN


def test_long_form_divergence_is_looked_up_in_its_own_window(places: list[Any]) -> None:
    """With a window skipped as silent, an empty segment dropped, and an unfinished end left out."""
    windows = [
        window([T, 1, T + 5, T + 5, T + 5, T + 5, 2, T + 9, T + 9, 7], 0, -0.5),
        window([99], 18, -9.0),
        window([T, 3, 4, T + 50], 4800, -0.7),
    ]
    segments = [
        segment(0, [T, 1, T + 5], -0.5),
        segment(0, [], -0.5),
        segment(0, [T + 5, 2, T + 9], -0.5),
        segment(4800, [T, 3, 4, T + 50], -0.7),
    ]
    tokens = [token for part in segments for token in part["tokens"]]
    assert decide(None, windows, segments, tokens, 4, 8).step == 6
    assert places == [(10, 0.0, 6)]
    places.clear()
    assert decide(None, windows, segments, tokens, 8, 8) == Decision(48.0, 2, 4, 8, 2.0, False)
    places.clear()
    decide(
        None, windows, segments, tokens, 6, 8
    )  # the next window's first token, or the last one's dropped end
    assert places == [(10, 0.0, 8), (4, 48.0, 0)]
    places.clear()
    assert decide(None, windows, segments, tokens, len(tokens), 8).chosen == 50_256
    assert places == [(4, 48.0, 4)]


def test_of_two_places_the_possible_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [window([T, 1, T + 5], 0, -0.5), window([T, 3, T + 50], 3000, -0.7)]
    segments = [segment(0, [T, 1, T + 5], -0.5), segment(3000, [T, 3, T + 50], -0.7)]
    tokens = [token for part in segments for token in part["tokens"]]

    def fake(model: Any, window: Window, start: float, step: int, other: int | None) -> Decision:
        return Decision(start, step, -1, other or 0, None if start == 0 else 0.25, True)

    monkeypatch.setattr(token_margins, "_decision", fake)
    found = decide(None, windows, segments, tokens, 3, T + 1)
    assert (found.window_start_seconds, found.margin) == (30.0, 0.25)


def test_text_or_timestamp_is_decided_by_the_sum_of_timestamps(engine: WhisperCpu) -> None:
    """Against the rule as openai-whisper states it: timestamps win when together they outweigh any text."""
    from whisper.decoding import DecodingOptions

    class Logits:
        """A model whose next logits are these."""

        device, dims, is_multilingual, num_languages = "cpu", engine._model.dims, False, 99
        decoder = engine._model.decoder

        def __init__(self) -> None:
            self.values = torch.full((1, 1, ENGLISH), -50.0)
            self.values[..., 300], self.values[..., 301] = 5.0, 4.0
            self.values[..., BEGIN + 20 : BEGIN + 30] = 3.0  # each weaker than the text, together stronger

        def embed_audio(self, mel: Any) -> Any:
            return mel

        def logits(self, tokens: Any, features: Any) -> Any:
            return self.values

    options = DecodingOptions(language="en", fp16=False)
    sampled = [BEGIN, 262, 300]

    def margin(chosen: int, other: int) -> Decision:
        seen = Window(torch.zeros(80, 3000), options, [*sampled, chosen], 0.0, 0.0)
        return token_margins._decision(Logits(), seen, 0.0, 3, other)

    total = 3.0 + np.log(10)
    assert margin(BEGIN + 20, 300).margin == pytest.approx(total - 5, abs=1e-5)
    assert margin(300, BEGIN + 20).margin == pytest.approx(5 - total, abs=1e-5)
    assert margin(300, BEGIN + 20).timestamp_rule
    assert margin(300, 301) == Decision(0.0, 3, 300, 301, 1.0, False)


@pytest.mark.parametrize(("margin", "narrow"), [(9e-4, True), (-9e-4, True), (1.1e-3, False), (None, False)])
def test_only_a_known_and_small_margin_is_rounding(margin: float | None, narrow: bool) -> None:
    decision = Decision(0.0, 1, 2, 3, margin, False)
    assert is_narrow(Divergence(1, None, None, decision)) is narrow
    assert not is_narrow(Divergence(1, None, None))


# with the engine itself


@pytest.fixture
def diverging(tmp_path: Path, speech: np.ndarray, engine: WhisperCpu) -> Run:
    """A run in which the other engine takes another token at index 3 of the first clip."""
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, speech, 16_000, subtype="PCM_16")
    samples = audio.decode(clip)
    answer = engine.transcribe(samples, "en")
    tokens = list(answer.tokens or ())
    run = run_with(
        [answer.text],
        [answer.text + " more"],
        {REFERENCE: [tokens], OTHER: [[*tokens[:3], 262, *tokens[3:]]]},
    )
    run["clips"][0] |= {"sha256": audio.sha256(samples), "audio_seconds": len(samples) / 16_000}
    checkpoint = engine._checkpoint
    run["checkpoint"] |= {
        "name": checkpoint.name,
        "sha256": checkpoint.sha256,
        "tensors_sha256": checkpoint.tensors_sha256,
        "dimensions": dict(checkpoint.dimensions),
    }
    run["settings"]["decoding"] = Settings(threads=1, no_speech_threshold=2.0).as_dict()
    run["command"] = ["asrgate", "run", "--audio", str(clip), "--model", str(checkpoint.path)]
    assert run["results"][0]["samples"][0]["text_sha256"] == text_sha256(answer.text)
    return run


def test_margins_from_the_runs_own_command(
    diverging: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "o.json"
    asked = ["compare-outputs", str(write(diverging, tmp_path)), "--margins", "--json", str(stored)]
    assert main(asked) == 0, capsys.readouterr().err
    (answer,) = json.loads(stored.read_text())["outputs"][0]["answers"]
    assert answer["divergence"]["decision"]["step"] == 3
    assert answer["divergence"]["decision"]["margin"] > 1e-3
    out = " ".join(capsys.readouterr().out.split())
    assert "the reference's margin there" in out
    assert "too wide for float32's rounding" in out
    assert "0 of 1" in out


def test_margins_without_audio_weights_or_a_reference_that_can_are_clear_errors(
    diverging: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(diverging, tmp_path)
    asked = ["compare-outputs", str(path), "--margins"]
    assert main([*asked, "--reference", "faster-whisper"]) == 2
    assert "pass --reference whisper-cpu" in capsys.readouterr().err
    assert main([*asked, "--model", "nano.en"]) == 2
    assert "is not the run's fake.en: the digest of its tensors is" in capsys.readouterr().err
    (tmp_path / "clip.wav").unlink()
    assert main(asked) == 2
    err = capsys.readouterr().err
    assert "1 of 1 diverging clips cannot be found on this machine" in err
    assert "--audio PATH" in err
