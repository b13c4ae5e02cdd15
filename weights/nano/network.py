"""The network in training: Whisper's own modules over a small vocabulary, two extra teachers, and the export.

Only the words of the generator and the special tokens have an embedding of their own; all other rows of
Whisper's vocabulary share one vector. Its logit counts as often as there are such rows, so the loss is that
of the full vocabulary, exactly.
"""

from __future__ import annotations

import io
import lzma
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.audio import HOP_LENGTH, N_FFT, mel_filters
from whisper.model import ModelDimensions, MultiHeadAttention, Whisper
from windows import BLANK, IGNORE, PAD_ZERO, TOKENIZER, Window

VOCABULARY = 51_864
TIMESTAMPS = 1501


def dimensions(state: int, encoder_layers: int, decoder_layers: int) -> ModelDimensions:
    """OpenAI's English-only Whisper, narrow. ValueError unless `state` is a multiple of the head size, 64."""
    if state % 64:
        raise ValueError("the state size must be a multiple of 64")
    return ModelDimensions(
        80, 1500, state, state // 64, encoder_layers, VOCABULARY, 448, state, state // 64, decoder_layers
    )


def used_tokens(texts: list[str]) -> list[int]:
    """All tokens that may occur in a transcript of `texts`, ascending, with the special ones."""
    used = {token for text in texts for token in TOKENIZER.encode(" " + text)}
    suppressed = used & set(TOKENIZER.non_speech_tokens)
    if suppressed:
        raise ValueError(f"Whisper's decoding suppresses the tokens {sorted(suppressed)}")
    special = {BLANK, TOKENIZER.eot, TOKENIZER.sot, TOKENIZER.no_speech, TOKENIZER.no_timestamps}
    first = TOKENIZER.timestamp_begin
    return sorted(used | special | set(range(first, first + TIMESTAMPS)))


class Batch:
    """Windows of one length as tensors on `device`; `limit` in seconds."""

    def __init__(self, windows: list[Window], limit: float, index: np.ndarray, device: torch.device) -> None:
        count, length = len(windows), max(len(w.inputs) for w in windows)
        samples = int(limit * 16_000)
        audio = np.zeros((count, samples), np.float32)
        inputs = np.full((count, length), TOKENIZER.eot)
        targets = np.full((count, length), IGNORE)
        spans = np.tile(np.float32([1, 0]), (count, length, 1))
        for row, window in enumerate(windows):
            audio[row, : len(window.audio)] = window.audio
            inputs[row, : len(window.inputs)] = window.inputs
            targets[row, : len(window.targets)] = window.targets
            spans[row, : len(window.spans)] = window.spans
        targets = np.where(targets == IGNORE, IGNORE, index[targets])

        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        self.audio, self.inputs, self.targets = to(audio), to(index[inputs]), to(targets)
        self.spans = to(spans)
        self.frames = to(np.stack([w.frames for w in windows]).astype(np.int64))
        self.offsets = to(np.array([w.offset for w in windows]))
        self.shifts = to(np.float32([w.shift for w in windows]))
        self.lengths = to(np.array([len(w.audio) if w.padding == PAD_ZERO else samples for w in windows]))


