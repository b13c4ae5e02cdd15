"""Small engines that hear tones: an honest one, ones that cheat, and ones that break."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tones

from asrgate.backends import own_weights
from asrgate.backends.base import (
    AUTO,
    LOAD_LOG,
    BackendError,
    BackendUnavailable,
    Checkpoint,
    ModelIdentity,
    Settings,
    Transcript,
    Word,
)

SECONDS_A_WORD = 0.006  # what hearing costs; asleep, so that a busy machine does not change the ratios


class Honest:
    """Hears every word and takes its time. The others change one thing each."""

    devices = {"cpu": ("float32",)}
    imports = ("numpy",)

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        pass

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Honest:
        return cls(settings)

    def __init__(self, settings: Settings):
        self.settings = settings

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        return self.settings.as_dict()

    def hear(self, audio: np.ndarray) -> str:
        time.sleep(SECONDS_A_WORD * len(audio) / tones.WORD_SAMPLES)
        return tones.hear(audio)

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        text = self.hear(audio)
        return Transcript(text, tokens=[tones.WORDS.index(word) for word in text.split()])

    def synchronize(self) -> None:
        pass


class Twin(Honest):
    """Honest too, under another name."""


class Detects(Honest):
    """Says which language it heard, German for two of the clips, where it is not told one."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        heard = super().transcribe(audio, language)
        if language != AUTO:
            return heard
        return replace(heard, language="de" if "table" in heard.text else "en")


class TimesWords(Honest):
    """Says when each word is said: every start 40 ms late, every end 20 ms early, the last word's 100 ms."""

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        heard = super().transcribe(audio, language)
        words = heard.text.split()
        early = [0.02] * (len(words) - 1) + [0.1]
        return replace(
            heard,
            words=[
                Word(word, n * tones.WORD_SECONDS + 0.04, (n + 1) * tones.WORD_SECONDS - early[n])
                for n, word in enumerate(words)
            ],
        )


class InventsTimes(TimesWords):
    """Says that words are said after the clip."""

    def transcribe_words(self, audio: np.ndarray, language: str) -> Transcript:
        heard = super().transcribe_words(audio, language)
        return replace(
            heard, words=[Word(text, start + 60, end + 60) for text, start, end in heard.words or ()]
        )


class WaitsToBeKilled(Honest):
    """Honest, but the first process that finds `hold-one` in the cache stays in its call for ever."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        cache = Path(os.environ["ASRGATE_CACHE"])
        try:
            (cache / "hold-one").rename(cache / f"held-{os.getpid()}")  # one process alone can do that
        except FileNotFoundError:
            return super().transcribe(audio, language)
        while True:
            time.sleep(1)


class SlowedForAWhile(Honest):
    """Honest, but other work on the machine slows it during three splices."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.heard: set[str] = set()

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        text = tones.hear(audio)
        if text not in self.heard and 5 <= len(self.heard) < 9:  # five clips, perhaps a warm-up; then splices
            time.sleep(4 * SECONDS_A_WORD * len(audio) / tones.WORD_SAMPLES)
        self.heard.add(text)
        return super().transcribe(audio, language)


class Follows(Honest):
    """Honest, and runs the checkpoint that it is given: one that FAKE_MODEL does not list has other words."""

    def __init__(self, settings: Settings, is_derived: bool = False):
        super().__init__(settings)
        self.is_derived = is_derived

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Honest:
        known = [Path(path).read_bytes() for path in os.environ["FAKE_MODEL"].split(os.pathsep)]
        return cls(settings, checkpoint.path.read_bytes() not in known)

    def hear(self, audio: np.ndarray) -> str:
        words = super().hear(audio).split()
        moved = [tones.WORDS[tones.WORDS.index(word) - 1] for word in words]
        return " ".join(moved if self.is_derived else words)


class FollowsToo(Follows):
    """The same, under another name."""


