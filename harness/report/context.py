"""The context of every figure: checkpoint, audio, decoding, machine, versions, scoring and gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from asrgate.backends.base import AUTO, REMOTE, Settings
from asrgate.harness import record
from asrgate.harness.metrics import readings
from asrgate.harness.metrics import word_times as timed_words
from asrgate.harness.record_types import CheckpointRecord, Run, WordAnswers
from asrgate.harness.scenarios import registry
from asrgate.harness.scoring import gate as judge

SHORT_HASH = 12  # hex digits of a SHA-256 that are shown to readers
MOST_LANGUAGES = 4  # that a headline names


def describe(run: Run) -> dict[str, str]:
    """Return label -> plain text, unescaped, in the order in which reports show them."""
    settings = run["settings"]
    return {
        "model": model(run),
        "scenario": scenario(run),
        "audio": audio(run),
        "decoding": decoding(run),
        "rounds": rounds(run),
        "measured": f"{run['started_at']}, {_many(settings['warmup'], 'warm-up call')}, "
        f"device {settings['device']}",
        "machine": machine(run),
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version),
        "scoring": scoring(run),
        "gate": gate(run),
        **audit(run),
        **word_times(run),
        "record": digest(run) or "no digest: it is older than asrgate's digests",
    }


def audit(run: Run) -> dict[str, str]:
    """Say which rows were audited, if the run was to be; nothing otherwise."""
    if not run["settings"].get("audit"):
        return {}
    told = []
    for result in run["results"]:
        reference = judge.find_reference(run, result)
        if result["status"] == "ok":
            found = result.get("audit")
            if found is not None and not found["auditable"]:
                where = "on a server" if result["device"] == REMOTE else "its own"
                verdict = f"not auditable: its weights are {where}"
            else:
                verdict = "not passed" if any(judge.audit_faults(run, result, reference)) else "audited"
            told.append(f"{result['variant']} {verdict}")
    return {"audit": ", ".join(told) or "no row finished"}


def word_times(run: Run) -> dict[str, str]:
    """Say what the times of words are of, and which rows have none, if the run was to ask for them."""
    if not run["settings"].get("word_timestamps"):
        return {}
    asked = [(r["variant"], r["word_answers"]) for r in run["results"] if "word_answers" in r]
    clips = sum(bool(timed_words.of_clip(clip["tags"])) for clip in run["clips"])
    told = [
        f"of {_many(clips, 'clip')}, asked for after the last round: no figure of speed contains them",
        *(f"{variant} gives none" for variant, answers in asked if not answers["available"]),
        *(f"{variant}: {why}" for variant, answers in asked if (why := _missing(answers))),
    ]
    return {"word times": "; ".join(told)}


def _missing(answers: WordAnswers) -> str | None:
    """Say why some of the answers are missing; None if none is."""
    errors = [error for answer in answers["answers"] if (error := answer["error"]) is not None]
    return answers["error"] or (f"{_many(len(errors), 'clip')} failed, {errors[0]}" if errors else None)


def digest(run: Run) -> str | None:
    """Name the digest of what the run measured; None if it has none."""
    return f"digest {run['digest'][:SHORT_HASH]}" if "digest" in run else None


def warnings(run: Run) -> list[str]:
    """Return what a reader must know before trusting the figures."""
    found = list(run["warnings"])
    if run["interrupted"]:
        found.insert(0, f"interrupted: {run['interrupted']}")
    elif not run["complete"]:
        found.insert(0, "incomplete: the run did not finish")
    for result in run["results"]:
        lacking = (result["applied_settings"] or {}).get("not_applied") or {}
        by_reason: dict[str, list[str]] = {}
        for name, why in lacking.items():
            by_reason.setdefault(str(why), []).append(name)
        found += [
            f"{result['variant']} does not apply {', '.join(names)}: {why}"
            for why, names in by_reason.items()
        ]
    return [*found, *readings.remarks(run)]


def model(run: Run) -> str:
    """Name, short digest and note of each model."""
    return ", ".join(_model(checkpoint) for checkpoint in record.models(run))


def _model(checkpoint: CheckpointRecord) -> str:
    note = f": {checkpoint['note']}" if checkpoint["note"] else ""
    if "identity" in checkpoint:
        declared = checkpoint["identity"]
        if "server" in declared:
            return (
                f"{checkpoint['name']} (what the server {declared['server']} calls it; "
                "its weights are unknown)"
            )
        return (
            f"{checkpoint['name']} (brought along by {declared['backend']}, revision {declared['revision']}, "
            f"{', '.join(declared['languages'])}, {declared['licence']}, files "
            f"{checkpoint['sha256'][:SHORT_HASH]})"
        )
    what, digest = record.model_digest(checkpoint)
    return f"{checkpoint['name']} ({what} {digest[:SHORT_HASH]}){note}"


def model_names(run: Run) -> str:
    """Names of the models."""
    return ", ".join(model["name"] for model in record.models(run))


def scenario(run: Run) -> str:
    """How the clips were handed over, and what the figures then mean."""
    return registry.of(run).describe(run)


def headline(run: Run) -> tuple[str, str]:
    """Return model and audio, and the machine, in so few words that they fit one line."""
    clips = run["clips"]
    languages = sorted({clip["language"] for clip in clips})
    named = ", ".join(languages) if len(languages) <= MOST_LANGUAGES else _many(len(languages), "language")
    length = _duration(sum(clip["audio_seconds"] for clip in clips))
    what = f"{model_names(run)} on {_many(len(clips), 'clip')} ({named}), {length}"
    where = run["host"].get("host_class")
    return what, str(where) if where else machine(run)


def audio(run: Run) -> str:
    """Size and languages of the set."""
    clips = run["clips"]
    languages = ", ".join(sorted({clip["language"] for clip in clips}))
    length = _duration(sum(clip["audio_seconds"] for clip in clips))
    words = [clip["reference_words"] for clip in clips if clip["reference_words"] is not None]
    scored = (
        f"{len(words)} with reference text ({_many(sum(words), 'word')})" if words else "no reference texts"
    )
    return f"{_many(len(clips), 'clip')} ({languages}), {length}, {scored}"


def decoding(run: Run) -> str:
    """The requested decoding: settings that runs usually vary, and any others that are not the default."""
    asked = dict(run["settings"]["decoding"])
    beams = asked.pop("beam_size", None)
    parts = ["greedy" if beams == 1 else f"beam {beams}", asked.pop("task", "transcribe")]
    language = asked.pop("language", None)
    told = "each clip's language" if language is None else f"language {language}"
    parts.append("languages detected" if language == AUTO else told)
    if "threads" in asked:
        parts.append(_many(asked.pop("threads"), "thread"))
    defaults = Settings().as_dict()
    parts += [f"{name} {value}" for name, value in asked.items() if defaults.get(name, ...) != value]
    return ", ".join(parts)


def machine(run: Run) -> str:
    """The host in one line: what is known about it, names first."""
    host = run["host"]
    if "host_class" in host:  # it includes CPU, cores, GPU and memory
        host = {name: host.get(name) for name in ("host_class", "gpu_driver", "os", "python", "container")}
    told = ", ".join(_facts(host)) or "unknown"
    if run.get("hosts"):
        alike = [entry for entry in run["hosts"] if entry.get("timed", True)]
        told += (
            f"; {_many(len(alike), 'such machine')} of a Ray cluster, "
            f"{_many(sum(entry['actors'] for entry in alike), 'engine')} at once"
        )
    return told


def rounds(run: Run) -> str:
    """How many rounds there were and, where that followed from need, why not more."""
    told = _many(run["settings"]["rounds"], "round")
    rule, stopped = run["settings"].get("rounds_rule"), run.get("stopped")
    if rule is None or stopped is None:
        return told
    within = f"within {100 * rule['within']:g} %"
    if stopped["reason"] == "precise":
        return f"{told} (enough to know every speed-up {within})"
    limit = f"{rule['budget_seconds']:g} s were used" if stopped["reason"] == "budget" else "the most allowed"
    return f"{told} ({limit}; speed-ups not known {within}: {', '.join(stopped['wide'])})"


def scoring(run: Run) -> str:
    """Normaliser and bootstrap."""
    normalizer, bootstrap = run["scoring"]["normalizer"], run["scoring"]["bootstrap"]
    second = run["scoring"].get("second")
    beside = f"; second: {second['name']} ({second['version']})" if second else ""
    return (
        f"normaliser {normalizer['name']} ({normalizer['version']}, sha256 "
        f"{normalizer['sha256'][:SHORT_HASH]}){beside}, {100 * bootstrap['level']:g} % intervals from "
        f"{bootstrap['replicates']} resamples, seed {bootstrap['seed']}"
    )


def gate(run: Run) -> str:
    """The limits that a row must meet to be ranked."""
    settings = run["settings"]
    points, ceiling, length = (
        f"{100 * settings[name]:g}" for name in ("wer_tolerance", "max_wer", "length_tolerance")
    )
    reference = settings["reference"] + (" with the same model" if "models" in run else "")
    return (
        f"reference {reference}, WER within {points} points of its and at most {ceiling} %, "
        f"length within {length} %, in every round{_isolation(run)}"
    )


def _isolation(run: Run) -> str:
    """Say whether the engines could reach the answers; nothing of a run from before that was recorded."""
    found = [shut_in for result in run["results"] if (shut_in := result.get("isolation")) is not None]
    if not found:
        return ""
    whole = all(each["files"] and each["signals"] and each["memory"] for each in found)
    lacks = next((each["why"] for each in found if each["why"]), None)
    why = f" ({lacks})" if lacks else ""
    return "; engines shut in" if whole else f"; engines not shut in, or only in part{why}"


def _facts(host: Mapping[str, Any]) -> Iterator[str]:
    for name, value in host.items():
        if value is None or value in ("", [], {}):
            continue
        if isinstance(value, Mapping):
            yield from _facts(value)
        elif isinstance(value, list):
            for item in value:
                yield " ".join(_facts(item)) if isinstance(item, Mapping) else str(item)
        elif isinstance(value, bool):
            yield f"{name.replace('_', ' ')} {'yes' if value else 'no'}"
        elif name.endswith("_bytes"):
            yield f"{value / 2**30:.1f} GiB {name.removesuffix('_bytes').replace('_', ' ')}"
        elif isinstance(value, str):
            yield value
        else:
            yield f"{value} {name.replace('_', ' ')}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
