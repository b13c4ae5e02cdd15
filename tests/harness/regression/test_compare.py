"""`asrgate compare`: records in, verdicts and exit codes out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
from make_run import TEXT, add_unavailable, make_run, result_of
from paths import ROOT

from asrgate.harness import cli, record
from asrgate.harness.metrics import mann_whitney
from asrgate.harness.record import Run, text_sha256
from asrgate.harness.regression import preconditions, report
from asrgate.harness.regression.compare import Comparison, NotComparable, compare
from asrgate.harness.regression.verdict import Limits, Row
from asrgate.harness.scoring import gate, score

FIRST, SECOND, THIRD = "honest@cpu/float32", "twin@cpu/float32", "cousin@cpu/int8"
VARIANTS = (FIRST, SECOND, THIRD)
REFERENCES = [" ".join(TEXT.split()[start : start + 20]) for start in range(12)]
SECONDS = dict(zip(VARIANTS, (0.2, 0.1, 0.15), strict=True))


def measured(
    variants: Sequence[str] = VARIANTS,
    *,
    rounds: int = 7,
    seed: int = 0,
    slower: dict[str, float] | None = None,
    answers: dict[str, Sequence[str | None]] | None = None,
    machine: float = 1.0,
    clips: int = len(REFERENCES),
) -> Run:
    """Return a scored and judged run in which every backend answers right unless told otherwise."""
    pace = {name: machine * SECONDS[name] * (slower or {}).get(name, 1.0) for name in variants}
    run = make_run(
        variants,
        REFERENCES[:clips],
        rounds=rounds,
        texts={name: (answers or {}).get(name, REFERENCES)[:clips] for name in variants},
        seconds_per_audio_second=pace,
        audio_seconds=[5.0] * clips,
        seed=seed,
    )
    return finished(run)


def finished(run: Run) -> Run:
    score.score(run, "none", replicates=200)
    gate.judge(run)
    return run


def against(new: Run, base: Run | None = None, allow: Sequence[str] = (), **limits: float) -> Comparison:
    return compare(base or measured(seed=1), new, Limits(**limits), allow)


def row(comparison: Comparison, variant: str = SECOND) -> Row:
    return next(row for row in comparison.rows if row.variant == variant)


def wrong(words: int) -> list[str]:
    """Return the references with that many words replaced, at most one a clip and two in the first."""
    answers = [text.split() for text in REFERENCES]
    for i in range(words):
        answers[i % len(answers)][3 + i // len(answers)] = "zebra"
    return [" ".join(answer) for answer in answers]


# Time


def test_same_backend_is_the_same() -> None:
    found = against(measured(seed=2))
    assert [row.verdict for row in found.rows] == ["same"] * 3
    assert not found.regressed


@pytest.mark.parametrize("slowdown", [1.1, 1.25])
def test_slowdown_is_a_regression_of_that_backend_only(slowdown: float) -> None:
    found = against(measured(seed=2, slower={SECOND: slowdown}))
    assert [row.variant for row in found.regressed] == [SECOND]
    time = row(found).time
    assert time is not None
    assert time.ratio == pytest.approx(slowdown, rel=0.02)
    assert time.interval is not None
    assert time.interval[0] < slowdown < time.interval[1]
    assert time.p_value == pytest.approx(2 / 3432)
    assert "times as long" in row(found).reasons[0]


def test_slowdown_within_the_limit_passes_however_clear() -> None:
    found = against(measured(seed=2, slower={SECOND: 1.1}), max_slowdown=1.2)
    assert row(found).verdict == "same"
    assert row(found).time.p_value < 0.002  # type: ignore[union-attr]


def test_slower_machine_is_not_a_slower_backend() -> None:
    found = against(measured(seed=2, machine=1.12))
    assert not found.regressed
    assert "all backends together took 1.12 times as long" in found.warnings[0]


def test_slower_backend_is_found_on_a_faster_machine() -> None:
    found = against(measured(seed=2, machine=0.95, slower={SECOND: 1.15}))
    assert [row.variant for row in found.regressed] == [SECOND]
    assert row(found).time.machine == pytest.approx(0.95, rel=0.02)  # type: ignore[union-attr]


def test_all_backends_much_slower_at_once_is_a_regression() -> None:
    found = against(measured(seed=2, machine=1.3))
    assert len(found.regressed) == 3
    assert "something they share" in row(found).reasons[0]


def busy(run: Run, fraction: float = 0.8) -> Run:
    for entry in run["rounds"]:
        entry["foreign_cpu_fraction"] = fraction
    return run


def test_what_other_programs_may_have_slowed_is_unclear() -> None:
    """Really seen: on a crowded machine every backend took 3.9 times as long as in BASE."""
    found = against(busy(measured(seed=2, machine=3.9)))
    assert [row.verdict for row in found.rows] == ["unclear"] * 3
    assert "other programs used 80% of the processor" in row(found).reasons[0]
    base, new = measured((FIRST,), seed=1), busy(measured((FIRST,), seed=2, slower={FIRST: 1.5}))
    assert [row.verdict for row in compare(base, new, Limits()).rows] == ["unclear"]


def test_what_became_slower_than_the_others_is_so_on_a_busy_machine_too() -> None:
    found = against(busy(measured(seed=2, machine=2.0, slower={SECOND: 1.2})))
    assert [row.variant for row in found.regressed] == [SECOND]


def test_faster_neighbour_makes_nobody_slower() -> None:
    base = measured((FIRST, SECOND), seed=1)
    found = against(measured((FIRST, SECOND), seed=2, slower={FIRST: 0.7}), base)
    assert not found.regressed
    assert row(found, FIRST).verdict == "better"


def test_neighbour_whose_texts_changed_tells_nothing_of_the_machine() -> None:
    """It does other work now: that it takes longer must not excuse the others."""
    base = measured((FIRST, SECOND), seed=1)
    slower = {FIRST: 1.12, SECOND: 1.12}
    assert not against(measured((FIRST, SECOND), seed=2, slower=slower), base).regressed
    changed = [f"{text} zebra" for text in REFERENCES[:1]] + REFERENCES[1:]
    found = against(measured((FIRST, SECOND), seed=2, slower=slower, answers={FIRST: changed}), base)
    assert SECOND in [row.variant for row in found.regressed]


def test_backend_whose_every_variant_became_slower_has_no_excuse_in_them() -> None:
    """What slows a backend slows all its variants, and they may be most of a run."""
    variants = (FIRST, SECOND, "twin@cpu/int8", "twin@cpu/int4")
    pace = dict.fromkeys(variants, 0.1)
    slow = pace | dict.fromkeys(variants[1:], 0.11)
    answers = dict.fromkeys(variants, REFERENCES)
    base, new = (
        finished(
            make_run(
                variants,
                REFERENCES,
                rounds=7,
                texts=answers,
                seconds_per_audio_second=seconds,
                audio_seconds=[5.0] * len(REFERENCES),
                seed=seed,
            )
        )
        for seed, seconds in enumerate((pace, slow))
    )
    assert [row.variant for row in compare(base, new, Limits()).regressed] == list(variants[1:])


def test_one_backend_alone_is_judged_by_the_clock() -> None:
    found = against(measured((FIRST,), seed=2, slower={FIRST: 1.1}), measured((FIRST,), seed=1))
    assert [row.variant for row in found.regressed] == [FIRST]
    assert row(found, FIRST).time.machine is None  # type: ignore[union-attr]


def test_too_few_rounds_are_said_and_never_fail() -> None:
    found = against(
        measured(rounds=5, seed=2, slower={SECOND: 3.0}), measured(rounds=5, seed=1), max_shared_slowdown=9
    )
    assert not found.regressed
    assert row(found).verdict == "unclear"
    (seems, few) = row(found).reasons
    assert "not significant" in seems
    assert "5 and 5 can at best give p = 0.0079" in few
    assert "--rounds 7" in few
    assert against(
        measured(rounds=5, seed=2, slower={SECOND: 3.0}), measured(rounds=5, seed=1), alpha=0.01
    ).regressed


def stall(run: Run, which: Callable[[int, int], bool]) -> None:
    """Make those calls of the second backend take three times as long; asked with clip and round."""
    for sample in result_of(run, SECOND)["samples"]:
        if which(int(sample["clip"][-3:]), sample["round"]):
            sample["wall_seconds"] *= 3


def test_stalls_of_the_machine_hide_no_slowdown() -> None:
    """Two rounds of BASE that were disturbed would lie above all of NEW's."""
    base, new = measured(seed=1), measured(seed=2, slower={SECOND: 1.1})
    stall(base, lambda clip, number: number in (1, 4) and clip < 2)
    assert row(compare(base, new, Limits())).verdict == "regression"