class HearsByModel(Follows):
    """Hears as well as its checkpoint: a small one mistakes every third word, in a quarter of the time."""

    is_small = False

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Honest:
        loaded = super().load(checkpoint, device, precision, settings)
        loaded.is_small = checkpoint.path.name.startswith("small")
        return loaded

    def hear(self, audio: np.ndarray) -> str:
        if not self.is_small:
            return super().hear(audio)
        time.sleep(SECONDS_A_WORD / 4 * len(audio) / tones.WORD_SAMPLES)
        words = tones.hear(audio).split()
        shift = int(self.is_derived)
        heard = [tones.WORDS.index(word) - shift - (place % 3 == 2) for place, word in enumerate(words)]
        return " ".join(tones.WORDS[number] for number in heard)


class HearsByModelToo(HearsByModel):
    """The same, under another name."""


class BringsModel(Honest):
    """Honest, with a model of its own; Whisper's settings mean nothing to it."""

    digest = "ab" * 32

    @classmethod
    def model_identity(cls) -> ModelIdentity:
        return ModelIdentity(f"{cls.__name__.lower()}-model", "2026.1", cls.digest, ("en",), "CC0-1.0")

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Honest:
        own_weights.require_applicable(settings, "brings-model")
        assert checkpoint.is_of_engine and checkpoint.sha256 == cls.digest
        return cls(settings)

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        stated = {"checkpoint_sha256": self.digest}
        return {**own_weights.applied(self.settings, "it decodes otherwise"), **stated}


class BringsAndStopsEarly(BringsModel):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript(self.hear(audio[: int(0.7 * len(audio))]))


class BringsAndSlackens(BringsModel):
    """Hears nine words of ten once the first round of twelve clips is over: its WER is that of the first."""

    calls = 0

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        self.calls += 1
        return Transcript(self.hear(audio[: int(0.9 * len(audio))] if self.calls > 12 else audio))


class BringsOtherFiles(BringsModel):
    """Loads other files than it had declared."""

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        return {**super().applied_settings, "checkpoint_sha256": "cd" * 32}


class WorksInAuditsOnly(Follows):
    """Works like everyone else where it is given another checkpoint, and is quick with the known one."""

    def hear(self, audio: np.ndarray) -> str:
        return super().hear(audio) if self.is_derived else tones.hear(audio)


class RefusesOthers(Follows):
    """Runs only the checkpoint that it knows."""

    def __init__(self, settings: Settings, is_derived: bool = False):
        super().__init__(settings, is_derived)
        if is_derived:
            raise BackendError("it knows no such checkpoint")


class UsesBlas(Honest):
    """Honest, and leaves a thread pool spinning when it returns, as numpy does."""

    def hear(self, audio: np.ndarray) -> str:
        square = np.ones((600, 600), np.float32)
        assert (square @ square)[0, 0] == 600
        return tones.hear(audio)


