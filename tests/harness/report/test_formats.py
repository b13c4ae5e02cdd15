import argparse
import csv
import io
import json
import re
from pathlib import Path

import pytest
from make_run import REFERENCE, VARIANTS, add_unavailable, make_run, result_of
from markdown_it import MarkdownIt  # comes with rich
from rich.console import Console

from asrgate.backends.base import AsrgateError
from asrgate.harness import escape, record, report
from asrgate.harness.cli.report import add_parsers
from asrgate.harness.report import columns
from asrgate.harness.report.formats import FormatError
from asrgate.harness.report.readme import MarkerError
from asrgate.harness.report.rows import RANKED, UNAVAILABLE, UNRANKED
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]
SHORT = "stops-early@cpu/float32"
ABSENT = "absent@cuda/float16"
REFERENCES = ["one fine day in june", "two green bottles", "three blind mice ran away"] * 4
HOSTILE = "| `a` <script>alert(1)</script> [x](http://evil.example) [red]\r\n# =1+2 \x1b[31m\u202e @all"


def judged(run):
    score.score(run, replicates=200)
    gate.judge(run)
    record.validate(run)
    return run


@pytest.fixture
def run():
    """Two ranked variants, one that stops early, one that is not there."""
    texts = dict.fromkeys(VARIANTS, REFERENCES)
    texts[SHORT] = [reference.split()[0] for reference in REFERENCES]
    made = make_run((*VARIANTS, SHORT), REFERENCES, texts=texts)
    add_unavailable(made, ABSENT, "no CUDA device", "install the driver")
    return judged(made)


def row_of(run, variant):
    return next(row for row in report.rows(run) if row["variant"] == variant)


