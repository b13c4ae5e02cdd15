"""How much silence a trimmed encoder needs behind a clip: word errors and run-aways by its length.

    python benchmarks/trim_silence.py --model tiny.en --manifest clips.jsonl --language en
    python benchmarks/trim_silence.py --model base --manifest clips.jsonl --write results/published/trim

The engine is torch-fast in float32, so that nothing but the length differs. Each clip of up to 30 s is
decoded with the full context, and with the clip and so many seconds of silence encoded
(asrgate.backends.whisper_common.greedy.frames_to_encode). It times nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from asrgate.backends.base import Checkpoint, Settings
from asrgate.backends.checkpoints import catalog
from asrgate.backends.openai_whisper import set_threads
from asrgate.backends.torch_fast import TorchEngine, TorchFast
from asrgate.backends.whisper_common import greedy
from asrgate.harness import corpus
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.metrics import normalizers

LENGTHS_SECONDS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0)
DITHER = 1 / 32768  # one step of 16 bit: nobody hears it
PRECISION = "float32"


@dataclasses.dataclass(frozen=True)
class Point:
    """What one length of silence gives; `silence_seconds` None is the full context.

    Attributes:
        wer: over all clips with a reference text.
        runaway_clips: how many have at least twice the words of the full context's text, and four more.
        cut_clips: how many have at most half of its words, and four less.
        same_text_clips: how many have its text, normalised.
        unstable_clips: how many change their text when noise of one step of 16 bit is added.
        tokens: in all.
    """

    silence_seconds: float | None
    wer: float
    runaway_clips: int
    cut_clips: int
    same_text_clips: int
    unstable_clips: int
    tokens: int


def curve(model: Checkpoint, clips: Sequence[Clip], lengths: Sequence[float], threads: int) -> list[Point]:
    """Return a point for the full context and one for each length in seconds."""
    set_threads(threads)
    settings = Settings(threads=threads)
    normalized = normalizers.normalizer("whisper")
    spoken = [(clip, clip.samples()) for clip in clips]
    noise = np.random.default_rng(1)
    dithered = [x + noise.uniform(-DITHER, DITHER, len(x)).astype(np.float32) for _, x in spoken]
    full: list[str] = []
    points = []
    for seconds in (None, *lengths):
        if seconds is not None:
            greedy.SILENCE_ENCODED_SECONDS = seconds  # type: ignore[misc]
        precision = PRECISION if seconds is None else PRECISION + greedy.TRIM
        engine = TorchFast(TorchEngine(model, "cpu", precision), model, "cpu", precision, settings)
        texts, again, tokens = [], [], 0
        for (clip, samples), copy in zip(spoken, dithered, strict=True):
            heard = engine.transcribe(samples, clip.language)
            tokens += len(heard.tokens or ())
            texts.append(normalized(heard.text, clip.language))
            again.append(normalized(engine.transcribe(copy, clip.language).text, clip.language))
        full = full or texts
        references = [normalized(clip.reference or "", clip.language) for clip in clips]
        scored = [(r, t) for r, t in zip(references, texts, strict=True) if r]
        counts = [(len(f.split()), len(t.split())) for f, t in zip(full, texts, strict=True)]
        points.append(
            Point(
                silence_seconds=seconds,
                wer=float(jiwer.wer([r for r, _ in scored], [t for _, t in scored])),
                runaway_clips=sum(ours >= 2 * theirs and ours >= theirs + 4 for theirs, ours in counts),
                cut_clips=sum(2 * ours <= theirs and ours <= theirs - 4 for theirs, ours in counts),
                same_text_clips=sum(f == t for f, t in zip(full, texts, strict=True)),
                unstable_clips=sum(a != b for a, b in zip(texts, again, strict=True)),
                tokens=tokens,
            )
        )
        print(row(points[-1]), flush=True)
    return points


HEADING = (
    "| silence s | WER % | run-aways | cut short | text of the full context | unstable | tokens |\n"
    "|---:|---:|---:|---:|---:|---:|---:|"
)


def row(point: Point) -> str:
    """Return one line of the table."""
    length = "full context" if point.silence_seconds is None else f"{point.silence_seconds:g}"
    counts = (point.runaway_clips, point.cut_clips, point.same_text_clips, point.unstable_clips)
    figures = (*counts, point.tokens)
    return f"| {length} | {100 * point.wer:.2f} | {' | '.join(map(str, figures))} |"


def table(points: Sequence[Point]) -> str:
    """Return the table that docs/performance.md shows."""
    return "\n".join([HEADING, *map(row, points)])


def main() -> None:
    """Compute the curve, print it as a table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="as asrgate run takes it")
    parser.add_argument("--manifest", type=Path, help="default: the bundled clips")
    parser.add_argument("--language", help="only clips of this language")
    parser.add_argument("--lengths", type=float, nargs="+", default=LENGTHS_SECONDS, metavar="SECONDS")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write MODEL.json there")
    arguments = parser.parse_args()
    model = catalog.resolve(arguments.model)
    every = corpus.load_clips([], arguments.manifest)
    clips = [
        clip
        for clip in every
        if clip.audio_seconds <= 30 and arguments.language in (None, clip.language) and clip.reference
    ]
    seconds = sum(clip.audio_seconds for clip in clips)
    print(f"{model.name}: {len(clips)} clips of up to 30 s, {seconds:.0f} s, torch-fast {PRECISION}\n")
    print(HEADING)
    points = curve(model, clips, arguments.lengths, arguments.threads)
    if arguments.write is not None:
        arguments.write.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {
            "model": model.name,
            "tensors_sha256": model.tensors_sha256,
            "engine": f"torch-fast@cpu/{PRECISION}",
            "clips": [{"name": c.name, "sha256": c.sha256, "language": c.language} for c in clips],
            "points": [dataclasses.asdict(point) for point in points],
        }
        path = arguments.write / f"{model.name}.json"
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