def compute(seconds: float) -> None:
    """Use the processor for so long, however busy it is."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


# Cheats: each must end unranked, with a reason that says what it did.


class StopsEarly(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript(self.hear(audio[: int(0.4 * len(audio))]))


class RepeatsToken(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript("red " * 60)


class CachesAnswers(Honest):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.answers: dict[bytes, Transcript] = {}

    def key(self, audio: np.ndarray) -> bytes:
        return hashlib.sha256(audio.tobytes()).digest()

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        key = self.key(audio)
        if key not in self.answers:
            self.answers[key] = super().transcribe(audio, language)
        return self.answers[key]


class CachesByBeginning(CachesAnswers):
    """Its key is blind to inaudible noise, so dither does not get past it; a splice does."""

    def key(self, audio: np.ndarray) -> bytes:
        return f"{len(audio)} {tones.hear(audio[: tones.WORD_SAMPLES * 2])}".encode()


class HearsAgain(CachesAnswers):
    """Knows a recording again by its words, whatever its samples; a splice has others."""

    def key(self, audio: np.ndarray) -> bytes:
        return tones.hear(audio).encode()


class TellsSplices(HearsAgain):
    """The same, and tells a splice by its end, to which it makes up an answer in no time."""

    honest_splices = 0

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.beginnings: set[str] = set()

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        words = tones.hear(audio).split()
        begins = " ".join(words[: len(words) // 2])
        if self.key(audio) in self.answers or begins not in self.beginnings:
            self.beginnings.add(begins)
            return super().transcribe(audio, language)
        if self.honest_splices:
            self.honest_splices -= 1
            return Honest.transcribe(self, audio, language)
        return Transcript(begins)


class TellsLaterSplices(TellsSplices):
    """The same, but takes its time for those that the rounds have."""

    honest_splices = 5


class BehavesAtTheEnd(HearsAgain):
    """The same, but works like everyone else once the rounds seem to be over."""

    calls = 0

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        self.calls += 1
        if self.calls > 3 * 5 + 5 + 2:  # rounds times clips, splices, and the warm-up
            return Honest.transcribe(self, audio, language)
        return super().transcribe(audio, language)


class TakesMoreCores(Honest):
    """Undoes that it was pinned."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


class AnswersLastClip(Honest):
    last = ""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        answer, self.last = self.last, self.hear(audio)
        return Transcript(answer)


