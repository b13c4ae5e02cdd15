"""Writes a comparison as text, Markdown, JSON or JUnit XML, and as GitHub's annotations.

Names and messages may come from engines and files: every format escapes them in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from xml.etree import ElementTree

from asrgate.harness.escape import markdown, visible
from asrgate.harness.regression.compare import Comparison
from asrgate.harness.regression.verdict import Row

SCHEMA_VERSION = 1
# History: 1 = first version.

LABELS = {
    "regression": "REGRESSION",
    "unclear": "unclear",
    "better": "better",
    "same": "same",
    "new": "new",
}


def as_text(comparison: Comparison) -> str:
    """One paragraph per backend. Every line begins with the program's own words, never with a name."""
    width = max(map(len, LABELS.values()))
    lines = [visible(_headline(comparison)), ""]
    for row in comparison.rows:
        lines.append(
            f"{LABELS[row.verdict]:{width}}  {visible(row.variant)}  {visible(_figures(row))}".rstrip()
        )
        lines += [f"{'':{width}}  - {visible(said)}" for said in (*row.reasons, *row.notes)]
    remarks = list(_remarks(comparison))
    if remarks:
        lines += ["", *(f"note: {visible(remark)}" for remark in remarks)]
    return "\n".join(lines) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """A table with one line per backend, then the reasons and notes."""
    heading = "regression" if comparison.regressed else "no regression"
    lines = [
        f"## asrgate: {heading}",
        "",
        markdown(_headline(comparison)),
        "",
        "| backend | verdict | WER | change, points (95 %) "
        "| time ratio (95 %) | by the clock | p | texts changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in comparison.rows:
        label = f"**{row.verdict}**" if row.verdict == "regression" else row.verdict
        cells = [markdown(row.variant), label, *_cells(row)]
        lines.append(f"| {' | '.join(cells)} |")
    for row in comparison.rows:
        if row.reasons or row.notes:
            lines += ["", f"### {markdown(row.variant)}", ""]
            lines += [f"- **{markdown(said)}**" if row.verdict == "regression" else f"- {markdown(said)}"
                      for said in row.reasons]  # fmt: skip
            lines += [f"- {markdown(said)}" for said in row.notes]
        if row.texts is not None and row.texts.changed:
            names = [f"- {markdown(name)}" for name in row.texts.changed]
            summary = "<summary>clips whose text changed</summary>"
            lines += ["", "<details>", summary, "", *names, "", "</details>"]
    remarks = list(_remarks(comparison))
    if remarks:
        lines += ["", *(f"- {markdown(remark)}" for remark in remarks)]
    return "\n".join(lines) + "\n"


def as_json(comparison: Comparison) -> str:
    """Everything as one document; ratios are NEW over BASE, word error rates are fractions."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "regression": bool(comparison.regressed),
        **asdict(comparison),
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def as_junit(comparison: Comparison) -> str:
    """One test case per backend, which fails if it is a regression."""
    suite = ElementTree.Element(
        "testsuite",
        name="asrgate compare",
        tests=str(len(comparison.rows)),
        failures=str(len(comparison.regressed)),
        errors="0",
    )
    for row in comparison.rows:
        case = ElementTree.SubElement(suite, "testcase", classname="asrgate", name=visible(row.variant))
        if row.verdict == "regression":
            said = [visible(reason) for reason in row.reasons]
            failure = ElementTree.SubElement(case, "failure", message=said[0], type="regression")
            failure.text = "\n".join(said)
        others = row.reasons if row.verdict != "regression" else ()
        told = [visible(text) for text in (_figures(row), *others, *row.notes) if text]
        if told:
            ElementTree.SubElement(case, "system-out").text = "\n".join(told)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": as_json,
    "junit": as_junit,
}
ENDINGS = {".txt": "text", ".md": "markdown", ".json": "json", ".xml": "junit"}


def github_annotations(comparison: Comparison) -> Iterator[str]:
    """GitHub's workflow commands: an error per regression, and warnings for what a reader should look at."""
    for row in comparison.rows:
        if row.verdict == "regression":
            yield annotation("error", f"asrgate: {row.variant}", "\n".join(row.reasons))
        told = [*(row.reasons if row.verdict == "unclear" else ()), *row.notes]
        if told:
            yield annotation("warning", f"asrgate: {row.variant}", "\n".join(told))
    for warning in comparison.warnings:
        yield annotation("warning", "asrgate", warning)


def annotation(level: str, title: str, message: str) -> str:
    """Return one workflow command; characters that would end it or begin another are escaped.

    https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    lines = "\n".join(visible(line) for line in message.split("\n"))
    return f"::{level} title={_escape_property(visible(title))}::{_escape_data(lines)}"


def _escape_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_data(text).replace(":", "%3A").replace(",", "%2C")


def _headline(comparison: Comparison) -> str:
    count, bad = len(comparison.rows), len(comparison.regressed)
    verdict = f"{bad} of {count} backends regressed" if bad else f"none of {count} backends regressed"
    unclear = sum(row.verdict == "unclear" for row in comparison.rows)
    if unclear:
        verdict += f", {unclear} unclear"
    return f"{comparison.new_run} against {comparison.base_run}, {comparison.clips} clips: {verdict}"


def _figures(row: Row) -> str:
    figures = []
    if row.words is not None:
        figures.append(f"WER {row.words.new:.2%} ({100 * row.words.difference:+.2f} points)")
    if row.time is not None:
        interval = row.time.interval
        spread = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
        by_clock = "" if row.time.machine is None else f", {row.time.clock_ratio:.3f} by the clock"
        figures.append(f"time x {row.time.ratio:.3f}{spread}{by_clock}")
    return ", ".join(figures)


def _cells(row: Row) -> list[str]:
    wer = change = ratio = clock = p_value = texts = ""
    if row.words is not None:
        wer = f"{row.words.base:.2%} → {row.words.new:.2%}"
        change = f"{100 * row.words.difference:+.2f}"
        if row.words.interval is not None:
            low, high = row.words.interval
            change += f" ({100 * low:+.2f} to {100 * high:+.2f})"
    if row.time is not None:
        ratio = f"{row.time.ratio:.3f}"
        if row.time.interval is not None:
            ratio += f" ({row.time.interval[0]:.3f} to {row.time.interval[1]:.3f})"
        clock = f"{row.time.clock_ratio:.3f}"
        p_value = f"{row.time.p_value:.2g}"
    if row.texts is not None:
        texts = f"{len(row.texts.changed)} of {row.texts.compared}"
    return [wer, change, ratio, clock, p_value, texts]


def _remarks(comparison: Comparison) -> Iterator[str]:
    for difference in comparison.allowed:
        yield f"compared although the {difference.kind} differs: {difference.what}"
    for name, (before, after) in comparison.versions.items():
        yield f"version of {name}: {before or 'none'} in BASE, {after or 'none'} in NEW"
    yield from comparison.warnings
