"""The contract of `backends.base.Backend` as a test suite that any backend, ours or not, can run.

    from asrgate.harness.testing import BackendContract

    class TestMine(BackendContract):
        variant = "mine@cpu/float32"

A variant that cannot run here fails the suite, because nothing would be tested. Cached answers, and work that
continues after a call, show only in a measured run; the gate checks for them: `asrgate run --backends mine`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from asrgate import backends
from asrgate.backends import Variant
from asrgate.backends.base import (
    BEYOND_END_SECONDS,
    MAY_BE_LACKING,
    OF_WHISPER,
    SAMPLE_RATE_HZ,
    AsrgateError,
    Backend,
    BackendUnavailable,
    Checkpoint,
    Settings,
)
from asrgate.backends.base import Transcript as Answer
from asrgate.backends.checkpoints import catalog
from asrgate.harness.corpus import BUNDLED_MANIFEST, audio

BUNDLED_CLIP = BUNDLED_MANIFEST.with_name("short.flac")
ENGINES = (  # modules that take long to import, or much memory
    *("torch", "whisper", "ctranslate2", "faster_whisper", "transformers", "max", "tensorflow", "jax"),
    *("onnxruntime", "nemo", "mlx", "openvino", "tensorrt"),
)
FEW_SAMPLES = SAMPLE_RATE_HZ // 100  # 10 ms, less than one frame; an engine may refuse it
CHUNK_SAMPLES = SAMPLE_RATE_HZ // 4  # of a stream
LONG_SECONDS = 36  # more than a window
BUSY_SAMPLES, LOOKING_AT_THREADS_SECONDS = 30, 2.0  # whichever comes first
IDLE_SHARE = 0.05  # of the busiest thread's processor time; one that uses less does no work
# On average, with threads=1. One thread may hand its work to another while both wait for a core: MAX showed
# up to 1.63 beside six other processes. Two that share the work show 2.0.
BUSY_THREADS_LIMIT = 1.75
SETTLING_SECONDS = 0.3  # threads spin for a while after their last task
POLLING_MARGIN = 2.0  # times what a thread uses between calls is not taken for work
LOOKING_SECONDS = 60  # importing a module and `check`, on a cold disk

CHANGES: tuple[dict[str, Any], ...] = (  # from the default settings, one at a time
    {"beam_size": 3},
    {"threads": 2},
    {"language": "en"},
    {"task": "translate"},
    {"temperature": 0.4},
    {"condition_on_previous_text": True},
    {"no_speech_threshold": 0.5},
    {"logprob_threshold": -0.5},
    {"suppress_blank": False},
    {"suppress_tokens": ""},
)
REACHING: tuple[dict[str, Any], ...] = ({"beam_size": 5}, {"condition_on_previous_text": True})
SOUNDS = 6  # with which they are looked for
IMPOSSIBLE: tuple[dict[str, Any], ...] = ({"threads": 0}, {"beam_size": 0}, {"task": "summarise"})


def _name(settings: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in settings.items())


class BackendContract:
    """Derive a class from this one, name the variant, and run pytest.

    Attributes:
        variant: `name@device/precision` as registered.
        model: a checkpoint's name or path, as `--model` takes it.
        clip: a recording of up to 30 s in which the backend recognises words with that checkpoint.
        languages: codes that the backend must decode with that checkpoint.
        reads_checkpoint: False if the weights are elsewhere, so that it cannot refuse a broken file.
    """

    variant: ClassVar[str]
    model: ClassVar[str] = "nano.en"
    clip: ClassVar[Path] = BUNDLED_CLIP
    languages: ClassVar[tuple[str, ...]] = ("en",)
    reads_checkpoint: ClassVar[bool] = True

    @pytest.fixture
    def chosen(self) -> Variant:
        """The variant, as the registry knows it."""
        backend_class = backends.load(self.variant.partition("@")[0])  # as it is: the tests say what is wrong
        (found,) = backends.parse(self.variant, devices=backend_class.devices)
        return found

    @pytest.fixture
    def weights(self, chosen: Variant) -> Checkpoint:
        """The checkpoint, verified, or what stands for the model that the backend brings along."""
        return _weights(chosen.backend, str(self.model))

    @pytest.fixture
    def speech(self) -> np.ndarray:
        """Samples of the clip."""
        if not self.clip.is_file():
            pytest.fail(f"{self.clip} does not exist; set `clip` to a recording of speech")
        return audio.decode(self.clip)

    @pytest.fixture
    def engine(self, chosen: Variant) -> Any:
        """The backend, loaded once with the default settings."""
        try:
            return _engine(chosen, str(self.model))
        except BackendUnavailable as error:
            pytest.fail(f"{chosen} cannot run here, so nothing was tested: {error}")

    # --- before anything is loaded

    def test_it_names_its_devices_precisions_and_imports(self, chosen: Variant) -> None:
        backend_class = backends.load(chosen.backend)
        assert backend_class.devices, "`devices` is empty"
        for device, precisions in backend_class.devices.items():
            assert isinstance(device, str), f"the device {device!r} is not a string"
            assert not isinstance(precisions, str), (
                f"the precisions of {device} are a single string; use a tuple of strings"
            )
            assert precisions, f"{device} has no precision"
            assert all(isinstance(p, str) and "/" not in p and "@" not in p for p in precisions), precisions
        assert not isinstance(backend_class.imports, str), (
            "`imports` is a single string; use a tuple of strings"
        )
        assert all(isinstance(module, str) for module in backend_class.imports), backend_class.imports

    def test_it_is_listed_and_checked_without_importing_its_engine(self, chosen: Variant) -> None:
        own = {module.partition(".")[0] for module in backends.load(chosen.backend).imports}
        heavy = sorted((own | set(ENGINES)) - {"numpy"})
        code = (
            "import json, sys\nimport numpy, backends\n"
            f"heavy = {heavy!r}\n"
            f"found = backends.load({chosen.backend!r})\n"
            "listed = [m for m in heavy if m in sys.modules]\n"
            "try:\n"
            f"    found.check({chosen.device!r}, {chosen.precision!r})\n"
            "except backends.BackendUnavailable:\n    pass\n"
            "print(json.dumps([listed, [m for m in heavy if m in sys.modules]]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
            capture_output=True,
            text=True,
            timeout=LOOKING_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"check() raised something other than BackendUnavailable: {done.stderr}"
        listed, checked = json.loads(done.stdout.splitlines()[-1])
        assert not listed, f"its module imports {', '.join(listed)}: import engines inside functions"
        assert not checked, f"check() imports {', '.join(checked)}: check for packages without importing them"

    def test_check_refuses_what_it_does_not_offer_with_nothing_but_unavailable(self, chosen: Variant) -> None:
        # the harness asks only for what `devices` offers; an absent device is the usual reason to refuse
        backend_class = backends.load(chosen.backend)
        for device, precisions in backend_class.devices.items():
            for precision in precisions:
                error = _error(lambda d=device, p=precision: backend_class.check(d, p))  # type: ignore[misc]
                assert error is None or isinstance(error, BackendUnavailable), (
                    f"check({device!r}, {precision!r}) raised {type(error).__name__}: {error}"
                )

    # --- settings

    def test_it_follows_the_protocol(self, engine: Any) -> None:
        assert isinstance(engine, Backend), "some methods of asrgate.backends.base.Backend are missing"
        engine.synchronize()

    def test_applied_settings_name_every_setting_as_asked(self, engine: Any) -> None:
        applied = json.loads(json.dumps(dict(engine.applied_settings)))
        for name, asked in asdict(Settings()).items():
            assert name in applied, f"applied_settings does not say which {name} was used"
            if self._is_lacking(applied, name):
                continue
            assert applied[name] == asked, f"ran with {name} {applied[name]!r}, but {asked!r} was asked for"

    def _is_lacking(self, applied: Mapping[str, Any], name: str) -> bool:
        """Whether the engine says, with the reason, that it lacks one of the settings that it may lack.

        Those are more for an engine that brings its model along; but it refuses to change any of them.
        """
        lacking = applied.get("not_applied") or {}
        own = hasattr(backends.load(self.variant.partition("@")[0]), "model_identity")
        may_lack = OF_WHISPER if own else MAY_BE_LACKING
        return name in may_lack and bool(lacking.get(name)) and applied[name] is None

    @pytest.mark.parametrize("change", CHANGES, ids=_name)
    def test_settings_are_honoured_or_refused(
        self, chosen: Variant, weights: Checkpoint, change: dict[str, Any]
    ) -> None:
        found = self._load(chosen, weights, Settings(**change))
        if isinstance(found, Exception):
            assert isinstance(found, AsrgateError), f"{_name(change)} raised {found!r}, not a BackendError"
            return
        (name,) = change
        if name in MAY_BE_LACKING and self._is_lacking(found.applied_settings, name):
            return
        assert found.applied_settings.get(name) == change[name], (
            f"asked for {_name(change)}, it ran with {found.applied_settings.get(name)!r} and did not refuse"
        )

    @pytest.mark.parametrize("change", IMPOSSIBLE, ids=_name)
    def test_impossible_settings_are_refused(
        self, chosen: Variant, weights: Checkpoint, change: dict[str, Any]
    ) -> None:
        found = self._load(chosen, weights, Settings(**change))
        assert isinstance(found, AsrgateError), f"{_name(change)} must raise BackendError, but gave {found!r}"

    def test_broken_checkpoint_is_a_backend_error(
        self, chosen: Variant, weights: Checkpoint, tmp_path: Path
    ) -> None:
        if weights.is_of_engine:
            return  # there is no file
        if not self.reads_checkpoint:
            pytest.skip("reads_checkpoint is False: its weights are elsewhere")
        broken = tmp_path / "broken.pt"
        broken.write_bytes(weights.path.read_bytes()[:1000])
        for path in (broken, tmp_path / "absent.pt"):
            # a different hash, so that no conversion of the intact file is used instead
            bad = replace(weights, name=path.stem, path=path, sha256="0" * 64)
            found = self._load(chosen, bad, Settings())
            assert isinstance(found, AsrgateError), (
                f"a checkpoint that is {path.stem} must raise BackendError, but gave {found!r}"
            )

    # --- settings in force: what is stated must show in an answer

    def test_silence_thresholds_it_states_decide_what_is_silent(
        self, chosen: Variant, weights: Checkpoint, speech: np.ndarray
    ) -> None:
        def heard(no_speech: float, logprob: float) -> list[bool] | None:
            settings = Settings(no_speech_threshold=no_speech, logprob_threshold=logprob)
            engine = self._load(chosen, weights, settings)
            if isinstance(engine, AsrgateError) or self._is_lacking(
                engine.applied_settings, "no_speech_threshold"
            ):
                return None
            sounds = (_noise(len(speech)), speech.copy())
            return [bool(engine.transcribe(sound, self.languages[0]).text.strip()) for sound in sounds]

        # a model may give silence itself a probability near 0: every window is above -1
        never, always, unlikely = heard(2.0, 0.0), heard(-1.0, 0.0), heard(-1.0, -100.0)
        if never is None or always is None or unlikely is None:
            return  # refused, or stated as not applied
        assert always != never, (
            "no_speech_threshold changes nothing, from -1 to 2: state None for it, and why in not_applied"
        )
        assert always != unlikely, "logprob_threshold changes nothing, from -100 to 0: refuse it"

    def test_tokens_it_says_it_suppresses_are_not_written(
        self, chosen: Variant, weights: Checkpoint, engine: Any, speech: np.ndarray
    ) -> None:
        tokens = engine.transcribe(speech.copy(), self.languages[0]).tokens
        if not isinstance(tokens, (list, tuple)) or not tokens:
            return  # an optional part of an answer
        unwanted = int(tokens[0])
        found = self._load(chosen, weights, Settings(suppress_tokens=f"{unwanted},-1"))
        if isinstance(found, AsrgateError):
            return
        again = found.transcribe(speech.copy(), self.languages[0]).tokens
        assert unwanted not in again, f"it says that it suppresses token {unwanted}, but writes it: refuse it"

    @pytest.mark.parametrize("change", REACHING, ids=_name)
    def test_settings_it_states_change_an_answer(
        self, chosen: Variant, weights: Checkpoint, engine: Any, speech: np.ndarray, change: dict[str, Any]
    ) -> None:
        changed = self._load(chosen, weights, Settings(**change))
        if isinstance(changed, AsrgateError):
            return
        for sound in _hard_to_hear(speech):
            usual, other = (e.transcribe(sound.copy(), self.languages[0]) for e in (engine, changed))
            if (usual.text, _listed(usual.tokens)) != (other.text, _listed(other.tokens)):
                return
        pytest.fail(f"{_name(change)} changed none of {SOUNDS} answers to noisy speech: refuse it")

    # --- answers

    def test_it_hears_words(self, engine: Any, speech: np.ndarray) -> None:
        assert engine.transcribe(speech.copy(), self.languages[0]).text.strip(), (
            "it recognised no word in the clip"
        )

    def test_answers_are_finished_values(self, engine: Any, speech: np.ndarray) -> None:
        start = time.perf_counter()
        answer = engine.transcribe(speech.copy(), self.languages[0])
        wall = time.perf_counter() - start
        assert isinstance(answer, Answer), f"transcribe() returned a {type(answer).__name__}"
        assert type(answer.text) is str, f"the text is a {type(answer.text).__name__}, not a finished str"
        if answer.tokens is not None:
            assert isinstance(answer.tokens, (list, tuple)), f"tokens are a {type(answer.tokens).__name__}"
            assert all(int(token) == token >= 0 for token in answer.tokens), answer.tokens
        for stage, seconds in answer.stage_seconds.items():
            assert isinstance(stage, str) and math.isfinite(seconds) and seconds >= 0, (stage, seconds)
        total = sum(answer.stage_seconds.values())
        assert total <= 1.02 * wall + 0.001, f"its stages took {total:.3f} s of a call of {wall:.3f} s"

    def test_same_clip_gets_the_same_answer_whatever_came_between(
        self, engine: Any, speech: np.ndarray
    ) -> None:
        language = self.languages[0]
        first = engine.transcribe(speech.copy(), language)
        engine.transcribe(np.zeros(SAMPLE_RATE_HZ, np.float32), language)
        again = engine.transcribe(speech.copy(), language)
        assert again.text == first.text, "the text changed: it depends on the previous clip, or on chance"
        assert _listed(again.tokens) == _listed(first.tokens), "the tokens changed"

    def test_batch_is_answered_as_its_clips_alone(self, engine: Any, speech: np.ndarray) -> None:
        if not hasattr(engine, "transcribe_batch"):
            return  # an optional part of the protocol
        language = self.languages[0]
        clips = [speech.copy(), np.zeros(SAMPLE_RATE_HZ, np.float32), speech[: len(speech) // 2].copy()]
        alone = [engine.transcribe(clip.copy(), language).text for clip in clips]
        together = engine.transcribe_batch(clips, language)
        assert isinstance(together, (list, tuple)), f"transcribe_batch() returned a {type(together).__name__}"
        assert [answer.text for answer in together] == alone, (
            "a batch does not return its clips' texts in order"
        )

    def test_stream_takes_all_audio_and_ends_with_the_answer(self, engine: Any, speech: np.ndarray) -> None:
        if not hasattr(engine, "stream"):
            return  # an optional part of the protocol
        chunks = [chunk.copy() for chunk in _chunks(speech)]
        left = iter(chunks)
        answers = list(engine.stream(left, self.languages[0]))
        assert next(left, None) is None, "stream() ended before it had taken all chunks"
        assert answers, "stream() yielded no Transcript; the last one is the answer"
        for answer in answers:
            assert isinstance(answer, Answer), f"stream() gave a {type(answer).__name__}"
            assert type(answer.text) is str, f"a text is a {type(answer.text).__name__}, not a finished str"
        assert answers[-1].text.strip(), "the stream's last text has no word"
        assert all(map(np.array_equal, chunks, _chunks(speech))), "stream() changed the samples it was given"

    def test_words_are_those_of_the_text_and_said_within_the_clip(
        self, engine: Any, speech: np.ndarray
    ) -> None:
        if not hasattr(engine, "transcribe_words"):
            return  # an optional part of the protocol
        try:
            answer = engine.transcribe_words(speech.copy(), self.languages[0])
        except AsrgateError:
            return  # it refuses with this checkpoint
        assert isinstance(answer, Answer), f"transcribe_words() returned a {type(answer).__name__}"
        assert isinstance(answer.words, (list, tuple)), f"its words are a {type(answer.words).__name__}"
        assert answer.words, "transcribe_words() gave no words"
        spelled = "".join(word.text for word in answer.words)
        assert "".join(spelled.split()) == "".join(answer.text.split()), (
            f"its words, {spelled!r}, are not those of its text, {answer.text!r}"
        )
        last = len(speech) / SAMPLE_RATE_HZ + BEYOND_END_SECONDS
        for word in answer.words:
            assert 0 <= word.start <= word.end <= last, f"{word} is not said within the clip"

    def test_input_is_not_modified(self, engine: Any, speech: np.ndarray) -> None:
        given = speech.copy()
        engine.transcribe(given, self.languages[0])
        assert np.array_equal(given, speech), "transcribe() changed the samples it was given"

    def test_input_may_be_read_only(self, engine: Any, speech: np.ndarray) -> None:
        # as the worker passes it
        given = speech.copy()
        given.setflags(write=False)
        assert type(engine.transcribe(given, self.languages[0]).text) is str

    @pytest.mark.parametrize("seconds", [0.5, 5])
    def test_silence_is_answered(self, engine: Any, seconds: float) -> None:
        samples = np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)
        assert type(engine.transcribe(samples, self.languages[0]).text) is str

    @pytest.mark.parametrize("samples", [0, 1, FEW_SAMPLES - 1, FEW_SAMPLES + 1])
    def test_shortest_clips_are_answered_or_refused(
        self, engine: Any, speech: np.ndarray, samples: int
    ) -> None:
        error = _error(lambda: engine.transcribe(speech[:samples].copy(), self.languages[0]))
        assert error is None or isinstance(error, AsrgateError), f"{samples} samples raised {error!r}"

    def test_long_clips_are_heard_to_their_end(self, engine: Any, speech: np.ndarray) -> None:
        window = 30 * SAMPLE_RATE_HZ
        gap = max(0, window - 2 * len(speech)) + SAMPLE_RATE_HZ
        # three times the clip, so that a model which skips after silence still gets the next one
        long = np.concatenate([speech, np.zeros(gap, np.float32), *[speech] * 3])
        long = np.pad(long, (0, max(0, LONG_SECONDS * SAMPLE_RATE_HZ - len(long))))
        whole = engine.transcribe(long, self.languages[0])
        cut = engine.transcribe(long[:window].copy(), self.languages[0])
        assert whole.text != cut.text, "audio after the first 30 s changed nothing: the clip is cut off"

    def test_every_language_of_the_class_is_decoded(self, engine: Any, speech: np.ndarray) -> None:
        for language in self.languages:
            assert type(engine.transcribe(speech.copy(), language).text) is str

    def test_languages_it_lacks_are_refused(
        self, engine: Any, speech: np.ndarray, weights: Checkpoint
    ) -> None:
        for language in ("xx",) if weights.is_of_engine or weights.is_multilingual else ("xx", "de"):
            error = _error(lambda wanted=language: engine.transcribe(speech.copy(), wanted))  # type: ignore[misc]
            assert isinstance(error, AsrgateError), (
                f"the language {language!r} must raise BackendError, but gave {error!r}"
            )

    def test_one_thread_keeps_one_core_busy(self, engine: Any, speech: np.ndarray) -> None:
        busy = _busy_threads(lambda: engine.transcribe(speech.copy(), self.languages[0]))
        assert busy <= BUSY_THREADS_LIMIT, (
            f"{busy:.1f} threads were working with threads=1: pass the setting on to every pool"
        )

    def _load(self, chosen: Variant, weights: Checkpoint, settings: Settings) -> Any:
        """Return the loaded backend, or the exception in its place."""
        try:
            backend_class = backends.load(chosen.backend)
            return backend_class.load(weights, chosen.device, chosen.precision, settings)
        except Exception as error:
            return error


@lru_cache(maxsize=4)
def _weights(backend: str, model: str) -> Checkpoint:
    backend_class = backends.load(backend)
    own = backend_class.model_identity() if hasattr(backend_class, "model_identity") else None
    if own is None:
        return catalog.resolve(model)
    return Checkpoint(name=own.name, path=Path(), sha256=own.sha256, dimensions={})


@lru_cache(maxsize=1)
def _engine(chosen: Variant, model: str) -> Any:
    backend_class = backends.load(chosen.backend)
    backend_class.check(chosen.device, chosen.precision)
    return backend_class.load(_weights(chosen.backend, model), chosen.device, chosen.precision, Settings())


def _busy_threads(call: Callable[[], Any]) -> float:
    """Return how many of this process's threads are working on average during `call`.

    Threads that run or wait for a core are counted, so a busy machine hides none; but not those that use
    next to no processor time beyond what they use between calls: such a thread polls, as MAX's does, perhaps
    for an engine of an earlier test, and waits long for its turn. The result is 0 if the system does not tell
    (it needs Linux's /proc), or if calls are too short to be observed.
    """
    running: list[set[str]] = []
    done = threading.Event()

    def look() -> None:
        own = str(threading.get_native_id())
        while not done.wait(0.002):
            tasks = Path("/proc/self/task").glob("*")
            running.append({task.name for task in tasks if task.name != own and _is_running(task)})

    looker = threading.Thread(target=look, daemon=True)
    before, started = _thread_seconds(), time.perf_counter()
    looker.start()
    end = started + LOOKING_AT_THREADS_SECONDS
    while time.perf_counter() < end and len(running) < BUSY_SAMPLES:
        call()
    seconds, during = time.perf_counter() - started, _used_since(before)
    done.set()
    looker.join()
    time.sleep(SETTLING_SECONDS)
    before = _thread_seconds()
    time.sleep(SETTLING_SECONDS)
    share = POLLING_MARGIN * seconds / SETTLING_SECONDS
    work = {
        task: used - share * between
        for task, between in _used_since(before).items()
        if (used := during.get(task))
    }
    idle = {task for task, used in work.items() if used < IDLE_SHARE * max(during.values())}
    busy = [count for tasks in running if (count := len(tasks - idle))]
    return sum(busy) / len(busy) if busy else 0.0


def _used_since(before: Mapping[str, float]) -> dict[str, float]:
    """Return the processor time of each thread since another look."""
    return {task: seconds - before.get(task, 0.0) for task, seconds in _thread_seconds().items()}


def _thread_seconds() -> dict[str, float]:
    """Return the processor time of each thread of this process."""
    found = {}
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            found[task.name] = time.clock_gettime(~int(task.name) << 3 | 6)  # Linux's number of its own clock
    return found


def _is_running(task: Path) -> bool:
    try:  # the state follows the name, which is in brackets and may contain any character
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (OSError, IndexError):
        return False


def _noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def _hard_to_hear(speech: np.ndarray) -> Iterator[np.ndarray]:
    """Yield SOUNDS recordings of more than a window in which many words are nearly as likely as others."""
    repeats = -(-LONG_SECONDS * SAMPLE_RATE_HZ // max(1, len(speech)))
    long = np.concatenate([speech] * repeats)
    power = np.sqrt(np.mean(speech**2)) / 0.1
    for seed in range(SOUNDS):  # from 6 dB above the noise to 9 below
        gain = power * 10 ** ((3 * seed - 6) / 20)
        yield np.clip(long + gain * _noise(len(long), seed), -1.0, 1.0).astype(np.float32)


def _error(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _chunks(samples: np.ndarray) -> list[np.ndarray]:
    return [samples[start : start + CHUNK_SAMPLES] for start in range(0, len(samples), CHUNK_SAMPLES)]


def _listed(tokens: Any) -> list[int] | None:
    return None if tokens is None else list(tokens)
