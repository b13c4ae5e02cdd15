"""The project's own, stricter reading of texts: what is written counts, the way of writing it does not.

Whisper's normaliser is what the field's figures are in. It also expands contractions, drops fillers and all
words in parentheses, knows only the typewriter's apostrophe, and removes the vowel signs of Indic scripts.
This one does none of that, so the difference between the two says what a figure owes to its normaliser.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

VERSION = "3"  # raise it with every change of what `normalize` returns

_APOSTROPHES = "\u2018\u2019\u201b\u02bc\u02bb\u02b9\u2032\u00b4\u0060\u05f3\ua78c"
_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u2033\u05f4\u300c\u300d\u300e\u300f"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u05be\u2043\ufe58\ufe63\uff0d"
# NFKC takes some of these apart into a space and a mark, so they are folded first
_TYPOGRAPHY = str.maketrans(
    {**dict.fromkeys(_APOSTROPHES, "'"), **dict.fromkeys(_QUOTES, '"'), **dict.fromkeys(_DASHES, "-")}
)
# Arabic: tatweel, harakat, superscript alef, Quranic signs; Hebrew: accents and niqqud (Unicode, chapter 9)
_POINTS = re.compile("[\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]|"
                     "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]")  # fmt: skip
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}(?:[^\W\d_]\b)?")
_FOLDED_CASE = {"tr": {"I": "ı", "İ": "i"}, "az": {"I": "ı", "İ": "i"}}  # SpecialCasing.txt of Unicode
_THOUSANDS = re.compile(r"(?<=\d)\.(?=\d{3}(?!\d))")
_CURRENCY = "$€£¢"
_TOKENS_OF_UNSPACED = r"[a-z0-9][a-z0-9'.,]*|\X"

# What transcribers write in parentheses of what is heard but not said. Other words there may be spoken.
_SOUNDS = (
    *(
        r"laugh(?:s|ing|ter)?",
        r"chuckl(?:es?|ing)",
        r"giggl(?:es?|ing)",
        r"cough(?:s|ing)?",
        r"sneez(?:es?|ing)",
    ),
    *(r"sniff(?:s|ing|les)?", r"sigh(?:s|ing)?", r"gasp(?:s|ing)?", r"groan(?:s|ing)?", r"yawn(?:s|ing)?"),
    *(
        r"breath(?:es?|s|ing)?",
        r"(?:in|ex)hal(?:es?|ing)",
        r"sob(?:s|bing)?",
        r"cry(?:ing)?",
        r"hum(?:s|ming)?",
    ),
    *(r"clear(?:s|ing)? throat", r"throat clearing", r"lip ?smack(?:s|ing)?", r"whistl(?:es?|ing)"),
    *(r"applau(?:se|ds|ding)", r"clap(?:s|ping)?", r"cheer(?:s|ing)?", r"music(?: playing)?", r"singing"),
    *(
        r"(?:background |spoken )?noise",
        r"static",
        r"beep(?:s|ing)?",
        r"click(?:s|ing)?",
        r"phone ring(?:s|ing)",
    ),
    *(r"silence", r"pause", r"hesitation", r"inaudible", r"unintelligible", r"indistinct", r"unclear"),
    *(r"cross[ -]?talk", r"foreign(?: language)?", r"笑い?", r"拍手", r"音楽"),
)
SOUND = re.compile(rf"\(\s*(?:{'|'.join(_SOUNDS)})\s*\)", re.IGNORECASE)  # such as (laughs)
_TAG = re.compile(
    rf"\[[^\[\]]*\]|</?[^\s<>/][^<>]*>|(?<!\w)%hesitation\b|{SOUND.pattern}", re.IGNORECASE
)  # and [noise], <unk>, %HESITATION

RULES = (  # in the order in which they are applied
    "typographic apostrophes, quotation marks and dashes become ' \" and - (Unicode, chapter 6.2)",
    "Unicode normalisation form NFKC (UAX #15)",
    "invisible characters (general category Cf) are removed",
    "tags are no words: what is in square or angle brackets (Radford et al. 2022, appendix C), %hesitation "
    "(NIST), and names of sounds in parentheses, such as (laughs); other words in parentheses stay, which "
    "Whisper's normaliser removes",
    "lower case; in Turkish and Azerbaijani I becomes ı (Unicode, SpecialCasing.txt)",
    "points of Arabic and Hebrew and the tatweel are removed; the marks of every other script are letters",
    "decimal digits of every script become 0 to 9 (general category Nd)",
    "dots within initials are removed (U.S. is us); every other dot outside a number is no word",
    "hyphens and all other punctuation and symbols divide words, but for an apostrophe within a word",
    "in English, numbers in words become digits, by openai-whisper's EnglishNumberNormalizer",
    "in Danish, Dutch, French, German, Italian, Portuguese and Spanish, by text2num, but for a lone one, "
    "which may be an article; a point before three digits is removed",
    "in languages without spaces each character is a word, but for words and numbers in Latin letters",
)


def normalize(
    text: str,
    language: str,
    is_unspaced: bool,
    english_numbers: Callable[[str], str] | None,
    numbers: Callable[[str], str] | None = None,
) -> str:
    """Return the text's words joined by single spaces; `RULES` says how they are found.

    Args:
        language: Whisper's code.
        is_unspaced: whether the language is written without spaces between words.
        english_numbers: turns the number words of a lower-case text into digits; None to leave them.
        numbers: the same for the text's own language, if it is another.
    """
    text = unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY))
    text = "".join(c for c in text.translate(_TYPOGRAPHY) if unicodedata.category(c) != "Cf")
    text = _TAG.sub(" ", text)
    for letter, lower in _FOLDED_CASE.get(language, {}).items():
        text = text.replace(letter, lower)
    text = unicodedata.normalize("NFC", _POINTS.sub("", text.lower()))
    text = "".join(str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c for c in text)
    text = _INITIALS.sub(lambda found: found.group().replace(".", ""), text)
    if numbers is not None:
        text = unicodedata.normalize("NFKC", numbers(_THOUSANDS.sub("", text)))  # it writes 1º
    in_english = language == "en" and english_numbers is not None
    if in_english:
        text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = _words_only(text, _CURRENCY + "%" if in_english else "")
    if in_english:
        assert english_numbers is not None
        text = english_numbers(" ".join(text.split()))
        text = re.sub(rf"(?<![\d])%|[{_CURRENCY}](?!\d)", " ", text)
    if is_unspaced:
        text = " ".join(_tokens(text))
    return " ".join(text.split())


def formatted(text: str, is_unspaced: bool) -> str:
    """Return the words with their case and punctuation; only typographic variants and NFC are folded."""
    text = unicodedata.normalize("NFC", text.translate(_TYPOGRAPHY).replace("\u2026", "..."))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    words = re.findall(r"\S", text) if is_unspaced else text.split()
    return " ".join(word for word in words if is_unspaced or any(c.isalnum() for c in word))


def _words_only(text: str, kept: str) -> str:
    """Replace what is no letter, mark or digit by a space, except apostrophes and points inside."""
    found = []
    for place, c in enumerate(text):
        before, after = text[place - 1 : place], text[place + 1 : place + 2]
        is_in_word = _is_letter(before) and _is_letter(after)
        is_in_number = before.isdigit() and after.isdigit()
        is_inside = (c == "'" and is_in_word) or (c in ".," and is_in_number)
        if unicodedata.category(c)[0] in "LMN" or c in kept or is_inside:
            found.append(c)
        elif c != '"' or not is_in_word:  # within a word it marks a Hebrew abbreviation, and is dropped
            found.append(" ")
    return "".join(found)


def _is_letter(c: str) -> bool:
    return bool(c) and unicodedata.category(c)[0] in "LM"


@cache
def _pattern() -> re.Pattern[str]:
    import regex  # of openai-whisper's dependencies: \X, a character with its marks, is not in `re`

    found: re.Pattern[str] = regex.compile(_TOKENS_OF_UNSPACED)
    return found


def _tokens(text: str) -> list[str]:
    return [token for token in _pattern().findall(text) if token.strip()]
