"""Which OpenAI-compatible server to use and what the user states about it, from the environment."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from asrgate.backends.base import BackendUnavailable, Settings

URL = "ASRGATE_OPENAI_URL"
MODEL = "ASRGATE_OPENAI_MODEL"
KEY = "ASRGATE_OPENAI_KEY"  # not OPENAI_API_KEY: a key must only be sent to the server that it is meant for
CHECKPOINT = "ASRGATE_OPENAI_CHECKPOINT"
DECODING = "ASRGATE_OPENAI_DECODING"
LANGUAGES = "ASRGATE_OPENAI_LANGUAGES"
TIMEOUT = "ASRGATE_OPENAI_TIMEOUT"
RETRIES = "ASRGATE_OPENAI_RETRIES"

AS_ASKED = "as-asked"
CARRIED = ("task", "language")  # the only fields of Settings that the API can carry and must obey
LEFT_TO_SERVER = tuple(field.name for field in fields(Settings) if field.name not in CARRIED)


@dataclass(frozen=True, repr=False)
class Secret:
    """A string that no traceback or log shows."""

    value: str | None

    def __repr__(self) -> str:
        return "<hidden>"


@dataclass(frozen=True)
class Server:
    """One server and what is known about it.

    Attributes:
        url: without a trailing slash, as OpenAI's clients take it: `https://host/v1`.
        model: the server's name for the model.
        key: sent as a bearer token, if not None. It appears in no message, record or representation.
        checkpoint_sha256: of the weights that it serves, as the user states; None if unknown.
        decoding: the fields of Settings with which the server runs, as the user states; None if all are as
            requested.
        languages: that its model understands, as the user states; none: unknown.
        timeout_seconds: time allowed for one call, including all its tries and waits.
        retries: how often a call is retried.
    """

    url: str
    model: str
    key: Secret
    checkpoint_sha256: str | None
    decoding: Mapping[str, Any] | None
    languages: tuple[str, ...]
    timeout_seconds: float
    retries: int

    def stated(self, settings: Settings) -> dict[str, Any]:
        """Return the fields of Settings that the API cannot carry, as far as the user states them."""
        if self.decoding is None:
            return {name: getattr(settings, name) for name in LEFT_TO_SERVER}
        return dict(self.decoding)

    @property
    def model_sha256(self) -> str:
        """What stands for the digest of a model that only the server knows: that of address and name."""
        return hashlib.sha256(f"{self.url}\0{self.model}".encode("utf-8", "surrogateescape")).hexdigest()

    def hide_key(self, text: str) -> str:
        """Return a text without the key, because servers quote it in errors."""
        return text.replace(self.key.value, "<key>") if self.key.value else text


def from_environment(environment: Mapping[str, str] | None = None) -> Server:
    """Read the server from the environment.

    Raises:
        BackendUnavailable: a variable is missing or invalid; the message never quotes the key.
    """
    values = os.environ if environment is None else environment
    url = values.get(URL, "").strip()
    if not url:
        raise BackendUnavailable("no server is named", f"set {URL}, for example to http://localhost:8000/v1")
    _require_plain(url)
    model = values.get(MODEL, "").strip()
    if not model:
        raise BackendUnavailable(
            "the server's model is not named", f"set {MODEL} to the name its /models lists"
        )
    return Server(
        url=url.rstrip("/").removesuffix("/audio/transcriptions"),
        model=model,
        key=Secret(_key(values)),
        checkpoint_sha256=_checkpoint(values),
        decoding=_decoding(values.get(DECODING, "").strip()),
        languages=tuple(values.get(LANGUAGES, "").replace(",", " ").split()),
        timeout_seconds=_number(values, TIMEOUT, 300.0, least=0.001),
        retries=int(_number(values, RETRIES, 3, least=0, whole=True)),
    )


def _require_plain(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_plain = False
    if not is_plain:
        raise BackendUnavailable(
            f"{URL} is not an http:// or https:// address",
            f"set {URL}, for example to http://localhost:8000/v1",
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        # the address is recorded, so nothing secret may be part of it
        raise BackendUnavailable(
            f"{URL} has more than scheme, host, port and path",
            f"leave out user, password, query and fragment; put a key into {KEY}",
        )


def _key(values: Mapping[str, str]) -> str | None:
    key = values.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BackendUnavailable(f"{KEY} has characters that a header cannot carry", f"set {KEY} again")
    return key or None


def _checkpoint(values: Mapping[str, str]) -> str | None:
    text = values.get(CHECKPOINT, "").strip().lower()
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise BackendUnavailable(
            f"{CHECKPOINT} is not a SHA-256 of 64 hexadecimal digits",
            "take it from `asrgate weights list --json`",
        )
    return text or None


def _decoding(text: str) -> dict[str, Any] | None:
    if text == AS_ASKED:
        return None
    stated: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, value = part.partition("=")
        name = name.strip()
        if name not in LEFT_TO_SERVER:
            raise BackendUnavailable(
                f"{DECODING} states {name!r}, which is not one of the settings it can state",
                f"write {AS_ASKED}, or NAME=VALUE separated by semicolons, for {', '.join(LEFT_TO_SERVER)}",
            )
        expected = type(Settings.__dataclass_fields__[name].default)
        try:
            parsed = value.strip() if expected is str else json.loads(value)
        except ValueError:
            parsed = None
        if expected is float and type(parsed) is int:
            parsed = float(parsed)
        if type(parsed) is not expected:
            raise BackendUnavailable(
                f"{DECODING} states {name}={value.strip()!r}, which is not of type {expected.__name__}",
                f"write it as JSON, for example {name}={json.dumps(getattr(Settings(), name))}",
            )
        stated[name] = parsed
    return stated


def _number(
    values: Mapping[str, str], name: str, default: float, *, least: float, whole: bool = False
) -> float:
    text = values.get(name, "").strip()
    try:
        number = float(int(text) if whole else text) if text else default
    except ValueError:
        number = math.nan
    if not least <= number < math.inf:
        kind = "a whole number" if whole else "a number of seconds"
        raise BackendUnavailable(f"{name} is {text!r}, not {kind}", f"unset it, or set it to {default:g}")
    return number