def test_stalls_of_the_machine_make_no_slowdown() -> None:
    new = measured(seed=2)
    stall(new, lambda clip, number: number in (1, 4, 5) and clip < 2)
    assert row(against(new)).verdict == "same"


def test_calls_that_stall_in_every_round_are_a_regression() -> None:
    """No call's median moved, but all together take a sixth longer, round after round."""
    new = measured(seed=2)
    stall(new, lambda clip, number: clip == number)
    found = row(against(new))
    assert found.verdict == "regression"
    assert "1.17 times as long in all" in found.reasons[0]
    assert any("8% of its calls" in note and "(0% before)" in note for note in found.notes)


def test_comparisons_of_like_runs_are_quiet_and_of_unlike_ones_loud() -> None:
    """Seeded, with drift inside and between runs; benchmarks/regression_power.py has the full table."""
    rng = np.random.default_rng(7)
    base = measured(seed=1)
    alarms = misses = 0
    for seed in range(15):
        for slowdown in (1.0, 1.1):
            new = measured(seed=seed + 100, machine=float(rng.lognormal(0, 0.03)))
            drift = np.exp(np.cumsum(rng.normal(0, 0.01, 7)))
            for result in new["results"]:
                result["wer"] = None  # words are not the question, and resampling them takes time
                factor = slowdown if result["variant"] == THIRD else 1.0
                for sample in result["samples"]:
                    sample["wall_seconds"] *= factor * drift[sample["round"]]
            regressed = [row.variant for row in compare(base, new, Limits()).regressed]
            alarms += slowdown == 1.0 and bool(regressed)
            misses += slowdown > 1.0 and regressed != [THIRD]
    assert alarms == 0
    assert misses <= 1