def printed(run, width=100, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    report.print_table(run, Console(file=file, width=width, force_terminal=True, color_system=None))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def parsed(text):
    return list(csv.DictReader(io.StringIO(text)))


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_parsers(parser.add_subparsers())
    chosen = parser.parse_args([str(argument) for argument in arguments])
    return chosen.func(chosen)


# rows


def test_rows_come_ranked_first_then_unranked_then_unavailable(run):
    run["results"].reverse()
    assert [(row["variant"], row["group"], row["rank"]) for row in report.rows(run)] == [
        (OTHER, RANKED, 1),
        (REFERENCE, RANKED, 2),
        (SHORT, UNRANKED, None),
        (ABSENT, UNAVAILABLE, None),
    ]


def test_figures_of_a_row_are_those_of_the_record(run):
    row, result = row_of(run, OTHER), result_of(run, OTHER)
    short = row_of(run, SHORT)
    assert row["speedup"] == pytest.approx(result["rtfx"]["rtfx"] / result_of(run, REFERENCE)["rtfx"]["rtfx"])
    assert row["latency_p90_seconds"] == result["latency"]["p90_seconds"]
    assert short["wer_percent"] == pytest.approx(100 * result_of(run, SHORT)["wer"]["wer"])
    assert short["deletions"] == sum(len(reference.split()) - 1 for reference in REFERENCES)
    assert (row["same_text_clips"], row["compared_clips"]) == (12, 12)


def test_speedup_is_told_of_ranked_rows_only(run):
    assert row_of(run, SHORT)["rtfx"] > 0
    assert row_of(run, SHORT)["speedup"] is None
    result_of(run, REFERENCE)["gate"].update(ranked=False, rank=None, reasons=["too loud"])
    assert row_of(run, OTHER)["speedup"] is None


def test_a_row_that_was_not_judged_is_not_ranked():
    run = make_run()
    score.score(run, replicates=200)
    for result in run["results"]:
        result["gate"]["reasons"] = []
    assert [(row["group"], row["reason"]) for row in report.rows(run)] == [(UNRANKED, "not judged yet")] * 2
    assert "No row passed the gate" in printed(run)
    assert "No row passed the gate" in report.render(run, "md")


@pytest.mark.parametrize("missing", ["wer", "rtfx"])
def test_a_row_without_wer_or_speed_is_not_ranked_whatever_the_record_says(run, missing):
    result_of(run, OTHER)[missing] = None
    assert row_of(run, OTHER)["group"] == UNRANKED


def test_energy_is_told_per_hour_of_audio(run):
    result = result_of(run, OTHER)
    result["resources"]["energy_joules"] = 100.0
    result["rtfx"]["audio_seconds"] = 1800.0
    assert row_of(run, OTHER)["energy_joules_per_audio_hour"] == 200
    assert row_of(run, REFERENCE)["energy_joules_per_audio_hour"] is None


def test_a_crash_says_why_even_before_judging():
    run = make_run()
    result_of(run, OTHER).update(status="error", error="killed by SIGSEGV")
    score.score(run, replicates=200)
    assert "killed by SIGSEGV" in row_of(run, OTHER)["reason"]


# every format


def test_formats_agree_with_each_other(run):
    row = row_of(run, SHORT)
    wer = columns.percent(row["wer_percent"])
    line = next(line for line in report.render(run, "md").splitlines() if line.startswith(f"| {SHORT}"))
    assert f"| {wer} |" in line
    assert wer in printed(run)
    in_csv = next(r for r in parsed(report.render(run, "csv")) if r["variant"] == SHORT)
    assert columns.percent(float(in_csv["wer_percent"])) == wer
    assert float(in_csv["rtfx"]) == pytest.approx(row["rtfx"])
    assert json.loads(report.render(run, "json")) == run


@pytest.mark.parametrize("name", ["md", "table", "csv"])
def test_speed_stands_beside_wer_settings_and_host(run, name):
    run["checkpoint"]["note"] = "synthetic English only"
    text = printed(run, 300) if name == "table" else report.render(run, name)
    said = ["Imaginary 9000", "greedy", "1 thread", "tiny.en", "whisper"]
    if name != "csv":
        said += [
            run["checkpoint"]["tensors_sha256"][:12],
            "synthetic English only",
            "12 clips",
            "reference " + REFERENCE,
        ]
    for fact in said:
        assert fact in text


def test_markdown_never_has_a_table_with_speed_and_no_wer(run):
    headings = [
        line for line in report.render(run, "md").splitlines() if line.startswith(("| variant", r"| \#"))
    ]
    timed = [line for line in headings if re.search(r"RTFx| s \|", line)]
    assert len(timed) == 3
    assert all("WER %" in line for line in timed)


def test_unranked_and_unavailable_rows_say_why_and_what_mends_it(run):
    run["command"] = ["asrgate", "run", "--backends", "all"]
    for text in (report.render(run, "md"), printed(run, 400)):
        ranked, unranked = text.index(REFERENCE + " "), text.index("ot ranked")
        assert ranked < unranked
        assert "wrote 23% of the reference's number of words" in text
        assert "no CUDA device" in text
        assert "install the driver" in text


def test_what_the_machine_lacks_is_one_line_where_nobody_asked_for_it(run):
    run["command"] = ["asrgate", "run"]
    text = printed(run, 400)
    assert "Not measured: 1 variant that this machine cannot run; see `asrgate list`." in text
    assert "no CUDA device" not in text


def test_variants_that_lack_the_same_share_a_line(run):
    add_unavailable(run, "max@cuda/float32", "no CUDA device", "install the driver")
    run["command"] = ["asrgate", "run", "--backends=all"]
    (line,) = [line for line in printed(run, 400).splitlines() if "no CUDA device" in line]
    assert ABSENT in line and "max@cuda/float32" in line


def test_warnings_and_interruption_are_shown(run):
    run["warnings"] = ["other programs were busy"]
    run.update(complete=False, interrupted="stopped by the user")
    for text in (report.render(run, "md"), printed(run)):
        assert "other programs were busy" in text
        assert "stopped by the user" in text
    run["interrupted"] = None
    assert "the run did not finish" in printed(run)


@pytest.mark.parametrize("name", report.FORMATS)
def test_runs_with_nothing_in_them_can_be_reported(name):
    for run in (make_run(()), make_run(references=[]), make_run(references=[None, None])):
        assert report.render(judged(run), name)
        assert printed(run)
    assert report.render(record.without_texts(judged(make_run())), name)


# the table in a terminal


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_table_fits_the_terminal_and_keeps_wer_and_rank(run, width):
    result_of(run, OTHER)["resources"].update(energy_joules=10.0, peak_vram_process_bytes=2**30)
    lines = printed(run, width).splitlines()
    assert max(map(len, lines)) <= width
    heading = next(line for line in lines if line.startswith("#") and "variant" in line)
    assert "WER %" in heading
    assert ("kJ/h" in heading) == (width == 200)
    assert [line.split()[0] for line in lines if re.match(r"[-\d] ", line)] == ["1", "2", "-"]


def test_wider_terminals_show_more_columns_and_the_legend_explains_each(run):
    shown = []
    for width in (40, 80, 200):
        said = " ".join(printed(run, width).split())
        shown.append({c.heading for c in columns.FIGURES if f"{c.heading}: {c.meaning}" in said})
    assert shown[0] < shown[1] < shown[2]
    assert shown[2] == {c.heading for c in columns.shown(columns.FIGURES, report.rows(run)[:3])}


def test_columns_nobody_fills_are_left_out(run):
    assert "VRAM" not in printed(run, 300)
    assert "VRAM" not in report.render(run, "md")


def test_a_terminal_without_unicode_gets_escapes_and_no_error(run):
    run["host"]["cpu"] = "Übung 9000"
    assert r"\xdcbung 9000" in printed(run, encoding="ascii")


def test_figures_keep_three_digits_whatever_their_size():
    written = [columns.figure(v) for v in (None, 0, 0.00123, 0.05, 0.5, 1.234, 12.34, 123.4, 12345.6, -0.5)]
    assert written == ["", "0.00", "0.0012", "0.050", "0.50", "1.23", "12.3", "123", "12346", "-0.50"]


# hostile text


@pytest.fixture
def hostile(run):
    """The run with hostile text in every field that an engine, a file or a user fills."""
    run["checkpoint"].update(name=HOSTILE, note=HOSTILE)
    run["host"]["cpu"] = HOSTILE
    run["versions"]["asrgate"] = HOSTILE
    run["warnings"] = [HOSTILE]
    run["interrupted"] = HOSTILE
    run["scoring"]["normalizer"]["name"] = HOSTILE
    run["settings"]["decoding"]["language"] = HOSTILE
    for clip in run["clips"]:
        clip["language"] = HOSTILE
    for result in run["results"]:
        result.update(variant=f"{HOSTILE}{result['variant']}", error=HOSTILE, remedy=HOSTILE)
        result["gate"]["reasons"] = [HOSTILE]
        for sample in result["samples"]:
            sample.update(text=HOSTILE, error=HOSTILE)
    run["settings"]["reference"] = HOSTILE + REFERENCE
    return run


def test_hostile_text_stays_text_in_markdown(hostile):
    for text in (report.render(hostile, "md"), report.readme_table(hostile), report.readme_tables([hostile])):
        assert "<script" not in text
        assert "](" not in re.sub(r"\\[\[\]]", "", text)
        assert "://" not in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\r]", text)
        assert re.search(r"(?<!\\)`", text) is None
        assert " @all" not in text
        assert "alert(1)" in text  # it is shown, not hidden
        tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
        assert tables
        for table in tables:  # a pipe in a cell would add one
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_hostile_text_stays_text_in_the_terminal(hostile):
    text = printed(hostile, 120)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text  # not read as markup
    assert r"\x1b[31m" in text.replace("\n", "")


