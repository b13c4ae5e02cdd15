"""The HTML report, in a real browser: offline, sortable, by keyboard, harmless whatever engines wrote."""

from __future__ import annotations

import html.parser
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import soundfile
import tones
from browser_pages import BOXES, Open, boxes
from make_run import REFERENCE, TEXT, VARIANTS, add_unavailable, make_run, result_of

from asrgate.harness import record, report
from asrgate.harness.column import figure, percent
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.record import Run
from asrgate.harness.report.html import audio, clips, frontier, matrix, page
from asrgate.harness.scoring import gate, score, slices

pytestmark = pytest.mark.slow

OTHER = VARIANTS[1]
SHORT = "stops-early@cpu/float32"
ODD = "$odd_^{name}@cpu/float32"
HOSTILE = (
    "</script><script>pwned = 1</script><img src=x onerror='pwned = 1'> \u2028 <!-- <script> & \u202e end"
)


def judged(run: Run) -> Run:
    score.score(run, "none", replicates=200)
    gate.judge(run)
    record.validate(run)
    return run


@pytest.fixture(scope="module")
def run() -> Run:
    """Two ranked variants, one that stops early and one with an odd name, one that is not there."""
    made = make_run((REFERENCE, OTHER), 12, rounds=2)
    references = [clip["reference"] for clip in made["clips"]]
    references[3] = HOSTILE
    references[4] = ""
    texts = {
        REFERENCE: [*references[:4], "words out of nothing", *references[5:]],
        OTHER: references,
        SHORT: [reference[: len(reference) // 3] for reference in references],
        ODD: references,
    }
    made = make_run((REFERENCE, OTHER, SHORT, ODD), references, texts=texts)
    failed = result_of(made, ODD)["samples"][5]
    failed |= {"text": None, "text_sha256": None, "tokens": None, "token_count": None}
    failed["error"] = "ValueError: <b>no</b>"
    add_unavailable(made, "absent@cuda/float16", "no CUDA device", "install the driver")
    return judged(made)


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    """The page of that run."""
    return page.render(run)


def ranking(tab: Any) -> list[str]:
    """Return the variants of the ranking in the order shown, each reason after a colon below its row."""
    rows = tab.locator("#ranking table").first.locator("tbody tr")
    return rows.evaluate_all(
        "rows => rows.map(row => row.className === 'why' ? ': ' + row.innerText.trim()"
        " : row.querySelector('th').innerText.trim())"
    )


# the ranking


def test_ranking_shows_what_every_format_shows(run: Run, text: str, opened: Open) -> None:
    shown = ranking(opened(text))
    rows = [row for row in report.rows(run) if row["group"] != "unavailable"]
    expected = []
    for row in rows:
        expected += [row["variant"], *([f": not ranked: {row['reason']}"] if row["reason"] else [])]
    assert shown == expected


def test_sorting_keeps_groups_and_reasons_together(run: Run, text: str, opened: Open) -> None:
    tab = opened(text)
    heading = tab.get_by_role("columnheader", name="RTFx", exact=True).first
    button = heading.get_by_role("button")
    before = ranking(tab)
    ranked = [row["variant"] for row in report.rows(run) if row["group"] == "ranked"]
    button.click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert tab.locator("[aria-sort]", has_text="#").count() == len(tab.locator("table.sortable").all()) - 1
    slowest_first = ranking(tab)
    assert slowest_first[:2] == ranked[::-1]
    button.focus()
    tab.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert ranking(tab)[:2] == ranked
    for order in (before, slowest_first):
        below = {order[n - 1]: text for n, text in enumerate(order) if text.startswith(":")}
        assert below.keys() == {SHORT, ODD}
        assert "stops" not in below[ODD] and "<b>no</b>" in below[ODD]


def test_every_table_has_scoped_headings(run: Run, text: str, opened: Open) -> None:
    tab = opened(text, "clips")
    tab.locator("tbody .open").first.click()
    headings = tab.locator("th").evaluate_all("all => all.map(one => one.scope)")
    assert len(headings) > 40
    assert set(headings) == {"col", "row"}


# clips


def test_marked_differences_are_the_counted_errors(run: Run, text: str, opened: Open) -> None:
    tab = opened(text, "clips")
    for variant in (REFERENCE, SHORT):
        counted = {entry["clip"]: entry for entry in result_of(run, variant)["wer"]["per_clip"]}
        for row in report.rows(run):
            if row["variant"] == variant:
                tab.locator("#variant").select_option(str(report.rows(run).index(row)))
        marks = tab.locator("#clip-table tr[data-place]").evaluate_all(
            """rows => rows.map(row => {
              const words = (selector) => [...row.querySelectorAll(selector)]
                .flatMap((node) => node.textContent.split(" ")).length;
              return [row.querySelector("button").textContent,
                words("del.swap"), words("del:not(.swap)"), words("ins:not(.swap)")];
            })"""
        )
        assert len(marks) == len(run["clips"])
        for clip, *found in marks:
            entry = counted[clip]
            assert found == [entry["substitutions"], entry["deletions"], entry["insertions"]], clip
        assert sum(map(sum, (found for _, *found in marks))) > 0


def test_clips_by_keyboard(run: Run, text: str, opened: Open) -> None:
    tab = opened(text, "clips")
    focused = "document.activeElement.textContent"
    tab.locator("#clip-table .sort").last.focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate(focused) == "clip-000"
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate(focused) == "clip-002"
    tab.keyboard.press("End")
    assert tab.evaluate(focused) == "clip-011"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "clip-detail"
    assert tab.locator("#clip-detail h3").inner_text() == "clip-011"
    assert tab.locator("#clip-detail tbody tr").count() == 4
    tab.keyboard.press("Escape")
    assert tab.locator("#clip-detail").is_hidden()
    assert tab.evaluate(focused) == "clip-011"
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_clips_are_sorted_filtered_and_found(run: Run, text: str, opened: Open) -> None:
    tab = opened(text, "clips")
    names = tab.locator("#clip-table tr[data-place] .open")
    tab.locator('#clip-table [data-key="seconds"] button').click()
    by_length = sorted(run["clips"], key=lambda clip: clip["audio_seconds"])
    assert names.all_inner_texts() == [clip["name"] for clip in by_length]
    tab.locator("#variant").select_option(label="1. " + report.rows(run)[0]["variant"])
    tab.locator("#wrong").check()
    assert set(names.all_inner_texts()) == {
        entry["clip"]
        for entry in result_of(run, report.rows(run)[0]["variant"])["wer"]["per_clip"]
        if not entry["exact"]
    }
    tab.locator("#wrong").uncheck()
    tab.locator("#find").fill("ONERROR")
    assert names.all_inner_texts() == ["clip-003"]
    assert tab.locator("#count").inner_text() == "1 of 12 clips"


def test_thousands_of_clips_are_drawn_as_they_are_seen(opened: Open) -> None:
    made = make_run(VARIANTS, 2000, rounds=1)
    score.score(made, "none", replicates=2)
    gate.judge(made)
    tab = opened(page.render(made), "clips")
    assert tab.evaluate("performance.getEntriesByName('asrgate-ready')[0].startTime") < 5000
    assert tab.locator("#clip-table").get_attribute("aria-rowcount") == "2001"
    drawn = tab.locator("#clip-table tr[data-place]")
    assert 10 < drawn.count() < 100
    tab.locator("#clip-table .open").first.focus()
    tab.keyboard.press("End")
    assert drawn.count() < 100
    assert tab.evaluate("document.activeElement.textContent") == "clip-1999"
    assert drawn.last.get_attribute("aria-rowindex") == "2001"
    tab.keyboard.press("PageUp")
    assert re.fullmatch(r"clip-19[78]\d", tab.evaluate("document.activeElement.textContent"))
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert drawn.count() == 200
    assert "first 200 of 2000" in tab.locator("#clip-table caption").inner_text()


# what engines and users wrote


def test_hostile_text_stays_text(run: Run, opened: Open) -> None:
    hostile = json.loads(record.dumps(run))
    hostile["run_id"] = "1--"
    hostile["warnings"] = [HOSTILE]
    hostile["checkpoint"]["note"] = HOSTILE
    hostile["host"]["cpu"] = HOSTILE
    hostile["clips"][0]["name"] = "{{ 7 * 7 }}<script>"
    for result in hostile["results"]:
        result["error"] = result["remedy"] = HOSTILE
        for item in [*result["samples"], *((result["wer"] or {}).get("per_clip", []))]:
            item["clip"] = hostile["clips"][0]["name"] if item["clip"] == "clip-000" else item["clip"]
        for sample in result["samples"]:
            sample["text"] = None if sample["text"] is None else f"{sample['text']} {HOSTILE} \ud800"
    tab = opened(page.render(hostile).encode("utf-8", "strict").decode(), "clips")
    assert tab.evaluate("typeof pwned") == "undefined"
    assert tab.locator("img").count() == 0
    scripts = tab.locator("script").evaluate_all("all => all.map(one => one.type)")
    assert Counter(scripts) == {"application/json": 1 + 4 + 1, "": 1}
    tab.locator("#as-written").check()
    tab.locator("tbody .open").nth(3).click()
    assert tab.locator("#clip-detail .reference").evaluate("one => one.textContent") == HOSTILE
    assert "{{ 7 * 7 }}<script>" in tab.locator("#clip-table").inner_text()


def test_only_the_pages_own_script_runs(run: Run, browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "tampered.html"
    path.write_text(page.render(run).replace("</main>", "<script>pwned = 1</script></main>"))
    tab = browser.new_page()
    tab.goto(path.as_uri())
    assert tab.evaluate("typeof pwned") == "undefined"
    assert tab.locator("#clip-table tr[data-place]").count() == 12
    tab.close()


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "a\u2028b\u2029c", "&lt;", "\ud800", '"\\'])
def test_data_survives_its_script_element(text: str) -> None:
    written = clips.dumps([text])
    assert not set(written) & set("<>&\u2028\u2029\ud800")
    assert json.loads(written) == [text]


def test_without_texts_no_word_is_left_and_counts_stay(run: Run, opened: Open) -> None:
    text = page.render(record.without_texts(run))
    for clip in run["clips"]:
        assert not clip["reference"] or clip["reference"][:20] not in text
    tab = opened(text, "clips")
    assert "stored without texts" in tab.locator("#clips").inner_text()
    first = tab.locator("#clip-table tr[data-place]").nth(0)
    assert first.locator("td").last.inner_text() == "(text not stored)"
    per_clip = result_of(run, report.rows(run)[0]["variant"])["wer"]["per_clip"][0]
    assert first.locator("td").nth(2).inner_text() == f"{100 * per_clip['wer']:.2f}"
    first.locator("button").click()
    assert "reference text was not stored" in tab.locator("#clip-detail").inner_text()


def test_no_normaliser_leaves_raw_texts_and_says_so(run: Run, opened: Open) -> None:
    other = json.loads(json.dumps(run))
    other["scoring"]["normalizer"] |= {"name": "of the future", "version": "9"}
    tab = opened(page.render(other), "clips")
    assert "Differences are missing: no normaliser is called" in tab.locator("#clips .warning").inner_text()
    assert tab.locator("#clip-table del").count() == 0
    assert run["clips"][0]["reference"].split()[0] in tab.locator("#clip-table tbody").inner_text()


def test_other_normaliser_version_is_told(run: Run) -> None:
    assert "may not add up" not in page.render(run)
    other = json.loads(json.dumps(run))
    other["scoring"]["normalizer"]["sha256"] = "0" * 64
    assert "may not add up" in page.render(other)


def test_run_of_nothing_is_still_a_page(opened: Open) -> None:
    made = make_run((REFERENCE,), 0)
    made["results"] = []
    made["complete"], made["interrupted"] = False, "stopped by the user"
    tab = opened(page.render(judged(made)))
    assert "Nothing was measured" in tab.locator("#ranking").inner_text()
    assert "stopped by the user" in tab.locator(".warning").inner_text()


# the first screen

ENGINES = ("whisper-cpu", "faster-whisper", "faster-whisper-batched", "max-hybrid", "torch-fast", "max")
NAMES = [f"{name}@cpu/{precision}" for precision in ("float32", "int8+compiled") for name in ENGINES]
LENGTHS = (1.5, 3.0, 4.0, 7.0, 8.0, 15.0)


@pytest.fixture(scope="module")
def thirteen() -> Run:
    """Twelve ranked variants, one of them told apart from the reference in WER, and one that stops early."""
    references = [f"{' '.join(TEXT.split()[n % 9 :])} {n}" for n in range(24)]
    worse = [" ".join(["wrong", *reference.split()[1:]]) for reference in references]
    texts = {name: [*references[:20], *worse[20:]] for name in NAMES}
    texts |= {NAMES[2]: [*worse[:4], *references[4:16], *worse[16:20], *references[20:]], NAMES[4]: worse}
    texts[SHORT] = [reference[: len(reference) // 3] for reference in references]
    made = make_run(
        [*NAMES, SHORT],
        references,
        rounds=1,
        texts=texts,
        audio_seconds=[LENGTHS[n % 6] for n in range(24)],
        languages=["en", "de", "sv"] * 8,
        settings={"wer_tolerance": 0.2},
    )
    made["host"]["host_class"] = "Imaginary 9000, 8 cores, no GPU, 32 GiB"
    return judged(made)


@pytest.fixture(scope="module")
def whole(thirteen: Run) -> str:
    return page.render(thirteen)


def test_first_screen_has_what_was_measured_the_picture_and_the_whole_table(
    thirteen: Run, whole: str, opened: Open
) -> None:
    tab = opened(whole, viewport={"width": 1280, "height": 800})
    told = tab.locator("#measured").inner_text()
    assert told == "tiny.en on 24 clips (de, en, sv), 2.6 min · Imaginary 9000, 8 cores, no GPU, 32 GiB"
    (line,) = boxes(tab, "#measured")
    assert line[3] - line[1] < 30, "one line"
    (picture,) = boxes(tab, ".picture svg:visible")
    assert picture[2] - picture[0] > 450
    rows = boxes(tab, "#ranking tbody tr")
    assert len(rows) == 12 + 2  # the unranked one and its reason
    figures = boxes(tab, "#ranking tbody td:visible")
    assert len(figures) > 13 * 4
    for left, top, right, bottom in [line, picture, *rows, *figures]:
        assert 0 <= left < right <= 1280
        assert 0 <= top < bottom <= 800
    assert tab.evaluate("document.documentElement.scrollWidth") == 1280
    after = tab.locator(".first ~ *")
    assert set(after.evaluate_all("all => all.map(one => `${one.tagName} ${one.open}`)")) == {"DETAILS false"}
    assert tab.locator("summary h2").all_inner_texts()[:4] == [
        *("By length", "By lang", "Quality in detail", "Time in detail")
    ]


BROKEN = """all => all.flatMap(one => {
  const found = [];
  for (const walker = document.createTreeWalker(one, NodeFilter.SHOW_TEXT); walker.nextNode();) {
    for (const part of walker.currentNode.data.matchAll(/[@/ ]?[^@/ ]+/g)) {
      const range = document.createRange();
      range.setStart(walker.currentNode, part.index);
      range.setEnd(walker.currentNode, part.index + part[0].length);
      if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) found.push(part[0]);
    }
  }
  return found;
})"""
DOTS = """all => all.map(one => {
  const dot = one.getBoundingClientRect(), range = document.createRange();
  range.selectNodeContents(one.nextSibling);
  const word = range.getClientRects()[0], middle = (dot.top + dot.bottom) / 2;
  return word.top < middle && middle < word.bottom && dot.right < word.left && word.left - dot.right < 12;
})"""


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_names_break_only_between_their_parts_and_keep_their_dot(
    whole: str, opened: Open, width: int
) -> None:
    tab = opened(whole, viewport={"width": width, "height": 800})
    tab.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    names = tab.locator(".name:visible, .whole:visible")
    assert names.count() > 13 * 4
    assert names.evaluate_all(BROKEN) == []
    assert set(tab.locator(".swatch:visible").evaluate_all(DOTS)) == {True}


@pytest.mark.parametrize("name", [NAMES[1], "an-engine-by-another-name@cuda/bfloat16+compiled+trim"])
def test_phone_shows_rank_and_speed_together(whole: str, opened: Open, name: str) -> None:
    written = "</span><wbr><span>".join(re.split("(?=[@/])", NAMES[1]))
    assert f">{written}<" in whole
    text = whole.replace(written, "</span><wbr><span>".join(re.split("(?=[@/])", name)))
    tab = opened(text, viewport={"width": 390, "height": 844})
    column = tab.locator("#ranking thead th").all_text_contents().index("RTFx") + 1
    for row in tab.locator("#ranking tr[data-variant]:not(.why)").all():
        for cell in (row.locator(".rank"), row.locator(f"td:nth-child({column})")):
            left, _, right, _ = cell.evaluate_all(BOXES)[0]
            assert 0 <= left < right <= 390
    assert tab.evaluate("document.documentElement.scrollWidth") == 390


def test_columns_without_room_wait_behind_more_columns(whole: str, opened: Open) -> None:
    from playwright.sync_api import expect

    tab = opened(whole, viewport={"width": 1280, "height": 800})
    every = tab.locator("#ranking thead th")
    shown = tab.locator("#ranking thead th:visible")
    left_out = every.count() - shown.count()
    assert left_out > 0
    assert tab.locator("#ranking .more").text_content().strip() == f"more columns ({left_out})"
    box = tab.locator("#more-main")
    box.focus()
    tab.keyboard.press("Space")
    assert shown.count() == every.count()
    assert max(right for *_, right, _ in boxes(tab, "#ranking thead th")) <= 1280
    tab.keyboard.press("Space")
    assert shown.count() == every.count() - left_out
    tab.set_viewport_size({"width": 1920, "height": 800})
    expect(shown).not_to_have_count(every.count() - left_out)
    assert every.count() - left_out < shown.count() <= every.count()


# slices


def test_matrix_has_the_figures_of_the_slices(thirteen: Run, whole: str, opened: Open) -> None:
    tab = opened(whole, "by-1")
    found = slices.rows(thirteen, ["length"])
    values = list(dict.fromkeys(row["value"] for row in found))
    known = {(row["variant"], row["value"]): row for row in found}
    variants = [row["variant"] for row in report.rows(thirteen)]
    matrix = tab.locator("#by-1 .matrix:visible")
    radio = tab.locator("#by-1 input[type=radio]")
    radio.first.focus()
    for name, key, write in (
        ("WER %", "wer_percent", percent),
        ("CER %", "cer_percent", percent),
        ("RTFx", "rtfx", figure),
        ("median s", "latency_median_seconds", figure),
    ):
        assert matrix.count() == 1
        assert matrix.get_attribute("aria-label") == f"{name} By length, table"
        heads = matrix.locator("thead th").evaluate_all("all => all.map(one => one.firstChild.data)")
        assert heads == ["variant", *values]
        cells = matrix.locator("tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.cells].map(one => one.textContent.trim()))"
        )
        assert [line[0].removesuffix(" reference") for line in cells] == variants
        for variant, line in zip(variants, cells, strict=True):
            assert line[1:] == [write(known[variant, value][key]) for value in values], (variant, name)
        tab.keyboard.press("ArrowDown")


def test_cells_are_shaded_by_distance_from_the_reference(thirteen: Run, whole: str, opened: Open) -> None:
    tab = opened(whole, "by-1")
    shades = {
        name: tab.locator(f"#by-1 .figure-{number} tbody tr").evaluate_all(
            "rows => Object.fromEntries(rows.map(row => [row.querySelector('.name').textContent,"
            " [...row.cells].slice(1).map(one => one.className.replace('number', '').trim())]))"
        )
        for number, name in ((0, "wer"), (2, "rtfx"))
    }
    assert set(shades["wer"][REFERENCE]) == set(shades["rtfx"][REFERENCE]) == {""}
    assert set(shades["wer"][NAMES[1]]) == {""}, "the same words"
    assert all(shade.startswith("worse") for shade in shades["wer"][NAMES[4]])
    assert set(shades["wer"][SHORT]) == {"worse-3"}
    assert set(shades["rtfx"][NAMES[1]]) == {"better-2"}, "twice as fast"
    assert set(shades["rtfx"][NAMES[5]]) == {"better-3"}, "six times as fast"
    style = "getComputedStyle(document.querySelector('{}')).backgroundColor"
    colours = [tab.evaluate(style.format(f"td.{shade}")) for shade in ("worse-3", "better-2", "better-3")]
    assert len(set(colours)) == 3


@pytest.mark.parametrize(
    ("value", "base", "is_ratio", "is_higher_better", "shade"),
    [
        (5.0, 5.4, False, False, ""),
        (5.0, 5.5, False, False, "better-1"),
        (7.0, 5.0, False, False, "worse-2"),
        (40.0, 5.0, False, False, "worse-3"),
        (10.9, 10.0, True, True, ""),
        (11.1, 10.0, True, True, "better-1"),
        (5.0, 10.0, True, True, "worse-2"),
        (0.2, 1.0, True, False, "better-3"),
        (1.0, 0.0, True, True, ""),
    ],
)
def test_shade(value: float, base: float, is_ratio: bool, is_higher_better: bool, shade: str) -> None:
    assert matrix.shade_of(value, base, is_ratio, is_higher_better) == shade


def test_speed_by_length_is_drawn_beside_its_matrix(thirteen: Run, whole: str, opened: Open) -> None:
    tab = opened(whole, "by-1")
    assert tab.locator("#by-1 h3").inner_text() == "Speed by clip length"
    titles = tab.locator("#by-1 svg title").all_text_contents()
    for row in slices.rows(thirteen, ["length"]):
        (title,) = [text for text in titles if text.startswith(f"{row['variant']}, ")]
        assert f"{row['value']}: {figure(row['rtfx'])}" in title


# charts


def test_bars_are_the_paired_intervals_from_the_reference(thirteen: Run, whole: str, opened: Open) -> None:
    tab = opened(whole, viewport={"width": 1280, "height": 800})
    rows = report.rows(thirteen)
    numbers = {row["variant"]: n for n, row in enumerate(rows)}
    drawn = {}
    for row in rows[:-1]:
        marks = boxes(tab, f".picture svg:visible .v{numbers[row['variant']]}")
        drawn[row["variant"]] = marks[::-1]  # the point, and before it the bar
    reference, worst = (next(row for row in rows if row["variant"] == name) for name in (REFERENCE, NAMES[4]))
    assert len(drawn[REFERENCE]) == 1, "the reference differs from itself by nothing"

    def middle(name: str) -> float:
        (_, top, _, bottom), *_ = drawn[name]
        return (top + bottom) / 2

    scale = (middle(NAMES[4]) - middle(REFERENCE)) / (worst["wer_percent"] - reference["wer_percent"])
    assert scale < 0
    checked = 0
    for row in rows[:-1]:
        if len(drawn[row["variant"]]) == 1:
            continue
        _, (_, top, _, bottom) = drawn[row["variant"]]
        ends = (row["wer_difference_low_points"], row["wer_difference_high_points"])
        if ends[1] - ends[0] > 0:
            assert [bottom, top] == pytest.approx([middle(REFERENCE) + scale * end for end in ends], abs=2)
            checked += 1
    assert checked >= 2


def test_rows_that_cannot_be_told_apart_are_in_one_band(thirteen: Run, whole: str, opened: Open) -> None:
    tab = opened(whole, viewport={"width": 1280, "height": 800})
    band = tab.locator(".picture svg:visible [class=mark]")
    assert band.count() == 1
    named = band.locator("title").text_content().partition(": ")[2].split(", ")
    rows = report.rows(thirteen)
    alike = [
        row["variant"]
        for row in rows
        if row["group"] == "ranked"
        and (
            row["variant"] == REFERENCE
            or row["wer_difference_low_points"] <= 0 <= row["wer_difference_high_points"]
        )
    ]
    assert named == alike and len(alike) == 11
    ((_, top, _, bottom),) = band.evaluate_all(BOXES)
    for n, row in enumerate(rows[:-1]):
        (_, high, _, low) = boxes(tab, f".picture svg:visible .v{n}")[-1]
        assert (top < (high + low) / 2 < bottom) == (row["variant"] in alike), row["variant"]
    assert "WER not told apart from the reference's" in tab.locator(".picture").inner_text()


def test_without_a_reference_there_is_neither_bar_nor_band(thirteen: Run, opened: Open) -> None:
    made = json.loads(json.dumps(thirteen))
    made["settings"]["reference"] = "absent@cpu/float32"
    tab = opened(page.render(judged(made)))
    assert tab.locator(".picture svg:visible .mark").count() == 13
    assert "Bars" not in tab.locator(".picture figcaption").inner_text()


def test_a_row_far_off_leaves_the_ranked_ones_their_room() -> None:
    row = {"group": "ranked", "wer_difference_low_points": None, "wer_difference_high_points": None}
    ranked = [(n, row | {"wer_percent": wer}) for n, wer in enumerate((5.0, 7.0))]
    low, high, top = frontier.limits([*ranked, (2, row | {"group": "unranked", "wer_percent": 250.0})], None)
    assert low < 5 and 7 < top < high < 9
    low, high, top = frontier.limits([*ranked, (2, row | {"group": "unranked", "wer_percent": 8.5})], None)
    assert high > 8.5 and top == math.inf
    low, high, top = frontier.limits(ranked[:1], None)
    assert high - low >= 1, "rows that are equal are not magnified into differences"


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.titles: list[str] = []
        self._path: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._path.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("xlink:href", "href", "aria-labelledby", "aria-describedby", "for", "clip-path"):
                found = re.fullmatch(r"(?:url\()?#?([\w-]+)\)?", value or "")
                self.references += found.groups() if found and "." not in (value or "") else []

    def handle_data(self, data: str) -> None:
        if self._path[-1:] == ["title"]:
            self.titles.append(data)


def test_ids_are_unique_and_every_reference_has_its_target(run: Run) -> None:
    found = _Page(page.render(run))
    assert [name for name, count in Counter(found.ids).items() if count > 1] == []
    assert set(found.references) - set(found.ids) == {"clip-name"}  # made when a clip is opened


def test_charts_name_their_marks_and_take_the_pages_colours(run: Run, opened: Open) -> None:
    text = page.render(run)
    assert len(re.findall(r"<svg ", text)) == 7  # the first one and the speed-ups for a phone too
    assert not re.search(r"#fe0[0-9a-f]{3}", text)
    titles = _Page(text).titles
    assert any(re.match(rf"{re.escape(ODD)} \(not ranked\): WER \d+.\d\d %, RTFx", title) for title in titles)
    tab = opened(text, color_scheme="dark")
    labels = tab.locator(".drawing svg").first.locator("text").all_inner_texts()
    assert ODD in [label.strip() for label in tab.locator(".drawing text").all_text_contents()], labels
    ink = "getComputedStyle(document.querySelector('.drawing text')).fill"
    dark = tab.evaluate(ink)
    tab.locator("#theme").select_option("light")
    assert tab.evaluate(ink) != dark


def test_page_is_the_same_each_time(run: Run) -> None:
    assert page.render(run) == page.render(run)


def test_colours_have_contrast() -> None:
    """WCAG 2.2, success criteria 1.4.3 (text, 4.5) and 1.4.11 (graphics, 3), in light and in dark."""
    style = (page.FOLDER / "page.css").read_text()
    pairs = {
        name: (light, dark)
        for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    }
    text = [(name, "paper") for name in ("ink", "muted", "link", "gone-ink")]
    text += [("ink", "raised"), ("muted", "raised"), ("link", "raised")]
    text += [(f"{kind}-ink", f"{kind}-paper") for kind in ("warn", "gone", "new", "swap")]
    text += [("ink", name) for name in pairs if re.match("better|worse|band", name)]
    assert len(text) == 4 + 3 + 4 + 7
    graphics = [(name, "paper") for name in pairs if name.startswith("series-")]
    assert len(graphics) == 9
    graphics += [(name, "band") for name, _ in graphics]
    for combinations, least in ((text, 4.5), (graphics, 3.0)):
        for front, back in combinations:
            for scheme in (0, 1):
                assert contrast(pairs[front][scheme], pairs[back][scheme]) >= least, (front, back, scheme)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# print, and without the script


@pytest.mark.parametrize("script", [True, False])
def test_print_opens_every_section(whole: str, opened: Open, script: bool) -> None:
    tab = opened(whole, viewport={"width": 1032, "height": 700}, java_script_enabled=script)
    wanted = ["#by-1 .matrix", "#by-2 .matrix", "#quality td", "#times td", "#columns dd", "#environment dd"]
    assert not any(tab.locator(part).first.is_visible() for part in wanted)
    tab.emulate_media(media="print")
    if script:
        tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        wanted.append("#clips tbody td.said")
    for part in wanted:
        assert tab.locator(part).first.is_visible(), part
    assert tab.locator("#by-1 .matrix:visible").count() == 4, "paper has no switch"
    assert tab.locator("#ranking thead th:visible").count() == tab.locator("#ranking thead th").count()
    (reason,) = boxes(tab, ".reason")
    assert reason[3] - reason[1] > 0
    if script:
        tab.emulate_media(media="screen")
        tab.evaluate("dispatchEvent(new Event('afterprint'))")
        assert tab.locator("details.section[open]").count() == 0


def test_an_address_of_a_closed_section_opens_it(whole: str, opened: Open) -> None:
    tab = opened(whole, "times")
    assert tab.locator("details[open]").evaluate_all("all => all.map(one => one.id)") == ["times"]
    tab.evaluate("location.hash = '#by-2'")
    tab.locator("#by-2 .matrix:visible").wait_for()


def test_what_a_machine_lacks_is_said_once(run: Run, opened: Open) -> None:
    made = json.loads(json.dumps(run))
    for name in ("other@cuda/float16", "third@cuda/int8"):
        add_unavailable(made, name, "no CUDA device", "install the driver")
    tab = opened(page.render(made), "unavailable")
    rows = tab.locator("#unavailable tbody tr")
    assert rows.all_inner_texts() == [
        "absent@cuda/float16\nother@cuda/float16\nthird@cuda/int8\n\tno CUDA device\tinstall the driver"
    ]
    assert tab.locator("#unavailable .hint").inner_text().startswith("3 variants")


def test_warnings_take_one_line_and_an_interruption_is_open(run: Run, opened: Open) -> None:
    made = json.loads(json.dumps(run))
    made["warnings"] = ["the machine was busy " * 20, "second"]
    tab = opened(page.render(made), viewport={"width": 1280, "height": 800})
    warning = tab.locator("details.warning")
    ((_, top, _, bottom),) = warning.evaluate_all(BOXES)
    assert bottom - top < 40
    assert not warning.get_by_text("second").is_visible()
    warning.locator("summary").press("Enter")
    assert warning.get_by_text("second").is_visible()
    made["complete"], made["interrupted"] = False, "stopped by the user"
    assert opened(page.render(made)).locator("details.warning").get_by_text("second").is_visible()


# audio and history


def recorded(folder: Path, run: Run) -> Path:
    """Record the first three clips anew under other names and put the hashes into the run."""
    folder.mkdir()
    for number, clip in enumerate(run["clips"][:3]):
        path = folder / f"renamed {number}.wav"
        soundfile.write(path, tones.speak("red green " * (number + 1)), tones.SAMPLE_RATE_HZ)
        samples = audio_file.decode(path)
        clip["sha256"], clip["audio_seconds"] = audio_file.sha256(samples), len(samples) / 16_000
    return folder


def test_audio_is_embedded_when_asked_and_shown_when_switched_on(opened: Open, tmp_path: Path) -> None:
    made = judged(make_run(VARIANTS, 4))
    folder = recorded(tmp_path / "clips", made)
    sounds = audio.embed(made, [folder])
    assert sounds.keys() == {"clip-000", "clip-001", "clip-002"}
    tab = opened(page.render(made, audio=sounds), "clips")
    tab.locator("tbody .open").nth(1).click()
    assert tab.locator("audio").count() == 0
    tab.locator("#players").check()
    player = tab.locator("audio")
    assert player.get_attribute("aria-label") == "Recording of clip-001"
    tab.wait_for_function("document.querySelector('audio').readyState > 0")
    assert player.evaluate("one => one.duration") == pytest.approx(0.8, abs=0.15)  # MP3 pads
    tab.locator("tbody .open").nth(3).click()
    assert player.count() == 0
    assert "players" not in _Page(page.render(made)).ids


def test_recordings_of_other_clips_are_refused(tmp_path: Path) -> None:
    made = judged(make_run(VARIANTS, 4))
    folder = recorded(tmp_path / "clips", make_run(VARIANTS, 4))
    with pytest.raises(audio.AudioMissing, match="what the run got with --audio"):
        audio.embed(made, [folder])


def command(*arguments: object) -> int:
    from asrgate.harness.cli import main

    return main([str(argument) for argument in arguments])


def test_report_command_embeds_audio_and_history_and_links_raw_data(opened: Open, tmp_path: Path) -> None:
    made = judged(make_run(VARIANTS, 4))
    folder = recorded(tmp_path / "clips", made)
    made = judged(made)  # the clips' lengths have changed
    for day in (1, 2):
        made["run_id"], made["started_at"] = f"day {day}".replace(" ", "-"), f"2026-01-0{day}T00:00:00+00:00"
        stored = tmp_path / "results" / made["run_id"]
        stored.mkdir(parents=True)
        report.write_all(made, stored)
    target = tmp_path / "out" / "page.html"
    target.parent.mkdir()
    more = ["--with-audio", folder, "--history", tmp_path / "results"]
    assert command("report", stored, "--output", target, *more) == 0
    tab = opened(target.read_text(), "data")
    assert tab.locator("#players").count() == 1
    assert tab.locator("#history h3").text_content() == "Over stored runs: rtfx"
    assert tab.locator("#history").locator("thead th").all_text_contents() == ["variant", "day-1", "day-2"]
    links = tab.locator("#data a")
    assert links.all_inner_texts() == ["run.json", "samples.csv", "summary.csv", "report.md"]
    assert (target.parent / links.first.get_attribute("href")).resolve() == (stored / "run.json").resolve()
    assert 'href="run.json"' in (stored / "report.html").read_text()


def test_audio_for_another_format_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write(judged(make_run(VARIANTS, 2)), tmp_path / "run.json")
    assert command("report", tmp_path, "--format", "md", "--with-audio", tmp_path) == 2
    assert "are for --format html, not md" in capsys.readouterr().err
