"""Noise of a chosen ratio: exact, seeded, each ratio a clip of its own, and a curve in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrgate.harness import corpus, record
from asrgate.harness.cli import main
from asrgate.harness.corpus import augment
from asrgate.harness.corpus.audio import AudioError, sha256

RATE_HZ = 16_000


@pytest.fixture
def speech() -> np.ndarray:
    """A second of tone between half-seconds of pause."""
    pause = np.zeros(RATE_HZ // 2)
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    return np.concatenate([pause, tone, pause]).astype(np.float32)


@pytest.fixture
def clips(tmp_path: Path, speech: np.ndarray) -> list[corpus.Clip]:
    for name, samples in (("a", speech), ("b", speech[::-1] * 0.5), ("hush", np.zeros(RATE_HZ))):
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE_HZ)
    return corpus.load_clips([tmp_path])


@pytest.mark.parametrize("noise", augment.NOISES)
@pytest.mark.parametrize("snr_db", [20.0, 10.0, 0.0, -5.0])
def test_ratio_is_of_the_speech_and_not_of_its_pauses(speech: np.ndarray, noise: str, snr_db: float) -> None:
    mixed = augment.mix(speech, snr_db, noise, seed=3).astype(np.float64)
    # the least-squares gain, as a loud mix is scaled down whole
    gain = float(mixed @ speech / (speech @ speech))
    rest = mixed / gain - speech
    power = float(np.mean(speech[RATE_HZ // 2 : -RATE_HZ // 2].astype(np.float64) ** 2))
    assert 10 * np.log10(power / np.mean(rest**2)) == pytest.approx(snr_db, abs=0.2)
    assert np.abs(mixed).max() <= 1


def test_pink_noise_is_softer_above(speech: np.ndarray) -> None:
    for noise, expected in (("white", 1.0), ("pink", 0.125)):
        spectrum = np.abs(np.fft.rfft(augment.make_noise(noise, 1 << 16, np.random.default_rng(0)))) ** 2
        bins = len(spectrum) // 16
        octave_up = spectrum[8 * bins : 16 * bins].mean() / spectrum[bins : 2 * bins].mean()
        assert octave_up == pytest.approx(expected, rel=0.1)


def test_same_seed_same_noise_and_another_another(speech: np.ndarray) -> None:
    assert np.array_equal(augment.mix(speech, 5, "white", 1), augment.mix(speech, 5, "white", 1))
    assert not np.array_equal(augment.mix(speech, 5, "white", 1), augment.mix(speech, 5, "white", 2))


def test_every_ratio_is_a_clip_that_decodes_to_what_was_hashed(clips: list[corpus.Clip]) -> None:
    noisy = augment.with_noise(clips, augment.Mixing((20.0, 0.0)), seed=1)
    names = [clip.name for clip in noisy]
    assert names == ["a", "a+snr20", "a+snr0", "b", "b+snr20", "b+snr0", "hush"]
    assert [clip.tags["snr_db"] for clip in noisy[:3]] == ["clean", 20.0, 0.0]
    assert len({clip.sha256 for clip in noisy}) == len(noisy)
    for clip in noisy:
        assert sha256(clip.samples()) == clip.sha256


def test_noise_does_not_depend_on_the_other_clips(clips: list[corpus.Clip]) -> None:
    every = {clip.name: clip.sha256 for clip in augment.with_noise(clips, augment.Mixing((5.0,)), seed=1)}
    alone = augment.with_noise(clips[1:2], augment.Mixing((5.0,)), seed=1)
    assert alone[1].sha256 == every["b+snr5"]
    other = augment.with_noise(clips[1:2], augment.Mixing((5.0,)), seed=2)
    assert other[1].sha256 != every["b+snr5"]


def test_changed_file_is_refused(clips: list[corpus.Clip], speech: np.ndarray) -> None:
    noisy = augment.with_noise(clips[:1], augment.Mixing((5.0,)), seed=1)[1]
    soundfile.write(clips[0].path, speech * 0.9, RATE_HZ)
    with pytest.raises(AudioError, match="changed"):
        noisy.samples()


@pytest.mark.parametrize(
    ("specifications", "told"),
    [
        (["snr=ten"], "'ten'"),
        (["snr=10,,5"], "''"),
        (["snr=1000"], "from -30 to 100 dB"),
        (["snr=nan"], "'nan'"),
        (["noise=brown", "snr=5"], "noise=white or noise=pink"),
        (["noise=pink"], "needs ratios"),
        (["reverb=1"], "use snr="),
    ],
)
def test_bad_specifications(specifications: list[str], told: str) -> None:
    with pytest.raises(augment.AugmentError, match=told):
        augment.parse(specifications)


def test_run_has_a_row_and_a_curve_for_each_ratio(asrgate: Callable[..., int], tmp_path: Path) -> None:
    by_ratio = ("--slice", "snr_db")  # a field that the clips have only with their noise
    asrgate("--backends", "twin", "--rounds", "1", "--augment", "snr=30,-20", "--max-wer", "5", *by_ratio)
    folder = tmp_path / "results" / "latest"
    run = record.read(folder)
    assert run["settings"]["slices"] == ["snr_db"]
    assert run["settings"]["augment"] == ["snr=30,-20"]
    assert len(run["clips"]) == 15
    lines = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("| -20 ")]
    assert len(lines) == len(run["results"]) == 2
    page = (folder / "report.html").read_text()
    assert "WER by noise" in page
    assert '<th scope="col" class="number">-20<span' in page


def test_run_refuses_a_bad_ratio(asrgate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert asrgate("--augment", "snr=loud") == 2
    assert "'loud'" in capsys.readouterr().err
    assert main(["run", "--augment", "noise=pink", "--quiet"]) == 2
