"""The HTML report, in a real browser: offline, sortable, by keyboard, harmless whatever engines wrote."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import tones
from make_run import REFERENCE, VARIANTS, add_unavailable, make_run, result_of

from asrgate.harness import record, report
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.record import Run
from asrgate.harness.report.html import audio, clips, page
from asrgate.harness.report.html.frontier import pareto_front
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]
SHORT = "stops-early@cpu/float32"
ODD = "$odd_^{name}@cpu/float32"
HOSTILE = (
    "</script><script>pwned = 1</script><img src=x onerror='pwned = 1'> \u2028 <!-- <script> & \u202e end"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

Open = Callable[..., Any]


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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    found = os.environ.get("ASRGATE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed (or name ASRGATE_CHROMIUM)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        launched = playwright.chromium.launch(executable_path=found, args=flags)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a report; at the end of the test nothing may have been fetched and nothing complained of."""
    contexts, complaints, asked = [], [], []

    def open_page(text: str, **options: Any) -> Any:
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.endswith("/report.html") and not url.startswith("blob:")] == []


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
    tab = opened(text)
    tab.locator("tbody .open").first.click()
    headings = tab.locator("th").evaluate_all("all => all.map(one => one.scope)")
    assert len(headings) > 40
    assert set(headings) == {"col", "row"}


# clips


def test_marked_differences_are_the_counted_errors(run: Run, text: str, opened: Open) -> None:
    tab = opened(text)
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
    tab = opened(text)
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
    tab = opened(text)
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
    tab = opened(page.render(made))
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
    tab = opened(page.render(hostile).encode("utf-8", "strict").decode())
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
    tab = opened(text)
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
    tab = opened(page.render(other))
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


# charts


def test_pareto_front() -> None:
    points = [(1.0, 5.0), (2.0, 5.0), (3.0, 7.0), (2.5, 9.0), (0.5, 1.0), (3.0, 8.0)]
    assert pareto_front(points) == [2, 1, 4]
    assert pareto_front([]) == []
    assert pareto_front([(1.0, 2.0), (1.0, 2.0)]) == [0, 1]


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
    assert len(re.findall(r"<svg ", text)) == 4
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
    graphics = [(name, "paper") for name in pairs if name.startswith("series-")]
    assert len(graphics) == 9
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
    tab = opened(page.render(made, audio=sounds))
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
    tab = opened(target.read_text())
    assert tab.locator("#players").count() == 1
    assert tab.locator("figure h3").last.inner_text() == "Over stored runs: rtfx"
    assert tab.locator("figure").last.locator("thead th").all_text_contents() == ["variant", "day-1", "day-2"]
    links = tab.locator("#data a")
    assert links.all_inner_texts() == ["run.json", "samples.csv", "summary.csv", "report.md"]
    assert (target.parent / links.first.get_attribute("href")).resolve() == (stored / "run.json").resolve()
    assert 'href="run.json"' in (stored / "report.html").read_text()


def test_audio_for_another_format_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.write(judged(make_run(VARIANTS, 2)), tmp_path / "run.json")
    assert command("report", tmp_path, "--format", "md", "--with-audio", tmp_path) == 2
    assert "are for --format html, not md" in capsys.readouterr().err