def test_times_that_vary_too_much_are_not_called_the_same() -> None:
    new = measured(seed=2)
    for sample in result_of(new, SECOND)["samples"]:
        sample["wall_seconds"] *= (0.7, 1.4, 0.8, 1.2, 0.6, 1.3, 1.0)[sample["round"]]
    found = against(new)
    assert row(found).verdict == "unclear"
    assert "might not have been detected" in row(found).reasons[0]
    assert not found.regressed


def test_tables_of_the_docs_are_those_of_the_script(tmp_path: Path) -> None:
    """The figures take minutes to make again; that the script runs and makes these very rows does not."""
    root = ROOT
    docs = tmp_path / "regression.md"
    docs.write_text((root / "docs" / "regression.md").read_text())
    script = root / "benchmarks" / "regression_power.py"
    subprocess.run(
        [sys.executable, str(script), "--comparisons", "1", "--write", str(docs)], cwd=root, check=True
    )

    def labels(path: Path) -> list[str]:
        tables = re.findall(r"<!-- power:(?:time|words) -->\n(.*?)<!--", path.read_text(), re.S)
        rows = [line.split("|") for table in tables for line in table.splitlines()]
        return ["|".join(row[1:4]) if len(row) > 8 else row[1] for row in rows if not row[1].startswith("-")]

    assert labels(docs) == labels(root / "docs" / "regression.md")
    assert len(labels(docs)) == 19 + 7


