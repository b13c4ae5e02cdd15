"""A stream shows what two passes agree on, and ends with the text of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_checkpoint import write_fake_checkpoint
from whisper.tokenizer import get_tokenizer

from asrgate.backends.base import BackendError, Checkpoint, Settings, Transcript
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.torch_fast import TorchFast
from asrgate.backends.whisper_common import streams
from asrgate.backends.whisper_common.greedy import Window, WindowRules
from asrgate.backends.whisper_common.streams import StreamBackend, agreed_words, pause

RATE_HZ = 16_000
SETTINGS = Settings(threads=2, no_speech_threshold=2.0)
TOKENIZER = get_tokenizer(True, num_languages=99)
WORDS = " eins zwei drei vier fünf sechs sieben acht neun zehn".split()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("fake") / "fake.pt"
    return resolve(str(write_fake_checkpoint(path, seed=3, n_vocab=51_865, n_text_ctx=96)))


class Hearing:
    """An engine that hears a word a second, and of the last word so far something else."""

    def __init__(self, checkpoint: Checkpoint):
        self.dims = SimpleNamespace(**checkpoint.dimensions)
        self.device = torch.device("cpu")
        self.decoded: list[float] = []  # seconds of each window

    def log_mel(self, audio: np.ndarray) -> torch.Tensor:
        mel = torch.zeros(self.dims.n_mels, len(audio) // 160 + 3000)
        # of each second its number, which the samples have
        mel[:, : len(audio) // 160] = torch.from_numpy(audio[: len(audio) // 160 * 160 : 160].copy())
        return mel

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        return mel

    def decode(self, mel: torch.Tensor, rules: WindowRules) -> Window:
        spoken = [int(number) for number in mel[0, 50::100] if number > 0]
        said = [WORDS[number - 1] for number in spoken]
        if said and spoken[-1] < len(WORDS):
            said[-1] = "hm"
        self.decoded.append(float((mel[0] > 0).sum()) / 100)
        return Window(TOKENIZER.encode("".join(f" {word}" for word in said)), -1.0, 0.0)


def chunks(count: int) -> Iterator[np.ndarray]:
    for number in range(1, count + 1):
        yield np.full(RATE_HZ, number, np.float32)


@pytest.fixture
def hearing(checkpoint: Checkpoint) -> StreamBackend:
    return StreamBackend(Hearing(checkpoint), checkpoint, "cpu", "float32", SETTINGS)


def test_what_two_passes_agree_on_is_shown(hearing: StreamBackend) -> None:
    said = [found.text for found in hearing.stream(chunks(10), "de")]
    assert said == ["eins", *(" ".join(WORDS[:n]) for n in range(2, 9)), " ".join(WORDS)]
    assert len(hearing._engine.decoded) == 10, "after the last chunk there was another pass"


def test_passes_wait_for_as_much_audio_as_the_last_one_took(
    hearing: StreamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0, 1000, 2.5))
    monkeypatch.setattr(streams.time, "perf_counter", lambda: float(next(clock)))
    *_, last = hearing.stream(chunks(10), "de")
    assert last.text == " ".join(WORDS)
    assert hearing._engine.decoded == [1, 4, 7, 10]
    *_, last = hearing.stream(chunks(9), "de")
    assert last.text == " ".join([*WORDS[:8], "hm"]), "what came while a pass went on was not heard"


def test_a_long_clip_is_divided_in_its_pauses(
    hearing: StreamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "N_SAMPLES", 6 * RATE_HZ)
    monkeypatch.setattr(streams, "pause", lambda audio: len(audio) - RATE_HZ)
    heard: list[int] = []
    transcribe = hearing.transcribe

    def counted(audio: np.ndarray, language: str) -> Transcript:
        heard.append(len(audio))
        return transcribe(audio, language)

    monkeypatch.setattr(hearing, "transcribe", counted)
    *_, last = hearing.stream(chunks(10), "de")
    assert heard == [5 * RATE_HZ, 5 * RATE_HZ]
    assert last.text == " ".join([*WORDS[:4], "hm", *WORDS[5:]])


def test_the_quietest_moment_of_the_last_seconds_is_the_pause() -> None:
    audio = np.random.default_rng(0).standard_normal(30 * RATE_HZ).astype(np.float32)
    for second in (10, 27):  # of which the first is too early
        audio[second * RATE_HZ : int((second + 0.2) * RATE_HZ)] *= 1e-3
    assert 27 <= pause(audio) / RATE_HZ <= 27.2


def test_words_are_shown_whole() -> None:
    short, long, more = map(
        TOKENIZER.encode, (" ein Haustür", " ein Haustürschlüssel", " ein Haustürschlüssel! ja")
    )
    assert long[: len(short)] == short
    assert agreed_words((), short, TOKENIZER) == ""
    assert agreed_words(short, long, TOKENIZER) == "ein", "of a longer word its beginning was shown"
    assert agreed_words(long, long, TOKENIZER) == "ein Haustürschlüssel"
    assert agreed_words(TOKENIZER.encode(" kein"), long, TOKENIZER) == ""
    assert agreed_words(more, more, TOKENIZER) == "ein Haustürschlüssel! ja"


@pytest.mark.parametrize("seconds", [0.0, 0.005, 4.0])
def test_a_clip_in_one_chunk_is_transcribed(checkpoint: Checkpoint, seconds: float) -> None:
    backend: Any = TorchFast.load(checkpoint, "cpu", "float32", SETTINGS)
    audio = (0.1 * np.random.default_rng(0).standard_normal(int(seconds * RATE_HZ))).astype(np.float32)
    *_, last = backend.stream(iter([audio]), "de")
    whole = backend.transcribe(audio, "de")
    assert (last.text, last.tokens) == (whole.text, whole.tokens)
    assert bool(whole.tokens) == (seconds > 1)


def test_a_language_that_the_model_lacks_is_refused(hearing: StreamBackend) -> None:
    with pytest.raises(BackendError, match="has no language 'English'"):
        list(hearing.stream(chunks(1), "English"))
