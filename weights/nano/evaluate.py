"""Evaluate the shipped nano.en: word error rates on held-out speech, into evaluation.json and the model card.

    python weights/nano/evaluate.py            # weights/nano.en.pt.xz, about ten minutes on 2 CPU cores

Everything is decoded by openai-whisper in float32: greedy, temperature 0, no fallback. Errors are counted
after Whisper's English text normalisation. No sentence here can occur in training (sentences.split_of).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import sentences
import speech
import torch
import whisper
from whisper.normalizers import EnglishTextNormalizer
from windows import Noise

HERE = Path(__file__).resolve().parent
CLIPS = HERE.parent.parent / "audio_samples"
CARD = HERE.parent / "nano.en.md"
SEED = 2
NOISE_DECIBELS = 10.0
# What each line of the evaluation should reach: fractions, and for silence the inserted words
TARGETS = {
    "seen voices, clean": 0.03,
    "unseen voice, clean": 0.08,
    "seen voices, noise at 10 dB SNR": 0.15,
    "silence and noise alone": 1,
    "three-minute clip, sequential long-form": 0.05,
}


@dataclass
class Item:
    """What is said (empty: nothing), and how it sounds: float32 samples at 16 kHz."""

    text: str
    audio: np.ndarray


def load(packed: Path) -> tuple[whisper.Whisper, str]:
    """The model in float32 from its .pt.xz, and the SHA-256 of the .pt inside."""
    data = lzma.decompress(packed.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nano.en.pt"
        path.write_bytes(data)
        model = whisper.load_model(str(path), device="cpu")
    return model.float(), hashlib.sha256(data).hexdigest()


def utterances(count: int, voice: str | None) -> list[Item]:
    """`count` held-out recordings of 1 to 30 s, one to five sentences; without `voice` in trained voices."""
    rng = random.Random(f"evaluation-{SEED}-{voice}")
    pool = iter(sentences.sentences(SEED + (voice is not None), "eval", 3 * count))
    items: list[Item] = []
    while len(items) < count:
        number = rng.choices((1, 2, 3, 4, 5), (70, 14, 8, 5, 3))[0]
        settings = {**speech.random_voice(rng), **({"voice": voice} if voice else {})}
        silence = np.zeros(int(rng.uniform(0.05, 0.6) * speech.RATE), np.float32)
        parts, texts = [silence], []
        for _ in range(number):
            text = next(pool)
            wave = speech.espeak().say(text, **settings).samples.astype(np.float32) / 32768
            pause = np.zeros(int(rng.uniform(0.1, 0.7) * speech.RATE), np.float32)
            if texts and sum(map(len, parts)) + len(wave) + len(pause) > 30 * speech.RATE:
                break
            parts += [wave, pause]
            texts.append(text)
        items.append(Item(" ".join(texts), np.concatenate(parts) * np.float32(10 ** rng.uniform(-1, 0))))
    return items


def noisy(items: list[Item]) -> list[Item]:
    """The same with noise of all kinds in turn, at `NOISE_DECIBELS` below the speech."""
    rng, noise = np.random.default_rng(SEED), Noise(seed=1000 + SEED)
    return [
        Item(item.text, noise.mix(rng, item.audio, NOISE_DECIBELS, kind % len(Noise.KINDS)))
        for kind, item in enumerate(items)
    ]


def nothing(count: int = 20) -> list[Item]:
    """Digital silence and noise alone, of 1 to 30 s and various levels."""
    rng, noise = np.random.default_rng(SEED), Noise(seed=2000 + SEED)
    items = []
    for i in range(count):
        samples = int(rng.uniform(1, 30) * speech.RATE)
        level = np.float32(10 ** rng.uniform(-4, -1))
        audio = noise.piece(rng, samples, i % len(Noise.KINDS)) * level
        items.append(Item("", audio if i % 4 else np.zeros(samples, np.float32)))
    return items


def transcribe(model: whisper.Whisper, items: list[Item], batch: int = 10) -> list[str]:
    """Greedy text of each item, one 30 s window without timestamps."""
    options = whisper.DecodingOptions(language="en", without_timestamps=True, temperature=0.0, fp16=False)
    texts: list[str] = []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        mels = [whisper.log_mel_spectrogram(whisper.pad_or_trim(item.audio)) for item in part]
        texts += [result.text for result in whisper.decode(model, torch.stack(mels), options)]
    return texts


def long_form(model: whisper.Whisper, file: Path) -> str:
    """Text of a recording by Whisper's sequential long-form transcription, with timestamps."""
    audio = speech.read(file)
    result = model.transcribe(
        audio, language="en", temperature=0.0, fp16=False, condition_on_previous_text=False
    )
    return result["text"]


