"""The CTranslate2 conversion computes what openai-whisper computes, and is built once."""

from __future__ import annotations

import base64
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import tokenizers
import torch
import whisper
from fake_checkpoint import ENGLISH, MULTILINGUAL, MULTILINGUAL_V3, write_fake_checkpoint
from faster_whisper.feature_extractor import FeatureExtractor
from paths import ROOT, TINY_EN
from whisper.tokenizer import get_tokenizer

from asrgate.backends.base import BackendError
from asrgate.backends.checkpoints.catalog import load_state_dict, resolve
from asrgate.backends.checkpoints.conversions import ctranslate2_model
from asrgate.backends.checkpoints.conversions.ctranslate2_model import (
    alignment_heads,
    build,
    convert,
    converted_folder,
)
from asrgate.backends.checkpoints.conversions.tokenizer_json import tokenizer_json
from asrgate.harness.corpus.audio import decode

VOCABULARIES = [ENGLISH, MULTILINGUAL, MULTILINGUAL_V3]

# openai-whisper leaves its vocabulary file for the garbage collector to close
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return the folder of a converted fake, m.pt beside it, built once for each vocabulary."""
    contents = {
        ENGLISH: {"dtype": torch.float16},
        MULTILINGUAL: {"dtype": torch.bfloat16},
        MULTILINGUAL_V3: {"dtype": torch.float32, "n_mels": 128},
    }
    folders: dict[int, Path] = {}

    def folder(n_vocab: int) -> Path:
        if n_vocab not in folders:
            folders[n_vocab] = tmp_path_factory.mktemp("built")
            path = write_fake_checkpoint(folders[n_vocab] / "m.pt", n_vocab=n_vocab, **contents[n_vocab])
            build(path, folders[n_vocab])
        return folders[n_vocab]

    return folder


def openai_tokenizer(n_vocab: int) -> Any:
    multilingual = n_vocab >= MULTILINGUAL
    return get_tokenizer(multilingual, num_languages=n_vocab - 51_765 - multilingual)


def reference_model(path: Path) -> Any:
    checkpoint = resolve(str(path))
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**checkpoint.dimensions))
    model.load_state_dict(load_state_dict(checkpoint), strict=True)
    return model.eval()


def speechlike(n_mels: int) -> np.ndarray:
    """A log-mel window of a chirp, as both engines make them: (n_mels, 3000), float32."""
    t = np.arange(whisper.audio.N_SAMPLES) / 16_000
    audio = (0.3 * np.sin(2 * np.pi * (200 + 60 * t) * t) * (np.sin(9 * t) > 0)).astype(np.float32)
    return whisper.log_mel_spectrogram(audio, n_mels).numpy()


def strings() -> Iterator[str]:
    """Texts that would show another split, another merge or another treatment of spaces and bytes."""
    yield from [
        "",
        " ",
        "  a",
        "a  ",
        "\n\n x",
        "don't WE'LL 's",
        "1234567 12,345.67",
        "a\u00a0b\u3000c\u200bd",
        "🎉👩‍👩‍👧 é e\u0301",
    ]
    yield from [
        "日本語のテスト、ー",
        "العربية",
        "हिन्दी",
        "ไทย",
        "\u0000\u0085\ufffd",
        "ſßẞ",
        "Ⅷ½²٣",
        "<|en|>",
        "-- (( ♪♪",
    ]
    choose = random.Random(0)
    scalars = [(0x20, 0x7F), (0xA0, 0x2FFF), (0x3000, 0xD7FF), (0xE000, 0x10FFFF)]
    for _ in range(700):
        plain = "".join(choose.choice("etaoin shrdlu  ETAOIN.,'0123456789\n\t") for _ in range(40))
        wild = "".join(chr(choose.randint(*choose.choice(scalars))) for _ in range(choose.randint(1, 12)))
        yield plain
        yield wild + " " * choose.randint(0, 3) + plain[:5]


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_token_ids_are_openais(n_vocab: int) -> None:
    ours, openais = tokenizer_json(n_vocab), openai_tokenizer(n_vocab)
    assert [ours.token_to_id(name) for name in openais.special_tokens] == list(
        openais.special_tokens.values()
    )
    assert ours.get_vocab_size() == n_vocab
    for text in strings():
        ids = openais.encode(text, disallowed_special=())
        if "<|" not in text:  # ours reads a special token where tiktoken was told to see text
            assert ours.encode(text).ids == ids, text
        assert ours.decode(ids) == openais.decode(ids) == text


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_tokens_that_are_no_whole_text_decode_alike(n_vocab: int) -> None:
    ours, openais = tokenizer_json(n_vocab), openai_tokenizer(n_vocab)
    choose = random.Random(1)
    for _ in range(500):
        ids = [choose.randrange(openais.eot) for _ in range(choose.randint(1, 8))]
        assert ours.decode(ids) == openais.decode(ids)


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_configuration_is_what_openai_decodes_with(n_vocab: int, built: Callable[[int], Path]) -> None:
    folder = built(n_vocab)
    config = json.loads((folder / "config.json").read_text())
    task = whisper.decoding.DecodingTask(
        reference_model(folder / "m.pt"), whisper.DecodingOptions(fp16=False)
    )
    openais = openai_tokenizer(n_vocab)
    assert config["suppress_ids"] == list(task._get_suppress_tokens())
    assert config["suppress_ids_begin"] == [*openais.encode(" "), openais.eot]
    assert sorted(config["lang_ids"]) == sorted(openais.all_language_tokens)
    assert config["alignment_heads"] == [[1, 0], [1, 1]]
    names = json.loads((folder / "vocabulary.json").read_text())
    assert [names.index(name) for name in openais.special_tokens] == list(openais.special_tokens.values())
    stored = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert stored.encode(" Hello, world 12").ids == openais.encode(" Hello, world 12")


def test_openais_own_files_get_openais_alignment_heads() -> None:
    packed = base64.b85decode(whisper._ALIGNMENT_HEADS["base.en"])
    table = np.frombuffer(gzip.decompress(packed), dtype=bool).reshape(6, 8)
    found = alignment_heads({"n_text_layer": 6, "n_text_head": 8}, "base.en")
    assert found == np.argwhere(table).tolist()
    assert found != alignment_heads({"n_text_layer": 6, "n_text_head": 8}, None)


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_encoder_and_logits_agree_with_openai_whisper(n_vocab: int, built: Callable[[int], Path]) -> None:
    folder = built(n_vocab)
    agree(folder / "m.pt", folder, tokens_at_least=100)


def test_a_real_encoder_and_decoder_agree_with_openai_whisper(tmp_path: Path) -> None:
    if not TINY_EN.exists():
        pytest.skip(f"needs a checkpoint of tiny.en's size at ../shared/weights/{TINY_EN.name}")
    build(TINY_EN, tmp_path)
    speech = decode(ROOT / "audio_samples" / "full_window.flac")
    mel = whisper.pad_or_trim(whisper.log_mel_spectrogram(speech), 3000).numpy()
    agree(TINY_EN, tmp_path, tokens_at_least=50, mel=mel)


@torch.no_grad()
def agree(path: Path, folder: Path, tokens_at_least: int, mel: np.ndarray | None = None) -> None:
    """Assert that encoder output, every step's logits and the no-speech probability agree in float32."""
    openais = reference_model(path)
    converted = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    tokenizer = openai_tokenizer(openais.dims.n_vocab)
    if mel is None:
        mel = speechlike(openais.dims.n_mels)
    encoded = openais.encoder(torch.from_numpy(mel)[None])
    theirs = converted.encode(ctranslate2.StorageView.from_array(mel[None]))
    # by norm: single frames of padding in a trained encoder amplify rounding to 2e-4 of the maximum, in both
    # engines alike when either is held against float64
    distance = np.linalg.norm(np.array(theirs) - encoded.numpy()) / np.linalg.norm(encoded.numpy())
    assert distance < 1e-5

    prompt = list(tokenizer.sot_sequence_including_notimestamps)
    result = converted.generate(
        theirs, [prompt], beam_size=1, suppress_blank=True, suppress_tokens=[], return_logits_vocab=True,
        return_no_speech_prob=True,
    )[0]  # fmt: skip
    tokens = result.sequences_ids[0]
    assert len(tokens) >= tokens_at_least
    logits = openais.decoder(torch.tensor([prompt + tokens]), encoded)[0]
    steps = np.array([np.array(step) for step in result.logits[0]])
    kept = steps > np.finfo(np.float32).min
    assert (~kept).sum() == 2, "the blank and the end, suppressed as first token"
    expected = logits[len(prompt) - 1 :][: len(steps)].numpy()
    assert np.abs(steps - expected)[kept].max() < 1e-4 * np.abs(expected).max()
    no_speech = logits[0].softmax(-1)[tokenizer.no_speech].item()
    assert result.no_speech_prob == pytest.approx(no_speech, rel=1e-3)


