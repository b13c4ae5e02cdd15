"""The page's per-clip data, compact: figures by variant, and each distinct text of a clip once."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

from asrgate.harness.escape import MOST_OF_REASON, MOST_SHOWN, cut
from asrgate.harness.metrics import normalizers
from asrgate.harness.metrics.word_errors import Texts, first_answers, walls_by_clip
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import Result, Run
from asrgate.harness.report.rows import Row
from asrgate.harness.scenarios import registry

CHUNK_CLIPS = 100  # texts are parsed when shown, this many clips at a time
_CODES = {"substitute": 0, "delete": 1, "insert": 2}

Json = Any


@dataclass(frozen=True)
class ClipData:
    """What the page's script reads; every member is JSON-ready.

    Attributes:
        index: {"clips": [[name, audio_seconds, language, reference_words], ...], "rounds": ...}.
        figures: by variant number: lists over the clips of substitutions, deletions, insertions, seconds
            (median over rounds), the text's number among the clip's distinct ones, and {clip number: error}.
        texts: chunks of CHUNK_CLIPS clips, each clip [reference, normalised reference, [[text, edits], ...]].
            `edits` is flat: code, start, end (word numbers of the normalised reference), words heard; [] for
            a text without errors, null if there is nothing to compare with.
        note: why differences are missing or may disagree with the table; None if they are reliable.
    """

    index: Json
    figures: Sequence[Json]
    texts: Sequence[Json]
    note: str | None


def collect(run: Run, rows: Sequence[Row]) -> ClipData:
    """Return the data of all clips; `rows` determines the variants' numbers."""
    results = {result["variant"]: result for result in run["results"]}
    ordered = [results[row["variant"]] for row in rows]
    firsts = [first_answers(result) for result in ordered]
    numbers: list[dict[str, int]] = []  # for each clip: text -> its number
    for clip in run["clips"]:
        known: dict[str, int] = {}
        for first in firsts:
            text = first[clip["name"]]["text"] if clip["name"] in first else None
            if text is not None:
                known.setdefault(text, len(known))
        numbers.append(known)
    texts, note = _texts(run, numbers)
    return ClipData(
        index={
            "clips": [
                [clip["name"], _short(clip["audio_seconds"]), clip["language"], clip["reference_words"]]
                for clip in run["clips"]
            ],
            "rounds": run["settings"]["rounds"],
            "texts": run["settings"]["texts"],
            "chunk": CHUNK_CLIPS,
        },
        figures=[_figures(run, r, f, numbers) for r, f in zip(ordered, firsts, strict=True)],
        texts=[texts[start : start + CHUNK_CLIPS] for start in range(0, len(texts), CHUNK_CLIPS)],
        note=note,
    )


def dumps(value: Json) -> str:
    """Return JSON that is safe in a `<script>` element: it ends neither the element nor a line of script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate becomes JSON's own escape


def edits(reference: Sequence[str], heard: Sequence[str]) -> list[int | str]:
    """Return the word edits that turn one text into the other, flat: code, start, end, words heard, …"""
    if reference == heard:
        return []
    if not reference:  # jiwer would count it as one empty word
        return [_CODES["insert"], 0, 0, " ".join(heard)]
    found: list[int | str] = []
    for chunk in jiwer.process_words([" ".join(reference)], [" ".join(heard)]).alignments[0]:
        if chunk.type != "equal":
            words = " ".join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx])
            found += [_CODES[chunk.type], chunk.ref_start_idx, chunk.ref_end_idx, words]
    return found


def _texts(run: Run, numbers: Sequence[Mapping[str, int]]) -> tuple[list[Json], str | None]:
    name = run["scoring"]["normalizer"]["name"]
    note = None
    try:
        texts = Texts(run, name)
        if normalizers.identify(name) != run["scoring"]["normalizer"]:
            note = (
                f"The normaliser installed here is not the one this run was scored with ({name} "
                f"{run['scoring']['normalizer']['version']}): differences may not add up to the counts."
            )
    except normalizers.NormalizerError as error:
        raw: list[Json] = [
            [_cut(clip["reference"]), None, [[cut(text), None] for text in known]]
            for clip, known in zip(run["clips"], numbers, strict=True)
        ]
        return raw, f"Differences are missing: {error}"
    found: list[Json] = []
    for clip, known in zip(run["clips"], numbers, strict=True):
        reference = clip["reference"]
        if reference is None:
            found.append([None, None, [[cut(text), None] for text in known]])
            continue
        if any(len(text) > MOST_SHOWN for text in (reference, *known)):  # would take minutes
            found.append([cut(reference), None, [[cut(text), None] for text in known]])
            note = note or f"Texts of more than {MOST_SHOWN:,} characters are cut and not compared."
            continue
        normal = texts.normalised(reference, clip["name"])
        words = normal.split()
        heard = [[t, edits(words, texts.normalised(t, clip["name"]).split())] for t in known]
        found.append([reference, normal, heard])
    return found, note


def _cut(text: str | None) -> str | None:
    return None if text is None else cut(text)


def _figures(
    run: Run,
    result: Result,
    first: Mapping[str, Mapping[str, Any]],
    numbers: Sequence[Mapping[str, int]],
) -> Json:
    counted: dict[str, Mapping[str, Any]] = {entry["clip"]: entry for entry in errors_of(result)}
    walls = walls_by_clip(result) if registry.of(run).times_clips else {}
    names = [clip["name"] for clip in run["clips"]]
    places = {name: place for place, name in enumerate(names)}
    columns: dict[str, Json] = {
        short: [counted[name][long] if name in counted else None for name in names]
        for short, long in (("s", "substitutions"), ("d", "deletions"), ("i", "insertions"))
    }
    columns["wall"] = [_short(statistics.median(walls[n])) if n in walls else None for n in names]
    columns["text"] = [
        known[first[name]["text"]] if name in first and first[name]["text"] is not None else None
        for name, known in zip(names, numbers, strict=True)
    ]
    columns["answered"] = [int(name in first) for name in names]
    columns["error"] = {places[clip]: error for clip, error in _first_errors(result)}
    unstable = [] if result["wer"] is None else result["wer"]["unstable_clips"]
    columns["unstable"] = [places[name] for name in unstable]
    return columns


def _first_errors(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each clip's first error once."""
    seen = set()
    for sample in result["samples"]:
        if sample["error"] is not None and sample["clip"] not in seen:
            seen.add(sample["clip"])
            yield sample["clip"], cut(sample["error"], MOST_OF_REASON)


def _short(seconds: float) -> float:
    return float(f"{seconds:.4g}")
