"""The contract suite passes on whisper-cpu and fails, in the right place, on backends that break it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import soundfile
import tones
from paths import ROOT

from asrgate.harness.testing import BackendContract


class TestWhisperCpu(BackendContract):
    variant = "whisper-cpu@cpu/float32"


GOOD = '''
"""A backend that keeps the contract, and others that break it in one place each."""

import hashlib
import threading
import time
from dataclasses import replace

import numpy as np
import tones

from asrgate.backends.base import BackendError, Transcript, Word
from asrgate.backends.checkpoints.file import read_dimensions
from asrgate.backends.whisper_common.decoding import require_honourable, require_language


class Good:
    devices = {"cpu": ("float32",)}
    imports = ("colorsys",)

    @classmethod
    def check(cls, device, precision):
        pass

    @classmethod
    def load(cls, checkpoint, device, precision, settings):
        require_honourable(checkpoint, settings)
        read_dimensions(checkpoint.path)
        return cls(checkpoint, settings)

    def __init__(self, checkpoint, settings):
        self.checkpoint = checkpoint
        self.settings = settings

    @property
    def applied_settings(self):
        return self.settings.as_dict()

    def transcribe(self, audio, language):
        require_language(self.checkpoint, language)
        asked = self.settings
        if asked.no_speech_threshold < 0.5 and asked.logprob_threshold == 0:
            return Transcript("", [], {"decode": 0.0})
        tokens = [1, 2, 10 + asked.beam_size, 100 + asked.condition_on_previous_text]
        tokens = [token for token in tokens if str(token) not in asked.suppress_tokens.split(",")]
        return Transcript(tones.hear(audio), tokens, {"decode": 0.0})

    def transcribe_batch(self, audios, language):
        return [self.transcribe(audio, language) for audio in audios]

    def transcribe_words(self, audio, language):
        answer = self.transcribe(audio, language)
        said = [Word(word, n * 0.2, n * 0.2 + 0.2) for n, word in enumerate(answer.text.split())]
        return replace(answer, words=said)

    def stream(self, chunks, language):
        heard = np.zeros(0, np.float32)
        for chunk in chunks:
            heard = np.concatenate([heard, chunk])
            yield Transcript(tones.hear(heard))

    def synchronize(self):
        pass


class BatchesOutOfOrder(Good):
    def transcribe_batch(self, audios, language):
        by_length = sorted(audios, key=len, reverse=True)
        return [self.transcribe(audio, language) for audio in by_length]


class StreamEndsEarly(Good):
    def stream(self, chunks, language):
        yield Transcript(tones.hear(next(chunks)))


class TimesWordsLater(Good):
    def transcribe_words(self, audio, language):
        answer = super().transcribe_words(audio, language)
        return replace(answer, words=[Word(word, start + 60, end + 60) for word, start, end in answer.words])


class TimesHalfOfTheWords(Good):
    def transcribe_words(self, audio, language):
        answer = super().transcribe_words(audio, language)
        return replace(answer, words=answer.words[::2])


class DevicesAreText(Good):
    devices = {"cpu": "float32"}

    @classmethod
    def check(cls, device, precision):
        pass


class ChecksByImporting(Good):
    @classmethod
    def check(cls, device, precision):
        import colorsys


class ChecksWithTraceback(Good):
    @classmethod
    def check(cls, device, precision):
        raise KeyError("CUDA_HOME")


class CannotRun(Good):
    @classmethod
    def check(cls, device, precision):
        from asrgate.backends.base import BackendUnavailable

        raise BackendUnavailable("no engine")


class SilentOnThreads(Good):
    @property
    def applied_settings(self):
        return {k: v for k, v in self.settings.as_dict().items() if k != "threads"}


class IgnoresBeam(Good):
    @property
    def applied_settings(self):
        return {**self.settings.as_dict(), "beam_size": 1}


def with_default(name):
    """Good, but one setting never reaches the engine."""

    class Stated(Good):
        def transcribe(self, audio, language):
            default = getattr(type(self.settings)(), name)
            self.settings = replace(self.settings, **{name: default})
            return super().transcribe(audio, language)

        @property
        def applied_settings(self):
            return {**self.settings.as_dict(), name: self.asked}

        def __init__(self, checkpoint, settings):
            super().__init__(checkpoint, settings)
            self.asked = getattr(settings, name)

    return Stated


StatesNoSpeech = with_default("no_speech_threshold")
StatesLikelihood = with_default("logprob_threshold")
StatesSuppressed = with_default("suppress_tokens")
StatesBeams = with_default("beam_size")
StatesPrompt = with_default("condition_on_previous_text")


class TakesAnySetting(Good):
    @classmethod
    def load(cls, checkpoint, device, precision, settings):
        read_dimensions(checkpoint.path)
        return cls(checkpoint, settings)


class IgnoresCheckpoint(Good):
    @classmethod
    def load(cls, checkpoint, device, precision, settings):
        require_honourable(checkpoint, settings)
        return cls(checkpoint, settings)


class Deaf(Good):
    def transcribe(self, audio, language):
        require_language(self.checkpoint, language)
        tokens = super().transcribe(audio, language).tokens
        return Transcript(" " if len(audio) <= 480_000 else "long", tokens)


class Lazy(Good):
    def transcribe(self, audio, language):
        answer = super().transcribe(audio, language)
        return Transcript(answer.text, (token for token in answer.tokens))


class StagesOfAnotherClock(Good):
    def transcribe(self, audio, language):
        answer = super().transcribe(audio, language)
        return Transcript(answer.text, answer.tokens, {"encode": 60.0})


class RemembersLastClip(Good):
    last = "nothing yet"

    def transcribe(self, audio, language):
        answer = super().transcribe(audio, language)
        answer, self.last = Transcript(f"{self.last} {answer.text}"), answer.text
        return answer


class NormalisesInPlace(Good):
    def transcribe(self, audio, language):
        if audio.flags.writeable:
            audio /= 2
        return super().transcribe(audio, language)


class NeedsToWrite(Good):
    def transcribe(self, audio, language):
        audio += 0
        return super().transcribe(audio, language)


class DividesByLoudness(Good):
    def transcribe(self, audio, language):
        if len(audio) > 1000 and not audio.any():
            raise ZeroDivisionError("silence")
        return super().transcribe(audio, language)


class NeedsAFrame(Good):
    def transcribe(self, audio, language):
        if len(audio) < 200:
            raise IndexError("frame 0")
        return super().transcribe(audio, language)


class CutsAtThirty(Good):
    def transcribe(self, audio, language):
        return super().transcribe(audio[:480_000], language)


class AnyLanguage(Good):
    def transcribe(self, audio, language):
        return super().transcribe(audio, "en")


class AllCores(Good):
    def transcribe(self, audio, language):
        block = bytes(1 << 20)

        def burn():
            end = time.perf_counter() + 0.05
            while time.perf_counter() < end:
                hashlib.sha256(block)

        threads = [threading.Thread(target=burn) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return super().transcribe(audio, language)
'''

BROKEN = {  # class -> the tests that must fail, and no other may
    "BatchesOutOfOrder": {"batch_is_answered_as_its_clips_alone"},
    "StreamEndsEarly": {"stream_takes_all_audio_and_ends_with_the_answer"},
    "TimesWordsLater": {"words_are_those_of_the_text_and_said_within_the_clip"},
    "TimesHalfOfTheWords": {"words_are_those_of_the_text_and_said_within_the_clip"},
    "DevicesAreText": {"it_names_its_devices_precisions_and_imports"},
    "ChecksByImporting": {"it_is_listed_and_checked_without_importing_its_engine"},
    "ImportsAtTheTop": {"it_is_listed_and_checked_without_importing_its_engine"},
    "ChecksWithTraceback": {
        "check_refuses_what_it_does_not_offer_with_nothing_but_unavailable",
        "it_is_listed_and_checked_without_importing_its_engine",
        "ALL THAT LOAD",
    },
    "CannotRun": {"ALL THAT LOAD"},
    "SilentOnThreads": {
        "applied_settings_name_every_setting_as_asked",
        "settings_are_honoured_or_refused[threads=2]",
    },
    "IgnoresBeam": {"settings_are_honoured_or_refused[beam_size=3]"},
    "StatesNoSpeech": {"silence_thresholds_it_states_decide_what_is_silent"},
    "StatesLikelihood": {"silence_thresholds_it_states_decide_what_is_silent"},
    "StatesSuppressed": {"tokens_it_says_it_suppresses_are_not_written"},
    "StatesBeams": {"settings_it_states_change_an_answer[beam_size=5]"},
    "StatesPrompt": {"settings_it_states_change_an_answer[condition_on_previous_text=True]"},
    "TakesAnySetting": {
        "impossible_settings_are_refused[threads=0]",
        "impossible_settings_are_refused[beam_size=0]",
        "impossible_settings_are_refused[task=summarise]",
    },
    "IgnoresCheckpoint": {"broken_checkpoint_is_a_backend_error"},
    "Deaf": {
        "it_hears_words",
        "silence_thresholds_it_states_decide_what_is_silent",
        "words_are_those_of_the_text_and_said_within_the_clip",
    },
    "Lazy": {"answers_are_finished_values"},
    "StagesOfAnotherClock": {"answers_are_finished_values"},
    "RemembersLastClip": {
        "same_clip_gets_the_same_answer_whatever_came_between",
        "batch_is_answered_as_its_clips_alone",
    },
    "NormalisesInPlace": {"input_is_not_modified"},
    "NeedsToWrite": {"input_may_be_read_only"},
    "DividesByLoudness": {
        "silence_is_answered[0.5]",
        "silence_is_answered[5]",
        "same_clip_gets_the_same_answer_whatever_came_between",
        "batch_is_answered_as_its_clips_alone",
    },
    "NeedsAFrame": {
        "shortest_clips_are_answered_or_refused[0]",
        "shortest_clips_are_answered_or_refused[1]",
        "shortest_clips_are_answered_or_refused[159]",
        "shortest_clips_are_answered_or_refused[161]",
    },
    "CutsAtThirty": {"long_clips_are_heard_to_their_end"},
    "AnyLanguage": {"languages_it_lacks_are_refused"},
    "AllCores": {"one_thread_keeps_one_core_busy"},
    "Good": set(),
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, dict[str, str]]:
    """Run the suite on all of them in one pytest of its own; class -> failed test -> its message."""
    folder = tmp_path_factory.mktemp("contract")
    info = folder / "contract_fakes-1.0.dist-info"
    info.mkdir()
    (folder / "contract_fakes.py").write_text(GOOD)
    (folder / "contract_heavy.py").write_text(
        "import colorsys\nfrom contract_fakes import Good\n\n\nclass ImportsAtTheTop(Good):\n    pass\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: contract-fakes\nVersion: 1.0\n")
    lines = ["[asrgate.backends]"]
    for name in BROKEN:
        module = "contract_heavy" if name == "ImportsAtTheTop" else "contract_fakes"
        lines.append(f"{name} = {module}:{name}")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    clip = folder / "clip.wav"
    soundfile.write(clip, tones.speak("red apple white table"), tones.SAMPLE_RATE_HZ)
    tests = ["from pathlib import Path", "from asrgate.harness.testing import BackendContract"]
    # a process of its own for each of them; seconds of looking at threads
    slow = "it_is_listed_and_checked_without_importing_its_engine", "one_thread_keeps_one_core_busy"
    for name, expected in BROKEN.items():
        tests.append(
            f"class Test{name}(BackendContract):\n    variant = '{name}@cpu/float32'\n"
            f"    model = {str(model)!r}\n    clip = Path({str(clip)!r})"
        )
        left_out = [test for test in slow if name != "Good" and test not in expected]
        tests += [f"    test_{test} = None" for test in left_out]
    (folder / "test_fakes.py").write_text("\n".join(tests) + "\n")
    report = folder / "report.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
        + ["--rootdir", str(folder), f"--junitxml={report}", str(folder / "test_fakes.py")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, dict[str, str]] = {name: {} for name in BROKEN}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["classname"].rpartition(".Test")[2]
        for kind in ("failure", "error"):
            for trouble in case.iter(kind):
                found[name][case.attrib["name"].removeprefix("test_")] = trouble.attrib["message"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_broken_backend_fails_the_test_that_is_about_it(failed: dict[str, dict[str, str]], name: str) -> None:
    expected = set(BROKEN[name])
    if "ALL THAT LOAD" in expected:
        expected -= {"ALL THAT LOAD"}
        assert expected <= set(failed[name])
        assert len(failed[name]) >= 14, "nothing is skipped in silence"
        return
    assert set(failed[name]) == expected, failed[name]


@pytest.mark.slow
def test_messages_say_what_is_wrong(failed: dict[str, dict[str, str]]) -> None:
    def said(name: str) -> str:
        return " ".join(failed[name].values())

    assert "its module imports colorsys: import engines inside functions" in said("ImportsAtTheTop")
    assert "check() imports colorsys" in said("ChecksByImporting")
    assert "cannot run here, so nothing was tested: no engine" in said("CannotRun")
    assert "asked for beam_size=3, it ran with 1 and did not refuse" in said("IgnoresBeam")
    assert "must raise BackendError" in said("AnyLanguage")
    assert "no_speech_threshold changes nothing" in said("StatesNoSpeech")
    assert "beam_size=5 changed none of 6 answers" in said("StatesBeams")


def test_suite_itself_is_not_collected_where_it_is_imported(request: pytest.FixtureRequest) -> None:
    names = {
        type(item.instance).__name__ for item in request.session.items if getattr(item, "instance", None)
    }
    assert "TestWhisperCpu" in names and "BackendContract" not in names