def test_smallest_p_values_of_few_rounds() -> None:
    assert mann_whitney.smallest_p_value(5, 5) == pytest.approx(0.0079, abs=5e-5)
    assert mann_whitney.smallest_p_value(7, 7) == pytest.approx(0.00058, abs=5e-6)
    assert mann_whitney.rounds_needed(0.002) == 7


def test_rank_test_is_the_known_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        base, new = rng.normal(size=rng.integers(2, 12)), rng.normal(0.5, size=rng.integers(2, 12))
        expected = scipy.stats.mannwhitneyu(base, new, method="exact").pvalue
        assert mann_whitney.mann_whitney(base, new) == pytest.approx(expected)


def test_ties_are_no_evidence() -> None:
    assert mann_whitney.mann_whitney([1.0] * 7, [1.0] * 7) == pytest.approx(1.0)


def test_interval_of_the_shift_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        interval = mann_whitney.shift_interval(rng.normal(size=7), rng.normal(0.3, size=7))
        assert interval is not None
        covered += interval[0] <= 0.3 <= interval[1]
    assert 0.93 < covered / 600 < 0.98


# Texts and words


def test_word_errors_past_the_limit_are_a_regression() -> None:
    found = against(measured(seed=2, answers={SECOND: wrong(3)}))  # of 240 words: 1.25 points
    assert [row.variant for row in found.regressed] == [SECOND]
    words = row(found).words
    assert words is not None
    assert words.difference == pytest.approx(3 / 240)
    assert words.interval is not None
    assert words.interval[0] < 3 / 240 < words.interval[1]
    assert "+1.25 points" in row(found).reasons[0] or "+1.25 points" in row(found).reasons[1]


def test_changed_text_is_reported_even_where_the_limit_holds() -> None:
    found = against(measured(seed=2, answers={SECOND: wrong(1)}))  # 0.42 points
    assert not found.regressed
    texts = row(found).texts
    assert texts is not None
    assert texts.changed == ("clip-000",)
    assert "the text of 1 of 12 clips changed: clip-000" in row(found).notes


def test_changed_text_is_reported_where_no_word_changed() -> None:
    answers = [REFERENCES[0] + "\n", *REFERENCES[1:]]
    found = row(against(measured(seed=2, answers={SECOND: answers})))
    assert found.words is not None
    assert found.words.difference == 0
    assert found.texts is not None
    assert found.texts.changed == ("clip-000",)


def test_text_that_varies_is_not_taken_for_changed() -> None:
    base, new = measured(seed=1), measured(seed=2)
    for run in (base, new):
        for sample in result_of(run, SECOND)["samples"]:
            if sample["round"] % 2:
                sample["text_sha256"] = text_sha256("another")
    texts = row(compare(base, new, Limits())).texts
    assert texts is not None
    assert (texts.changed, texts.unstable, texts.deterministic) == ((), (), False)
    texts = row(compare(measured(seed=1), new, Limits())).texts
    assert texts is not None
    assert len(texts.unstable) == 12


def test_increase_that_may_be_chance_is_a_remark_only() -> None:
    """Three words in one clip, decoded differently from round to round."""
    answers = [REFERENCES[0].replace("the quick brown", "zebra zebra zebra"), *REFERENCES[1:]]
    new = measured(seed=2, answers={SECOND: answers})
    assert against(new).regressed
    for sample in result_of(new, SECOND)["samples"]:
        if sample["round"] % 2 and sample["clip"] == "clip-001":
            sample["text_sha256"] = text_sha256("another")
    found = row(against(new))
    assert any("may be due to chance" in note for note in found.notes)


# Rank, failure, absence


def test_lost_rank_is_a_regression_with_the_gates_reason() -> None:
    new = measured(seed=2)
    result_of(new, SECOND)["applied_settings"]["beam_size"] = 5
    gate.judge(new)
    found = against(new)
    assert [row.variant for row in found.regressed] == [SECOND]
    assert "ran with beam_size 5, but 1 was requested" in row(found).reasons[0]


