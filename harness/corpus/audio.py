"""Decodes audio files into the samples that every engine is given: float32, mono, 16 kHz, in [-1, 1].

soundfile, soxr and PyAV are used directly. `librosa.load` gives the same samples for what soundfile reads (a
test checks this), but importing it takes a second and brings in numba, and the parent must stay light.

MP3 goes to PyAV although libsndfile reads it. libsndfile 1.2.2 can overlook the Info header in an MP3's first
frame (https://github.com/libsndfile/libsndfile/issues/1001). It then guesses the length from that frame and
silently drops the end of the speech (a quarter of it if that frame has 32 kbit/s and the others 24). It also
pads a truncated file with silence.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr

from asrgate.backends.base import SAMPLE_RATE_HZ, AsrgateError

EXTENSIONS = (  # the files that are looked for in folders
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"),
    *(".wave", ".oga", ".aac", ".m4b", ".mp4", ".mov", ".3gp", ".webm", ".weba", ".mka", ".mkv"),
    *(".aiff", ".aif", ".aifc", ".caf", ".wma", ".sph", ".au", ".w64"),
)

MAX_CLIP_HOURS = 4.0  # 230 MB of samples an hour; a small file can hold days of silence
MIN_SECONDS = 0.05  # two of Whisper's 25 ms windows; a clip shorter than any syllable is a mistake
MAX_PEAK = (
    4.0  # lossy codecs overshoot full scale a little (clipped); 12 dB above it, the scale must be wrong
)

MIN_RATE_HZ, MAX_RATE_HZ = (
    1_000,
    1_000_000,
)  # outside this range the header is wrong, and resampling would fill memory
LSB_16BIT = 1 / 32_768
MOVED_SECONDS, SOFTER_DB = 0.01, 1.0  # at most, of an altered copy

SOUNDFILE_SIGNATURES = (  # PyAV reads the rest, and what libsndfile refuses
    *(b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS"),  # WAV and WAV of over 4 GB, FLAC, Vorbis and Opus
    *(b"NIST", b".snd", b"caff"),  # SPHERE, Sun's and Core Audio
)
BLOCK_VALUES = 1 << 16  # samples of all channels that are decoded at a time
UNKNOWN_FRAMES = 1 << 60  # libsndfile's number for a FLAC that was written to a pipe is larger
MOST_WAV_CHUNKS = 1000
UNKNOWN_AU_BYTES = 0xFFFFFFFF  # of a stream
# Only plain containers are allowed, because ffmpeg's playlist formats could read other files or the network.
PYAV_FORMATS = "mp3,aac,mov,matroska,ogg,flac,wav,aiff,caf,asf"
PYAV_DECLARED_LENGTH = (
    "mov,mp4",
    "matroska",
    "flac",
    "asf",
)  # for other formats ffmpeg guesses from the bit rate
MP3_SLACK_FRAMES = 5  # the Info header counts the encoder's delay and padding, which decoders cut off
AAC_FRAME_SAMPLES = 1024
DECLARED_SLACK_SECONDS = 0.1  # for containers that round their duration or count the encoder's delay
STREAMED_WAV_BYTES = 0x7FFFF000  # programs that cannot know the size write values from here on


class AudioError(AsrgateError):
    """A file is not complete, finite audio. The message names the file and says what to do."""


class TooLong(AudioError):
    """A file's audio lasts longer than a clip may."""


@dataclass(frozen=True)
class Sound:
    """What `measure` finds in a file.

    Attributes:
        seconds: length of the decoded audio.
        peak: largest absolute value, 0 to 1.
        sha256: of the decoded samples, as `sha256` gives it.
    """

    seconds: float
    peak: float
    sha256: str


