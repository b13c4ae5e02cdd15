"""Text normalisers: Whisper's own, loaded from openai-whisper without importing it, and the project's."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from asrgate.backends.base import AsrgateError, did_you_mean
from asrgate.harness.metrics import strict
from asrgate.harness.record_types import NormalizerRecord

SIMPLER = ("whisper-basic", "none")  # what takes a text that another normaliser cannot, in this order
LONGEST_CHARACTERS = 300_000  # five hours of speech; Whisper's normaliser takes seconds for it
MOST_BRACKET_STEPS = 20_000_000  # for each opening bracket its expressions search the rest of the text: 1 s
UNTAKEN = "a text cannot be normalised by "  # how notes begin

Normalizer = Callable[[str, str], str]  # (text, ISO 639-1 language) -> words joined by single spaces

NAMES = {
    "whisper": "Whisper's English normaliser for English clips, its basic one for others",
    "whisper-english": "Whisper's English normaliser for every clip",
    "whisper-basic": "Whisper's basic normaliser (lower case, no punctuation) for every clip",
    "strict": "the project's own: what is written counts, typographic variants do not (strict.RULES)",
    "formatted": "as written, case and punctuation included; typographic variants folded",
    "none": "leaves words as they are, split at white space",
}

# Written without spaces between words. Each character counts as a word, as in Radford et al. 2022
# (https://arxiv.org/abs/2212.04356, section 4.4 and appendix C).
UNSPACED_LANGUAGES = frozenset({"ja", "lo", "my", "th", "yue", "zh"})

NUMBER_LANGUAGES = frozenset({"da", "de", "es", "fr", "it", "nl", "pt"})  # of text2num, but for English

_SOURCES = ("__init__.py", "basic.py", "english.py", "english.json")
_REMEDY = "reinstall it with `pip install --force-reinstall openai-whisper`, or pass --normalizer none"
_MODULE_NAME = "_asrgate_whisper_normalizers"


class Guarded:
    """A normaliser that takes every text in bounded time: one that fails or is too long goes to a simpler.

    Attributes:
        notes: for each such text, what took it and why, for the record's warnings.
    """

    def __init__(self, steps: Sequence[tuple[str, Normalizer]]):
        """Begin with the normaliser that is asked for; the last, `none`, takes everything."""
        self._steps = steps
        self.notes: list[str] = []

    def __call__(self, text: str, language: str) -> str:
        """Normalise a text of a language (ISO 639-1)."""
        (asked, first), *others = self._steps
        why = _too_costly(text)
        if why is None:
            try:
                return first(text, language)
            except Exception as error:  # such as the assert that 5,000 digits trip in Whisper's
                why = type(error).__name__
        start = text[:40].encode("utf-8", "backslashreplace").decode()
        for name, step in others:
            if name != "none" and _too_costly(text) is not None:
                continue
            with contextlib.suppress(Exception):
                found = step(text, language)
                self.notes.append(f"{UNTAKEN}{asked} ({why}), so {name} took it: {start!r}…")
                return found
        raise AssertionError("the last step takes every text")


def _too_costly(text: str) -> str | None:
    """Say why Whisper's normalisers would take too long for a text; None if they would not."""
    if len(text) > LONGEST_CHARACTERS:
        return f"{len(text):,} characters"
    for opening, closing in (("<[", ">]"), ("(", ")")):
        rest = text[max(text.rfind(bracket) for bracket in closing) + 1 :]
        unclosed = sum(rest.count(bracket) for bracket in opening)
        if unclosed * len(rest) > MOST_BRACKET_STEPS:
            return f"{unclosed:,} brackets that are never closed"
    return None


class NormalizerError(AsrgateError):
    """No normaliser has that name, or openai-whisper, which provides it, is missing or incomplete."""


def normalizer(name: str) -> Normalizer:
    """Return the function that normalises `(text, language)`.

    Raises:
        NormalizerError: unknown name, or openai-whisper is not installed.
    """
    _check(name)
    if name == "none":
        return _split_only
    return Guarded([(step, _unguarded(step)) for step in dict.fromkeys((name, *SIMPLER))])


def _unguarded(name: str) -> Normalizer:
    if name == "none":
        return _split_only
    if name == "formatted":
        return lambda text, language: strict.formatted(text, language in UNSPACED_LANGUAGES)
    if name == "strict":
        english = _english_numbers()
        return lambda text, language: strict.normalize(
            text, language, language in UNSPACED_LANGUAGES, english, _numbers(language)
        )
    english, basic, spelled = _whisper()
    always_english, never_english = name == "whisper-english", name == "whisper-basic"

    def normalize(text: str, language: str) -> str:
        if always_english or (language == "en" and not never_english):
            chosen = english
        else:
            chosen = spelled if language in UNSPACED_LANGUAGES else basic
        return " ".join(chosen(text).split())

    return normalize


