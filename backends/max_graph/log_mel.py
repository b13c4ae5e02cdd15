"""Whisper's log-mel spectrogram as a MAX graph, whose spectrum is computed by one of two methods.

"mojo" is our kernel: an FFT on the CPU and a plain DFT on a GPU. "matmul" multiplies the frames by a windowed
DFT matrix; it exists only on the CPU, where it is slower.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from max.dtype import DType
from max.graph import DeviceRef, Dim, TensorType, TensorValue, ops

from asrgate.backends.base import BackendError
from asrgate.backends.max_graph import custom_ops, device_ops, encoder_ops
from asrgate.backends.max_graph.place import Place
from asrgate.backends.whisper_common.constants import HOP_LENGTH, N_FFT, N_FRAMES

BINS = N_FFT // 2 + 1  # of the spectrum: 201
FLOOR = 1e-10  # less power than this counts as silence
RANGE = 8.0  # decades below the loudest bin that are kept


def hops_type(device: DeviceRef) -> TensorType:
    """The type of audio cut every 10 ms: float32 (hops, 160)."""
    return TensorType(DType.float32, ("hops", HOP_LENGTH), device=device)


def tables() -> np.ndarray:
    """Return a periodic Hann window and one period of the cosine: float32 (2, 400)."""
    cosine = np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    return np.stack([0.5 - 0.5 * cosine, cosine]).astype(np.float32)


def windowed_dft() -> np.ndarray:
    """Return a periodic Hann window times cosines, then times sines: float32 (400, 402)."""
    sample = np.arange(N_FFT, dtype=np.float64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * sample / N_FFT)
    angle = 2 * np.pi * sample[:, None] * np.arange(BINS) / N_FFT
    return (window[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], 1)).astype(np.float32)


def chosen_method(device: str) -> str:
    """Return the method that ASRGATE_MAX_LOG_MEL names, by default the faster one on "cpu" or "cuda".

    Raises:
        BackendError: the device has no such method.
    """
    known = ("mojo", "matmul") if device == "cpu" else ("mojo",)
    method = os.environ.get("ASRGATE_MAX_LOG_MEL") or known[0]
    if method not in known:
        raise BackendError(
            f"ASRGATE_MAX_LOG_MEL is {method!r}; on {device} the MAX log-mel is computed by "
            f"{' or '.join(known)}"
        )
    return method


def filters_type(n_mels: int, place: Place, method: str) -> TensorType:
    """The type of `prepared_filters`."""
    if place.has_kernels and method == "matmul":
        panels = -(-n_mels // encoder_ops.PANEL)
        return TensorType(DType.float32, (panels, BINS, encoder_ops.PANEL), device=place.device)
    return TensorType(DType.float32, (n_mels, BINS), device=place.device)


def prepared_filters(filters: Any, place: Place, method: str) -> Any:
    """Return whisper's mel filters, a torch.Tensor (n_mels, 201), in the layout that `log_mel` takes."""
    import torch

    if place.has_kernels and method == "matmul":
        return torch.from_numpy(encoder_ops.panels(filters.numpy()))
    return filters.contiguous()


def log_mel(
    hops: TensorValue, filters: TensorValue, n_mels: int, place: Place, method: str
) -> tuple[TensorValue, TensorValue]:
    """Compute what whisper.audio.log_mel_spectrogram does, for audio that was padded by 200 samples in front.

    Args:
        hops: float32 (hops, 160).
        filters: the result of `prepared_filters`.
        n_mels: 80 or 128.
        place: where and how to compute.
        method: "mojo" or "matmul".

    Returns:
        The scaled log-mel (n_mels, hops - 2), and the value (1, 1) that a frame of digital silence has in
        every band, which depends on the loudest bin.
    """
    frames, device = Dim("hops") - 2, place.device
    if not place.has_kernels:
        log = device_ops.log_mel(hops, ops.constant(tables(), DType.float32, device=device), filters)
    elif method == "mojo":
        samples = ops.reshape(hops, (Dim("hops") * HOP_LENGTH,))
        return custom_ops.log_mel(samples, filters, frames, reflect=False)
    else:
        mel = _mel_by_matmul(hops, filters, n_mels).transpose(0, 1)
        log = ops.log(ops.max(mel, ops.constant(FLOOR, DType.float32, device=device))) * float(1 / np.log(10))
    loudest = ops.reshape(ops.max(ops.reshape(log, (-1,))), (1, 1))
    quietest = ops.max(loudest - RANGE, ops.constant(np.log10(FLOOR), DType.float32, device=device))
    return (ops.max(log, quietest) + 4.0) / 4.0, (quietest + 4.0) / 4.0


def _mel_by_matmul(hops: TensorValue, filters: TensorValue, n_mels: int) -> TensorValue:
    """The power in each mel band: (hops - 2, n_mels)."""
    cpu = DeviceRef.CPU()
    dft = ops.constant(encoder_ops.panels(windowed_dft().T), DType.float32, device=cpu)
    spectrum = encoder_ops.product(hops, dft, rows=Dim("hops") - 2, step=HOP_LENGTH)
    real, imaginary = spectrum[:, :BINS], spectrum[:, BINS : 2 * BINS]
    return encoder_ops.product(real * real + imaginary * imaginary, filters)[:, :n_mels]


def cut(audio: np.ndarray) -> np.ndarray:
    """Return audio (samples,) as float32 (hops, 160) for `log_mel`: every frame that overlaps the audio.

    The audio is mirrored by 200 samples at the start and followed by silence, as for whisper's STFT.
    """
    frames = min(-(-(len(audio) + N_FFT // 2) // HOP_LENGTH), len(audio) // HOP_LENGTH + N_FRAMES)
    padded = np.zeros((frames + 2) * HOP_LENGTH, np.float32)
    body = padded[N_FFT // 2 :][: len(audio)]
    body[:] = audio[: len(body)]
    mirror = np.zeros(N_FFT // 2, np.float32)
    mirror[: max(len(audio) - 1, 0)] = audio[1 : N_FFT // 2 + 1]
    padded[: N_FFT // 2] = mirror[::-1]
    return padded.reshape(-1, HOP_LENGTH)
