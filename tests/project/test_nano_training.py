"""A miniature training of nano.en: the script that made the shipped model, stopped and resumed."""

from __future__ import annotations

import csv
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import whisper
from paths import ROOT

FOLDER = ROOT / "weights" / "nano"

# whisper opens its vocabulary without closing it
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]

pytest.importorskip("espeakng_loader", reason="training needs the extra 'train'")
pytest.importorskip("scipy", reason="training needs the extra 'train'")


def train(work: Path, *more: str) -> str:
    command = [
        sys.executable,
        str(FOLDER / "train.py"),
        "--smoke",
        "--device",
        "cpu",
        "--work",
        str(work),
        *more,
    ]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A training of two processes, stopped in the middle and finished by one."""
    folder = tmp_path_factory.mktemp("nano")
    train(folder, "--processes", "2", "--stop-after", "24")
    assert not (folder / "nano.en.pt").exists()
    output = train(folder, "--processes", "1")
    assert "step 25 " in output and "step 24 " not in output
    return folder


def test_loss_falls_and_the_curve_has_no_gap(work):
    with (work / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    text = [float(row["text"]) for row in rows]
    assert text[0] > 9  # near the logarithm of the vocabulary's size: nothing known yet
    assert sum(text[20:24]) / 4 < 0.75 * text[0]


def test_file_is_an_ordinary_checkpoint_of_openai(work):
    model = whisper.load_model(str(work / "nano.en.pt"), device="cpu")
    assert model.dims.n_vocab == 51864 and model.dims.n_audio_ctx == 1500 and model.dims.n_text_ctx == 448
    assert model.dims.n_audio_state == 64 * model.dims.n_audio_head
    assert not model.is_multilingual
    assert lzma.decompress((work / "nano.en.pt.xz").read_bytes()) == (work / "nano.en.pt").read_bytes()


def test_unused_words_share_one_vector_that_is_never_chosen(work):
    checkpoint = torch.load(work / "nano.en.pt", weights_only=True)
    state = checkpoint["model_state_dict"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    rows, counts = torch.unique(state["decoder.token_embedding.weight"], dim=0, return_counts=True)
    assert counts.max() > 45_000 and len(rows) < 5_000
    unused = (state["decoder.token_embedding.weight"] == rows[counts.argmax()]).all(1)
    model = whisper.load_model(str(work / "nano.en.pt"), device="cpu")
    with torch.inference_mode():
        logits = model(torch.zeros(1, 80, 3000), torch.tensor([[50257, 50362]]))
    assert not unused[logits.argmax(-1)].any()


def test_the_full_vocabulary_has_the_loss_trained_on(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("network", "windows", "speech", "sentences"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import network

    torch.manual_seed(0)
    used = network.used_tokens(["Turn on the lights."])
    dims = network.dimensions(64, 1, 1)
    nano = network.Nano(dims, used, 3).eval()
    full = whisper.model.Whisper(whisper.model.ModelDimensions(**vars(dims)))
    full.load_state_dict(
        network.checkpoint(nano.whisper.state_dict(), dims, used, mantissa=10)["model_state_dict"]
    )
    audio = torch.randn(1, 1500, 64)
    tokens = [network.TOKENIZER.sot, network.TOKENIZER.no_timestamps]
    with torch.inference_mode():
        small = nano.decode(torch.tensor([[used.index(t) for t in tokens]]), audio)[0].log_softmax(-1)
        large = full.decoder(torch.tensor([tokens]), audio).log_softmax(-1)
    assert torch.allclose(small[..., :-1], large[..., used], atol=0.02)


def test_sentences_are_split_by_their_words(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "sentences", raising=False)
    import sentences

    drawn = {split: set(sentences.sentences(3, split, 300)) for split in sentences.SPLITS}
    assert not drawn["train"] & drawn["eval"] and not drawn["train"] & drawn["samples"]
    assert sentences.sentences(3, "eval", 50) == sentences.sentences(3, "eval", 50)
    assert sentences.split_of("Turn off the lights.") == sentences.split_of("turn off the lights")
    assert (
        sentences.number(342) == "three hundred and forty two" and sentences.number(7000) == "seven thousand"
    )
    with pytest.raises(ValueError):
        sentences.sentences(3, "other", 1)
