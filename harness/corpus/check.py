"""What is wrong with a corpus: counted by kind, with the first examples of each."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness.corpus import audio as audio_file
from asrgate.harness.corpus import manifests, parts
from asrgate.harness.corpus.manifests import Entry
from asrgate.harness.metrics import strict, word_times

AUDIBLE_PEAK = 0.001  # -60 dB of full scale: anything quieter is silence, which may well have no text

BLOCK_FRAMES = 1 << 16
FAST, FAST_SIGNS = 24.0, 12.0  # letters a second of the clip, and Chinese, Japanese or Korean characters
SLOW = 6.0  # letters a second in which something is heard, in alphabets with capitals
LEAST_LETTERS, LEAST_WORD = 20, 3.0  # shorter texts, and letters that are spelled, do not tell
HEARD_DB, FRAME_SECONDS = 30.0, 0.01  # of the loudest frame: what is softer is a pause

CANCELLED = 0.1  # of the loudest channel that the average of all keeps: -20 dB

KINDS = {  # name -> what it means, in the order in which they are reported
    "unreadable line": "a line of the manifest cannot be used",
    "missing audio": "the file does not exist",
    "unreadable audio": "the file cannot be decoded to its end",
    "unused file": "audio or video of a format that is not read",
    "unfinished header": "a WAV whose recorder was stopped before it wrote the size",
    "duration disagrees": "the manifest's offset or duration is not the audio's",
    "word times": "a time in words is beyond the audio's end, or the words are not the text's",
    "no reference": "there is no text, so the clip has no WER",
    "empty reference": "the text is empty, but the audio is not silent",
    "speech rate": "so many letters a second that the sample rate, or the text, is not the recording's",
    "silent audio": "there is a text, but nothing can be heard",
    "duplicate reference": "the same text in the same language as an earlier clip",
    "duplicate audio": "the same samples as an earlier clip",
    "control character": "tabs, line ends, zero-width and other invisible characters",
    "replacement character": "U+FFFD: a text was once decoded wrongly",
    "wrong encoding": "UTF-8 that was read as Latin-1, such as Ã©",
    "no words": "a text without a letter or digit, such as ??? where letters were lost",
    "mixed scripts": "a word of Latin letters and Cyrillic or Greek ones that look like them",
    "only tags": "no word is left without tags and parentheses, so whatever is heard counts as inserted",
    "markup": "tags, entities, speakers' names or annotations in brackets, which are not spoken",
}
_MARKUP = re.compile(
    r"</?[^\s<>/][^<>]*>|\[[^\[\]]*\]|\{[^{}]*\}|&(?:[a-z]+|#\d+);"
    r"|(?<!\w)\*[^\s*][^*]*\*(?!\w)|\(\(|(?<!\w)%[a-zA-Z]+|[♪♫♬]|-->"  # marks of NIST and of subtitles
    rf"|ignore_time_segment_in_scoring|(?i:{strict.SOUND.pattern})"
    r"|(?i:\b(?:speaker|spk|spkr|agent|customer|caller|operator|interviewe[er]))[ _-]?[\dA-Z]?\d*\s*:|>>"
    r"|^\s*[A-Z][A-Z.]+(?: [A-Z.]+)?(?: \d+)?:"  # names of speakers, as in scripts
)
_ASIDE = re.compile(r"\([^()]*\)")
_SCRIPTS = ("LATIN", "CYRILLIC", "GREEK")  # that share the looks of letters; first words of their names
_WRONG_ENCODING = re.compile("[ÃÂ][\u0080-\u00bf]|â€")


@dataclass(frozen=True)
class Problem:
    """One finding: its kind (see KINDS), where it is, and what was found there."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True)
class Report:
    """What a check covered and found."""

    clips: int
    audio_seconds: float
    problems: Sequence[Problem]

    def count(self, kind: str) -> int:
        """Return how often the kind was found."""
        return sum(problem.kind == kind for problem in self.problems)


