"""Slices, samples and normalisers side by side: their figures are those of the clips they name."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of
from rich.console import Console

from asrgate.harness import corpus, record, report
from asrgate.harness.cli import main
from asrgate.harness.corpus import sampling
from asrgate.harness.metrics import normalizers
from asrgate.harness.record import Run
from asrgate.harness.scoring import gate, score, slices

OTHER = VARIANTS[1]


def scored(run: Run, normalizer: str = "none", also: tuple[str, ...] = ()) -> Run:
    score.score(run, normalizer, replicates=200, also=also)
    gate.judge(run)
    record.validate(run)
    return run


@pytest.fixture
def run() -> Run:
    """Six clips of one word error each for the second variant, in two rooms and three lengths."""
    references = ["a b c d"] * 3 + ["a b c d e f g h"] * 3
    answers = ["a b c x"] * 3 + ["a b c d e f g x"] * 3
    made = make_run(
        references=references,
        texts={REFERENCE: references, OTHER: answers},
        audio_seconds=[1, 1.5, 2, 4, 20, 25],
        seconds_per_audio_second={REFERENCE: 0.5, OTHER: 0.25},
    )
    for clip, room in zip(made["clips"], ["hall", "hall", "car", "car", "car", None], strict=True):
        if room is not None:
            clip["tags"]["room"] = room
    return scored(made)


def row_of(rows: list[dict[str, Any]], value: str, variant: str) -> dict[str, Any]:
    (found,) = [row for row in rows if (row["value"], row["variant"]) == (value, variant)]
    return found


def test_slice_has_the_figures_of_its_clips_alone(run: Run) -> None:
    rows = slices.rows(run, ["room"])
    assert [row["value"] for row in rows] == ["car", "car", "hall", "hall", "absent", "absent"]
    car = row_of(rows, "car", OTHER)
    assert (car["clips"], car["reference_words"], car["substitutions"]) == (3, 20, 3)
    assert car["wer_percent"] == pytest.approx(15)
    assert row_of(rows, "car", REFERENCE)["wer_percent"] == 0
    samples = [
        s for s in result_of(run, OTHER)["samples"] if s["clip"] in ("clip-002", "clip-003", "clip-004")
    ]
    assert car["rtfx"] == pytest.approx(2 * (2 + 4 + 20) / sum(s["wall_seconds"] for s in samples))
    assert car["wer_low_percent"] <= 15 <= car["wer_high_percent"]
    assert car["rtfx_low"] <= car["rtfx"] <= car["rtfx_high"]


def test_one_clip_has_no_interval(run: Run) -> None:
    row = row_of(slices.rows(run, ["room"]), "absent", OTHER)
    assert row["wer_percent"] == pytest.approx(12.5)
    assert row["wer_low_percent"] is row["rtfx_low"] is None


def test_slices_of_a_field_sum_to_the_whole(run: Run) -> None:
    for field in ("length", "lang", "room"):
        rows = [row for row in slices.rows(run, [field]) if row["variant"] == OTHER]
        assert sum(row["clips"] for row in rows) == 6
        assert sum(row["substitutions"] for row in rows) == result_of(run, OTHER)["wer"]["substitutions"]
        assert sum(row["audio_seconds"] for row in rows) == pytest.approx(53.5)


def test_lengths_fall_into_buckets_in_order(run: Run) -> None:
    values = dict.fromkeys(row["value"] for row in slices.rows(run, ["length"]))
    assert list(values) == ["0 to 2 s", "2 to 5 s", "10 to 20 s", "20 to 30 s"]


def test_flat_cost_of_a_window_shows_as_slow_short_clips() -> None:
    made = make_run((REFERENCE,), ["a b"] * 4, audio_seconds=[1, 1.5, 25, 28])
    for sample in result_of(made, REFERENCE)["samples"]:
        sample["wall_seconds"] = 2.0
    rows = slices.rows(scored(made), ["length"])
    assert row_of(rows, "0 to 2 s", REFERENCE)["rtfx"] == pytest.approx(0.625)
    assert row_of(rows, "20 to 30 s", REFERENCE)["rtfx"] == pytest.approx(13.25)


def test_numbers_are_ordered_as_numbers() -> None:
    values = ["absent", "20", "clean", "-5", "10 to 20 s", "0 to 2 s", "over 300 s", "3"]
    assert sorted(values, key=slices.order) == [
        *("-5", "0 to 2 s", "3", "10 to 20 s", "20", "over 300 s", "clean", "absent")
    ]


def test_every_report_has_the_slices_asked_for(run: Run) -> None:
    run["settings"]["slices"] = ["room"]
    expected = [row for row in slices.rows(run, ["room"]) if row["value"] == "hall"]
    markdown = [line for line in report.render(run, "md").splitlines() if line.startswith("| hall |")]
    table = list(csv.DictReader(io.StringIO(report.render(run, "slices-csv"))))
    console = Console(width=200, record=True, file=io.StringIO())
    report.print_table(run, console)
    shown = console.export_text()
    page = report.render(run, "html")
    assert len(markdown) == len(expected) == 2
    for row, line in zip(expected, markdown, strict=True):
        figure = f"{row['wer_percent']:.2f}"
        assert figure in line
        assert re.search(rf'<td class="number[^>]*>{figure}</td>', page)
        assert [
            float(r["wer_percent"]) for r in table if r["value"] == "hall" and r["variant"] == row["variant"]
        ] == [pytest.approx(row["wer_percent"])]
        assert any("hall" in text and figure in text for text in shown.splitlines())
    assert {r["normalizer"] for r in table} == {"none"}


def test_narrow_terminal_keeps_value_variant_and_wer(run: Run) -> None:
    run["settings"]["slices"] = ["room"]
    console = Console(width=70, record=True, file=io.StringIO())
    report.print_table(run, console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 70
    (heading,) = [line for line in shown.splitlines() if line.startswith("room")]
    assert "WER %" in heading
    assert "median s" not in heading


def test_unranked_rows_say_so(run: Run) -> None:
    assert not result_of(run, OTHER)["gate"]["ranked"]
    assert f"{OTHER} (not ranked)" in report.render(run, "md")


def test_stored_run_without_texts_can_be_sliced(run: Run, tmp_path: Path) -> None:
    record.write(record.without_texts(run), tmp_path / "run.json")
    output = tmp_path / "out.slices.csv"
    assert main(["report", str(tmp_path), "--slice", "room", "--output", str(output)]) == 0
    rows = list(csv.DictReader(io.StringIO(output.read_text())))
    assert {row["field"] for row in rows} == {"room"}
    assert len(rows) == 6


def test_wrong_slices_are_one_error(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write(run, tmp_path / "run.json")
    assert main(["report", str(tmp_path), "--slice", "rom"]) == 2
    assert "existing fields are length, lang, licence, room" in capsys.readouterr().err
    for number, clip in enumerate(run["clips"]):
        clip["tags"]["id"] = number
    many = [(1.0, "en", {"id": n}) for n in range(60)]
    with pytest.raises(slices.SliceError, match="60 values"):
        slices.check(many, ["id"])


# normalisers side by side


def test_each_normaliser_has_its_own_figures_and_version() -> None:
    made = make_run(
        (REFERENCE,),
        ["Hello, World!", "Mr. Grey's colour"],
        texts={REFERENCE: ["hello world", "mister grey is color"]},
    )
    scored(made, "whisper", ("whisper-basic", "none"))
    by_name = {e["normalizer"]["name"]: e["results"][0]["wer"] for e in made["scoring"]["also"]}
    assert by_name["none"] == pytest.approx(6 / 5)
    assert by_name["none"] > by_name["whisper-basic"] > result_of(made, REFERENCE)["wer"]["wer"]
    lines = [
        line
        for line in report.render(made, "md").splitlines()
        if line.startswith(("| whisper |", "| whisper-basic |"))
    ]
    assert len(lines) == 2
    versions = {normalizers.identify(name)["version"] for name in ("whisper", "whisper-basic")}
    assert all(any(version in line for version in versions) for line in lines)


def test_normaliser_beside_agrees_with_the_same_as_the_main_one(run: Run) -> None:
    beside = scored(make_run(), "whisper", ("none",))["scoring"]["also"][0]["results"]
    alone = scored(make_run(), "none")
    for entry in beside:
        wer = result_of(alone, entry["variant"])["wer"]
        assert (entry["wer"], entry["cer"]) == (wer["wer"], wer["cer"])
        assert entry["interval"] == pytest.approx(wer["interval"])


def test_rescore_with_several(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write(run, tmp_path / "run.json")
    assert main(["rescore", str(tmp_path), "--normalizer", "none,whisper-basic"]) == 0
    stored = record.read(tmp_path)
    assert [e["normalizer"]["name"] for e in stored["scoring"]["also"]] == ["whisper-basic"]
    assert main(["rescore", str(tmp_path), "--normalizer", "none,wisper"]) == 2
    assert "Did you mean 'whisper'?" in capsys.readouterr().err


def test_characters_are_counted_without_the_spaces_put_between_them() -> None:
    made = make_run((REFERENCE,), ["广州市房地产"], texts={REFERENCE: ["广州市放地产"]}, languages=["zh"])
    (entry,) = result_of(scored(made, "whisper"), REFERENCE)["wer"]["per_clip"]
    assert (entry["reference_characters"], entry["character_errors"]) == (6, 1)
    assert (entry["reference_words"], entry["substitutions"]) == (6, 1)


def test_unspaced_text_has_a_sensible_cer_under_any_normaliser() -> None:
    for name in ("none", "whisper-basic", "whisper"):
        made = make_run(
            (REFERENCE,), ["真っ昼間 なのに"], texts={REFERENCE: ["真っ昼間なの に"]}, languages=["ja"]
        )
        assert result_of(scored(made, name), REFERENCE)["wer"]["cer"] == 0


def test_accents_and_marks_are_kept_apart_from_punctuation() -> None:
    texts = {"sv": ("Vår husläkare!", "vår husläkare"), "ko": ("그는, 이리저리", "그는 이리저리")}
    for language, (reference, heard) in texts.items():
        made = make_run((REFERENCE,), [reference], texts={REFERENCE: [heard]}, languages=[language])
        assert result_of(scored(made, "whisper"), REFERENCE)["wer"]["wer"] == 0


# samples


@pytest.fixture
def hundred() -> list[corpus.Clip]:
    return [
        corpus.Clip(
            name=f"c{n:03}",
            path=Path(f"c{n:03}.wav"),
            audio_seconds=1.0 if n % 10 < 7 else 25.0,
            sha256=f"{n:064x}",
            language="en" if n % 10 < 8 else "de",
            reference="a",
            tags={"room": "car" if n < 50 else "hall"},
        )
        for n in range(100)
    ]


def test_sample_keeps_proportions_and_order(hundred: list[corpus.Clip]) -> None:
    drawn = sampling.stratified(hundred, 20, seed=1, fields=["room"])
    assert Counter(clip.language for clip in drawn) == {"en": 16, "de": 4}
    assert Counter(clip.audio_seconds for clip in drawn) == {1.0: 14, 25.0: 6}
    assert Counter(clip.tags["room"] for clip in drawn) == {"car": 10, "hall": 10}
    assert [clip.name for clip in drawn] == sorted(clip.name for clip in drawn)


def test_sample_follows_its_seed_and_not_the_order_of_clips(hundred: list[corpus.Clip]) -> None:
    def names(clips: list[corpus.Clip], seed: int) -> set[str]:
        return {clip.name for clip in sampling.stratified(clips, 20, seed)}

    assert names(hundred, 1) == names(hundred[::-1], 1)
    assert names(hundred, 1) != names(hundred, 2)


@pytest.mark.parametrize("count", [1, 7, 33, 100])
def test_sample_has_exactly_the_size_asked_for(hundred: list[corpus.Clip], count: int) -> None:
    assert len(sampling.stratified(hundred, count, seed=0)) == count


def test_run_takes_a_sample_and_slices(asrgate: Callable[..., int], tmp_path: Path) -> None:
    assert asrgate("--backends", "twin", "--rounds", "1", "--sample", "3", "--slice", "length") == 0
    run = record.read(tmp_path / "results" / "latest")
    assert len(run["clips"]) == run["settings"]["sample"] == 3
    assert run["settings"]["slices"] == ["length"]


def test_run_refuses_what_cannot_be(asrgate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert asrgate("--sample", "6") == 2
    assert "only 5 clips" in capsys.readouterr().err
    assert asrgate("--slice", "room") == 2
    assert "no clip has a field 'room'" in capsys.readouterr().err
