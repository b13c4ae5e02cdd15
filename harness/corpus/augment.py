"""Noisy copies of clips at chosen signal-to-noise ratios, seeded: how an engine's WER grows with noise.

The signal's power is that of its speech, not of its pauses: the mean over the 20 ms frames within 30 dB of
the loudest. If pauses were included, the same ratio would be a harder test for slow speakers. (ITU-T P.56
also measures the active level, in more steps.)
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.corpus.clips import Clip

FIELD = "snr_db"
CLEAN = "clean"
NOISES = ("white", "pink")
FRAME_SAMPLES = SAMPLE_RATE_HZ // 50
ACTIVE_RANGE_DB = 30.0
SNR_LIMITS_DB = (-30.0, 100.0)
PEAK = 0.999  # a mix that would exceed full scale is scaled down as a whole, which keeps its ratio

_log = logging.getLogger(__name__)


class AugmentError(AsrgateError):
    """Noise cannot be mixed in as requested; the message says what is possible."""


@dataclass(frozen=True)
class Mixing:
    """The copies to make of each clip: one at each ratio, in dB."""

    snrs_db: Sequence[float]
    noise: str = "white"


@dataclass(frozen=True)
class NoisyClip(Clip):
    """A clip whose samples are those of its file plus noise; `sha256` is that of the mix."""

    clean_sha256: str = ""
    snr_db: float = 0.0
    noise: str = "white"
    seed: int = 0

    def samples(self) -> np.ndarray:
        """Decode the file and mix the noise in again: float32, shape (samples,), mono, 16 kHz, in [-1, 1].

        Raises:
            AudioError: the file is gone or is not what it was when the clip was loaded.
        """
        clean = replace(self, sha256=self.clean_sha256)
        return mix(Clip.samples(clean), self.snr_db, self.noise, self.seed)


def parse(specifications: Sequence[str]) -> Mixing | None:
    """Return what `snr=20,10,0` and `noise=pink` ask for, or None if nothing was given.

    Raises:
        AugmentError: anything else, or a ratio that is not a number or is out of range.
    """
    snrs_db: list[float] = []
    noise = NOISES[0]
    for specification in specifications:
        name, _, value = specification.partition("=")
        if name == "snr":
            snrs_db += [_ratio(part) for part in value.split(",")]
        elif name == "noise" and value in NOISES:
            noise = value
        else:
            raise AugmentError(
                f"--augment {specification}: use snr=DB,DB,… and noise={' or noise='.join(NOISES)}"
            )
    if specifications and not snrs_db:
        raise AugmentError("--augment noise=… needs ratios too, such as --augment snr=20,10,0")
    return Mixing(tuple(dict.fromkeys(snrs_db)), noise) if snrs_db else None


def with_noise(clips: Sequence[Clip], mixing: Mixing, seed: int) -> list[Clip]:
    """Return the clips, each followed by its noisy copies; `snr_db` is a field of all, "clean" or a number.

    A silent clip has no signal to set the noise against, so it gets no copies, and a warning is logged.

    Raises:
        AudioError: a file is gone or has changed.
    """
    found: list[Clip] = []
    for clip in clips:
        found.append(replace(clip, tags={**clip.tags, FIELD: CLEAN}))
        samples = clip.samples()
        if active_power(samples) == 0:
            _log.warning(
                "%s is silent: there is no speech to set noise against, so it gets no noisy copies", clip.name
            )
            continue
        for snr_db in mixing.snrs_db:
            own_seed = _seed(seed, clip, mixing.noise)
            found.append(
                NoisyClip(
                    name=f"{clip.name}+snr{snr_db:g}",
                    path=clip.path,
                    audio_seconds=clip.audio_seconds,
                    sha256=audio_file.sha256(mix(samples, snr_db, mixing.noise, own_seed)),
                    language=clip.language,
                    reference=clip.reference,
                    tags={**clip.tags, FIELD: float(snr_db), "noise": mixing.noise, "clean": clip.name},
                    start_seconds=clip.start_seconds,
                    declared_seconds=clip.declared_seconds,
                    clean_sha256=clip.sha256,
                    snr_db=snr_db,
                    noise=mixing.noise,
                    seed=own_seed,
                )
            )
    return found


def mix(samples: np.ndarray, snr_db: float, noise: str, seed: int) -> np.ndarray:
    """Return the samples with noise: float32, shape (samples,), in [-1, 1].

    Args:
        samples: float32, shape (samples,), 16 kHz, not silent.
        snr_db: ratio of the power of the active speech to that of the noise.
        noise: one of NOISES.
        seed: the same seed gives the same noise, only louder or softer for each ratio.
    """
    sound = make_noise(noise, len(samples), np.random.default_rng(seed))
    wanted_power = active_power(samples) / 10 ** (snr_db / 10)
    mixed = samples + sound * np.sqrt(wanted_power / np.mean(sound**2))
    return (mixed * min(1.0, PEAK / np.abs(mixed).max())).astype(np.float32)


def make_noise(noise: str, length: int, generator: np.random.Generator) -> np.ndarray:
    """Return noise of about unit power: float64, shape (length,). Pink has equal power in every octave."""
    white = generator.standard_normal(length)
    if noise == "white":
        return white
    spectrum = np.fft.rfft(white)
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    pink = np.fft.irfft(spectrum, length)
    return pink / np.sqrt(np.mean(pink**2))


def active_power(samples: np.ndarray) -> float:
    """Return the mean square of the frames within ACTIVE_RANGE_DB of the loudest one; 0 for silence."""
    frames = max(1, len(samples) // FRAME_SAMPLES)
    whole = samples[: frames * FRAME_SAMPLES].astype(np.float64)
    powers = np.array([np.mean(frame**2) for frame in np.array_split(whole, frames)])
    return float(powers[powers >= powers.max() * 10 ** (-ACTIVE_RANGE_DB / 10)].mean())


def _ratio(text: str) -> float:
    low, high = SNR_LIMITS_DB
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise AugmentError(f"--augment snr: {text!r} is not a ratio from {low:g} to {high:g} dB")
    return value


def _seed(seed: int, clip: Clip, noise: str) -> int:
    """Derive a clip's own seed, so that its noise does not depend on the other clips of the run."""
    text = f"{seed} {clip.sha256} {noise}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