@pytest.mark.parametrize(("n_vocab", "n_mels"), [(ENGLISH, 80), (MULTILINGUAL_V3, 128)])
def test_features_agree_with_openai_whisper(n_vocab: int, n_mels: int, built: Callable[[int], Path]) -> None:
    settings = json.loads((built(n_vocab) / "preprocessor_config.json").read_text())
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal(77_777)).astype(np.float32)
    ours = FeatureExtractor(**settings)(audio)
    openais = whisper.log_mel_spectrogram(audio, n_mels, padding=whisper.audio.N_SAMPLES).numpy()
    frames = len(audio) // 160
    np.testing.assert_allclose(ours[:, :frames], openais[:, :frames], atol=2e-4)


# --- the cache ------------------------------------------------------------------------------------------


def test_two_processes_convert_once_without_torch_in_either(model: Path) -> None:
    code = (
        "import sys; from asrgate.backends.checkpoints.catalog import resolve;"
        "from asrgate.backends.checkpoints.conversions.ctranslate2_model import convert;"
        f"print(convert(resolve({str(model)!r}))); print('torch' in sys.modules)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    checkpoint = resolve(str(model))
    folder = converted_folder(checkpoint)
    assert [process.communicate()[0].split() for process in started] == [[str(folder), "False"]] * 2
    ctranslate2.models.Whisper(str(folder))
    assert checkpoint.sha256 in folder.name
    assert (folder / "model.bin").stat().st_size < model.stat().st_size, "float16 stays float16"
    (folder / "model.bin").write_bytes(b"built once")
    assert (convert(checkpoint) / "model.bin").read_bytes() == b"built once"
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_a_conversion_that_fails_leaves_nothing_and_says_why(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(model.read_bytes())
    checkpoint = resolve(str(path))
    write_fake_checkpoint(path, seed=1)
    with pytest.raises(BackendError, match=r"cannot be converted for .* changed after it was checked"):
        convert(checkpoint)
    assert not [path for path in converted_folder(checkpoint).parent.iterdir() if path.is_dir()]


def test_a_process_that_dies_half_way_leaves_no_conversion(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "python"
    killed.write_text('#!/bin/sh\nmkdir "$5" && echo partial > "$5/model.bin"\nkill -9 $$\n')
    killed.chmod(0o755)
    checkpoint = resolve(str(model))
    monkeypatch.setattr(ctranslate2_model.sys, "executable", str(killed))
    with pytest.raises(BackendError, match="was killed"):
        convert(checkpoint)
    assert not [path for path in converted_folder(checkpoint).parent.iterdir() if path.is_dir()]