def identify(name: str) -> NormalizerRecord:
    """Return the `scoring.normalizer` entry: name, SHA-256 of the sources and word list, their version.

    Raises:
        NormalizerError: unknown name, or openai-whisper is not installed.
    """
    _check(name)
    if name == "none":
        return {"name": name, "sha256": hashlib.sha256(b"").hexdigest(), "version": "built in"}
    if name == "formatted":
        return {"name": name, "sha256": _own_sources().hexdigest(), "version": strict.VERSION}
    folder = _folder()
    digest = _own_sources() if name == "strict" else hashlib.sha256()
    for source in _SOURCES:
        digest.update(source.encode() + b"\0" + _read(folder / source))
    try:
        release = version("openai-whisper")
    except PackageNotFoundError:
        release = "unknown"
    if name == "strict":
        numbers = (
            f"text2num {release_of_numbers}" if (release_of_numbers := _numbers_release()) else "no text2num"
        )
        digest.update(numbers.encode())
        release = f"{strict.VERSION}, with openai-whisper {release} and {numbers}"
    return {"name": name, "sha256": digest.hexdigest(), "version": release}


def second(name: str) -> str:
    """Return the normaliser that every run is scored with beside its own."""
    return "whisper" if name == "strict" else "strict"


def _own_sources() -> hashlib._Hash:
    """Hash the project's rules and the version of Unicode's tables that they are applied with."""
    return hashlib.sha256(Path(strict.__file__).read_bytes() + unicodedata.unidata_version.encode())


def chosen(names: str) -> list[str]:
    """Return the normalisers in a comma-separated list, each once; the first is the one that decides.

    Raises:
        NormalizerError: one is unknown, none is named, or openai-whisper is not installed.
    """
    found = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip())) or [""]
    for name in found:
        identify(name)
    return found


def _check(name: str) -> None:
    if name not in NAMES:
        raise NormalizerError(
            f"no normaliser is called {name!r}.{did_you_mean(name, NAMES)} Available: {', '.join(NAMES)}"
        )


def _split_only(text: str, language: str) -> str:
    return " ".join(text.split())


@cache
def _whisper() -> tuple[Callable[[str], str], Callable[[str], str], Callable[[str], str]]:
    """Return Whisper's English, basic, and letter-splitting basic normalisers."""
    module = _load()
    with warnings.catch_warnings():
        # openai-whisper leaves its word list's file for the garbage collector to close
        warnings.simplefilter("ignore", ResourceWarning)
        english = module.EnglishTextNormalizer()
    return english, module.BasicTextNormalizer(), module.BasicTextNormalizer(split_letters=True)


@cache
def _english_numbers() -> Callable[[str], str]:
    """Return Whisper's function that turns English number words into digits."""
    _whisper()
    numbers: Callable[[str], str] = sys.modules[f"{_MODULE_NAME}.english"].EnglishNumberNormalizer()
    return numbers


def _numbers_release() -> str | None:
    """Return text2num's version; None if it is not installed: number words outside English then stay."""
    try:
        return version("text2num")
    except PackageNotFoundError:
        return None


@cache
def _numbers(language: str) -> Callable[[str], str] | None:
    """Return text2num's function that turns a language's number words into digits; None if it has none."""
    if language not in NUMBER_LANGUAGES or _numbers_release() is None:
        return None
    from text_to_num import alpha2digit

    # from 2 on: a one that belongs to no other number may be an article
    return lambda text: str(alpha2digit(text, language, threshold=2))


def _load() -> ModuleType:
    """Load whisper/normalizers as a separate package, because `import whisper` would import torch."""
    folder = _folder()
    spec = importlib.util.spec_from_file_location(
        _MODULE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None  # a path that ends in .py always has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module  # its relative imports look it up
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        del sys.modules[_MODULE_NAME]
        raise NormalizerError(
            f"cannot load the normalisers of openai-whisper ({error}); {_REMEDY}"
        ) from error
    return module


def _folder() -> Path:
    spec = importlib.util.find_spec("whisper")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "normalizers").is_dir():
            return Path(place) / "normalizers"
    cause = f"the package `whisper` at {spec.origin} is a different one" if spec else "it is not installed"
    raise NormalizerError(f"Whisper's normalisers come with openai-whisper, but {cause}; {_REMEDY}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NormalizerError(f"cannot read {path}: {error.strerror}; {_REMEDY}") from error