FORMULAS = ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\n=1", "＝1", "-1; drop"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_spreadsheet_meets_a_formula(run, formula):
    result = result_of(run, OTHER)
    result.update(status="error", error=formula, remedy=formula)
    result["gate"]["reasons"] = []
    result["gate"]["ranked"] = False
    run["checkpoint"]["name"] = formula
    for sample in result["samples"]:
        sample.update(text=formula, error=formula, clip=sample["clip"])
    summary = next(row for row in parsed(report.render(run, "csv")) if row["variant"] == OTHER)
    sample = next(row for row in parsed(report.render(run, "samples-csv")) if row["variant"] == OTHER)
    for cell in (summary["reason"], summary["remedy"], summary["model"], sample["text"], sample["error"]):
        assert cell == escape.csv_cell(formula)
        assert not re.match(r"\s*[=+\-@＝]", cell)


def test_numbers_stay_numbers_in_csv_even_negative_ones(run):
    result_of(run, OTHER)["wer"]["versus_reference"]["wer_difference"] = -0.0125
    row = next(row for row in parsed(report.render(run, "csv")) if row["variant"] == OTHER)
    assert row["wer_difference_points"] == "-1.25"
    assert row["energy_joules"] == ""


def test_csv_keeps_one_line_a_record_and_units_in_names(hostile):
    for name, count in (("csv", 4), ("samples-csv", 3 * 2 * 12)):
        text = report.render(hostile, name)
        assert len(text.splitlines()) == 1 + count
        assert len(parsed(text)) == count
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    heading = report.render(hostile, "csv").splitlines()[0].split(",")
    for quantity in ("latency_median", "peak_rss", "wer", "energy", "load"):
        assert all(
            re.search(r"_(seconds|bytes|percent|points|joules|source|joules_per_audio_hour)$", name)
            for name in heading
            if name.startswith(quantity)
        )


