"""The pictures of speed-ups, of servers and of streams: what they show is what the record has."""

from __future__ import annotations

import copy
from xml.etree import ElementTree

import matplotlib
import pytest
from browser_pages import Open, boxes
from make_run import REFERENCE, VARIANTS, make_run, result_of
from paths import ROOT

from asrgate.harness import record
from asrgate.harness.record import Run
from asrgate.harness.report.html import page, serving, speed, streams
from asrgate.harness.report.html.drawing import Chart, Measured
from asrgate.harness.report.html.svg import STYLE
from asrgate.harness.report.rows import rows
from asrgate.harness.scoring import gate, score

SHORT = "stops-early@cpu/float32"
LONG_NAME = "an-engine-by-another-name@cuda/bfloat16+compiled+trim"
SVG = "{http://www.w3.org/2000/svg}"


def grown(published: str, count: int) -> Run:
    """A published run with so many variants, copies of its own; the last is not ranked."""
    run = record.read(ROOT / "results" / "published" / published)
    originals, run["results"] = run["results"], []
    for n in range(count):
        one = copy.deepcopy(originals[n % len(originals)])
        if n >= len(originals):
            one["variant"] = LONG_NAME if n == len(originals) else f"engine-{n}@cpu/float32"
        is_last = n == count - 1
        one["gate"] = {"ranked": not is_last, "rank": n + 1, "reasons": ["WER too high"] if is_last else []}
        if is_last:
            one["gate"]["rank"] = None
        run["results"].append(one)
    return run


def measured_of(run: Run) -> Measured:
    results = {result["variant"]: result for result in run["results"]}
    return [(n, row, results[row["variant"]]) for n, row in enumerate(rows(run))]


def drawn(chart: Chart | None) -> list[dict[str, str]]:
    """Return class -> tooltip of every mark, for the wide and for the narrow picture."""
    assert chart is not None and chart.narrow is not None
    found = []
    for svg in (chart.svg, chart.narrow):
        marks = {}
        for n, mark in enumerate(ElementTree.fromstring(svg).iter(f"{SVG}g")):
            title = mark.find(f"{SVG}title")
            if title is not None and title.text:
                marks[f"{mark.get('class')} {n}"] = title.text
        found.append(marks)
    return found


def test_each_ranked_row_has_a_bar_with_its_interval() -> None:
    references = [f"one two three four {n}" for n in range(6)]
    texts = dict.fromkeys(VARIANTS, references) | {SHORT: ["one"] * 6}
    run = make_run([*VARIANTS, SHORT], references, texts=texts, rounds=4)
    score.score(run, "none", replicates=100)
    gate.judge(run)
    found = {row["variant"]: row for row in rows(run)}
    assert found[SHORT]["speedup"] is None
    with matplotlib.rc_context(STYLE):
        chart = speed.chart(run, measured_of(run))
        assert chart is not None
        for marks in drawn(chart):
            told = sorted(marks.values())
            assert len(told) == len(VARIANTS)
            for variant in VARIANTS:
                (text,) = (text for text in told if text.startswith(f"{variant}: "))
                row = found[variant]
                assert f" {row['speedup']:.3g} times" in text.replace("1.00 ", "1 ")
                has_interval = row["speedup_low"] < row["speedup_high"]
                assert (f"95 % interval {row['speedup_low']:.2f}" in text) is has_interval
        for variant in VARIANTS[1:]:
            result_of(run, variant)["gate"]["ranked"] = False
        assert speed.chart(run, measured_of(run)) is None, "the reference alone is no picture"


def test_every_session_of_few_servers_is_drawn_and_the_ranked_one_told() -> None:
    run = grown("tiny.en-server-cpu", 3)
    with matplotlib.rc_context(STYLE):
        for marks in drawn(serving.chart(run, measured_of(run))):
            points = [text for text in marks.values() if " requests/s p99 " in text]
            rated = [
                s for result in run["results"] for s in result["sessions"] if s["rate_per_second"] is not None
            ]
            assert len(points) == len(rated)
            assert sum("ranked by this" in text for text in points) == 2, "the third is not ranked"
    many = grown("tiny.en-server-cpu", 12)
    with matplotlib.rc_context(STYLE):
        chart = serving.chart(many, measured_of(many))
        for marks in drawn(chart):
            assert sum(" requests/s p99 " in text for text in marks.values()) == 12, "the kept sessions alone"
    assert chart is not None and "up to 6 rows only" in chart.caption


def test_servers_of_one_rate_are_drawn_at_what_they_answered() -> None:
    run = grown("tiny.en-server-cpu", 3)
    run["settings"]["server"] |= {"rate_per_second": 1.2, "p99_seconds": None}
    for result in run["results"]:
        result["sessions"] = [session for session in result["sessions"] if session["is_kept"]]
        for session in result["sessions"]:
            session["rate_per_second"] = 1.2
    with matplotlib.rc_context(STYLE):
        chart = serving.chart(run, measured_of(run))
    assert chart is not None and "limit" not in chart.svg
    assert all(len(marks) == 3 for marks in drawn(chart))
    session = run["results"][0]["sessions"][0]
    assert serving._held([session], False)[0].rate == session["answered"] / session["finish_seconds"]
    for result in run["results"]:
        result["sessions"] = []
    assert serving.chart(run, measured_of(run)) is None


def test_streams_are_drawn_by_latency_and_by_words_taken_back() -> None:
    run = grown("tiny.en-streaming-cpu", 4)
    with matplotlib.rc_context(STYLE):
        chart = streams.chart(run, measured_of(run))
        for marks in drawn(chart):
            assert len(marks) == 4
            for _, row, _ in measured_of(run):
                (text,) = (text for text in marks.values() if text.startswith(f"{row['variant']}: "))
                assert f"{row['latency_median_seconds']:.3g}"[:4] in text
                assert f"{row['unstable_partial_word_ratio']:.3g}"[:4] in text
        for result in run["results"]:
            result["streaming"] = None
        assert streams.chart(run, measured_of(run)) is None


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 13, 50])
@pytest.mark.parametrize("published", ["tiny.en-server-cpu", "tiny.en-streaming-cpu"])
def test_the_picture_stands_beside_the_ranking_and_nothing_is_cut_off(
    published: str,
    count: int,
    opened: Open,
) -> None:
    text = page.render(grown(published, count))
    assert REFERENCE in text
    tab = opened(text, viewport={"width": 1280, "height": 800})
    (picture,) = boxes(tab, ".picture svg:visible")
    assert picture[2] - picture[0] > 450 and picture[3] <= 800
    for left, top, right, bottom in boxes(tab, ".picture svg:visible text"):
        assert picture[0] - 1 <= left < right <= picture[2] + 1
        assert picture[1] - 1 <= top < bottom <= picture[3] + 1
    assert tab.evaluate("document.documentElement.scrollWidth") == 1280
    phone = opened(text, viewport={"width": 390, "height": 844})
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    (picture,) = boxes(phone, ".picture svg:visible")
    assert picture[2] - picture[0] > 340
    for left, _, right, _ in boxes(phone, ".picture svg:visible text"):
        assert picture[0] - 1 <= left < right <= picture[2] + 1
    assert phone.locator("#ranking thead th:visible").count() >= 4, "rank, name, WER and what ranks"
