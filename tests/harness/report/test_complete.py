"""The complete report: every transcript, of every engine, as text."""

from __future__ import annotations

import json

from make_run import REFERENCE, VARIANTS, make_run, result_of
from markdown_it import MarkdownIt  # comes with rich

from asrgate.harness import record, report
from asrgate.harness.record import Run
from asrgate.harness.scoring import gate, score

OTHER = VARIANTS[1]
HOSTILE = "| a | <script>alert(1)</script> **b** [c](http://d.example)\n# e"


def judged(references: list[str | None], texts: dict[str, list[str | None]] | None = None) -> Run:
    run = make_run(VARIANTS, references, texts=texts)
    score.score(run, "none", replicates=50)
    gate.judge(run)
    return run


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells, as a reader sees them, of every table below the heading of transcripts."""
    html: list[list[list[str]]] = []
    for token in MarkdownIt().enable("table").parse(text[text.index("## Transcripts") :]):
        if token.type == "table_open":
            html.append([])
        elif token.type == "tr_open":
            html[-1].append([])
        elif token.type == "inline" and token.level == 4 and html:
            html[-1][-1].append("".join(child.content for child in token.children or []))
    return html


def test_every_transcript_is_there_with_its_errors() -> None:
    references = ["one two three", "four five", HOSTILE]
    run = judged(references, {REFERENCE: references, OTHER: ["one too three", "", HOSTILE]})
    found = tables(report.render(run, "complete"))
    assert len(found) == 3
    rows = {row[0]: row[1:] for row in found[0][1:]}
    assert rows[REFERENCE][:4] == ["0.00", "0", "0", "0"]
    assert rows[OTHER][:4] == ["33.33", "1", "0", "0"]
    assert rows[OTHER][5] == "one too three"
    assert {row[0]: row[6] for row in found[1][1:]}[OTHER] == "(empty)"
    assert found[2][1][6] == HOSTILE.replace("\n", "\\n")


def test_answers_that_differ_between_rounds_are_all_there() -> None:
    run = judged(["one two", "three"])
    result_of(run, OTHER)["samples"][2] |= {
        "text": "one two two",
        "text_sha256": record.text_sha256("one two two"),
    }
    rows = tables(report.render(run, "complete"))[0][1:]
    assert [row[0] for row in rows if row[0].startswith(OTHER)] == [OTHER, f"{OTHER}, round 2"]
    assert [row[6] for row in rows if "round 2" in row[0]] == ["one two two"]


def test_calls_that_failed_say_why() -> None:
    run = judged(["one two"], {REFERENCE: ["one two"], OTHER: [None]})
    rows = {row[0]: row for row in tables(report.render(run, "complete"))[0][1:]}
    assert rows[OTHER][6] == "no answer: the engine raised ValueError: no"


def test_without_texts_their_hashes_stand_for_them() -> None:
    run = record.without_texts(judged(["one two three", None]))
    text = report.render(run, "complete")
    assert "one two three" not in text
    sha256 = result_of(run, OTHER)["samples"][0]["text_sha256"]
    assert f"sha256 {sha256[:12]}" in json.dumps(tables(text)[0])
    assert "Reference: none" in text


def test_it_begins_with_the_markdown_report() -> None:
    run = judged(["one two three"])
    assert report.render(run, "complete").startswith(report.render(run, "md"))