def test_sample_lines_hold_what_was_measured(run):
    lines = parsed(report.render(run, "samples-csv"))
    sample = result_of(run, REFERENCE)["samples"][0]
    assert float(lines[0]["wall_seconds"]) == pytest.approx(sample["wall_seconds"])
    assert float(lines[0]["encode_seconds"]) == pytest.approx(sample["stage_seconds"]["encode"])
    assert (lines[0]["variant"], lines[0]["round"], lines[0]["clip"]) == (REFERENCE, "0", "clip-000")
    assert lines[0]["text"] == "one fine day in june"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("two\nlines", r"two\\nlines"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("![x](javascript:a)", r"!\[x\](javascript:a)"),
        ("see www.evil.example", "see www&#46;evil.example"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("-0.5", "-0.5"),
        ("4.58", "4.58"),
        ("_it_ snake_case", r"\_it\_ snake_case"),
        ("faster-whisper@cpu/int8", "faster-whisper@cpu/int8"),
        ("ping @team", "ping &#64;team"),
        ("héllo 你好", "héllo 你好"),
    ],
)
def test_markdown_escapes(text, shown):
    assert escape.markdown(text) == shown


HOSTILE_TEXTS = [
    HOSTILE,
    r"\| \\| \` \\`",
    "`|`",
    "a | b || c",
    "[a][b]",
    "![i](u)",
    "<!-- x -->",
    "&lt;b&gt; &amp; &#124;",
    "~~s~~",
    "**b** __u__ *i* _i_ _|_",
    "http://evil.example",
    "a\n| - | - |\n\n# h",
    "<https://a.example>",
    "\\",
    "\\\\|",
    "$x$",
]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_a_markdown_reader_sees_the_very_text(text):
    page = f"| h | i |\n|---|---|\n| {escape.markdown(text)} | end |\n"
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4
    assert {child.type for child in cells[2].children} <= {"text", "text_special"}
    assert "".join(child.content for child in cells[2].children) == escape.visible(text).strip()
    assert cells[3].content == "end"


# files


def test_write_all_writes_its_files_with_the_same_figures(run, tmp_path):
    report.write_all(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.json",
        "samples.csv",
        "summary.csv",
        "report.md",
        "report.html",
    }
    assert record.read(tmp_path) == run
    assert (tmp_path / "summary.csv").read_text() == report.render(run, "csv")
    assert len(parsed((tmp_path / "samples.csv").read_text())) == 3 * 2 * 12
    assert (tmp_path / "report.md").read_text() == report.render(run, "md")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.md", "md"),
        ("A.CSV", "csv"),
        ("samples.csv", "samples-csv"),
        ("x.samples.csv", "samples-csv"),
        ("r.json", "json"),
    ],
)
def test_the_ending_of_a_name_tells_the_format(name, expected):
    assert report.format_of(Path(name)) == expected
    assert expected in report.FORMATS


def test_unknown_formats_are_answered_with_the_choices(run):
    with pytest.raises(FormatError, match=r"report.docx.*csv.*json.*md"):
        report.format_of(Path("report.docx"))
    with pytest.raises(FormatError, match=r"Did you mean 'json'.*samples-csv"):
        report.render(run, "jsn")


# commands


@pytest.fixture
def stored(run, tmp_path):
    folder = tmp_path / "stored"
    folder.mkdir()
    report.write_all(run, folder)
    return folder


def test_report_gives_any_format_again(run, stored, capsys, tmp_path):
    for name in report.FORMATS:
        assert command("report", stored / "run.json", "--format", name) == 0
        assert capsys.readouterr().out == report.render(run, name)
    assert command("report", stored) == 0
    assert "WER %" in capsys.readouterr().out
    assert command("report", stored, "--output", tmp_path / "x.csv") == 0
    assert (tmp_path / "x.csv").read_text() == report.render(run, "csv")
    with pytest.raises(FormatError):
        command("report", stored, "--output", tmp_path / "x.docx")
    with pytest.raises(AsrgateError, match="nowhere"):
        command("report", tmp_path / "nowhere.json")


def test_report_can_leave_out_texts(stored, capsys):
    for name in report.FORMATS:
        command("report", stored, "--format", name, "--no-texts")
        out = capsys.readouterr().out
        assert "bottles" not in out
        assert out


def test_report_goes_out_as_utf8_where_stdout_cannot(stored, monkeypatch):
    run = record.read(stored)
    run["warnings"] = ["naïve"]
    record.write(run, stored / "run.json")
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert command("report", stored, "--format", "md") == 0
    assert "naïve" in raw.getvalue().decode()


@pytest.fixture
def picky(tmp_path):
    """A stored run whose second variant is right only after normalisation."""
    texts = {REFERENCE: REFERENCES, OTHER: [f"{reference.upper()}!" for reference in REFERENCES]}
    folder = tmp_path / "picky"
    folder.mkdir()
    report.write_all(judged(make_run(VARIANTS, REFERENCES, texts=texts)), folder)
    return folder