def decode(path: Path, max_hours: float = MAX_CLIP_HOURS) -> np.ndarray:
    """Decode a file of any rate and channel count; the same file always gives the same samples.

    Channels are averaged, then resampled with soxr at high quality. A codec's declared delay and padding are
    removed, as players do. The streams of a chained Ogg file follow each other.

    Args:
        max_hours: how long the audio may be; no memory is taken for more.

    Returns:
        float32, shape (samples,), mono, 16 kHz, in [-1, 1]; at least MIN_SECONDS long.

    Raises:
        TooLong: the audio lasts longer than `max_hours`.
        AudioError: the file is missing, not a regular file, empty, not audio, damaged, shorter than its own
            header says, contains NaN or infinite samples, is out of scale, or is shorter than MIN_SECONDS.
    """
    samples, length = np.empty(1 << 16, np.float32), 0
    for block in _blocks(Path(path), max_hours):
        end = length + len(block)
        if end > len(samples):  # by a quarter, in place: two copies of hours of audio would not fit
            samples.resize(max(end, len(samples) * 5 // 4), refcheck=False)
        samples[length:end] = block
        length = end
    samples.resize(length, refcheck=False)
    return samples


def measure(path: Path, max_hours: float = MAX_CLIP_HOURS) -> Sound:
    """Decode a file as `decode` does, but keep no samples; raises the same errors."""
    digest, length, peak = hashlib.sha256(), 0, 0.0
    for block in _blocks(Path(path), max_hours):
        digest.update(np.ascontiguousarray(block, dtype="<f4").tobytes())
        length += len(block)
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
    return Sound(length / SAMPLE_RATE_HZ, peak, digest.hexdigest())


def sha256(samples: np.ndarray) -> str:
    """Return the hex SHA-256 of the samples as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<f4").tobytes()).hexdigest()


def dithered(samples: np.ndarray, seed: int) -> np.ndarray:
    """Return a copy that sounds the same but that no cache has seen: it has noise of up to 1 LSB at 16 bit.

    The noise is uniform in ±1 LSB. With less, rounding to 16 bit would give back the original samples.

    Args:
        samples: float32, shape (samples,), in [-1, 1].
        seed: the same seed gives the same copy, and a different seed a different one.
    """
    noise = np.random.default_rng(seed).uniform(-LSB_16BIT, LSB_16BIT, size=len(samples))
    return np.clip(samples + noise, -1.0, 1.0).astype(np.float32)


def altered(samples: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """Return a copy that says the same and whose samples are all others: as long, and inaudibly different.

    It is up to 1 dB softer, comes up to 10 ms earlier or later, and is dithered. What moves out at one end is
    silence at the other.

    Args:
        samples: float32, shape (samples,), mono, 16 kHz.
        seed: the same numbers give the same copy.
    """
    rng = np.random.default_rng(list(seed))
    most = min(round(MOVED_SECONDS * SAMPLE_RATE_HZ), len(samples) // 2)
    moved = int(rng.integers(-most, most, endpoint=True))
    copy = np.zeros_like(samples)
    copy[max(moved, 0) : len(samples) + min(moved, 0)] = samples[
        max(-moved, 0) : len(samples) - max(moved, 0)
    ]
    gain = 10 ** (-rng.uniform(0.0, SOFTER_DB) / 20)
    return dithered(gain * copy, int(rng.integers(2**63)))


def _blocks(path: Path, max_hours: float) -> Iterator[np.ndarray]:
    """Yield a file's samples as `decode` returns them, a block at a time; raise what it raises."""
    _check_file(path)
    _check_wav_length(path)
    _check_length_of_others(path)
    _check_ogg_end(path)
    limit = _Limit(path, max_hours)
    resampler = None
    frames = rate_hz = 0
    for block, rate_hz in _read(path, limit):
        if not frames and rate_hz != SAMPLE_RATE_HZ:
            resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
        frames += len(block)
        limit.check(frames / rate_hz)
        if not np.isfinite(block).all():
            raise AudioError(f"{path} contains NaN or infinite samples; export it again from its source")
        peak = float(np.abs(block).max(initial=0.0))
        if peak > MAX_PEAK:
            raise AudioError(
                f"{path} has samples up to {peak:g}; scale it, because floating-point audio "
                "must be in [-1, 1]"
            )
        yield _in_scale(block if resampler is None else resampler.resample_chunk(block))
    seconds = frames / rate_hz if frames else 0.0
    if seconds < MIN_SECONDS:
        raise AudioError(f"{path} lasts {seconds:.3f} s; a clip needs at least {MIN_SECONDS} s of audio")
    if resampler is not None:
        yield _in_scale(resampler.resample_chunk(np.zeros(0, np.float32), last=True))


def _mono(block: np.ndarray, channels: int) -> np.ndarray:
    """Return the mean over the axis of the channels; what is not finite stays so, and is refused later."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(block.mean(axis=channels))


def _in_scale(samples: np.ndarray) -> np.ndarray:
    return np.clip(samples, -1.0, 1.0).astype(np.float32, copy=False)


@dataclass(frozen=True)
class _Limit:
    """How long a file's audio may be."""

    path: Path
    hours: float

    def check(self, seconds: float) -> None:
        """Raise TooLong if the seconds found so far, or promised, are too many."""
        if seconds > self.hours * 3600:
            raise TooLong(
                f"{self.path} lasts longer than the {self.hours:g} h that a clip may have; cut it into "
                "shorter clips, or pass asrgate run a higher --max-clip-hours"
            )


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a folder; an audio file is needed here")
        if not path.exists():
            raise AudioError(f"{path} does not exist; check the path")
        if not path.is_file():  # a pipe would block forever
            raise AudioError(f"{path} is not a regular file; copy the audio into one")
        with path.open("rb") as file:
            if not file.read(1):
                raise AudioError(f"{path} is empty (0 bytes); download or record it again")
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from error


def _check_rate(path: Path, rate_hz: int) -> None:
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioError(
            f"{path} claims a sample rate of {rate_hz} Hz, which no recording has; its header is damaged"
        )


def _read(path: Path, limit: _Limit) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the file's mono samples at its own rate in blocks, each with the rate in Hz, always the same."""
    with path.open("rb") as file:
        signature = file.read(4)
    if signature not in SOUNDFILE_SIGNATURES or is_unfinished(path):  # libsndfile believes a size of 0
        yield from _read_pyav(path, limit)
        return
    starts = _ogg_starts(path) if signature == b"OggS" else [0]
    if len(starts) > 1:
        yield from _read_chained_ogg(path, starts, limit)
        return
    try:
        # a descriptor, because soundfile takes no name that is not UTF-8
        opened = soundfile.SoundFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), closefd=True)
    except soundfile.SoundFileError:
        yield from _read_pyav(path, limit)
        return
    with opened:
        if opened.frames < UNKNOWN_FRAMES:
            yield from _read_soundfile(opened, path, limit)
            return
    yield from _read_pyav(path, limit)


