"""Tiny random models in the forms that sherpa-onnx loads, as icefall, NeMo and FunASR export them."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLANK = "<blk>"
LETTERS = [f"▁{letter}" for letter in string.ascii_uppercase[:12]]
WIDTH, BINS, EVERY = 8, 80, 4  # of hidden vectors; of a frame; frames to a vector
CHUNK = 8  # frames that the online model takes at once
DURATIONS = 5  # of a TDT model
END = np.iinfo(np.int64).max


def write(folder: Path, kind: str, suffix: str = "") -> Path:
    """Write a model of one of KINDS into a folder; `suffix` of its files is ".int8", for instance."""
    folder.mkdir(exist_ok=True)
    KINDS[kind](folder, suffix)
    return folder


def _zipformer_ctc(folder: Path, suffix: str) -> None:
    _tokens(folder, [BLANK, *LETTERS])
    _save(
        folder / f"model{suffix}.onnx",
        [
            *_subsampled("x", "sub"),
            _node("MatMul", ["sub", "w"], ["logits"]),
            _node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
            *_shorter("x_lens", "log_probs_len"),
        ],
        {"x": ("float", ["N", "T", BINS]), "x_lens": ("int64", ["N"])},
        {"log_probs": ("float", ["N", "T2", 1 + len(LETTERS)]), "log_probs_len": ("int64", ["N"])},
        {"w": _random(BINS, 1 + len(LETTERS))},
        model_type="zipformer2_ctc",
        version="1",
    )


def _nemo_ctc(folder: Path, suffix: str) -> None:
    _tokens(folder, [*LETTERS, BLANK])
    _save(
        folder / f"model{suffix}.onnx",
        [
            _node("Transpose", ["audio_signal"], ["x"], perm=[0, 2, 1]),
            *_subsampled("x", "sub"),
            _node("MatMul", ["sub", "w"], ["logits"]),
            _node("LogSoftmax", ["logits"], ["logprobs"], axis=-1),
            # the length is not needed, and an input that nothing uses would be dropped
            _node("Identity", ["length"], ["unused"]),
        ],
        {"audio_signal": ("float", ["N", BINS, "T"]), "length": ("int64", ["N"])},
        {"logprobs": ("float", ["N", "T2", 1 + len(LETTERS)]), "unused": ("int64", ["N"])},
        {"w": _random(BINS, 1 + len(LETTERS))},
        model_type="EncDecCTCModelBPE",
        vocab_size=1 + len(LETTERS),
        subsampling_factor=EVERY,
        normalize_type="per_feature",
    )


def _sense_voice(folder: Path, suffix: str) -> None:
    window = 7
    _tokens(folder, ["<unk>", "<s>", "</s>", *LETTERS])
    size = 3 + len(LETTERS)
    weights = _random(window * BINS, size)
    weights -= weights.mean(axis=0)  # however loud the recording is
    weights[:, :3] = 0  # it always hears a letter
    told = np.eye(size, dtype=np.float32)[None, [1, 2, 1, 2]]  # language, emotion, event, writing
    _save(
        folder / f"model{suffix}.onnx",
        [
            _node("MatMul", ["x", "w"], ["y"]),
            _node("Concat", ["told", "y"], ["logits"], axis=1),
            *(_node("Identity", [name], [f"{name}_out"]) for name in ("x_length", "language", "text_norm")),
        ],
        {
            "x": ("float", ["N", "T", window * BINS]),
            **{name: ("int32", ["N"]) for name in ("x_length", "language", "text_norm")},
        },
        {
            "logits": ("float", ["N", "T2", size]),
            **{f"{name}_out": ("int32", ["N"]) for name in ("x_length", "language", "text_norm")},
        },
        {"w": weights, "told": told},
        model_type="sense_voice_ctc",
        vocab_size=size,
        blank_id=0,
        lfr_window_size=window,
        lfr_window_shift=6,
        normalize_samples=0,
        with_itn=14,
        without_itn=15,
        lang_auto=0,
        lang_zh=3,
        lang_en=4,
        lang_yue=7,
        lang_ja=11,
        lang_ko=12,
        neg_mean=",".join(["-14"] * window * BINS),
        inv_stddev=",".join(["1"] * window * BINS),
    )


def _transducer(folder: Path, suffix: str) -> None:
    _save(
        folder / f"encoder-epoch-1-avg-1{suffix}.onnx",
        [
            *_subsampled("x", "sub"),
            _node("MatMul", ["sub", "w"], ["encoder_out"]),
            *_shorter("x_lens", "encoder_out_lens"),
        ],
        {"x": ("float", ["N", "T", BINS]), "x_lens": ("int64", ["N"])},
        {"encoder_out": ("float", ["N", "T2", WIDTH]), "encoder_out_lens": ("int64", ["N"])},
        {"w": _random(BINS, WIDTH)},
        model_type="zipformer2",
        version="1",
        comment="non-streaming zipformer2",
    )
    _stateless_decoder_and_joiner(folder, suffix)


def _online_transducer(folder: Path, suffix: str) -> None:
    state = ("float", [1, "N", WIDTH])
    _save(
        folder / f"encoder-epoch-1-avg-1{suffix}.onnx",
        [
            *_subsampled("x", "sub"),
            _node("MatMul", ["sub", "w"], ["encoder_out"]),
            _node("Identity", ["h"], ["next_h"]),
            _node("Identity", ["c"], ["next_c"]),
        ],
        {"x": ("float", ["N", CHUNK, BINS]), "h": state, "c": state},
        {"encoder_out": ("float", ["N", "T2", WIDTH]), "next_h": state, "next_c": state},
        {"w": _random(BINS, WIDTH)},
        model_type="lstm",
        version="1",
        num_encoder_layers=1,
        rnn_hidden_size=WIDTH,
        d_model=WIDTH,
        T=CHUNK,
        decode_chunk_len=CHUNK,
    )
    _stateless_decoder_and_joiner(folder, suffix)


def _stateless_decoder_and_joiner(folder: Path, suffix: str) -> None:
    size = 2 + len(LETTERS)
    _tokens(folder, [BLANK, "<unk>", *LETTERS])
    _save(
        folder / f"decoder-epoch-1-avg-1{suffix}.onnx",
        [
            _node("Gather", ["embedding", "y"], ["both"]),
            _node("ReduceMean", ["both"], ["decoder_out"], axes=[1], keepdims=0),
        ],
        {"y": ("int64", ["N", 2])},
        {"decoder_out": ("float", ["N", WIDTH])},
        {"embedding": _random(size, WIDTH)},
        vocab_size=size,
        context_size=2,
    )
    _save(
        folder / f"joiner-epoch-1-avg-1{suffix}.onnx",
        [_node("Add", ["encoder_out", "decoder_out"], ["sum"]), _node("MatMul", ["sum", "w"], ["logit"])],
        {name: ("float", ["N", WIDTH]) for name in ("encoder_out", "decoder_out")},
        {"logit": ("float", ["N", size])},
        {"w": _random(WIDTH, size)},
        joiner_dim=WIDTH,
    )


def _nemo_tdt(folder: Path, suffix: str) -> None:
    size = 1 + len(LETTERS)
    state = ("float", [1, "N", WIDTH])
    _tokens(folder, [*LETTERS, BLANK])
    _save(
        folder / f"encoder{suffix}.onnx",
        [
            _node("Transpose", ["audio_signal"], ["x"], perm=[0, 2, 1]),
            *_subsampled("x", "sub"),
            _node("MatMul", ["sub", "w"], ["hidden"]),
            _node("Transpose", ["hidden"], ["outputs"], perm=[0, 2, 1]),
            *_shorter("length", "encoded_lengths"),
        ],
        {"audio_signal": ("float", ["N", BINS, "T"]), "length": ("int64", ["N"])},
        {"outputs": ("float", ["N", WIDTH, "T2"]), "encoded_lengths": ("int64", ["N"])},
        {"w": _random(BINS, WIDTH)},
        model_type="EncDecRNNTBPEModel",
        vocab_size=len(LETTERS),
        subsampling_factor=EVERY,
        normalize_type="per_feature",
        pred_rnn_layers=1,
        pred_hidden=WIDTH,
        feat_dim=BINS,
        url="https://huggingface.co/nvidia/parakeet-tdt-0.6b-v2",  # by its name the library knows a TDT model
    )
    _save(
        folder / f"decoder{suffix}.onnx",
        [
            _node("Gather", ["embedding", "targets"], ["embedded"]),
            _node("Transpose", ["embedded"], ["outputs"], perm=[0, 2, 1]),
            _node("Identity", ["target_length"], ["prednet_lengths"]),
            _node("Identity", ["h"], ["next_h"]),
            _node("Identity", ["c"], ["next_c"]),
        ],
        {"targets": ("int32", ["N", 1]), "target_length": ("int32", ["N"]), "h": state, "c": state},
        {
            "outputs": ("float", ["N", WIDTH, 1]),
            "prednet_lengths": ("int32", ["N"]),
            "next_h": state,
            "next_c": state,
        },
        {"embedding": _random(size, WIDTH)},
    )
    _save(
        folder / f"joiner{suffix}.onnx",
        [
            _node("Add", ["encoder_outputs", "decoder_outputs"], ["sum"]),
            _node("Transpose", ["sum"], ["turned"], perm=[0, 2, 1]),
            _node("MatMul", ["turned", "w"], ["flat"]),
            _node("Unsqueeze", ["flat", "axis"], ["outputs"]),
        ],
        {name: ("float", ["N", WIDTH, 1]) for name in ("encoder_outputs", "decoder_outputs")},
        {"outputs": ("float", ["N", 1, 1, size + DURATIONS])},
        {"w": _random(WIDTH, size + DURATIONS), "axis": [2]},
    )


KINDS: Mapping[str, Callable[[Path, str], None]] = {
    "Zipformer CTC": _zipformer_ctc,
    "NeMo CTC": _nemo_ctc,
    "SenseVoice": _sense_voice,
    "transducer": _transducer,
    "NeMo transducer": _nemo_tdt,
    "online transducer": _online_transducer,
}


def _subsampled(name: str, into: str) -> list[Any]:
    """Return nodes that take every fourth frame."""
    return [_node("Slice", [name, "start", "end", "time", "every"], [into])]


def _shorter(name: str, into: str) -> list[Any]:
    """Return nodes that say how many frames those are."""
    return [
        _node("Sub", [name, "one_less"], ["less"]),
        _node("Div", ["less", "every"], ["divided"]),
        _node("Add", ["divided", "one_less"], [into]),
    ]


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _tokens(folder: Path, tokens: Sequence[str]) -> None:
    text = "".join(f"{token} {number}\n" for number, token in enumerate(tokens))
    (folder / "tokens.txt").write_text(text, encoding="utf-8")


def _node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(operator, inputs, outputs, **attributes)


def _save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[str, Sequence[Any]]],
    outputs: Mapping[str, tuple[str, Sequence[Any]]],
    weights: Mapping[str, Any],
    **metadata: Any,
) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32}
    told = [
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in values.items()]
        for values in (inputs, outputs)
    ]
    numbers = {"start": [0], "end": [END], "time": [1], "every": [EVERY], "one_less": [1]}
    used = {name for node in nodes for name in node.input}
    constants = {name: np.asarray(value) for name, value in {**numbers, **weights}.items() if name in used}
    model = helper.make_model(
        helper.make_graph(
            nodes, "tiny", *told, [numpy_helper.from_array(v, name) for name, v in constants.items()]
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
    onnx.checker.check_model(model)
    onnx.save(model, path)