def test_rescore_judges_again_and_rewrites_the_files(picky, capsys):
    assert command("rescore", picky, "--normalizer", "none") == 0
    out = capsys.readouterr().out
    assert "normaliser whisper -> none" in out
    assert re.search(rf"{OTHER}: 0.00 -> 100.00, no longer ranked: .*ceiling", out)
    again = record.read(picky)
    assert again["scoring"]["normalizer"]["name"] == "none"
    assert not result_of(again, OTHER)["gate"]["ranked"]
    assert (picky / "report.md").read_text() == report.render(again, "md")
    assert (picky / "summary.csv").read_text() == report.render(again, "csv")
    assert command("rescore", picky) == 0
    assert "none -> none" in capsys.readouterr().out
    assert command("rescore", picky / "run.json", "--normalizer", "whisper") == 0
    assert "now ranked" in capsys.readouterr().out


def test_rescore_can_leave_the_stored_run_as_it_is(picky, tmp_path):
    before = {path.name: path.read_bytes() for path in picky.iterdir()}
    assert command("rescore", picky, "--normalizer", "none", "--output", tmp_path / "new.json") == 0
    assert {path.name: path.read_bytes() for path in picky.iterdir()} == before
    assert record.read(tmp_path / "new.json")["scoring"]["normalizer"]["name"] == "none"


def test_rescoring_a_published_record_writes_no_files_beside_it(picky, tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    (published / "one.json").write_bytes((picky / "run.json").read_bytes())
    assert command("rescore", published / "one.json", "--normalizer", "none") == 0
    assert [path.name for path in published.iterdir()] == ["one.json"]
    assert record.read(published / "one.json")["scoring"]["normalizer"]["name"] == "none"


def test_rescoring_without_texts_is_refused_and_changes_nothing(run, tmp_path):
    report.write_all(record.without_texts(run), tmp_path)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(score.ScoreError):
        command("rescore", tmp_path, "--normalizer", "none")
    assert (tmp_path / "run.json").read_bytes() == before


# README tables


def test_readme_table_is_one_table_its_context_and_what_did_not_rank(run):
    text = report.readme_table(run)
    table, beside, *rest = text.split("\n\n")
    assert table.count("\n") == 3  # heading, rule, two ranked rows
    assert SHORT not in table
    for fact in ("Imaginary 9000", "tiny.en", "greedy", "12 clips", run["run_id"]):
        assert fact in beside
    assert len(rest) == 1
    assert rest[0].startswith(f"Not ranked: {SHORT}: WER")
    assert ABSENT not in text


def test_table_groups_runs_by_model_and_machine(run, tmp_path, capsys):
    for number, cpu in enumerate(("Imaginary 9000", "Imaginary 1", "Imaginary 9000")):
        run["host"]["cpu"] = cpu
        run["run_id"] = f"run-{number}"
        record.write(run, tmp_path / f"{number}.json")
    assert command("table", *(tmp_path / f"{n}.json" for n in range(3))) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^\*\*.*(Imaginary \d+)|(run-\d)\.$", out, re.M) == [
        ("Imaginary 9000", ""),
        ("", "run-0"),
        ("", "run-2"),
        ("Imaginary 1", ""),
        ("", "run-1"),
    ]


def test_update_replaces_only_what_stands_between_the_markers(stored, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- asrgate:results -->\nold\n<!-- /asrgate:results -->\nafter | é\n")
    for _ in range(2):  # the second time changes nothing
        assert command("table", stored, "--update", readme) == 0
        start, end = "before\n<!-- asrgate:results -->\n", "\n<!-- /asrgate:results -->\nafter | é\n"
        text = readme.read_text()
        assert text == start + report.readme_tables([record.read(stored)]) + end
    report.update_between_markers(readme, r"\1 \g<0>", "results")
    assert readme.read_text() == start + r"\1 \g<0>" + end


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- asrgate:results -->",
        "<!-- /asrgate:results --><!-- asrgate:results -->",
        "<!-- asrgate:results --><!-- asrgate:results --><!-- /asrgate:results -->",
        "<!-- asrgate:other --><!-- /asrgate:other -->",
    ],
)
def test_a_file_without_one_pair_of_markers_is_left_alone(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(MarkerError, match="must have `<!-- asrgate:results -->`"):
        report.update_between_markers(path, "new", "results")
    assert path.read_text() == text
    with pytest.raises(MarkerError, match="cannot read"):
        report.update_between_markers(tmp_path / "absent.md", "new", "results")