def check(paths: Iterable[Path]) -> Report:
    """Decode every clip of manifests, folders and files, read every text, and report all problems."""
    lines: list[str] = []
    paths = list(paths)
    entries = [entry for path in paths for entry in manifests.read(path, lines)]
    problems = [_of_line(line) for line in lines]
    for path in paths:
        problems += [Problem("unused file", str(file), file.suffix) for file in manifests.unused(path)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter's lock
        heard = list(pool.map(_listen, entries))
    texts: dict[tuple[str, str], str] = {}
    sounds: dict[str, str] = {}
    for entry, sound in zip(entries, heard, strict=True):
        problems += sound.problems
        problems += _of_silence(entry, sound)
        problems += _of_text(entry, sound.peak, texts)
        problems += _of_words(entry, sound)
        problems += _of_rate(entry, sound)
        if sound.sha256 is not None and sounds.setdefault(sound.sha256, entry.where) != entry.where:
            problems.append(Problem("duplicate audio", entry.where, f"as {sounds[sound.sha256]}"))
    return Report(len(entries), sum(sound.seconds for sound in heard), problems)


@dataclass(frozen=True)
class _Sound:
    seconds: float
    peak: float | None
    sha256: str | None
    problems: Sequence[Problem] = ()
    is_cancelled: bool = False  # the channels are nearly each other's opposite


def _listen(entry: Entry) -> _Sound:
    if not entry.path.exists():
        return _Sound(0.0, None, None, [Problem("missing audio", entry.where, str(entry.path))])
    try:
        sound = parts.measure(entry.path, entry.start_seconds, entry.declared_seconds)
    except parts.PartError as error:
        return _Sound(0.0, None, None, [Problem("duration disagrees", entry.where, str(error))])
    except audio_file.AudioError as error:
        return _Sound(0.0, None, None, [Problem("unreadable audio", entry.where, str(error))])
    problems = [Problem("duration disagrees", entry.where, sound.remark)] if sound.remark else []
    if sound.is_unfinished:
        problems.append(Problem("unfinished header", entry.where, parts.UNFINISHED))
    return _Sound(sound.seconds, sound.peak, sound.sha256, problems, _is_cancelled(entry.path))


def _is_cancelled(path: Path) -> bool:
    """Whether a file's channels cancel when they are averaged, as they do if one is wired the wrong way.

    Seen in the wild: https://github.com/m-bain/whisperX/pull/750.
    """
    mixed = 0.0
    try:
        with soundfile.SoundFile(path) as file:
            if file.channels < 2:
                return False
            each = np.zeros(file.channels)
            while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
                each += np.sum(block**2, axis=0, dtype=np.float64)
                mixed += float(np.sum(block.mean(axis=1) ** 2, dtype=np.float64))
    except (soundfile.SoundFileError, TypeError):  # of a container that only PyAV reads
        return False
    return mixed < CANCELLED**2 * float(np.max(each))


def _of_line(line: str) -> Problem:
    where, colon, detail = line.partition(": ")
    return Problem("unreadable line", where if colon else "", detail if colon else line)


def _of_silence(entry: Entry, sound: _Sound) -> Iterable[Problem]:
    text = entry.reference
    if text is None or not text.strip():
        return
    if sound.is_cancelled:
        yield Problem(
            "silent audio", entry.where, f"{entry.path.name}: its channels cancel; keep one of them"
        )
    elif sound.peak is not None and sound.peak <= AUDIBLE_PEAK:
        detail = f"{entry.path.name}, peak {sound.peak:.5f}, but {_short(text)}"
        yield Problem("silent audio", entry.where, detail)


def _of_text(entry: Entry, peak: float | None, texts: dict[tuple[str, str], str]) -> Iterable[Problem]:
    text = entry.reference
    if text is None:
        yield Problem("no reference", entry.where, entry.path.name)
        return
    if not text.strip():
        is_speechless = "hallucination" in entry.tags  # noise and music made without speech
        if peak is not None and peak > AUDIBLE_PEAK and not is_speechless:
            yield Problem("empty reference", entry.where, f"{entry.path.name}, peak {peak:.2f}")
        return
    key = (" ".join(text.lower().split()), entry.language or "")
    if texts.setdefault(key, entry.where) != entry.where:
        yield Problem("duplicate reference", entry.where, f"{_short(text)}, as {texts[key]}")
    hidden = sorted(
        {c for c in text if c != "\ufffd" and unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn")}
    )
    hidden = [c for c in hidden if c not in "\u200c\u200d"]  # joiners, which Persian and Indic spelling needs
    if hidden:
        names = ", ".join(f"U+{ord(c):04X}" for c in hidden)
        yield Problem("control character", entry.where, f"{names} in {_short(text)}")
    if "\ufffd" in text:
        yield Problem("replacement character", entry.where, _short(text))
    if _WRONG_ENCODING.search(text):
        yield Problem("wrong encoding", entry.where, _short(text))
    if not any(c.isalnum() for c in text):
        yield Problem("no words", entry.where, _short(text))
    mixed = [word for word in re.findall(r"[^\W\d_]+", text) if len(_scripts(word)) > 1]
    if mixed:
        yield Problem("mixed scripts", entry.where, f"{_short(mixed[0])} in {_short(text)}")
    if any(c.isalnum() for c in text) and not any(
        c.isalnum() for c in _ASIDE.sub("", _MARKUP.sub("", unicodedata.normalize("NFKC", text)))
    ):
        yield Problem("only tags", entry.where, _short(text))
    elif found := _MARKUP.search(unicodedata.normalize("NFKC", text)):
        yield Problem("markup", entry.where, f"{found.group()} in {_short(text)}")


def _of_words(entry: Entry, sound: _Sound) -> Iterable[Problem]:
    """Hold the times of a clip's words against its audio, and the words against its text."""
    words = word_times.of_clip(entry.tags)
    late = word_times.beyond(words, sound.seconds, parts.DURATION_SLACK_SECONDS)
    if late is not None and sound.sha256 is not None:
        detail = (
            f"{_short(late['word'] or '')} ends at {late['end']:.2f} s, the audio at {sound.seconds:.2f} s"
        )
        yield Problem("word times", entry.where, detail)
    elif words and entry.reference is not None:
        said = "".join(word["word"] or "" for word in words)
        if _letters(said) != _letters(entry.reference):
            detail = f"{len(words)} words are not those of {_short(entry.reference)}"
            yield Problem("word times", entry.where, detail)


def _of_rate(entry: Entry, sound: _Sound) -> Iterable[Problem]:
    """Find speech that is too fast or too slow for anyone, as with a wrong sample rate in the header.

    Seen in the wild: https://github.com/microsoft/DNS-Challenge/issues/106, where 16 kHz is called 48.
    """
    text = _MARKUP.sub(" ", unicodedata.normalize("NFKC", entry.reference or ""))
    letters = [c for c in text if c.isalpha()]
    if sound.sha256 is None or len(letters) < LEAST_LETTERS or (sound.peak or 0.0) <= AUDIBLE_PEAK:
        return
    signs = sum(unicodedata.east_asian_width(c) == "W" for c in letters)
    rate = len(letters) / sound.seconds
    if rate > (FAST_SIGNS if 2 * signs > len(letters) else FAST):
        yield Problem("speech rate", entry.where, f"{rate:.0f} letters a second in {entry.path.name}")
    elif rate < SLOW and _is_told_by_slowness(letters, text):
        heard_seconds = _heard_seconds(entry)
        if heard_seconds and len(letters) / heard_seconds < SLOW:
            detail = f"{len(letters)} letters in {heard_seconds:.1f} s of sound in {entry.path.name}"
            yield Problem("speech rate", entry.where, detail)


def _is_told_by_slowness(letters: Sequence[str], text: str) -> bool:
    """Whether few letters mean slow speech: digits are read as many, and spelled letters take long."""
    has_digits = any(c.isdigit() for c in text)
    return (
        not has_digits
        and all(_has_case(c) for c in letters)
        and len(letters) >= LEAST_WORD * len(text.split())
    )


def _has_case(letter: str) -> bool:
    return letter.lower() != letter.upper()


def _heard_seconds(entry: Entry) -> float:
    """Return for how long a clip is not in a pause."""
    samples = parts.read(entry.path, entry.start_seconds, entry.declared_seconds).samples
    length = round(FRAME_SECONDS * SAMPLE_RATE_HZ)
    frames = samples[: len(samples) // length * length].reshape(-1, length)
    power = np.mean(frames**2, axis=1)
    return float(np.sum(power > power.max(initial=0.0) * 10 ** (-HEARD_DB / 10)) * FRAME_SECONDS)


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def _scripts(word: str) -> set[str]:
    if word.isascii():
        return set()
    first = (unicodedata.name(c, "").partition(" ")[0] for c in word)
    return {script for script in first if script in _SCRIPTS}


def _short(text: str) -> str:
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return f"“{shown}”" if len(shown) <= 60 else f"“{shown[:59]}…”"
