"""A stream shows what two passes agree on, decodes nothing twice, and ends with the whole text."""

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
from asrgate.backends.whisper_common.streams import Agreement, StreamBackend, pause

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
        self.decoded: list[tuple[float, str]] = []  # seconds of the window, and what was given of its text

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
        given = rules.prompt[rules.prompt.index(TOKENIZER.no_timestamps) + 1 :]
        tokens = TOKENIZER.encode("".join(f" {word}" for word in said))
        assert tuple(tokens[: len(given)]) == given, "what was kept is no longer the text's beginning"
        self.decoded.append((float((mel[0] > 0).sum()) / 100, TOKENIZER.decode(list(given))))
        return Window(tokens[len(given) :], -1.0, 0.0)


def chunks(count: int) -> Iterator[np.ndarray]:
    for number in range(1, count + 1):
        yield np.full(RATE_HZ, number, np.float32)


@pytest.fixture
def hearing(checkpoint: Checkpoint) -> StreamBackend:
    return StreamBackend(Hearing(checkpoint), checkpoint, "cpu", "float32", SETTINGS)


def test_what_two_passes_agree_on_is_shown_and_not_decoded_again(hearing: StreamBackend) -> None:
    said = [found.text for found in hearing.stream(chunks(10), "de")]
    assert said == ["eins", *(" ".join(WORDS[:n]) for n in range(2, 9)), " ".join(WORDS)]
    given = [text.strip() for _, text in hearing._engine.decoded]
    assert given[:2] == ["", ""]
    assert given[3:5] == ["eins", "eins zwei"]
    assert given[-1] == " ".join(WORDS[:7]), "the last pass decoded what was agreed on"
    assert len(given) == 10, "after the last chunk there was another pass"


def test_passes_wait_for_as_much_audio_as_the_last_one_took(
    hearing: StreamBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(np.arange(0, 1000, 2.5))
    monkeypatch.setattr(streams.time, "perf_counter", lambda: float(next(clock)))
    *_, last = hearing.stream(chunks(10), "de")
    assert last.text == " ".join(WORDS)
    assert [seconds for seconds, _ in hearing._engine.decoded] == [1, 4, 7, 10]
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


def test_words_are_kept_whole_and_never_given_up() -> None:
    agreement = Agreement(rules(), TOKENIZER)
    short, long = (TOKENIZER.encode(text) for text in (" ein Haustür", " ein Haustürschlüssel"))
    assert long[: len(short)] == short
    assert agreement.keep(short) == ""
    assert agreement.keep(long) == "ein", "of a longer word its beginning was kept"
    assert agreement.keep(long) == "ein Haustürschlüssel"
    assert agreement.keep([*long, *TOKENIZER.encode("! ja")]) == "ein Haustürschlüssel"
    assert agreement.rules().prompt == (*rules().prompt, *long)
    assert agreement.rules().sample_limit == 50 - len(long)
    agreement.forget()
    assert agreement.rules() == rules()


def rules() -> WindowRules:
    return WindowRules(
        prompt=(1, 2),
        sot_index=0,
        suppressed=(),
        suppressed_first=(220,),
        timestamps=False,
        max_initial_timestamp_index=None,
        eot=TOKENIZER.eot,
        no_timestamps=TOKENIZER.no_timestamps,
        timestamp_begin=TOKENIZER.timestamp_begin,
        no_speech=TOKENIZER.no_speech,
        sample_limit=50,
        n_text_ctx=96,
    )


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
