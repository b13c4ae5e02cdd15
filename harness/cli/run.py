"""`asrgate run`: turns arguments into a checked plan, then runs it and writes the files and the table."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import (
    AUTO,
    AsrgateError,
    BackendError,
    BackendUnavailable,
    Checkpoint,
    ModelIdentity,
    Settings,
    how_to_fix,
)
from asrgate.backends.checkpoints import catalog
from asrgate.harness import corpus, record, report
from asrgate.harness.cli import run_options, streams
from asrgate.harness.corpus import augment, languages, sampling
from asrgate.harness.corpus.clips import BUNDLED_MANIFEST, Clip
from asrgate.harness.corpus.languages import ENGLISH_NAMES
from asrgate.harness.metrics import keywords, normalizers, word_times
from asrgate.harness.runner import journal, json_events, lock, progress, resume, runner, signals
from asrgate.harness.runner.cluster import connect
from asrgate.harness.runner.plan import LOCAL, RAY, Plan, blank_record
from asrgate.harness.runner.progress import Progress
from asrgate.harness.runner.stopping import BUDGET_SECONDS, Stopping
from asrgate.harness.scenarios import registry
from asrgate.harness.scenarios.scenario import Scenario
from asrgate.harness.scoring import slices
from asrgate.harness.worker import client

_log = logging.getLogger(__name__)

LANGUAGE_FREE_TOKENS = 51_766  # of a multilingual vocabulary; the others are one for each language
UNKNOWN = "unknown"  # the device and precision of a backend that cannot say what it has


class RunError(AsrgateError):
    """A run cannot start as asked; the message says why and what to do."""


def add_parser(subparsers: Any) -> None:
    """Add the `run` subcommand."""
    run_options.add_parser(subparsers, run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out `asrgate run`; return 0, or 1 if a row failed, or 130 if interrupted."""
    kept = None
    if arguments.resume is not None:
        kept = journal.read(arguments.resume)
        arguments = resume.arguments(kept, arguments, _parser())
    formats = [(path, report.format_of(path)) for path in arguments.output]
    is_json = arguments.log_format == "json"
    with json_events.warnings_as_events() if is_json else contextlib.nullcontext():
        stored, folder = measure(arguments, lambda: _progress(arguments), kept)
    for path, name in formats:
        report.write(stored, name, path, denied=[arguments.results])
    try:
        if arguments.json:
            sys.stdout.write(record.dumps(stored))
        else:
            report.print_table(stored, Console())
            print(f"\nStored in {folder}/ (run.json, samples.csv, summary.csv, report.md, report.html)")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"{streams.UNWRITABLE}: {error.strerror}; the run is stored in {folder}/") from error
    if stored["interrupted"]:
        message = f"{stored['interrupted']}; the results so far are in {folder}/"
        if is_json:
            json_events.emit("error", message=message)
        else:
            can_go_on = (folder / journal.NAME).exists()
            further = f"; to continue, run asrgate run --resume {folder}" if can_go_on else ""
            print(f"asrgate: {message}{further}", file=sys.stderr)
    return status(arguments, stored)


