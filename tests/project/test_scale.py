"""docs/scale.md: its hours follow from the published runs, and a corpus divided by hand adds up."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
import tones
from paths import ROOT

from asrgate.harness import record

RUNS = {"nano.en": "nano.en-bundled-cpu", "tiny.en": "tiny.en-english-cpu", "base": "base-nine-languages-cpu"}


def test_hours_of_the_docs_follow_from_the_published_runs() -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (\S+@\S+) \| ([\d.]+) \| (\d+) \|$", text, re.M)
    told = {(model, variant): (float(rtfx), int(hours)) for model, variant, rtfx, hours in rows}
    measured = {}
    for model, folder in RUNS.items():
        for row in record.read(ROOT / "results" / "published" / folder)["results"]:
            if row["gate"]["ranked"]:
                rtfx = row["rtfx"]["rtfx"]
                measured[model, row["variant"]] = (float(f"{rtfx:.3g}"), round(10_000 / rtfx))
    assert told == measured


def summary(folder: Path) -> Iterator[dict[str, str]]:
    with (folder / "latest" / "summary.csv").open(newline="") as file:
        yield from csv.DictReader(file)


def test_a_corpus_divided_by_hand_adds_up(asrgate: Callable[..., int], tmp_path: Path) -> None:
    """Parts by --where are disjoint, and their errors over their words are those of one run."""
    lines = []
    for number, said in enumerate(["red green", "blue", "black white brown", "river", "stone cloud apple"]):
        soundfile.write(tmp_path / f"{number}.wav", tones.speak(said), 16_000)
        text = said if number % 2 else f"{said} paper"  # a word that nobody says
        lines.append({"audio_filepath": f"{number}.wav", "text": text, "shard": number % 2})
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def figures(*arguments: str) -> tuple[int, int, set[str]]:
        assert asrgate("--backends", "honest", "--rounds", "1", *arguments, clips=manifest) == 0
        (row,) = summary(tmp_path / "results")
        wrong = sum(int(row[name]) for name in ("substitutions", "deletions", "insertions"))
        names = {clip["name"] for clip in record.read(tmp_path / "results" / "latest")["clips"]}
        return wrong, int(row["reference_words"]), names

    whole, zero, one = figures(), figures("--where", "shard=0"), figures("--where", "shard=1")
    assert not zero[2] & one[2]
    assert zero[2] | one[2] == whole[2]
    assert (zero[0] + one[0], zero[1] + one[1]) == whole[:2] == (3, 13)


@pytest.mark.parametrize("page", ["measuring.md"])
def test_the_page_is_linked(page: str) -> None:
    assert "](scale.md)" in (ROOT / "docs" / page).read_text()
