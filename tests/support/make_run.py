"""Builds valid run records for tests: seeded, small, with every value open to change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asrgate.backends.base import Settings
from asrgate.harness.record import SCHEMA_VERSION, Run, text_sha256

REFERENCE = "whisper-cpu@cpu/float32"
VARIANTS = (REFERENCE, "faster-whisper@cpu/int8")
TEXT = (
    "the quick brown fox jumps over a lazy dog while seven old ships sail past green hills at dawn and "
    "nobody on shore can tell which of them carries salt or silk from distant ports under summer rain"
)


def make_run(
    variants: Sequence[str] = VARIANTS,
    references: int | Sequence[str | None] = 6,
    *,
    rounds: int = 2,
    texts: Mapping[str, Sequence[str | None]] | None = None,
    seconds_per_audio_second: Mapping[str, float] | None = None,
    audio_seconds: Sequence[float] | None = None,
    settings: Mapping[str, Any] | None = None,
    languages: Sequence[str] | None = None,
    models: Sequence[str] = (),
    seed: int = 0,
) -> Run:
    """Return an unscored, unjudged record that `asrgate.harness.record.validate` accepts.

    Args:
        variants: `name@device/precision`; the first is the reference unless `settings` names another.
        references: the clips' reference texts, or how many seeded ones to make up. None: a clip without.
        texts: variant -> the answer to each clip in every round; None is a call that failed.
            A variant that is not named answers each reference with one word in twenty replaced.
        seconds_per_audio_second: variant -> its true RTF; by default 0.2, 0.1, 0.2/3, ... in order.
        audio_seconds: length of each clip; by default 2 to 12 s, seeded.
        settings: overrides of run["settings"].
        languages: of each clip; English by default.
        models: names of several; then each variant has a row, `name@device/precision:model`, with each.
    """
    rng = np.random.default_rng(seed)
    if isinstance(references, int):
        references = [" ".join(rng.choice(TEXT.split(), rng.integers(5, 25))) for _ in range(references)]
    lengths = rng.uniform(2, 12, len(references)).round(3).tolist()
    clips = [
        _clip(i, reference, seconds, language)
        for i, (reference, seconds, language) in enumerate(
            zip(references, audio_seconds or lengths, languages or ["en"] * len(references), strict=True)
        )
    ]
    results = []
    reference = variants[0] if variants else REFERENCE
    places = [f"{variant}:{model}" for model in models for variant in variants]
    of_models = [model for model in models for _ in variants]
    variants = places or variants
    for place, variant in enumerate(variants):
        answers = (texts or {}).get(variant)
        if answers is None:
            answers = [_mishear(rng, reference) for reference in references]
        pace = (seconds_per_audio_second or {}).get(variant, 0.2 / (place + 1))
        results.append(_result(variant, clips, answers, rounds=rounds, pace=pace, rng=rng))
    run: Run = {
        "schema_version": SCHEMA_VERSION,
        "run_id": "20260102T030405Z-0a1b",
        "started_at": "2026-01-02T03:04:05+00:00",
        "finished_at": "2026-01-02T03:14:05+00:00",
        "complete": True,
        "interrupted": None,
        "command": ["asrgate", "run"],
        "host": {"cpu": "Imaginary 9000", "physical_cores": 8, "memory_bytes": 32 * 2**30, "gpus": []},
        "versions": {"asrgate": "0.1.0", "openai-whisper": "20250625", "torch": None},
        "settings": {
            "decoding": Settings().as_dict(),
            "rounds": rounds,
            "warmup": 1,
            "timeout_seconds": 60.0,
            "device": "auto",
            "reference": reference,
            "wer_tolerance": 0.01,
            "max_wer": 0.5,
            "length_tolerance": 0.1,
            "seed": seed,
            "texts": True,
            **(settings or {}),
        },
        "checkpoint": _checkpoint("tiny.en", ""),
        "scoring": {
            "normalizer": {"name": "none", "sha256": _sha256("none"), "version": "built in"},
            "bootstrap": {"replicates": 0, "seed": seed, "level": 0.95},
        },
        "clips": clips,
        "rounds": [
            {
                "round": number,
                "order": list(variants),
                "load_average_1min": 0.5,
                "foreign_cpu_fraction": 0.01,
            }
            for number in range(rounds)
        ],
        "warnings": [],
        "results": results,
    }
    if models:
        run["models"] = [_checkpoint(model, f" of {model}") for model in models]
        run["checkpoint"] = run["models"][0]
        for result, model in zip(results, of_models, strict=True):
            result["model"] = model
    return run


def add_unavailable(run: Run, variant: str, reason: str, remedy: str | None = None) -> dict[str, Any]:
    """Add the row of a variant that this machine cannot run; return it."""
    result = _result(variant, [], [], rounds=0, pace=1.0, rng=np.random.default_rng(0))
    result.update(status="unavailable", error=reason, remedy=remedy, applied_settings=None, integrity=None)
    result["load"] = dict.fromkeys(result["load"])
    result["resources"] = dict.fromkeys(result["resources"])
    result["gate"]["reasons"] = [reason]
    run["results"].append(result)
    return result


def result_of(run: Run, variant: str) -> dict[str, Any]:
    """Return a variant's result."""
    return next(result for result in run["results"] if result["variant"] == variant)


