"""Makes text from engines, files and users safe to show in a terminal, in Markdown and in a spreadsheet."""

from __future__ import annotations

import re
import unicodedata

_LETTER_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, separators
_JOINERS = "\u200c\u200d"  # part of the spelling of Persian, of Indic scripts and of emoji
MOST_SHOWN = 300_000  # characters: the transcript of four hours has 250,000
MOST_OF_REASON = 2000  # of an error, which may hold a whole page


def cut(text: str, most: int = MOST_SHOWN) -> str:
    """Return the text, or its beginning and how long it is: no report needs megabytes of one text."""
    return text if len(text) <= most else f"{text[:most]}… (cut here; {len(text):,} characters)"


def visible(text: str) -> str:
    """Return the text on one line, each control or invisible character escaped; cut if it is very long."""
    return "".join(
        _escape(c) if unicodedata.category(c) in _INVISIBLE and c not in _JOINERS else c for c in cut(text)
    )


def markdown(text: str) -> str:
    """Escape the text so that Markdown shows it literally: no markup, table cell, link or HTML."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # an underscore inside a word is not markup
    text = re.sub(r"://", "&#58;//", text)  # would become a link even without brackets
    text = re.sub(r"(?i)\bwww\.", lambda match: match.group()[:-1] + "&#46;", text)
    text = re.sub(r"@(?=\w)(?<!\w@)", "&#64;", text)  # a mention; `name@device` is not one
    return re.sub(r"^(\s*\d*)([-+#.)=]+)(?=\s|$)", r"\1\\\2", text)  # a list, heading or rule


def csv_cell(text: str) -> str:
    """Escape the text so that no spreadsheet interprets it as a formula (CWE-1236)."""
    text = visible(text)
    # spreadsheets skip white space and fold full-width signs before they look for a formula
    start = unicodedata.normalize("NFKC", text).lstrip()[:1]
    return f"'{text}" if start in ("=", "+", "-", "@") or text.startswith(("\\t", "\\r")) else text


def _escape(character: str) -> str:
    code = ord(character)
    if character in _LETTER_ESCAPES:
        return _LETTER_ESCAPES[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