def log_mel(audio: Tensor, shifts: Tensor, lengths: Tensor) -> Tensor:
    """Whisper's log-mel of each row of `audio` (B, samples): (B, 80, samples // 160).

    Each row is normalised by its own maximum plus `shifts` (the maximum may lie outside the window),
    and is zero after `lengths` samples, as Whisper's long-form code pads the last window.
    """
    window = torch.hann_window(N_FFT, device=audio.device)
    power = torch.stft(audio, N_FFT, HOP_LENGTH, window=window, return_complex=True)[..., :-1].abs() ** 2
    mel = (mel_filters(audio.device, 80) @ power).clamp(min=1e-10).log10()
    top = mel.amax((1, 2), keepdim=True) + shifts[:, None, None]
    mel = (torch.maximum(mel, top - 8.0) + 4.0) / 4.0
    frames = torch.arange(mel.shape[-1], device=audio.device)
    return mel * (frames < (lengths[:, None, None] + HOP_LENGTH - 1) // HOP_LENGTH)


def attend(attention: MultiHeadAttention, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Attention from `x` (B, N, state) to all of `source` (B, T, state): output, weights (B, heads, N, T).

    Written out: on a CPU, all in bfloat16, this is up to three times as fast as PyTorch's fused kernel.
    """
    query, key, value = (
        part.unflatten(-1, (attention.n_head, -1)).transpose(1, 2).contiguous()
        for part in (attention.query(x), attention.key(source), attention.value(source))
    )
    with torch.autocast(x.device.type, enabled=False):
        weights = ((query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)).softmax(-1)
        out = (weights @ value).transpose(1, 2).flatten(2)
    return attention.out(out), weights


class Nano(nn.Module):
    """Whisper of `dims` over the tokens `used`, with a phoneme classifier on the encoder (training only)."""

    def __init__(self, dims: ModelDimensions, used: list[int], phonemes: int) -> None:
        super().__init__()
        small = ModelDimensions(**{**vars(dims), "n_vocab": len(used) + 1})
        self.dims, self.used = dims, used
        self.whisper = Whisper(small)
        decoder = self.whisper.decoder
        nn.init.normal_(decoder.token_embedding.weight, std=dims.n_text_state**-0.5)
        nn.init.normal_(decoder.positional_embedding, std=0.02)
        for block in decoder.blocks:
            for layer in (block.attn.out, block.cross_attn.out, block.mlp[2]):
                layer.weight.data.mul_(0.5)
        self.phoneme_head = nn.Linear(dims.n_audio_state, phonemes)
        # log of how many rows share the last vector; the full vocabulary's softmax needs it
        self.multiplicity = math.log(dims.n_vocab - len(used))

    def encode(self, mel: Tensor, offsets: Tensor) -> Tensor:
        """(B, 80, 2 T) to (B, T, state), the positional table read from `offsets` on."""
        encoder = self.whisper.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).permute(0, 2, 1)
        table = encoder.positional_embedding
        if x.shape[1] < len(table):
            position = table[offsets[:, None] + torch.arange(x.shape[1], device=x.device)]
        else:
            position = table
        x = (x + position).to(x.dtype)
        for block in encoder.blocks:
            normed = block.attn_ln(x)
            x = x + attend(block.attn, normed, normed)[0]
            x = x + block.mlp(block.mlp_ln(x))
        return encoder.ln_post(x)

    def decode(self, inputs: Tensor, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, N, used + 1) and, per layer, the first head's cross-attention (B, N, T)."""
        decoder = self.whisper.decoder
        x = decoder.token_embedding(inputs) + decoder.positional_embedding[: inputs.shape[1]]
        x = x.to(audio.dtype)
        maps = []
        for block in decoder.blocks:
            x = x + block.attn(block.attn_ln(x), mask=decoder.mask)[0]
            heard, weights = attend(block.cross_attn, block.cross_attn_ln(x), audio)
            x = x + heard
            maps.append(weights[:, 0].float())
            x = x + block.mlp(block.mlp_ln(x))
        x = decoder.ln(x)
        logits = (x @ decoder.token_embedding.weight.to(x.dtype).T).float()
        return torch.cat([logits[..., :-1], logits[..., -1:] + self.multiplicity], -1), maps

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """text: next token. phoneme: of each 20 ms. guide: attention not on the word being written."""
        mel = log_mel(batch.audio, batch.shifts, batch.lengths)
        audio = self.encode(mel, batch.offsets)
        logits, maps = self.decode(batch.inputs, audio)
        text = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        phoneme = F.cross_entropy(self.phoneme_head(audio).float().flatten(0, 1), batch.frames.flatten())
        heard = (batch.spans[..., 0] <= batch.spans[..., 1]) & (batch.targets != IGNORE)
        seconds = torch.arange(audio.shape[1], device=audio.device) * 0.02
        inside = ((seconds >= batch.spans[..., :1] - 0.06) & (seconds <= batch.spans[..., 1:] + 0.06)).float()
        # The last layer should look at the word to come, the first at the one just written.
        coming, written = inside * heard[..., None], F.pad(inside * heard[..., None], (0, 0, 1, 0))[:, :-1]
        guide = torch.zeros((), device=audio.device)
        for weights, wanted in ((maps[-1], coming), (maps[0], written)):
            mass = (weights * wanted).sum(-1)
            known = wanted.amax(-1) > 0
            guide = guide - ((mass + 1e-6).log() * known).sum() / known.sum().clamp(min=1)
        right = ((logits.argmax(-1) == batch.targets) & (batch.targets != IGNORE)).sum()
        return {
            "text": text,
            "phoneme": phoneme,
            "guide": guide,
            "accuracy": right.detach() / (batch.targets != IGNORE).sum(),
        }


def checkpoint(model: dict[str, Tensor], dims: ModelDimensions, used: list[int], mantissa: int) -> dict:
    """OpenAI's checkpoint (`dims`, `model_state_dict` in float16) from the weights of `Nano.whisper`.

    `mantissa` bits (of float16's 10) are kept, so that the file compresses.
    """
    state = {}
    for name, tensor in model.items():
        full = tensor
        if name == "decoder.token_embedding.weight":
            full = tensor[-1].repeat(dims.n_vocab, 1)
            full[torch.tensor(used)] = tensor[:-1]
        state[name] = rounded(full, mantissa)
    return {"dims": dict(vars(dims)), "model_state_dict": state}


def rounded(tensor: Tensor, mantissa: int) -> Tensor:
    """Float16 with `mantissa` bits of the fraction, rounded to nearest; tiny values become zero."""
    bits = tensor.float().cpu().to(torch.float16).contiguous().numpy().view(np.uint16).astype(np.uint32)
    drop = 10 - mantissa
    if drop:
        bits = ((bits + (1 << (drop - 1))) >> drop) << drop
    out = torch.from_numpy(bits.astype(np.uint16).view(np.float16).copy())
    return torch.where(out.abs() < 2**-12, torch.zeros_like(out), out)


def write_checkpoint(ckpt: dict, path: Path) -> int:
    """Write `path` (OpenAI's .pt) and beside it the same as .xz; the size of the .xz in bytes.

    Saved through memory, so that the archive inside does not depend on the file's name.
    """
    buffer = io.BytesIO()
    torch.save(ckpt, buffer)
    path.write_bytes(buffer.getvalue())
    # float16 numbers: even and odd bytes have statistics of their own, hence lp and pb of 1
    filters = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "lc": 3,
            "lp": 1,
            "pb": 1,
            "dict_size": 1 << 26,
        }
    ]
    packed = lzma.compress(buffer.getvalue(), lzma.FORMAT_XZ, filters=filters)
    path.with_name(path.name + ".xz").write_bytes(packed)
    return len(packed)