def _checkpoint(name: str, of: str) -> dict[str, Any]:
    return {
        "name": name,
        "sha256": _sha256(f"checkpoint{of}"),
        "tensors_sha256": _sha256(f"tensors{of}"),
        "dimensions": {"n_mels": 80, "n_audio_layer": 4, "n_text_layer": 4, "n_vocab": 51_864},
        "note": "",
    }


def _clip(number: int, reference: str | None, seconds: float, language: str) -> dict[str, Any]:
    name = f"clip-{number:03}"
    return {
        "name": name,
        "audio_filepath": f"{name}.wav",
        "audio_seconds": seconds,
        "sha256": _sha256(name),
        "language": language,
        "reference": reference,
        "reference_sha256": None if reference is None else text_sha256(reference),
        "reference_words": None,
        "tags": {"licence": "CC0-1.0"},
    }


def _result(
    variant: str,
    clips: Sequence[dict[str, Any]],
    answers: Sequence[str | None],
    *,
    rounds: int,
    pace: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    name, _, place = variant.partition("@")
    device, _, precision = place.partition(":")[0].partition("/")
    samples = [
        _sample(clip, number, text, clip["audio_seconds"] * pace * rng.uniform(0.95, 1.05))
        for number in range(rounds)
        for clip, text in zip(clips, answers, strict=True)
    ]
    return {
        "variant": variant,
        "backend": name,
        "device": device,
        "precision": precision,
        "status": "ok",
        "error": None,
        "remedy": None,
        "gate": {"ranked": False, "rank": None, "reasons": ["not judged yet"]},
        "applied_settings": Settings().as_dict(),
        "isolation": None,
        "load": {
            "import_seconds": 1.5,
            "load_seconds": 0.75,
            "first_call_seconds": 0.9,
            "warm_call_seconds": 0.6,
        },
        "resources": {
            "peak_rss_bytes": 600 * 2**20,
            "peak_vram_process_bytes": None,
            "peak_vram_allocator_bytes": None,
            "cpu_seconds": sum(sample["cpu_seconds"] or 0.0 for sample in samples),
            "energy_joules": None,
            "energy_source": None,
        },
        "integrity": {
            "probes": [
                {
                    "kind": "dithered",
                    "clip": clip["name"],
                    "seen_seconds": 0.5,
                    "unseen_seconds": 0.5,
                    "seen_cpu_seconds": 0.9,
                    "unseen_cpu_seconds": 0.9,
                    "changed_words": None if text is None else 0,
                    "text": text,
                    "text_sha256": None if text is None else text_sha256(text),
                    "text_words": None,
                }
                for clip, text in list(zip(clips, answers, strict=True))[:2]
            ],
            "unseen_over_seen": 1.0,
            "late_work_seconds": 0.0,
        },
        "wer": None,
        "rtfx": None,
        "latency": None,
        "samples": samples,
    }


def _sample(clip: dict[str, Any], number: int, text: str | None, wall_seconds: float) -> dict[str, Any]:
    answered = text is not None
    tokens = list(range(len((text or "").split()) + 1)) if answered else None
    return {
        "clip": clip["name"],
        "round": number,
        "wall_seconds": wall_seconds,
        "worker_seconds": wall_seconds if answered else None,
        "cpu_seconds": wall_seconds * 0.9 if answered else None,
        "late_work_seconds": 0.0 if answered else None,
        "stage_seconds": {"encode": wall_seconds * 0.4, "decode": wall_seconds * 0.6} if answered else {},
        "text": text,
        "text_sha256": None if text is None else text_sha256(text),
        "text_words": None,
        "tokens": tokens,
        "token_count": None if tokens is None else len(tokens),
        "error": None if answered else "the engine raised ValueError: no",
    }


def _mishear(rng: np.random.Generator, reference: str | None) -> str:
    words = (reference or "").split()
    return " ".join(str(rng.choice(TEXT.split())) if rng.random() < 0.05 else word for word in words)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
