"""A checkpoint in OpenAI's format as transformers' configuration, generation rules and parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from asrgate.backends.base import Checkpoint

SIDES = (
    (r"^encoder\.ln_post\.", "encoder.layer_norm."),
    (r"^decoder\.ln\.", "decoder.layer_norm."),
    (r"^decoder\.token_embedding\.", "decoder.embed_tokens."),
    (r"positional_embedding$", "embed_positions.weight"),
    (r"\.blocks\.", ".layers."),
)
LAYER = (
    (r"\.attn\.", ".self_attn."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.query\.", ".q_proj."),
    (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."),
    (r"\.out\.", ".out_proj."),
)


def parameter_name(name: str) -> str:
    """Return transformers' name of a tensor of an OpenAI checkpoint."""
    for pattern, replacement in (*SIDES, *LAYER):
        name = re.sub(pattern, replacement, name)
    return f"model.{name}"


def fitting(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors under transformers' names; the vocabulary projection is the token embedding."""
    named = {parameter_name(name): values for name, values in tensors.items()}
    return {**named, "proj_out.weight": named["model.decoder.embed_tokens.weight"]}


def model_config(checkpoint: Checkpoint) -> Any:
    """Return a transformers.WhisperConfig of the checkpoint's dimensions, without dropout."""
    from transformers import WhisperConfig

    dimensions = checkpoint.dimensions
    tokenizer = _tokenizer(checkpoint)
    return WhisperConfig(
        vocab_size=dimensions["n_vocab"],
        num_mel_bins=dimensions["n_mels"],
        d_model=dimensions["n_audio_state"],
        encoder_layers=dimensions["n_audio_layer"],
        encoder_attention_heads=dimensions["n_audio_head"],
        encoder_ffn_dim=4 * dimensions["n_audio_state"],
        decoder_layers=dimensions["n_text_layer"],
        decoder_attention_heads=dimensions["n_text_head"],
        decoder_ffn_dim=4 * dimensions["n_text_state"],
        max_source_positions=dimensions["n_audio_ctx"],
        max_target_positions=dimensions["n_text_ctx"],
        dropout=0.0,
        bos_token_id=tokenizer.eot,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        decoder_start_token_id=tokenizer.sot,
    )


def generation_config(checkpoint: Checkpoint, suppressed: list[int], suppress_blank: bool) -> Any:
    """Return a transformers.GenerationConfig with the rules whisper.decoding.DecodingTask has.

    Args:
        checkpoint: the model.
        suppressed: ids that are never sampled; -1 stands for Whisper's list of non-speech symbols.
        suppress_blank: is an empty or blank beginning forbidden?
    """
    from transformers import GenerationConfig

    tokenizer = _tokenizer(checkpoint)
    listed = {token for token in suppressed if token >= 0}
    if -1 in suppressed:
        listed |= set(tokenizer.non_speech_tokens)
    never = {tokenizer.transcribe, tokenizer.translate, tokenizer.sot, tokenizer.sot_prev, tokenizer.sot_lm}
    config: Any = GenerationConfig(
        do_sample=False,
        num_beams=1,
        bos_token_id=tokenizer.eot,
        eos_token_id=tokenizer.eot,
        pad_token_id=tokenizer.eot,
        decoder_start_token_id=tokenizer.sot,
        suppress_tokens=sorted({*listed, *never, tokenizer.no_speech}),
        begin_suppress_tokens=[*tokenizer.encode(" "), tokenizer.eot] if suppress_blank else None,
    )
    config.is_multilingual = checkpoint.is_multilingual
    config.no_timestamps_token_id = tokenizer.no_timestamps
    config.prev_sot_token_id = tokenizer.sot_prev
    config.max_initial_timestamp_index = 50  # 1 s
    config.return_timestamps = False
    if checkpoint.is_multilingual:
        config.lang_to_id = dict(
            zip(
                (f"<|{code}|>" for code in tokenizer.all_language_codes),
                tokenizer.all_language_tokens,
                strict=True,
            )
        )
        config.task_to_id = {"transcribe": tokenizer.transcribe, "translate": tokenizer.translate}
    return config


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from whisper.tokenizer import get_tokenizer

    languages = checkpoint.dimensions["n_vocab"] - 51_765 - checkpoint.is_multilingual
    return get_tokenizer(checkpoint.is_multilingual, num_languages=languages)