@pytest.mark.parametrize("status", ["error", "unavailable"])
def test_failure_is_a_regression_with_its_error(status: str) -> None:
    new = measured((FIRST, THIRD), seed=2)
    add_unavailable(new, SECOND, "the package `spam` is missing")["status"] = status
    found = against(finished(new))
    assert [row.variant for row in found.regressed] == [SECOND]
    assert "the package `spam` is missing" in row(found).reasons[0]


def test_absence_is_a_regression_and_a_newcomer_is_not() -> None:
    found = against(measured((FIRST, THIRD), seed=2), measured((FIRST, SECOND), seed=1))
    assert row(found, SECOND).reasons == ("is missing from NEW",)
    assert row(found, THIRD).verdict == "new"
    assert [row.variant for row in found.regressed] == [SECOND]


def test_what_works_now_is_better() -> None:
    base = measured((FIRST, THIRD), seed=1)
    add_unavailable(base, SECOND, "no such device")
    assert row(against(measured(seed=2), finished(base))).verdict == "better"


# Comparability


def change_checkpoint(run: Run) -> None:
    run["checkpoint"].update(name="base.en", tensors_sha256="ab" * 32)


def change_audio(run: Run) -> None:
    run["clips"][0]["sha256"] = "ab" * 32


def change_reference(run: Run) -> None:
    run["clips"][0]["reference_sha256"] = "ab" * 32


def change_decoding(run: Run) -> None:
    run["settings"]["decoding"]["beam_size"] = 5


def change_gate(run: Run) -> None:
    run["settings"]["max_wer"] = 0.9


def change_host(run: Run) -> None:
    run["host"]["cpu"] = "Imaginary 10000"


def change_normalizer(run: Run) -> None:
    run["scoring"]["normalizer"]["sha256"] = "ab" * 32


def interrupt(run: Run) -> None:
    run.update(complete=False, interrupted="stopped by the user")


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (change_checkpoint, "checkpoint", "tiny.en"),
        (change_audio, "audio", "11 of them have the same"),
        (change_reference, "audio", "11 of them have the same"),
        (change_decoding, "settings", "beam_size is 1 in BASE, 5 in NEW"),
        (change_gate, "settings", "max_wer is 0.5 in BASE, 0.9 in NEW"),
        (change_host, "host", "cpu is 'Imaginary 9000' in BASE, 'Imaginary 10000' in NEW"),
        (change_normalizer, "normalizer", "abababababab"),
        (interrupt, "incomplete", "stopped by the user"),
    ],
)
def test_what_differs_is_refused_listed_and_allowed(
    change: Callable[[Run], None], kind: str, said: str
) -> None:
    new = measured(seed=2)
    change(new)
    with pytest.raises(NotComparable) as refusal:
        against(new)
    assert said in str(refusal.value)
    assert f"--allow {kind} " in str(refusal.value)
    found = against(new, allow=[kind])
    assert not found.regressed
    assert [difference.kind for difference in found.allowed] == [kind]


def test_all_that_differs_is_listed_at_once() -> None:
    new = measured(seed=2)
    change_checkpoint(new)
    change_host(new)
    with pytest.raises(NotComparable, match="--allow checkpoint,host "):
        against(new)
    with pytest.raises(NotComparable, match="--allow host "):
        against(new, allow=["checkpoint"])


def test_host_class_decides_where_it_is_known() -> None:
    base, new = measured(seed=1), measured(seed=2)
    base["host"]["host_class"] = new["host"]["host_class"] = "imaginary-8c"
    change_host(new)
    assert not compare(base, new, Limits()).regressed
    new["host"]["host_class"] = "other-4c"
    with pytest.raises(NotComparable, match="host_class is 'imaginary-8c' in BASE, 'other-4c' in NEW"):
        compare(base, new, Limits())