def errors(references: list[str], texts: list[str]) -> dict:
    """Word errors of all pairs together: {"wer" (None without words), "words", "substitutions", ...}."""
    normal = EnglishTextNormalizer()
    pairs = [(normal(a), normal(b)) for a, b in zip(references, texts, strict=True)]
    inserted = sum(len(b.split()) for a, b in pairs if not a)
    pairs = [(a, b) for a, b in pairs if a]
    out = jiwer.process_words([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None
    words = out.hits + out.substitutions + out.deletions if out else 0
    return {
        "wer": round(out.wer, 5) if out else None,
        "words": words,
        "substitutions": out.substitutions if out else 0,
        "deletions": out.deletions if out else 0,
        "insertions": (out.insertions if out else 0) + inserted,
    }


def evaluate(packed: Path, count: int) -> dict:
    """All figures of the shipped file, as they are written to evaluation.json."""
    model, digest = load(packed)
    seen, unseen = utterances(count, None), utterances(count, speech.UNSEEN_VOICE)
    sets = {
        "seen voices, clean": seen,
        "unseen voice, clean": unseen,
        "seen voices, noise at 10 dB SNR": noisy(seen),
        "silence and noise alone": nothing(),
    }
    lines = []
    for name, items in sets.items():
        texts = transcribe(model, items)
        lines.append(
            {
                "set": name,
                "recordings": len(items),
                "target": TARGETS[name],
                "seconds": round(sum(len(i.audio) for i in items) / speech.RATE),
                **errors([i.text for i in items], texts),
            }
        )
        print(lines[-1], flush=True)
    clips = [json.loads(line) for line in (CLIPS / "manifest.jsonl").read_text().splitlines()]
    per_clip = {}
    for clip in clips:
        file = CLIPS / clip["audio_filepath"]
        text = (
            long_form(model, file)
            if clip["duration"] > 30
            else transcribe(model, [Item(clip["text"], speech.read(file))])[0]
        )
        per_clip[file.name] = errors([clip["text"]], [text])
        print(file.name, per_clip[file.name], flush=True)
    name = "three-minute clip, sequential long-form"
    lines.append(
        {
            "set": name,
            "recordings": 1,
            "target": TARGETS[name],
            "seconds": round(max(clip["duration"] for clip in clips)),
            **per_clip["three_minutes.flac"],
        }
    )
    return {
        "model": "nano.en",
        "sha256": digest,
        "parameters": sum(p.numel() for p in model.parameters()),
        "decoding": "openai-whisper, float32, greedy, temperature 0, no fallback",
        "seed": SEED,
        "unseen_voice": speech.UNSEEN_VOICE,
        "results": lines,
        "clips": per_clip,
    }


def table(report: dict) -> str:
    """The figures as the model card's Markdown table."""
    rows = ["| Test | Recordings | Words | Word error rate | Aim |", "| --- | ---: | ---: | ---: | ---: |"]
    for line in report["results"]:
        if line["wer"] is None:
            value, aim = f"{line['insertions']} words inserted", f"≤ {line['target']} word"
        else:
            value, aim = f"{line['wer']:.2%}", f"≤ {line['target']:.0%}"
        rows.append(f"| {line['set']} | {line['recordings']} | {line['words']} | {value} | {aim} |")
    return "\n".join(rows)


def update_card(report: dict, card: Path = CARD) -> None:
    """Put the table between the card's two evaluation marks. ValueError if they are missing."""
    text = card.read_text()
    head, start, rest = text.partition("<!-- evaluation -->\n")
    _, end, tail = rest.partition("<!-- /evaluation -->")
    if not start or not end:
        raise ValueError(f"{card} has no evaluation marks")
    card.write_text(f"{head}{start}{table(report)}\n{end}{tail}")


def main(argv: list[str] | None = None) -> None:
    """Evaluate and write evaluation.json and the card's table; with other weights only print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shipped = HERE.parent / "nano.en.pt.xz"
    parser.add_argument("--weights", type=Path, default=shipped, help="a .pt.xz (default: the shipped one)")
    parser.add_argument("--count", type=int, default=500, help="recordings a set (default: %(default)s)")
    args = parser.parse_args(argv)
    report = evaluate(args.weights, args.count)
    print(table(report))
    if args.weights == shipped:
        (HERE / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
        update_card(report)


if __name__ == "__main__":
    main()
