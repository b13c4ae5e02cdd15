"""Decoding: every kind of file gives the right sound, and everything that is not whole audio is refused."""

import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from paths import ROOT, SHARED_AUDIO

from asrgate.harness.corpus import load_clips
from asrgate.harness.corpus.audio import AudioError, TooLong, decode, dithered, measure, sha256
from asrgate.harness.corpus.clips import CorpusError

# soundfile's MP3 length of these is a guess from their first frame's bit rate, and the manifest repeats it.
SHARED_WRONG_DURATIONS = {
    "forced-alignment-address.mp3": 153.072,
    "forced-alignment-andiefreude.mp3": 325.980,
    "forced-alignment-daniel.mp3": 45.324,
}


def tones(rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    """A sound that changes all the time, so that a shift or a cut shows: float32, shape (samples,)."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.4 * np.sin(2 * np.pi * (300 + 900 * t / seconds) * t)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate_hz: int, **options: str) -> Path:
    soundfile.write(path, samples, rate_hz, **options)
    return path


def write_pyav(path: Path, samples: np.ndarray, rate_hz: int, codec: str, bit_rate: int = 64_000) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        frame.pts, frame.time_base = 0, Fraction(1, rate_hz)  # from which the encoder's delay is written down
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def lag_samples(found: np.ndarray, expected: np.ndarray) -> int:
    """By how many samples `found` comes late."""
    n = 2 * len(expected)
    correlation = np.fft.irfft(np.fft.rfft(found, n) * np.conj(np.fft.rfft(expected, n)))
    lag = int(correlation.argmax())
    return lag - n if lag > n // 2 else lag


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_rate_and_channel_count_gives_the_same_sound(tmp_path, rate_hz, channels):
    sound = np.repeat(tones(rate_hz)[:, None], channels, axis=1)
    samples = decode(write(tmp_path / "a.wav", sound, rate_hz, subtype="PCM_24"))
    expected = tones(16_000)
    assert samples.dtype == np.float32
    assert samples.shape == expected.shape
    assert np.abs(samples - expected)[200:-200].max() < 2e-3


def test_channels_are_averaged(tmp_path):
    sound = np.stack([np.full(8_000, 0.5), np.full(8_000, -0.25)], axis=1)
    samples = decode(write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT"))
    assert np.allclose(samples, 0.125)


@pytest.mark.parametrize(("name", "subtype"), [("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("a.opus", "OPUS")])
def test_formats_soundfile_writes(tmp_path, name, subtype):
    container = "FLAC" if name == "a.flac" else "OGG"
    path = write(tmp_path / name, tones(48_000), 48_000, format=container, subtype=subtype)
    samples = decode(path)
    assert len(samples) == 16_000
    assert abs(lag_samples(samples, tones(16_000))) <= 2
    assert np.abs(samples - tones(16_000))[800:-800].max() < 0.1


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("NIST", "PCM_16"), ("NIST", "ULAW"), ("AU", "PCM_16"), ("W64", "PCM_24"), ("CAF", "ALAC_16")],
)
def test_containers_of_older_corpora_are_read_to_their_end(tmp_path, container, subtype):
    path = write(tmp_path / "a", tones(8_000, 2.0), 8_000, format=container, subtype=subtype)
    samples = decode(path)
    assert len(samples) == 32_000
    assert np.abs(samples - tones(16_000, 2.0))[400:-400].max() < 0.03
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError):
        decode(path)


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.mp3", "libmp3lame")])
def test_encoder_delay_and_padding_are_removed(tmp_path, name, codec):
    samples = decode(write_pyav(tmp_path / name, tones(44_100, 2.0), 44_100, codec))
    assert len(samples) == 32_000
    assert abs(lag_samples(samples, tones(16_000, 2.0))) <= 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # audioread, under librosa, imports aifc
@pytest.mark.slow
def test_same_samples_as_librosa(tmp_path):
    import librosa

    sound = np.stack([tones(44_100), tones(44_100)[::-1]], axis=1)
    path = write(tmp_path / "a.flac", sound, 44_100, subtype="PCM_16")
    expected, _ = librosa.load(path, sr=16_000, mono=True)
    assert np.abs(decode(path) - expected).max() < 1e-6


def test_decoding_twice_gives_identical_bytes(tmp_path):
    path = write_pyav(tmp_path / "a.m4a", tones(44_100), 44_100, "aac")
    assert sha256(decode(path)) == sha256(decode(path))


def test_sha256_is_of_little_endian_float32():
    samples = np.array([0.0, 0.5, -1.0], dtype=np.float32)
    assert sha256(samples) == sha256(samples.astype(">f4")) == sha256(samples.astype(np.float64))
    bytes_of_it = bytes.fromhex("00000000 0000003f 000080bf")
    assert sha256(samples) == hashlib.sha256(bytes_of_it).hexdigest()
    assert sha256(samples) != sha256(samples[::-1])


def test_dither_is_inaudible_seeded_and_survives_rounding_to_16_bit():
    samples = np.round(tones(16_000) * 32_768).astype(np.float32) / 32_768
    samples[:3] = (1.0, -1.0, 0.0)
    before = samples.copy()
    first, again, other = dithered(samples, 1), dithered(samples, 1), dithered(samples, 2)
    assert np.array_equal(samples, before)
    assert first.dtype == np.float32
    assert first.shape == samples.shape
    assert np.abs(first).max() <= 1.0
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.abs(first - samples).max() <= 1.001 / 32_768
    to_int16 = [np.round(x * 32_768).clip(-32_768, 32_767).astype(np.int16) for x in (samples, first, other)]
    assert (to_int16[0] != to_int16[1]).mean() > 0.3
    assert (to_int16[1] != to_int16[2]).mean() > 0.3


def test_overshoot_is_clipped_and_a_wrong_scale_refused(tmp_path):
    loud = tones(16_000) * 3
    assert np.abs(decode(write(tmp_path / "loud.wav", loud, 16_000, subtype="FLOAT"))).max() == 1.0
    path = write(tmp_path / "int.wav", tones(16_000) * 32_768, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"int\.wav has samples up to 1\d{4}.*scale it"):
        decode(path)


def test_mp3_with_an_overlooked_info_header_keeps_its_end(tmp_path):
    """Old ffmpeg put the Info tag at the wrong place; its frame's bit rate then misleads libsndfile."""
    path = write_pyav(tmp_path / "a.mp3", tones(16_000, 8.0), 16_000, "libmp3lame", 24_000)
    data = path.read_bytes()
    first = data.index(b"\xff\xf3")
    frame_bytes = 72 * 24_000 // 16_000
    audio = data[first + frame_bytes :]  # without the Info frame lame wrote
    frames = len(audio) // frame_bytes
    info = b"\xff\xf3\x48\xc0" + bytes(17) + b"Info" + bytes([0, 0, 0, 1]) + frames.to_bytes(4, "big")
    path.write_bytes(info.ljust(72 * 32_000 // 16_000, b"\0") + audio)
    assert len(decode(path)) / 16_000 == pytest.approx(8.0, abs=0.2)

    path.write_bytes(path.read_bytes()[: len(audio) // 2])
    with pytest.raises(AudioError, match="truncated"):
        decode(path)


def test_flac_of_unknown_length_is_read_whole(tmp_path):
    path = write(tmp_path / "a.flac", tones(16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's total samples: 36 bits, 0 means unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert np.abs(decode(path) - tones(16_000)).max() < 1e-4


def test_tags_that_are_not_utf8_do_not_matter(tmp_path):
    path = write_pyav(tmp_path / "a.mp3", tones(16_000), 16_000, "libmp3lame")
    title = b"TIT2" + (9).to_bytes(4, "big") + b"\0\0" + b"\x03M\xfcnchen\0"  # says UTF-8, is Latin-1
    tag = b"ID3\x04\0\0" + bytes([0, 0, 0, len(title)]) + title
    data = path.read_bytes()
    path.write_bytes(tag + data[data.index(b"\xff\xf3") :])
    assert len(decode(path)) / 16_000 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.m4a"])
def test_truncated_files_are_refused(tmp_path, name, share):
    path = tmp_path / name
    sound = tones(16_000, 10.0)
    match path.suffix:
        case ".mp3":
            write_pyav(path, sound, 16_000, "libmp3lame")
        case ".m4a":
            write_pyav(path, sound, 16_000, "aac")
        case ".opus":
            write(path, sound, 16_000, format="OGG", subtype="OPUS")
        case _:
            write(path, sound, 16_000)
    decode(path)
    with pytest.raises(AudioError, match=re.escape(str(path))):
        decode(cut(path, share))


def test_a_truncated_wav_tells_what_is_missing(tmp_path):
    path = write(tmp_path / "a.wav", tones(16_000, 2.0), 16_000)
    with pytest.raises(AudioError, match=r"truncated: its header promises 2\.00 s, but it has 1\.00 s"):
        decode(cut(path))


def test_a_wav_written_to_a_pipe_is_not_taken_for_truncated(tmp_path):
    # https://github.com/ruuda/hound/issues/39
    path = write(tmp_path / "a.wav", tones(16_000), 16_000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(decode(path)) == 16_000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, value):
    sound = tones(44_100)
    sound[5_000] = value
    path = write(tmp_path / "a.wav", sound, 44_100, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav contains NaN or infinite samples"):
        decode(path)


def test_what_is_no_audio_file_is_refused_by_name(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("no sound here\n" * 100)
    (tmp_path / "noise.mp3").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    write(tmp_path / "short.wav", tones(16_000, 0.04), 16_000)
    write(tmp_path / "nothing.wav", tones(16_000, 0.0), 16_000)
    for name, reason in {
        "missing.wav": "does not exist",
        "empty.wav": "is empty",
        "text.wav": "not readable audio",
        "noise.mp3": "not readable audio|truncated or damaged",
        "folder.wav": "is a folder",
        "pipe.wav": "not a regular file",
        "short.wav": "lasts 0.040 s",
        "nothing.wav": "lasts 0.000 s",
    }.items():
        with pytest.raises(AudioError, match=f"{name} .*({reason})"):
            decode(tmp_path / name)


def test_a_playlist_cannot_reach_other_files(tmp_path):
    write_pyav(tmp_path / "secret.mp3", tones(16_000), 16_000, "libmp3lame")
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.mp3\n#EXT-X-ENDLIST\n")
    with av.open(str(path)) as container:  # what ffmpeg would do
        assert sum(frame.samples for frame in container.decode(audio=0)) > 10_000
    with pytest.raises(AudioError, match="not readable audio"):
        decode(path)


def test_a_video_without_sound_is_refused(tmp_path):
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(AudioError, match="no audio stream"):
        decode(path)


def test_damaged_headers_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(7)
    sources = [
        write(tmp_path / "s.wav", tones(16_000), 16_000),
        write(tmp_path / "s.flac", tones(16_000), 16_000),
        write(tmp_path / "s.ogg", tones(16_000), 16_000),
        write_pyav(tmp_path / "s.mp3", tones(16_000), 16_000, "libmp3lame"),
        write_pyav(tmp_path / "s.m4a", tones(16_000), 16_000, "aac"),
    ]
    refused = 0
    for source in sources:
        whole = source.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            for at in rng.integers(0, 256, size=4):
                data[at] = rng.integers(256)
            damaged = tmp_path / f"damaged{source.suffix}"
            damaged.write_bytes(data)
            try:
                samples = decode(damaged)
            except AudioError:
                refused += 1
            else:
                assert np.isfinite(samples).all()
    assert refused > 50


def ogg(samples: np.ndarray, rate_hz: int, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="OGG", subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("between", [b"", b"junk between streams" * 5000], ids=["", "junk"])
def test_all_streams_of_a_chained_ogg_are_decoded(tmp_path, subtype, between):
    parts = [tones(48_000, 2.0), tones(48_000, 1.0)[::-1], tones(48_000, 0.5)]
    path = tmp_path / "chained.ogg"
    path.write_bytes(between.join(ogg(part, 48_000, subtype) for part in parts))
    samples = decode(path)
    expected = np.concatenate([tones(16_000, 2.0), tones(16_000, 1.0)[::-1], tones(16_000, 0.5)])
    assert len(samples) == len(expected)
    assert np.corrcoef(samples, expected)[0, 1] > 0.95
    if not between:
        with pytest.raises(AudioError, match="truncated"):
            decode(cut(path, 0.9))


def test_a_chained_ogg_that_changes_its_rate_or_holds_something_else_is_refused(tmp_path):
    path = tmp_path / "chained.ogg"
    first = ogg(tones(48_000), 48_000, "VORBIS")
    path.write_bytes(first + ogg(tones(16_000), 16_000, "VORBIS"))
    with pytest.raises(AudioError, match="changes its sample rate"):
        decode(path)
    other = bytearray(ogg(tones(48_000), 48_000, "VORBIS"))
    other[28:35] = b"nothing"  # instead of the codec's signature
    path.write_bytes(first + other)
    with pytest.raises(AudioError, match="a chain of 2 Ogg streams, and stream 2 cannot be read"):
        decode(path)


@pytest.mark.parametrize(
    "format_chunk", [b"", b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)]
)
def test_a_riff_header_followed_by_zeros_is_refused_at_once(tmp_path, format_chunk):
    path = tmp_path / "zeros.wav"
    with path.open("wb") as file:
        file.write(b"RIFF" + (200 << 20).to_bytes(4, "little") + b"WAVE" + format_chunk)
        file.truncate(200 << 20)
    began = time.process_time()
    with pytest.raises(AudioError, match="truncated or damaged: its header has more than 1000 chunks"):
        decode(path)
    assert time.process_time() - began < 1


def test_measuring_finds_what_decoding_gives(tmp_path):
    stereo = np.stack([tones(44_100, 3.0), 0.5 * tones(44_100, 3.0)], axis=1)
    for path in (
        write(tmp_path / "a.wav", stereo, 44_100),
        write(tmp_path / "a.flac", tones(16_000, 9.0), 16_000),
        write_pyav(tmp_path / "a.m4a", tones(44_100, 2.0), 44_100, "aac"),
    ):
        samples, sound = decode(path), measure(path)
        assert sound.sha256 == sha256(samples)
        assert sound.seconds == len(samples) / 16_000
        assert sound.peak == np.abs(samples).max() > 0.2


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a"])
def test_audio_longer_than_a_clip_may_be_is_refused(tmp_path, name):
    path, sound = tmp_path / name, tones(16_000, 4.0)
    match path.suffix:
        case ".mp3":
            write_pyav(path, sound, 16_000, "libmp3lame")
        case ".m4a":
            write_pyav(path, sound, 16_000, "aac")
        case _:
            write(path, sound, 16_000)
    assert len(decode(path, 4.2 / 3600)) == pytest.approx(64_000, abs=2_000)
    for read in (decode, measure):
        with pytest.raises(TooLong, match=rf"{name} lasts longer than the 0\.001 h .* --max-clip-hours"):
            read(path, 0.001)
    with pytest.raises(CorpusError, match=r"lasts longer than the 0\.001 h"):
        load_clips([path], max_hours=0.001)
    (clip,) = load_clips([path])
    assert sha256(clip.samples()) == clip.sha256


def peak_growth_bytes(call: str, path: Path) -> int:
    """Return by how much a call with the path, in a process of its own, raises the process's peak memory."""
    code = (
        "import sys; from pathlib import Path\n"
        "from asrgate.harness.corpus import audio\n"
        "status = Path('/proc/self/status')\n"
        "peak = lambda: int(status.read_text().partition('VmHWM:')[2].split()[0]) * 1024\n"
        "audio.decode(Path('audio_samples/full_window.flac')); before = peak()\n"
        f"try: {call}\n"
        "except audio.AudioError as error: print(type(error).__name__, file=sys.stderr)\n"
        "print(peak() - before)"
    )
    root = ROOT
    asked = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=root, check=True)
    assert ("TooLong" in done.stderr) == ("0.4" in call), done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_hours_of_audio_take_bounded_memory(tmp_path):
    """Half an hour of silence is a small file, 115 MB of samples, and 690 MB at its own 48 kHz stereo."""
    path = tmp_path / "silence.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2) as file:
        for _ in range(30):
            file.write(np.zeros((60 * 48_000, 2), np.int16))
    assert path.stat().st_size < 2_000_000
    samples_bytes = 1800 * 16_000 * 4
    assert peak_growth_bytes("audio.measure(Path(sys.argv[1]))", path) < 20e6
    decoding = peak_growth_bytes("audio.decode(Path(sys.argv[1]))", path)
    assert 0.9 * samples_bytes < decoding < 1.6 * samples_bytes
    assert peak_growth_bytes("audio.decode(Path(sys.argv[1]), 0.4)", path) < 20e6


def test_a_limit_holds_where_the_header_promises_nothing(tmp_path):
    path = write(tmp_path / "a.flac", tones(16_000, 8.0), 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the number of samples is unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(TooLong):
        decode(path, 0.001)


def test_importing_leaves_librosa_and_numba_out():
    code = "import sys, asrgate.harness.corpus.audio\n"
    code += "print({'librosa', 'numba', 'torch'} & set(sys.modules) or [])"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not SHARED_AUDIO.is_dir(), reason="needs the 64 recordings of ../shared/audio")
def test_real_recordings_last_as_long_as_their_manifest_says():
    lines = (SHARED_AUDIO / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == 64
    off = {}
    for entry in entries:
        name = entry["audio_filepath"]
        expected = SHARED_WRONG_DURATIONS.get(name, entry["duration"])
        seconds = len(decode(SHARED_AUDIO / name)) / 16_000
        if abs(seconds - expected) > 0.01:
            off[name] = (seconds, expected)
    assert off == {}


def test_channels_of_opposite_infinities_are_refused_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "infinite.wav"
    soundfile.write(path, np.tile([np.inf, -np.inf], (8000, 1)), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        decode(path)
