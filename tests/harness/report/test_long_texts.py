"""Reports of texts and errors of any length: done in seconds, bounded, and every cut is named."""

from __future__ import annotations

import io
import time

import pytest
from make_run import REFERENCE, VARIANTS, make_run, result_of
from rich.console import Console

from asrgate.harness.escape import MOST_OF_REASON, MOST_SHOWN, cut, visible
from asrgate.harness.record import Run
from asrgate.harness.regression import compare
from asrgate.harness.regression import report as comparison
from asrgate.harness.regression.verdict import Limits
from asrgate.harness.report import print_table, race
from asrgate.harness.report.formats import FORMATS, render
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]
TEXTS = {  # name -> what is said, what is heard
    "brackets": ("one two", "[" * 400_000),
    "10 MB": ("one two", "one two three " * 750_000),
    "10 MB twice": ("one two three " * 750_000, "one two thee " * 700_000),
    "a long word": ("one two", "x" * 10_000_000),
    "controls": ("one two", "\x1b" * 5_000_000),
}


def judged(run: Run) -> Run:
    score.score(run, "none", replicates=20)
    gate.judge(run)
    return run


def shown(run: Run) -> dict[str, str]:
    """What each kind of report makes of a run."""
    pages = {name: render(run, name) for name in FORMATS if name != "json"}
    console = Console(file=io.StringIO(), width=200)
    print_table(run, console, with_confusions=True)
    race.show(race.race(run), console)
    pages["console"] = console.file.getvalue()  # type: ignore[attr-defined]
    found = compare.compare(run, run, Limits())
    pages |= {f"compare {name}": write(found) for name, write in comparison.FORMATS.items()}
    return pages


@pytest.mark.parametrize(
    "name", [name if name == "brackets" else pytest.param(name, marks=pytest.mark.slow) for name in TEXTS]
)
def test_a_text_of_any_length_is_shown_cut(name: str) -> None:
    said, heard = TEXTS[name]
    references = ["one two three", said]
    run = make_run(
        VARIANTS, references, texts={REFERENCE: references, OTHER: ["one two three", heard]}, rounds=1
    )
    began = time.process_time()
    judged(run)
    pages = shown(run)
    assert time.process_time() - began < 90
    assert {name: len(page) for name, page in pages.items() if len(page) > 6 * 4 * MOST_SHOWN} == {}
    for page in ("html", "complete", "samples-csv"):
        assert f"… (cut here; {len(heard):,} characters)" in pages[page], page
    assert f"Texts of more than {MOST_SHOWN:,} characters are cut" in pages["html"]


def test_an_error_of_50_mb_is_shown_cut() -> None:
    error = "<b>no</b> " * 5_000_000
    run = make_run(rounds=1)
    row = result_of(run, OTHER)
    row.update(status="error", error=error)
    row["samples"][0].update(error=error, text=None, text_sha256=None, tokens=None, token_count=None)
    judged(run)
    began = time.process_time()
    pages = shown(run)
    assert time.process_time() - began < 45
    for name, page in pages.items():
        assert len(page) < (
            3 * MOST_SHOWN if name in ("complete", "samples-csv") else 200_000 + 40 * MOST_OF_REASON
        ), name
    for name in ("html", "md", "csv", "console"):
        assert f"(cut here; {len(error):,} characters)" in " ".join(pages[name].split()), name


def test_what_is_short_is_not_cut() -> None:
    assert cut("a" * MOST_SHOWN) == visible("a" * MOST_SHOWN) == "a" * MOST_SHOWN
    assert cut("abcd", 3) == "abc… (cut here; 4 characters)"
