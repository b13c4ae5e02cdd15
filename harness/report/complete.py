"""The Markdown page of a run followed by every transcript: what each engine wrote for each clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from asrgate.harness.escape import markdown
from asrgate.harness.metrics.word_errors import is_answered
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import ClipErrors, ClipRecord, Result, Run, Sample
from asrgate.harness.report import markdown as page
from asrgate.harness.report.columns import figure, percent
from asrgate.harness.report.rows import UNAVAILABLE, rows

HEADINGS = ("variant", "WER %", "S", "D", "I", "s", "text")


def render(run: Run) -> str:
    """Return the whole page. Texts that were left out of the record are shown as hashes."""
    results = {result["variant"]: result for result in run["results"]}
    ordered = [_Answers(results[row["variant"]]) for row in rows(run) if row["group"] != UNAVAILABLE]
    parts = ["## Transcripts", "Seconds are those of the call that gave the text."]
    if not run["settings"]["texts"]:
        parts.append(
            "This run was stored without texts; the first digits of their SHA-256 are shown instead."
        )
    for clip in run["clips"]:
        parts += _clip(clip, ordered)
    return page.render(run) + "\n" + "\n\n".join(parts) + "\n"


class _Answers:
    """One variant's samples and word errors by clip."""

    def __init__(self, result: Result):
        self.variant = result["variant"]
        self.errors = {entry["clip"]: entry for entry in errors_of(result)}
        self.samples: dict[str, list[Sample]] = {}
        for sample in sorted(result["samples"], key=lambda sample: sample["round"]):
            self.samples.setdefault(sample["clip"], []).append(sample)


def _clip(clip: ClipRecord, ordered: Sequence[_Answers]) -> Iterator[str]:
    yield f"### {markdown(clip['name'])}"
    facts = f"{clip['audio_seconds']:.1f} s, {markdown(clip['language'])}"
    yield f"{facts}. Reference: {_text(clip, 'reference')}"
    lines = [line for answers in ordered for line in _lines(clip["name"], answers)]
    head = [f"| {' | '.join(HEADINGS)} |", "|---|---:|---:|---:|---:|---:|---|"]
    yield "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)])


def _lines(clip: str, answers: _Answers) -> Iterator[list[str]]:
    """Yield the first round's answer with its errors, then differing answers of later rounds."""
    seen: set[str | None] = set()
    for sample in answers.samples.get(clip, []):
        answer = sample["text_sha256"] if is_answered(sample) else sample["error"]
        if answer in seen:
            continue
        name, figures = markdown(answers.variant), _figures(answers.errors.get(clip))
        if seen:
            name, figures = f"{name}, round {sample['round'] + 1}", [""] * 4
        seen.add(answer)
        said = (
            _text(sample, "text") if is_answered(sample) else f"no answer: {markdown(sample['error'] or '')}"
        )
        yield [name, *figures, figure(sample["wall_seconds"]), said]


def _figures(counted: ClipErrors | None) -> list[str]:
    if counted is None:
        return [""] * 4
    wer = counted["wer"]
    edits = counted["substitutions"], counted["deletions"], counted["insertions"]
    return [percent(None if wer is None else 100 * wer), *map(str, edits)]


def _text(item: Mapping[str, Any], name: str) -> str:
    text, sha256 = item[name], item[f"{name}_sha256"]
    if text is None:
        return "none" if sha256 is None else f"(left out; sha256 {sha256[:12]})"
    return markdown(text) if text.strip() else "(empty)"