class LazyGenerator(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript(word for word in self.hear(audio).split())  # type: ignore[arg-type]


class ReturnsBeforeDevice(Honest):
    """Starts its (simulated) device on the real work and answers with what a quick look gives."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        threading.Thread(target=self.hear, args=(audio,)).start()
        return Transcript(tones.hear(audio))


class DropsClip(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        if len(audio) == 5 * tones.WORD_SAMPLES:
            return None  # type: ignore[return-value]
        return super().transcribe(audio, language)


class EmptyText(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript("")


class OtherBeam(Honest):
    @property
    def applied_settings(self) -> Mapping[str, Any]:
        return self.settings.as_dict() | {"beam_size": 5}


class SaysNothingOfThreads(Honest):
    @property
    def applied_settings(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.settings.as_dict().items() if name != "threads"}


class WorksAheadAtLoad(CachesAnswers):
    """Finds the clips on the disk and hears them all while it loads."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        from asrgate.harness.corpus import audio

        for path in sorted(Path(os.environ["FAKE_CLIPS"]).glob("*.wav")):
            super().transcribe(audio.decode(path), "en")


class WorksAheadAtWarmUp(WorksAheadAtLoad):
    """The same, on the first call, which is never measured."""

    def __init__(self, settings: Settings):
        CachesAnswers.__init__(self, settings)
        self.cold = True

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        if self.cold:
            self.cold = False
            WorksAheadAtLoad.__init__(self, self.settings)
            self.cold = False
        return CachesAnswers.transcribe(self, audio, language)


class QuickAtFirst(Honest):
    """Has prepared for the first round, in whatever way, and works like everyone else when it is over."""

    calls = 0

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        self.calls += 1
        if self.calls <= 2 + 5:  # the warm-up and a round of five clips
            return Transcript(tones.hear(audio))
        return super().transcribe(audio, language)


class GoesBad(Honest):
    """Right at first; then a cache is full, a device went bad: it answers the ends of clips only."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.calls = 0

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        self.calls += 1
        if self.calls > 9:  # two warm-up calls and a round of five clips, and two
            audio = audio[-2 * tones.WORD_SAMPLES :]
        return super().transcribe(audio, language)


class SkipsOneClip(Honest):
    """Saves the work for the longest clips."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        if len(audio) >= 7 * tones.WORD_SAMPLES:
            return Transcript("")
        return super().transcribe(audio, language)


class KnowsTheAnswers(Honest):
    """Reads the texts beside the clips and answers with the one of the right length."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Honest:
        engine = cls(settings)
        texts = [path.read_text() for path in Path(os.environ["FAKE_CLIPS"]).glob("*.txt")]
        engine.texts = {len(text.split()): text for text in texts}  # type: ignore[attr-defined]
        return engine

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript(self.texts[len(audio) // tones.WORD_SAMPLES])  # type: ignore[attr-defined]


class EditsTheRecord(Honest):
    """Writes itself into the stored run, from a process that outlives the worker."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        for path in Path(os.environ["FAKE_RESULTS"]).glob("*/run.json"):
            path.write_text(path.read_text().replace('"rtfx":', '"rtfx": 72290, "was":'))
        return super().transcribe(audio, language)


class StopsRivals(Honest):
    """Stops every process it may, so that the others time out."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) not in (os.getpid(), 1):
                os.kill(int(name), 0)  # whether it may; SIGSTOP would stop the tests where nothing forbids it
        return super().transcribe(audio, language)


class SendsAProcessAway(Honest):
    """Starts a process that leaves it twice over, to work beside the other engines."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)  # no longer the one that orphans come to
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        os.wait()


class WorksInTheCollector(Honest):
    """Answers at once and computes when garbage is collected, before the next call's clock starts."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        gc.callbacks.append(lambda phase, info: compute(0.05))

    def hear(self, audio: np.ndarray) -> str:
        return tones.hear(audio)


class WorksWhileLookedAt(Honest):
    """Computes where it should be looked for late work, and says that there was none."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        from asrgate.harness.worker import late_work

        def look(detector: late_work.LateWorkDetector) -> float:
            compute(0.1)
            return 0.0

        late_work.LateWorkDetector.after = look  # type: ignore[method-assign]

    def hear(self, audio: np.ndarray) -> str:
        return tones.hear(audio)


class StopsTheClock(Honest):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        import sys

        worker = sys.modules["__main__"]
        real = worker._clock_ns
        began = real()
        worker._clock_ns = lambda: began + (real() - began) // 10


# Breakage: each must end as an error in its own row.


class Raises(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        raise ValueError("the | engine\n**broke**")


class Aborts(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        ctypes.CDLL(None).abort()
        raise AssertionError


class KilledForMemory(Honest):
    calls = 0

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        self.calls += 1
        if self.calls > 8:  # some calls are measured first: they must be kept
            os.kill(os.getpid(), signal.SIGKILL)
        return super().transcribe(audio, language)


class Hangs(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        time.sleep(3600)
        raise AssertionError


class ExitsAtLoad(Honest):
    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Honest:
        os._exit(7)


class RefusesSetting(Honest):
    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> Honest:
        raise BackendError("it cannot translate; choose --task transcribe")


class NotInstalled(Honest):
    @classmethod
    def check(cls, device: str, precision: str) -> None:
        raise BackendUnavailable("the package `unobtainium` is missing", "pip install unobtainium")


class ReportsNonsense(Honest):
    """Its stages took negative and undefined time: the record must not take that."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript(self.hear(audio), stage_seconds={"encode": -1.0, "decode": float("nan")})


class _Sends(Honest):
    """Writes to the worker's connection itself, as an engine can that looks for it."""

    body = b""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        connection = socket.socket(fileno=os.dup(int(sys.argv[1])))
        connection.sendall(struct.pack(">II", self.length, 0) + self.body)
        time.sleep(3600)
        raise AssertionError

    @property
    def length(self) -> int:
        return len(self.body)


class SendsNoJson(_Sends):
    body = b"{'event'}"


class SendsAList(_Sends):
    body = b"[]"


class SendsNoEvent(_Sends):
    body = b"{}"


class SendsOtherEvent(_Sends):
    body = b'{"event": "settled", "late_work_seconds": 0}'


class SendsHalfAMessage(_Sends):
    body = b'{"event": "answer"'
    length = 1000  # type: ignore[assignment]


class SendsNanSeconds(_Sends):
    body = b'{"event": "answer", "text": "red", "worker_seconds": 1, "stage_seconds": {"encode": NaN}}'


class SendsHugeText(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript("(" * 2_000_000)


class SendsNanSetting(Honest):
    @property
    def applied_settings(self) -> Mapping[str, Any]:
        return self.settings.as_dict() | {"beam_size": float("inf")}


class SendsSurrogateSetting(Honest):
    @property
    def applied_settings(self) -> Mapping[str, Any]:
        return self.settings.as_dict() | {"task": "\ud800"}


class SendsChildHoldsSocket(Honest):
    """Ends, while a process that it started keeps its connection open."""

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        os._exit(3)


class PrintsToStdout(Honest):
    def __init__(self, settings: Settings):
        super().__init__(settings)
        logging.getLogger(LOAD_LOG).info("clears its throat")

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        print("noise from an engine", flush=True)
        os.write(1, b"and from its C library\n")
        return super().transcribe(audio, language)


class HostileText(Honest):
    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        return Transcript('=HYPERLINK("http://x")|<script>alert(1)</script>\n[a](b) \ud800 \x1b[31m')


class Slow(Honest):
    """For tests that interrupt a run."""

    def hear(self, audio: np.ndarray) -> str:
        time.sleep(0.3)
        return tones.hear(audio)


class Deaf(Honest):
    """Answers at once, whatever it is given: for runs of many clips."""

    def hear(self, audio: np.ndarray) -> str:
        return ""


class Batches(Honest):
    """Hears a batch in the time of its longest clip, and half of that for each of the others."""

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        words = sorted(len(audio) / tones.WORD_SAMPLES for audio in audios)
        time.sleep(SECONDS_A_WORD * (words[-1] + sum(words[:-1]) / 2))
        return [Transcript(tones.hear(audio)) for audio in audios]


class BatchLosesWords(Batches):
    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        return [Transcript(found.text.split()[0]) for found in super().transcribe_batch(audios, language)]


class BatchInAnotherOrder(Batches):
    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        return super().transcribe_batch(audios, language)[::-1]


class BatchLacksAnAnswer(Batches):
    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        return super().transcribe_batch(audios, language)[:-1]


class CachesBatches(Batches):
    """Knows whole batches again: no single call shows it."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.batches: dict[bytes, list[Transcript]] = {}

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        key = hashlib.sha256(b"".join(audio.tobytes() for audio in audios)).digest()
        if key not in self.batches:
            self.batches[key] = super().transcribe_batch(audios, language)
        return self.batches[key]


class BatchReturnsEarly(Batches):
    """Has its texts at once and works on for the time they should have taken."""

    def transcribe_batch(self, audios: Sequence[np.ndarray], language: str) -> list[Transcript]:
        threading.Thread(target=super().transcribe_batch, args=(list(audios), language)).start()
        return [Transcript(tones.hear(audio)) for audio in audios]


class Streams(Honest):
    """Hears each chunk once, as it comes."""

    def stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        heard = np.zeros(0, np.float32)
        for chunk in chunks:
            time.sleep(SECONDS_A_WORD * len(chunk) / tones.WORD_SAMPLES)
            heard = np.concatenate([heard, chunk])
            yield Transcript(tones.hear(heard))


class StreamFlickers(Streams):
    """Shows a wrong last word with every text but the final one."""

    def stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        last = Transcript("")
        for last in super().stream(chunks, language):
            yield Transcript(f"{last.text} wrong")
        yield last


class StreamEndsEarly(Streams):
    """Does not wait for the end of the audio."""

    def stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        yield next(super().stream(chunks, language))


class StreamCaches(Streams):
    """Knows whole recordings again by their streams alone: no call of transcribe shows it."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.known: dict[bytes, str] = {}

    def stream(self, chunks: Iterator[np.ndarray], language: str) -> Iterator[Transcript]:
        audio = np.concatenate(list(chunks))
        key = audio.tobytes()
        if key not in self.known:
            self.known[key] = self.hear(audio)
        yield Transcript(self.known[key])
