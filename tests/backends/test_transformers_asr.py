"""Hugging Face's speech models from a folder: tiny random ones, for CTC and with a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import COMMIT, NAME, cached

from asrgate.backends.base import BackendError, BackendUnavailable, BringsModel, Checkpoint, Settings
from asrgate.backends.transformers_asr import LANGUAGES, MODEL, TransformersAsr

pytestmark = pytest.mark.slow
NO_FILE = Checkpoint("own", Path(), "0" * 64, {})
CARD = "---\nlanguage:\n- en\n- de\nlicense: cc0-1.0\ntags: [speech]\n---\n# A model\n"
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return kind -> the folder of a tiny random model."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    import torch

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("speech")
    extractor = transformers.Wav2Vec2FeatureExtractor()
    vocabulary = root / "vocab.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ctc = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            **small,
            vocab_size=len(LETTERS),
            conv_dim=(8, 8),
            conv_kernel=(10, 8),
            conv_stride=(160, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(vocabulary))
    ctc.save_pretrained(root / "tiny-ctc")
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(root / "tiny-ctc")
    decoder = transformers.MoonshineForConditionalGeneration(
        transformers.MoonshineConfig(
            vocab_size=len(LETTERS),
            hidden_size=16,
            intermediate_size=16,
            encoder_num_hidden_layers=1,
            decoder_num_hidden_layers=1,
            encoder_num_attention_heads=2,
            decoder_num_attention_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            decoder_start_token_id=1,
        )
    )
    decoder.generation_config.max_new_tokens = 12
    decoder.save_pretrained(root / "tiny-decoder")
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(root / "tiny-decoder")
    for name in ("tiny-ctc", "tiny-decoder"):
        (root / name / "README.md").write_text(CARD)
    return {"ctc": root / "tiny-ctc", "decoder": root / "tiny-decoder"}


@pytest.fixture
def load(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that loads the model of a kind."""

    def loaded(kind: str, **settings: Any) -> Any:
        monkeypatch.setenv(MODEL, str(folders[kind]))
        return TransformersAsr.load(NO_FILE, "cpu", "float32", Settings(**settings))

    return loaded


def noise(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(int(seconds * 16_000))).astype(np.float32)


def test_ctc_writes_the_likeliest_token_of_each_frame(load: Any, folders: dict[str, Path]) -> None:
    import torch
    from transformers import AutoModelForCTC

    audio = noise(2.0)
    answer = load("ctc").transcribe(audio, "en")
    model = AutoModelForCTC.from_pretrained(folders["ctc"])
    values = torch.from_numpy((audio - audio.mean()) / np.sqrt(audio.var() + 1e-7))[None]
    with torch.inference_mode():
        ids = model(values).logits[0].argmax(-1).tolist()
    merged = [n for place, n in enumerate(ids) if n and (place == 0 or ids[place - 1] != n)]
    expected = "".join(LETTERS[n] if n > 4 else " " if n == 4 else "" for n in merged)
    assert answer.text.split() == expected.split() and answer.text


def test_a_decoder_generates_and_takes_beams_but_no_long_clip(load: Any) -> None:
    engine = load("decoder", beam_size=2)
    assert engine.applied_settings["beam_size"] == 2
    first = engine.transcribe(noise(2.0), "en")
    assert engine.transcribe(noise(2.0), "en") == first and first.tokens
    with pytest.raises(BackendError, match="at most 30 s"):
        engine.transcribe(noise(31.0), "en")


@pytest.mark.parametrize("kind", ["ctc", "decoder"])
def test_it_declares_its_model_and_states_what_it_loaded(load: Any, kind: str) -> None:
    engine = load(kind)
    identity = TransformersAsr.model_identity()
    assert (identity.name, identity.languages, identity.licence) == (f"tiny-{kind}", ("en", "de"), "cc0-1.0")
    assert isinstance(engine, BringsModel)
    applied = engine.applied_settings
    assert applied["checkpoint_sha256"] == identity.sha256
    assert applied["temperature"] is None and "temperature" in applied["not_applied"]
    assert ("beam_size" in applied["not_applied"]) == (kind == "ctc")
    assert engine.transcribe(np.zeros(1, np.float32), "en").text == ""


@pytest.mark.parametrize(
    "change",
    [{"beam_size": 2}, {"task": "translate"}, {"language": "fr"}, {"temperature": 0.5}, {"threads": 0}],
)
def test_what_does_not_apply_is_refused(load: Any, change: dict[str, Any]) -> None:
    with pytest.raises(BackendError):
        load("ctc", **change)
    with pytest.raises(BackendError, match="cannot decode 'fr'"):
        load("ctc").transcribe(noise(1.0), "fr")


def test_a_folder_that_is_none_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    for value in ("", str(tmp_path)):
        monkeypatch.setenv(MODEL, value)
        with pytest.raises(BackendUnavailable):
            TransformersAsr.check("cpu", "float32")
    (tmp_path / "config.json").write_text((folders["ctc"] / "config.json").read_text())
    with pytest.raises(BackendUnavailable, match="names no language"):
        TransformersAsr.model_identity()
    monkeypatch.setenv(LANGUAGES, "en, fr")
    assert TransformersAsr.model_identity().languages == ("en", "fr")
    with pytest.raises(BackendError, match="cannot be loaded"):  # there are no weights
        TransformersAsr.load(NO_FILE, "cpu", "float32", Settings())


def test_the_digest_follows_the_files_but_not_what_is_kept_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL, str(tmp_path))
    monkeypatch.setenv(LANGUAGES, "en")
    (tmp_path / "config.json").write_text("{}")
    before = TransformersAsr.model_identity()
    note = tmp_path / ".cache" / "huggingface" / "download" / "config.json.metadata"
    note.parent.mkdir(parents=True)
    note.write_text("abcdef\nother\n")
    after = TransformersAsr.model_identity()
    assert (before.revision, after.revision, after.sha256) == ("unknown", "abcdef", before.sha256)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert TransformersAsr.model_identity().sha256 != before.sha256


def test_a_model_of_the_hub_is_loaded_from_its_cache(
    folders: dict[str, Path], load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    files = {path.name: path.read_bytes() for path in folders["ctc"].iterdir()}
    cached(tmp_path, files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    from_folder = load("ctc").transcribe(noise(2.0), "en")
    monkeypatch.setenv(MODEL, f"{NAME}@{COMMIT}")
    engine = TransformersAsr.load(NO_FILE, "cpu", "float32", Settings())
    assert engine.transcribe(noise(2.0), "en") == from_folder and from_folder.text
    identity = TransformersAsr.model_identity()
    assert (identity.name, identity.revision, identity.languages) == (NAME, COMMIT, ("en", "de"))
    assert engine.applied_settings["checkpoint_sha256"] == identity.sha256