def defaults() -> argparse.Namespace:
    """Return the arguments of a bare `asrgate run`."""
    return _parser().parse_args(["run"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser


def status(arguments: argparse.Namespace, stored: record.Run) -> int:
    """Return the exit status for a run: 0, 1 if a row failed, 130 if interrupted."""
    if stored["interrupted"]:
        return 130
    asked_for = arguments.backends is not None
    lacking = [row for row in stored["results"] if row["status"] == "unavailable"]
    is_lacking = bool(lacking) if asked_for else any("model" in row for row in lacking)  # that was asked for
    return 1 if is_lacking or any(row["status"] == "error" for row in stored["results"]) else 0


def measure(
    arguments: argparse.Namespace, shown: Callable[[], Progress], kept: journal.Kept | None = None
) -> tuple[record.Run, Path]:
    """Plan, measure and store a run; return its record, as stored, and its folder.

    Args:
        arguments: as `add_parser` makes them.
        shown: called when measuring begins.
        kept: the journal of the run to continue.

    Raises:
        AsrgateError: nothing could be measured; the message says why.
    """
    with _one_at_a_time(), _executor(arguments):
        if kept is not None:
            kept = journal.read(kept.folder)  # again: another process may have continued it until now
        plan = _plan(arguments)
        if kept is None:
            run_id = runner.new_run_id()
            folder = _new_folder(arguments.results, run_id)
        else:
            run_id, folder = kept.head["run_id"], kept.folder
            resume.check(kept, blank_record(plan, run_id))
        finished = runner.run(plan, run_id, folder, shown(), kept)
    with signals.ignored():  # a few seconds; the report is of what was measured
        stored = finished if plan.texts else record.without_texts(finished)
        report.write_all(stored, folder)
        _point_latest(arguments.results, folder)
    return stored, folder


def _executor(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    if arguments.executor == RAY:
        if not registry.BUILTIN[arguments.scenario].is_distributable:
            able = ", ".join(s.name for s in registry.BUILTIN.values() if s.is_distributable)
            raise RunError(
                f"--executor ray measures only --scenario {able}; {arguments.scenario} runs on one machine: "
                "use --executor local"
            )
        return connect.connected(arguments.ray_address, arguments.workers, arguments.threads)
    for name, value in (("--ray-address", arguments.ray_address), ("--workers", arguments.workers)):
        if value is not None:
            raise RunError(f"{name} works only with --executor {RAY}")
    return contextlib.nullcontext()


def _plan(arguments: argparse.Namespace) -> Plan:
    if arguments.audit and (arguments.no_reference or arguments.executor == RAY):
        other = "--no-reference" if arguments.no_reference else f"--executor {RAY}"
        raise RunError(
            f"--audit compares with the reference on this machine, so it does not go with {other}; "
            "leave one out"
        )
    normalizer, *also = normalizers.chosen(arguments.normalizer)  # unknown: an error now, not after an hour
    mixing = augment.parse(arguments.augment)
    registry.check(arguments)
    variants, unavailable = _variants(arguments)
    variants, own, lacking = _brought_along(variants)
    unavailable += lacking
    if not variants:
        reasons = "\n".join(f"  {v}: {why}{f' ({fix})' if fix else ''}" for v, why, fix in unavailable)
        raise RunError(f"this machine cannot run any of the requested backends:\n{reasons}")
    clips = corpus.load_clips(
        arguments.audio,
        arguments.manifest,
        language=None if arguments.language == AUTO else arguments.language,
        max_hours=arguments.max_clip_hours,
    )
    for name, value in arguments.where:
        clips = _only(clips, name, value)
    if arguments.sample is not None:
        clips = sampling.stratified(clips, arguments.sample, arguments.seed, arguments.slices)
    if mixing is not None:
        clips = augment.with_noise(clips, mixing, arguments.seed)
    slices.check([(c.audio_seconds, c.language, c.tags) for c in clips], arguments.slices)
    checkpoints = _checkpoints(arguments)
    shared = [variant for variant in variants if variant.backend not in own]
    brought = [
        Checkpoint(name=identity.name, path=Path(), sha256=identity.sha256, dimensions={})
        for identity in own.values()
    ]
    wanted = [*(checkpoints if shared else []), *brought]
    models = _named(wanted) if len(wanted) > 1 or brought else {}
    identities = dict(zip(list(models)[len(wanted) - len(brought) :], own.items(), strict=True))
    is_auto = arguments.language == AUTO
    if is_auto:
        _check_detection(arguments, clips)
    variants, refused = _of_models(variants, models or {"": checkpoints[0]}, identities, clips, is_auto)
    unavailable += refused
    if is_auto:
        clips = [replace(clip, is_detected=True) for clip in clips]
    elif shared and any(checkpoint.is_multilingual for checkpoint in checkpoints):
        _tell_untold(clips)
    _check_words(arguments, clips)
    for hint in translation_hints(clips, arguments.task):
        _log.warning("%s", hint)
    settings = Settings(
        task=arguments.task,
        language=arguments.language,
        beam_size=arguments.beam_size,
        threads=arguments.threads or client.default_threads(),
    )
    kind = registry.BUILTIN[arguments.scenario]
    rounds, stopping = _rounds(arguments, kind)
    scenario = kind.from_arguments(arguments, clips, rounds)
    return Plan(
        variants=scenario.variants(variants, arguments.reference),
        unavailable=unavailable,
        checkpoint=checkpoints[0],
        models=models,
        identities=identities,
        settings=settings,
        clips=clips,
        reference=arguments.reference,
        rounds=rounds,
        stopping=stopping,
        warmup=arguments.warmup,
        timeout_seconds=arguments.timeout,
        device=arguments.device,
        wer_tolerance=arguments.wer_tolerance / 100,
        max_wer=arguments.max_wer,
        max_rtf=arguments.max_rtf,
        max_memory_bytes=arguments.max_memory,
        seed=arguments.seed,
        texts=not arguments.no_texts,
        normalizer=normalizer,
        also_normalizers=also,
        slices=arguments.slices,
        keywords=[] if arguments.keywords is None else keywords.read(arguments.keywords),
        sample=arguments.sample,
        augment=arguments.augment,
        scenario=scenario,
        executor=arguments.executor,
        most_workers=arguments.workers,
        audit=arguments.audit,
        word_timestamps=arguments.word_timestamps,
        denied=_denied(arguments, clips),
        command=["asrgate", *arguments.argv],
    )


def _rounds(arguments: argparse.Namespace, kind: type[Scenario]) -> tuple[int, Stopping | None]:
    """Return how many rounds there are, at most if there is a rule when to stop, and that rule."""
    can_adapt = kind.adapts_rounds and arguments.executor == LOCAL
    if arguments.rounds == AUTO and not can_adapt:
        raise RunError(
            f"--rounds {AUTO} works with --scenario single-stream and --executor {LOCAL} only; "
            "pass a number of rounds"
        )
    if can_adapt and arguments.rounds in (None, AUTO):
        found = Stopping(budget_seconds=arguments.budget or BUDGET_SECONDS)
        return found.most, found
    if arguments.budget is not None:
        raise RunError("--budget limits --rounds auto; with a number of rounds, leave it out")
    return arguments.rounds or kind.default_rounds, None


def _check_detection(arguments: argparse.Namespace, clips: Sequence[Clip]) -> None:
    """Refuse where nothing detects a language, and say what there is nothing to hold it against for."""
    able = [kind.name for kind in registry.BUILTIN.values() if kind.detects_language]
    if arguments.scenario not in able or arguments.executor != LOCAL:
        raise RunError(
            f"--language {AUTO} works with --scenario {' and '.join(able)} and --executor {LOCAL} only; "
            "leave it out, or name a language"
        )
    _warn_of_untold(
        clips,
        "what engines detect in them is not counted, and their texts are scored as English; name it in the "
        "manifest",
    )


def _check_words(arguments: argparse.Namespace, clips: Sequence[Clip]) -> None:
    """Refuse `--word-timestamps` where nothing can come of it; say so where it was not asked for."""
    timed = sum(bool(word_times.of_clip(clip.tags)) for clip in clips)
    if not arguments.word_timestamps:
        if timed:
            _log.info(
                "%d clips have times of words; --word-timestamps scores the engines' against them", timed
            )
        return
    if arguments.executor != LOCAL or arguments.task != "transcribe":
        other = f"--executor {RAY}" if arguments.executor != LOCAL else f"--task {arguments.task}"
        raise RunError(f"--word-timestamps does not go with {other}; leave one out")
    if not timed:
        raise RunError(
            "--word-timestamps compares with the manifest's field words, a list of "
            '{"word": "hello", "start": 0.5, "end": 0.9}, and no clip has one; add it or leave the option out'
        )


Refusals = list[tuple[Variant, str, str | None]]  # with the reason and the remedy


def _brought_along(
    variants: Sequence[Variant],
) -> tuple[list[Variant], dict[str, ModelIdentity], Refusals]:
    """Return the variants that can have a model, backend -> its own model, and the other variants."""
    own: dict[str, ModelIdentity] = {}
    lacking: dict[str, BackendUnavailable] = {}
    for backend in dict.fromkeys(variant.backend for variant in variants):
        try:
            identity = backends.describe(backend).model_identity()
        except BackendUnavailable as error:
            lacking[backend] = error
        else:
            if identity is not None:
                own[backend] = identity
    usable = [variant for variant in variants if variant.backend not in lacking]
    refused = [variant for variant in variants if variant.backend in lacking]
    return usable, own, [(v, lacking[v.backend].reason, lacking[v.backend].remedy) for v in refused]


def _of_models(
    variants: Sequence[Variant],
    models: Mapping[str, Checkpoint],
    identities: Mapping[str, tuple[str, ModelIdentity]],
    clips: Sequence[Clip],
    is_auto: bool = False,
) -> tuple[list[Variant], Refusals]:
    """Return every variant with every model that knows the clips' languages, and those with the others.

    A model that an engine brings along is for the variants of that engine, and those have no other. With
    `is_auto`, it must be able to detect the language instead.

    Raises:
        RunError: no model knows the clips' languages.
    """
    usable: list[Variant] = []
    refused: Refusals = []
    engines = {backend for backend, _ in identities.values()}
    for name, checkpoint in models.items():
        backend, identity = identities.get(name, (None, None))
        of_model = [
            replace(variant, model=name)
            for variant in variants
            if (variant.backend == backend if backend else variant.backend not in engines)
        ]
        why, remedy = (
            _detection_lacking(checkpoint) if is_auto else _languages_lacking(checkpoint, identity, clips)
        )
        if why is None:
            usable += of_model
        else:
            refused += [(variant, why, remedy) for variant in of_model]
    if not usable:
        reasons = dict.fromkeys(f"{why}; {remedy}" for _, why, remedy in refused)
        raise RunError("\n".join(reasons))
    return usable, refused


def _detection_lacking(model: Checkpoint) -> tuple[str, str] | tuple[None, None]:
    """Say why a model cannot detect a clip's language, and what to do about it."""
    if not model.is_of_engine and model.is_multilingual:
        return None, None
    what = "has rules of its own" if model.is_of_engine else "is English-only"
    return (
        f"{model.name} {what} and cannot detect a language",
        f"choose a multilingual --model, or leave --language {AUTO} out",
    )


def _languages_lacking(
    model: Checkpoint, identity: ModelIdentity | None, clips: Sequence[Clip]
) -> tuple[str, str] | tuple[None, None]:
    """Say which of the clips' languages a model was not trained with, and what to do about it."""
    if identity is not None:
        lacking = sorted({clip.language for clip in clips} - set(identity.languages))
        if not lacking or not identity.languages:
            return None, None
        return (
            f"{identity.name} understands only {', '.join(identity.languages)}, but some clips are in "
            f"{', '.join(lacking)}",
            "leave such clips out with --where, or the engine out of --backends",
        )
    if not model.is_multilingual:
        foreign = sorted({clip.language for clip in clips} - {"en"})
        if not foreign:
            return None, None
        return (
            f"{model.name} understands only English, but some clips are in {', '.join(foreign)}",
            "choose a multilingual --model, other clips, or pass --language en to decode them as English",
        )
    known = list(ENGLISH_NAMES)[: model.dimensions["n_vocab"] - LANGUAGE_FREE_TOKENS]
    clip = next((clip for clip in clips if clip.language not in known), None)
    if clip is None:
        return None, None
    return (
        f"{model.name} has no language {clip.language} ({ENGLISH_NAMES[clip.language]}), which clip "
        f"{clip.name} is in",
        "choose another --model, leave such clips out with --where, or pass --language",
    )


def _tell_untold(clips: Sequence[Clip]) -> None:
    """Say which clips are taken for English because nothing names their language."""
    default = ENGLISH_NAMES[corpus.DEFAULT_LANGUAGE].title()
    _warn_of_untold(clips, f"they are decoded as {default}; name it in the manifest or pass --language")


def _warn_of_untold(clips: Sequence[Clip], so: str) -> None:
    """Say for which clips nothing names a language, and what follows from that."""
    untold = [clip.name for clip in clips if not clip.is_language_told]
    if untold:
        _log.warning(
            "no language is named for %d of %d clips (%s%s), so %s",
            len(untold),
            len(clips),
            ", ".join(untold[:3]),
            ", …" if len(untold) > 3 else "",
            so,
        )


_ENGLISH_WORDS = frozenset(
    {"the", "of", "and", "to", "is", "that", "it", "for", "with", "on", "by", "at", "this", "have", "are"}
    | {"not", "you", "we", "from"}
)
ENGLISH_SHARE = 0.08  # of an English text's words are such words; in fact about a fifth
LEAST_WORDS = 20  # fewer words do not tell


def translation_hints(clips: Sequence[Clip], task: str) -> list[str]:
    """Return what is told if texts seem to be in another language than the task writes."""
    if task == "transcribe":
        wrong = [c for c in clips if (code := languages.written(c.tags)) and code != c.language]
        if not wrong:
            return []
        return [
            f"the texts of {len(wrong)} of {len(clips)} clips ({wrong[0].name}, …) are translations, by the "
            "manifest's target_lang; without --task translate every word of them is an error"
        ]
    foreign = [clip for clip in clips if clip.language != "en" and clip.reference]
    words = [word for clip in foreign for word in (clip.reference or "").lower().split()]
    told = {code for clip in foreign if (code := languages.written(clip.tags))} - {"en"}
    seems_foreign = len(words) >= LEAST_WORDS and (
        sum(word.strip(".,?!") in _ENGLISH_WORDS for word in words) < ENGLISH_SHARE * len(words)
    )
    if not told and not seems_foreign:
        return []
    return [
        "--task translate writes English, but the texts of the clips in "
        f"{', '.join(sorted({clip.language for clip in foreign}))} do not look English; if they are "
        "transcripts of what is said, the WER says nothing: pass English texts, or --task transcribe"
    ]


MOST_DENIED_FILES = 1000  # beyond that their folders are named: each name costs a worker 0.2 ms at its start


def _denied(arguments: argparse.Namespace, clips: Sequence[Clip]) -> list[Path]:
    """Return where clips, their texts and all results lie: an engine that can read them knows the answers."""
    found = [arguments.results, BUNDLED_MANIFEST.parent, *arguments.audio]
    found += [arguments.manifest] if arguments.manifest else []
    files = [clip.path for clip in clips]
    if len(files) > MOST_DENIED_FILES:
        files = list(dict.fromkeys(path.parent for path in files))
    found += files
    found += [text for path in files if (text := path.with_suffix(".txt")).exists()]
    return list(dict.fromkeys(found))


def _variants(arguments: argparse.Namespace) -> tuple[list[Variant], list[tuple[Variant, str, str | None]]]:
    """Return the variants to measure, and those that this machine cannot run with the reason for each."""
    usable: list[Variant] = []
    refused: dict[Variant, tuple[str, str | None]] = {}
    if arguments.backends is None:
        asked = backends.defaults(arguments.device)
    elif arguments.backends == "all":
        asked = backends.every(arguments.device)
    else:
        names = [name for name in arguments.backends.split(",") if name.strip()]
        if not names:
            raise RunError(f"--backends names no backend; available: {', '.join(backends.names())}")
        backends.describe_all(backend for name in [*names, arguments.reference] for backend in _known(name))
        asked = []
        for name in names:
            try:
                asked += backends.parse(name, arguments.device)
            except BackendUnavailable as error:
                refused[_undescribed(name)] = error.reason, error.remedy
    reference = _one_variant(arguments.reference)
    arguments.reference = str(reference)
    if not arguments.no_reference and reference not in asked:
        asked.insert(0, reference)
    asked = list(dict.fromkeys(asked))
    for variant in asked:
        try:
            if arguments.executor == RAY:
                connect.check(variant)  # the engine need not be on this machine
            else:
                backends.describe(variant.backend).check(variant.device, variant.precision)
            usable.append(variant)
        except BackendUnavailable as error:
            refused[variant] = error.reason, error.remedy
    return usable, [(variant, reason, remedy) for variant, (reason, remedy) in refused.items()]


def _known(text: str) -> Iterator[str]:
    name = text.partition("@")[0].strip()
    if name in backends.names():
        yield name


def _undescribed(text: str) -> Variant:
    """Return the variant that a row names whose backend cannot say what it has."""
    name, _, place = text.strip().partition("@")
    device, _, precision = place.partition("/")
    return Variant(name, device or UNKNOWN, precision or UNKNOWN)


def _only(clips: list[Clip], name: str, value: str) -> list[Clip]:
    def field(clip: Clip) -> str:
        return clip.language if name == "lang" else str(clip.tags.get(name, "absent"))

    kept = [clip for clip in clips if field(clip) == value]
    if not kept:
        there = ", ".join(sorted({field(clip) for clip in clips})[:20])
        raise RunError(f"no clip has {name}={value}; the clips have these values of {name!r}: {there}")
    return kept


def _one_variant(text: str) -> Variant:
    try:
        found = backends.parse(text)
    except BackendUnavailable as error:
        why = f"{error.reason}{how_to_fix(error.remedy)}"
        raise BackendError(f"--reference {text!r} cannot run here: {why}") from error
    if len(found) != 1:
        raise BackendError(
            f"--reference {text!r} is more than one variant; choose one of {', '.join(map(str, found))}"
        )
    return found[0]


def _checkpoints(arguments: argparse.Namespace) -> list[Checkpoint]:
    if arguments.model is not None:
        return [catalog.resolve(name, download=True) for name in arguments.model]
    found, line = catalog.default_model()
    if arguments.log_format == "json":
        json_events.emit("note", message=line)
    else:
        print(line, file=sys.stderr)
    return [found]


LONGEST_MODEL_NAME = 60  # it is part of every row's name


def _named(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Return the models of a run by short names that tell them apart.

    Raises:
        RunError: two of them are the same model.
    """
    same: dict[tuple[str | None, str], Checkpoint] = {}
    for checkpoint in (each for each in checkpoints if not each.is_of_engine):
        identity = (checkpoint.tensors_sha256, json.dumps(sorted(checkpoint.dimensions.items())))
        other = same.setdefault(identity, checkpoint)
        if other is not checkpoint:
            raise RunError(
                f"--model {other.name} and --model {checkpoint.name} are the same model; name each once"
            )
    names = [checkpoint.name for checkpoint in checkpoints]
    return {
        name
        if names.count(name) == 1 and len(name) <= LONGEST_MODEL_NAME
        else f"{name[: LONGEST_MODEL_NAME - 9]}-{checkpoint.sha256[:8]}": checkpoint
        for name, checkpoint in zip(names, checkpoints, strict=True)
    }


def _progress(arguments: argparse.Namespace) -> Progress:
    return json_events.JsonLines() if arguments.log_format == "json" else progress.choose(arguments.quiet)


def _new_folder(results: Path, run_id: str) -> Path:
    folder = results / run_id
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RunError(
            f"cannot create {folder}: {error.strerror}; make {results} writable or pass --results FOLDER"
        ) from error
    return folder


def _point_latest(results: Path, folder: Path) -> None:
    """Make results/latest point to the folder, atomically."""
    link = results / f".latest-{folder.name}"
    with contextlib.suppress(OSError):  # a file system without links loses a convenience, not a result
        link.symlink_to(folder.name)
        os.replace(link, results / "latest")


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Hold the machine-wide lock, because two runs at once would disturb each other's times."""
    path = lock.of_machine()
    try:
        file = lock.opened(path)
    except OSError as error:
        raise RunError(
            f"cannot open the lock file {path}: {error.strerror}; remove it, or set {lock.FOLDER_VARIABLE} "
            "to a folder that all your runs on this machine share"
        ) from error
    with file:
        if not lock.is_taken(file):
            holder = file.read().strip()
            raise RunError(
                f"another run is measuring on this machine (process {holder or 'unknown'}); "
                "two runs at once would disturb each other's times, so wait for it or stop it"
            )
        file.truncate(0)
        file.write(json.dumps(os.getpid()))
        file.flush()
        yield