def test_two_generations_of_one_processor_name_are_not_compared() -> None:
    base, new = make_run(), make_run()
    new["host"]["cpu_generation"] = "family 26, model 2"
    assert preconditions.differences(base, new) == [], "an older record does not tell"
    base["host"]["cpu_generation"] = "family 25, model 17"
    (difference,) = preconditions.differences(base, new)
    assert difference.kind == "host"
    assert "of family 25, model 17 in BASE, of family 26, model 2 in NEW" in difference.what


def test_other_versions_are_told_and_compared() -> None:
    new = measured(seed=2)
    new["versions"]["torch"] = "9.9"
    assert against(new).versions == {"torch": (None, "9.9")}


def test_runs_without_texts_give_the_same_verdicts() -> None:
    base, new = measured(seed=1), measured(seed=2, slower={FIRST: 1.2}, answers={SECOND: wrong(3)})
    with_texts = compare(base, new, Limits())
    without = compare(record.without_texts(base), record.without_texts(new), Limits())
    assert len(with_texts.regressed) == 2
    assert without == with_texts


# What comes out


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str, Run], str]:
    def store(name: str, run: Run) -> str:
        record.write(run, tmp_path / name)
        return str(tmp_path / name)

    return store


Store = Callable[[str, Run], str]


def test_exit_codes(stored: Store, capsys: pytest.CaptureFixture[str]) -> None:
    base = stored("base.json", measured(clips=3, seed=1))
    assert cli.main(["compare", base, stored("same.json", measured(clips=3, seed=2))]) == 0
    assert "none of 3 backends regressed" in capsys.readouterr().out
    slow = stored("slow.json", measured(clips=3, seed=2, slower={SECOND: 1.15}))
    assert cli.main(["compare", base, slow]) == 1
    assert f"REGRESSION  {SECOND}" in capsys.readouterr().out
    assert cli.main(["compare", base, slow, "--max-slowdown", "1.3"]) == 0
    other = measured(clips=3, seed=2)
    change_checkpoint(other)
    capsys.readouterr()
    assert cli.main(["compare", base, stored("other.json", other)]) == 2
    captured = capsys.readouterr()
    assert "checkpoint: tiny.en" in captured.err
    assert captured.out == ""
    assert cli.main(["compare", base, stored("other.json", other), "--allow", "host,checkpoint"]) == 0