def _read_soundfile(
    file: soundfile.SoundFile, path: Path, limit: _Limit, before_seconds: float = 0.0
) -> Iterator[tuple[np.ndarray, int]]:
    _check_rate(path, file.samplerate)
    limit.check(before_seconds + file.frames / file.samplerate)
    block_frames = max(1, BLOCK_VALUES // file.channels)
    frames = 0
    try:
        while len(block := file.read(block_frames, dtype="float32", always_2d=True)):
            frames += len(block)
            yield _mono(block, 1), file.samplerate
    except soundfile.SoundFileError as error:
        raise _damaged(path, str(error).strip() or "its data ends or breaks off early") from error
    if frames < file.frames:
        raise _truncated(path, file.frames / file.samplerate, frames / file.samplerate)


def _read_chained_ogg(path: Path, starts: list[int], limit: _Limit) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the samples of all of a file's streams; libsndfile itself stops after the first."""
    ends = [*starts[1:], path.stat().st_size]
    seconds, first_rate_hz = 0.0, None
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        with path.open("rb") as whole:
            try:
                opened = soundfile.SoundFile(_Part(whole, start, end - start))
            except soundfile.SoundFileError as error:
                raise AudioError(
                    f"{path} is a chain of {len(starts)} Ogg streams, and stream {number} cannot be read; "
                    "convert it to WAV or FLAC"
                ) from error
            with opened:
                first_rate_hz = first_rate_hz or opened.samplerate
                if opened.samplerate != first_rate_hz:
                    raise _changes_midway(path)
                for block, rate_hz in _read_soundfile(opened, path, limit, seconds):
                    seconds += len(block) / rate_hz
                    yield block, rate_hz


class _Part(io.RawIOBase):
    """A part of an open file, as a file of its own that can only be read."""

    def __init__(self, file: Any, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = min(max(0, base + offset), self._size)
        return self._at

    def readinto(self, target: Any) -> int:
        self._file.seek(self._start + self._at)
        wanted = memoryview(target).cast("B")[: self._size - self._at]
        count = int(self._file.readinto(wanted))
        self._at += count
        return count


def _read_pyav(path: Path, limit: _Limit) -> Iterator[tuple[np.ndarray, int]]:
    options = {"format_whitelist": PYAV_FORMATS}
    frames = 0
    try:
        with (
            contextlib.ExitStack() as stack,
            av.open(_for_av(path, stack), metadata_errors="replace", options=options) as container,
        ):
            if not container.streams.audio:
                raise AudioError(f"{path} has no audio stream")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError(f"{path} uses a codec that cannot be read; convert it to WAV or FLAC")
            rate_hz = stream.codec_context.sample_rate
            _check_rate(path, rate_hz)
            declared_seconds = None
            if container.format.name.startswith(PYAV_DECLARED_LENGTH):
                if stream.duration is not None and stream.time_base is not None:
                    declared_seconds = float(stream.duration * stream.time_base)
                elif container.duration is not None:
                    declared_seconds = container.duration / av.time_base
            elif container.format.name == "mp3":
                declared_seconds = _mp3_header_seconds(path)
            limit.check(declared_seconds or 0.0)
            blocks: Iterator[np.ndarray] = (
                _mono(block, 0) for block in _float_blocks(container, stream, rate_hz, path)
            )
            if container.format.name.startswith("mov,mp4") and declared_seconds is not None:
                # ffmpeg removes the encoder's delay, as the edit list says, but keeps the last padding
                blocks = _without_padding(blocks, round(declared_seconds * rate_hz), 2 * AAC_FRAME_SAMPLES)
            try:
                for block in blocks:
                    frames += len(block)
                    yield block, rate_hz
            except av.FFmpegError as error:
                raise _damaged(path, error.strerror or "its data cannot be decoded") from error
    except av.FFmpegError as error:
        raise AudioError(
            f"{path} is not readable audio ({error.strerror}): it is damaged, truncated or in another "
            f"format; supported formats are {', '.join(EXTENSIONS)}"
        ) from error
    if declared_seconds is not None and frames / rate_hz < declared_seconds - DECLARED_SLACK_SECONDS:
        raise _truncated(path, declared_seconds, frames / rate_hz)


def _for_av(path: Path, stack: contextlib.ExitStack) -> Any:
    """Return the file's name, or the file itself, open, if the name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return stack.enter_context(path.open("rb"))
    return str(path)


def _without_padding(blocks: Iterator[np.ndarray], whole: int, most: int) -> Iterator[np.ndarray]:
    """Yield the first `whole` samples, and those that follow only if they are more than `most`."""
    length, held = 0, []
    for block in blocks:
        at = min(max(0, whole - length), len(block))
        if at:
            yield block[:at]
        length += len(block)
        if at < len(block):
            held.append(block[at:])
        if length > whole + most:
            yield from held
            held = []


def _float_blocks(
    container: av.container.InputContainer, stream: av.AudioStream, rate_hz: int, path: Path
) -> Iterator[np.ndarray]:
    """Yield float32 blocks of shape (channels, samples); only the sample type is converted here."""
    to_float = None
    for frame in container.decode(stream):
        if to_float is None:
            layout = frame.layout.name
            to_float = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate_hz)
        if frame.sample_rate != rate_hz or frame.layout.name != layout:
            raise _changes_midway(path)
        for converted in to_float.resample(frame):
            yield converted.to_ndarray()


def _check_wav_length(path: Path) -> None:
    """Raise if a RIFF header promises more bytes of samples than the file has; libsndfile does not."""
    with path.open("rb") as file:
        riff = file.read(12)
        if riff[:4] not in (b"RIFF", b"RF64") or riff[8:] != b"WAVE":
            return
        large_bytes = None  # RF64 stores the size in a separate chunk
        bytes_per_second = None
        file_bytes = path.stat().st_size
        for _ in range(MOST_WAV_CHUNKS):
            chunk = file.read(8)
            if len(chunk) < 8:
                return
            kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            start = file.tell()
            if kind == b"ds64":
                large_bytes = int.from_bytes(file.read(16)[8:], "little")
            elif kind == b"fmt ":
                bytes_per_second = int.from_bytes(file.read(12)[8:], "little")
            elif kind == b"data":
                size = large_bytes or size
                present = file_bytes - start
                if present < size and (large_bytes or size < STREAMED_WAV_BYTES):
                    rate = bytes_per_second or 1
                    raise _truncated(path, size / rate, present / rate)
                return
            file.seek(start + size + size % 2)
    # nothing else looks for the samples for long: in zeros, every eight bytes are an empty chunk
    raise _damaged(path, f"its header has more than {MOST_WAV_CHUNKS} chunks and no samples")


def _check_length_of_others(path: Path) -> None:
    """Raise if a SPHERE, AU, W64 or CAF header promises more bytes than the file has; libsndfile does not."""
    with path.open("rb") as file:
        head = file.read(1024)
    present, promised = path.stat().st_size, 0
    match head[:4]:
        case b"NIST":  # lines of text: https://www.nist.gov/itl/iad/mig/tools, SPHERE 2.6
            lines = head.decode("latin-1").split("\n")
            fields = {words[0]: words[2] for line in lines if len(words := line.split()) == 3}
            numbers = [fields.get(name, "") for name in ("sample_count", "channel_count", "sample_n_bytes")]
            if all(number.isdecimal() for number in [*numbers, lines[1].strip()]):
                promised = int(lines[1]) + math.prod(map(int, numbers))
        case b".snd":
            start, size = (int.from_bytes(head[n : n + 4], "big") for n in (4, 8))
            promised = 0 if size == UNKNOWN_AU_BYTES else start + size
        case b"riff":  # a GUID that begins so, then the size of the whole
            promised = int.from_bytes(head[16:24], "little")
        case b"caff":
            promised = _end_of_caf(path)
    if promised > present:
        raise _damaged(path, f"its header promises {promised:,} bytes, but it has {present:,}")


def _end_of_caf(path: Path) -> int:
    """Return where the samples of a Core Audio file end, 0 if that is not known."""
    with path.open("rb") as file:
        file.seek(8)
        for _ in range(MOST_WAV_CHUNKS):
            chunk = file.read(12)
            size = int.from_bytes(chunk[4:], "big", signed=True)
            if len(chunk) < 12 or size < 0:  # -1: it was streamed, and the samples go on to the end
                break
            if chunk[:4] == b"data":
                return file.tell() + size
            file.seek(size, os.SEEK_CUR)
    return 0


def is_unfinished(path: Path) -> bool:
    """Whether a WAV says that it has no samples and yet has some, because its recorder was killed.

    `decode` reads such a file to its end.
    """
    with path.open("rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            return False
        while len(chunk := file.read(8)) == 8:
            size, start = int.from_bytes(chunk[4:], "little"), file.tell()
            if chunk[:4] == b"data":
                following = file.read(8)
                left = path.stat().st_size - start - len(following)
                # an empty recording may be followed by tags
                is_chunk = len(following) == 8 and int.from_bytes(following[4:], "little") <= left
                is_tags = is_chunk and following[:4] in (b"LIST", b"fact", b"id3 ", b"ID3 ", b"bext", b"cue ")
                return size == 0 and len(following) == 8 and not is_tags
            file.seek(start + size + size % 2)
    return False


def _check_ogg_end(path: Path) -> None:
    """Raise if an Ogg file lacks its marked last page (RFC 3533, section 6); no header gives its length."""
    longest_page = 27 + 255 + 255 * 255
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return
        file.seek(max(0, path.stat().st_size - 2 * longest_page))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    whole = len(page) >= 27 and len(page) >= 27 + page[26] + sum(segments)
    is_last = whole and page[5] & 4
    if not is_last:
        raise AudioError(f"{path} is truncated: its Ogg stream has no end page; download it again")


def _ogg_starts(path: Path) -> list[int]:
    """Return where each of a file's chained streams starts (RFC 3533, section 4), in bytes.

    The first pages of streams that run side by side follow each other; a first page after any other page
    begins the next link of the chain. Bytes between pages are passed over, as libogg does.
    """
    starts = [0]
    was_first = True
    with path.open("rb") as file:
        at = 0
        while len(head := file.read(27)) == 27:
            if head[:4] != b"OggS":
                skipped = head + file.read(1 << 16)
                found = skipped.find(b"OggS", 1)
                at += len(skipped) - 3 if found < 0 else found
                file.seek(at)
                continue
            is_first = bool(head[5] & 2)
            if is_first and not was_first:
                starts.append(at)
            was_first = is_first
            at += 27 + head[26] + sum(file.read(head[26]))
            file.seek(at)
    return starts


def _mp3_header_seconds(path: Path) -> float | None:
    """Return the shortest playing time that the Xing or Info header allows; None if the file has neither.

    Layout: http://gabriel.mp3-tech.org/mp3infotag.html
    """
    with path.open("rb") as file:
        head = file.read(10)
        tag_bytes = 0
        if head[:3] == b"ID3":  # its size is stored in 7-bit bytes
            tag_bytes = 10 + sum(
                byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)
            )
        file.seek(tag_bytes)
        frame = file.read(4096)
    if len(frame) < 64 or frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:  # frame sync, layer III
        return None
    version, rate_index = frame[1] >> 3 & 3, frame[2] >> 2 & 3
    if version == 1 or rate_index == 3:
        return None
    rate_hz = (44_100, 48_000, 32_000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    # the layout says 17 or 32 bytes (MPEG-1), 9 or 17 (MPEG-2), but old ffmpeg wrote 17 for MPEG-2 mono too
    for side_info_bytes in (9, 17, 32):
        tag = frame[4 + side_info_bytes :][:12]
        if tag[:4] in (b"Xing", b"Info") and tag[7] & 1:
            frames = int.from_bytes(tag[8:], "big")
            return max(0, frames - MP3_SLACK_FRAMES) * (1152 if version == 3 else 576) / rate_hz
    return None


def _truncated(path: Path, declared_seconds: float, found_seconds: float) -> AudioError:
    return AudioError(
        f"{path} is truncated: its header promises {declared_seconds:.2f} s, but it has "
        f"{found_seconds:.2f} s; download it again"
    )


def _changes_midway(path: Path) -> AudioError:
    return AudioError(f"{path} changes its sample rate or channels midway; convert it to a single format")


def _damaged(path: Path, why: str) -> AudioError:
    return AudioError(f"{path} is truncated or damaged: {why}; download it again")