def test_bad_arguments_are_refused(stored: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = stored("base.json", measured(clips=3, seed=1))
    assert cli.main(["compare", base, base, "--allow", "weather"]) == 2
    assert "checkpoint, audio, settings, host, normalizer" in capsys.readouterr().err
    assert cli.main(["compare", base, str(tmp_path / "absent.json")]) == 2
    assert cli.main(["compare", base, base, "--output", str(tmp_path / "report.doc")]) == 2
    assert ".md" in capsys.readouterr().err
    for option in (["--max-slowdown", "0.9"], ["--alpha", "1"], ["--max-wer-increase", "nan"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["compare", base, base, *option])
        assert stopped.value.code == 2


def test_output_is_written_in_the_format_of_its_ending(
    stored: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = (
        stored("base.json", measured(clips=3, seed=1)),
        stored("new.json", measured(clips=3, seed=2, slower={FIRST: 2})),
    )
    for name, start in (("r.md", "## asrgate"), ("r.json", "{"), ("r.xml", "<testsuites>")):
        assert cli.main(["compare", base, new, "--output", str(tmp_path / name)]) == 1
        assert (tmp_path / name).read_text().startswith(start)
        assert "REGRESSION" in capsys.readouterr().out
    assert cli.main(["compare", base, new, "--format", "junit", "--output", str(tmp_path / "r.md")]) == 1
    assert (tmp_path / "r.md").read_text().startswith("<testsuites>")


def test_json_on_stdout_is_one_document(
    stored: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    base = stored("base.json", measured(clips=3, seed=1))
    new = stored("new.json", measured(clips=3, seed=2, slower={SECOND: 1.2}))
    assert cli.main(["compare", base, new, "--format", "json"]) == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["regression"] is True
    assert [r["verdict"] for r in document["rows"]] == ["same", "regression", "same"]
    assert document["rows"][1]["time"]["ratio"] == pytest.approx(1.2, rel=0.02)
    assert "::error title=asrgate%3A twin@cpu/float32::it takes 1.2" in captured.err


def test_annotations_appear_on_github_only(
    stored: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = stored("base.json", measured(clips=3, seed=1))
    new = stored("new.json", measured(clips=3, seed=2, slower={SECOND: 1.2}))
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    cli.main(["compare", base, new])
    assert "::error" not in capsys.readouterr().out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    cli.main(["compare", base, new])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("::error ") for line in lines) == 1
    other = measured(clips=3, seed=2)
    change_host(other)
    assert cli.main(["compare", base, stored("other.json", other)]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("::error title=asrgate%3A nothing was compared::")
    assert "%0A  host: cpu" in line


HOSTILE = '::error::x|`<script>alert(1)</script>\n::warning::y, 100%\x1b[31m]]>&"@cpu/f'


@pytest.fixture
def hostile() -> Comparison:
    base = measured((FIRST, SECOND, THIRD), seed=1)
    new = measured((FIRST, SECOND, THIRD), seed=2, slower={SECOND: 1.3})
    for run in (base, new):
        run["results"][1]["variant"] = HOSTILE
        run["clips"][0]["name"] = HOSTILE
        for result in run["results"]:
            for entry in [*result["samples"], *result["wer"]["per_clip"]]:
                entry["clip"] = HOSTILE if entry["clip"] == "clip-000" else entry["clip"]
    for sample in new["results"][1]["samples"]:
        sample["text_sha256"] = "ab" * 32
    new["versions"][HOSTILE] = HOSTILE
    new["warnings"].append(HOSTILE)
    return compare(base, new, Limits())


def test_hostile_names_stay_text(hostile: Comparison) -> None:
    text = report.as_text(hostile)
    assert "\x1b" not in text
    assert not any(line.lstrip().startswith("::") for line in text.splitlines())


def test_hostile_names_stay_text_in_markdown(hostile: Comparison) -> None:
    lines = report.as_markdown(hostile).splitlines()
    assert not any("<script" in line for line in lines)
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert {line.replace("\\|", "").count("|") for line in table} == {9}
    assert not any(line.lstrip().startswith("::") for line in lines)


def test_hostile_names_stay_text_in_junit(hostile: Comparison) -> None:
    suite = ElementTree.fromstring(report.as_junit(hostile)).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    cases = suite.findall("testcase")
    assert "<script>" in (cases[1].get("name") or "")
    failure = cases[1].find("failure")
    assert failure is not None
    assert "times as long" in (failure.get("message") or "")


def test_hostile_names_stay_text_in_annotations(hostile: Comparison) -> None:
    lines = list(report.github_annotations(hostile))
    assert len(lines) >= 3
    for line in lines:
        assert "\n" not in line
        assert "\x1b" not in line
        command, _, rest = line.removeprefix("::").partition("::")
        assert command.split(" ")[0] in ("error", "warning")
        assert "," not in command
        assert "100%\\" not in rest  # a bare % would be read as an escape
    assert report.annotation("error", "a:b,c%\n", "d%\ne\r:,") == (
        "::error title=a%3Ab%2Cc%25\\n::d%25%0Ae\\r:,"
    )


@pytest.mark.parametrize(
    ("signal", "is_comparable"), [("SIGKILL", False), ("SIGTERM", False), ("SIGSEGV", True)]
)
def test_a_run_in_which_something_killed_an_engine_is_not_comparable(
    signal: str, is_comparable: bool
) -> None:
    new = measured()
    result_of(new, THIRD).update(status="error", error="the worker was killed", killed_by=signal)
    record.validate(new)
    if is_comparable:
        against(new)
        return
    with pytest.raises(NotComparable, match=f"killed {THIRD} in NEW .{signal}."):
        against(new)
    against(new, allow=["killed"])
