"""openai-api: any server with OpenAI's `/v1/audio/transcriptions` (vLLM, speaches, faster-whisper-server).

    ASRGATE_OPENAI_URL=http://localhost:8000/v1 ASRGATE_OPENAI_MODEL=openai/whisper-tiny.en \\
        asrgate run --backends openai-api

The row is of the server's own model, unless the user states which checkpoint the server runs. docs/remote.md
says what the rows of such a server show and when they may be ranked.
"""

from __future__ import annotations

import email.utils
import json
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from asrgate.backends import openai_server
from asrgate.backends.base import (
    AUTO,
    REMOTE,
    SAMPLE_RATE_HZ,
    BackendError,
    BackendUnavailable,
    Checkpoint,
    ModelIdentity,
    Settings,
    Transcript,
)
from asrgate.backends.devices import require_package
from asrgate.backends.openai_server import LEFT_TO_SERVER, Server
from asrgate.backends.whisper_common.decoding import require_honourable, require_language

RETRIED = (408, 429, 500, 502, 503, 504)
FIRST_WAIT_SECONDS = 0.5  # before the first retry; doubled for each further one
CONNECT_LIMIT_SECONDS = 30.0  # for the first request, before anything is measured
LONGEST_ANSWER_BYTES = 16 * 2**20
SHOWN_CHARACTERS = 200  # of a server's answer, in a message
AS_SERVED = "as served"  # the revision of a model that nobody has stated
UNKNOWN = "unknown"
WHY = "no request can make a server obey it, and nobody has stated it"


class OpenAiApi:
    """A server with OpenAI's transcription API, to which each clip is sent as 32-bit float WAV.

    The API carries the task and the language; everything else in `Settings` is up to the server. Of those
    fields `applied_settings` has only the ones that the user states in the environment; of a model of the
    server's own, the others do not apply.
    """

    devices: ClassVar[Mapping[str, Sequence[str]]] = {REMOTE: ("as-served",)}
    imports: ClassVar[Sequence[str]] = ("httpx2",)

    def __init__(self, server: Server, client: Any, checkpoint: Checkpoint, settings: Settings):
        self._server = server
        self._client = client
        self._checkpoint = checkpoint
        self._settings = settings
        self._models: list[str] | None = None
        self._software: str | None = None

    @classmethod
    def check(cls, device: str, precision: str) -> None:
        """Raise BackendUnavailable if the package or the server's address is missing. Contacts no server."""
        require_package("httpx2", "httpx2")
        openai_server.from_environment()

    @classmethod
    def model_identity(cls) -> ModelIdentity | None:
        """Return the model by the server's name for it; None if the user states which checkpoint it is.

        Contacts no server.
        """
        server = openai_server.from_environment()
        if server.checkpoint_sha256 is not None:
            return None
        return ModelIdentity(
            name=server.model,
            revision=AS_SERVED,
            sha256=server.model_sha256,
            languages=server.languages,
            licence=UNKNOWN,
            server=server.url,
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str, precision: str, settings: Settings) -> OpenAiApi:
        """Connect to the server, and get its list of models if it has one.

        Raises:
            BackendUnavailable: the server cannot be reached.
            BackendError: the server refuses the key, a setting cannot be requested, or the user states other
                weights.
        """
        server = openai_server.from_environment()
        if checkpoint.is_of_engine:
            _require_possible(server, settings)
            _require_stated(server, settings, (name for name in LEFT_TO_SERVER if name != "threads"))
        else:
            require_honourable(checkpoint, settings)
            _require_same(server, checkpoint)
            _require_stated(server, settings, ["beam_size"])
        import httpx2

        headers = {"Authorization": f"Bearer {server.key.value}"} if server.key.value else {}
        # without redirects, because a key must not be sent to another host
        client = httpx2.Client(headers=headers, follow_redirects=False)
        backend = cls(server, client, checkpoint, settings)
        try:
            backend._connect()
        except BackendError:
            client.close()
            raise
        return backend

    @property
    def applied_settings(self) -> Mapping[str, Any]:
        """What the request carries, what the user states, and the server's name, but no unknown fields.

        Of a model of the server's own, unknown fields are None, and `not_applied` says why.
        """
        stated = self._server.stated(self._settings)
        is_own = self._checkpoint.is_of_engine
        unknown = [name for name in LEFT_TO_SERVER if is_own and name not in stated]
        carried = {"task": self._settings.task}
        if self._settings.task == "transcribe":  # /audio/translations has no field for the language
            carried["language"] = self._settings.language  # type: ignore[assignment]
        return {
            **carried,
            **dict.fromkeys(unknown),
            **stated,
            **({"not_applied": dict.fromkeys(unknown, WHY)} if unknown else {}),
            "checkpoint_sha256": self._server.model_sha256 if is_own else self._server.checkpoint_sha256,
            "stated_by_the_user": [
                *(["checkpoint_sha256"] if self._server.checkpoint_sha256 else []),
                *stated,
            ],
            "url": self._server.url,
            "server_model": self._server.model,
            "server_lists_model": None if self._models is None else self._server.model in self._models,
            "server_software": self._software,
            "audio_format": "wav, 32-bit float",
            "timeout_seconds": self._server.timeout_seconds,
            "retries_at_most": self._server.retries,
        }

    def transcribe(self, audio: np.ndarray, language: str) -> Transcript:
        """Send one clip and return the answer; retry if the server is busy or fails.

        `stage_seconds` has "wav" (encoding), "request" (the attempt that succeeded) and, for each failed
        attempt, "retry_1", "retry_2", … (the attempt and the wait after it).

        Raises:
            BackendError: the server refused, failed every time, did not answer in time, or gave a bad answer.
        """
        if self._checkpoint.is_of_engine:
            _require_known(self._server, language)
        else:
            require_language(self._checkpoint, language)
        start = time.perf_counter()
        deadline = start + self._server.timeout_seconds
        fields = {"model": self._server.model, "response_format": "json", "temperature": "0"}
        if self._settings.task == "transcribe":
            fields["language"] = language
        body = _wav(audio)
        stages = {"wav": time.perf_counter() - start}
        endpoint = "translations" if self._settings.task == "translate" else "transcriptions"
        address = f"{self._server.url}/audio/{endpoint}"
        for attempt in range(self._server.retries + 1):
            began = time.perf_counter()
            try:
                status, headers, answer = self._request(
                    "POST", address, deadline, data=fields, files={"file": ("clip.wav", body, "audio/wav")}
                )
                if status == 200:
                    stages["request"] = time.perf_counter() - began
                    return Transcript(self._text(answer), stage_seconds=stages)
                failure = self._failure(status, answer)
                if status not in RETRIED:
                    raise BackendError(failure)
            except _ConnectionFailure as error:
                failure, headers = str(error), {}
            wait = FIRST_WAIT_SECONDS * 2**attempt
            requested = _retry_after_seconds(headers.get("retry-after"))
            wait = wait if requested is None else requested
            if attempt == self._server.retries:
                break
            if time.perf_counter() + wait >= deadline:
                failure += f"; it asks for a wait of {wait:g} s, which the time limit does not allow"
                break
            time.sleep(wait)
            stages[f"retry_{attempt + 1}"] = time.perf_counter() - began
        tries = attempt + 1
        raise BackendError(f"{failure} (given up after {tries} {'try' if tries == 1 else 'tries'})")

    def synchronize(self) -> None:
        """Nothing to wait for: an answer is complete when `transcribe` has read it."""

    def _connect(self) -> None:
        """Contact the server before anything is measured; get its models and the name of its software.

        Raises:
            BackendUnavailable: the server cannot be reached.
            BackendError: the server refuses the key, or does not answer in time.
        """
        deadline = time.perf_counter() + min(self._server.timeout_seconds, CONNECT_LIMIT_SECONDS)
        try:
            status, headers, answer = self._request("GET", f"{self._server.url}/models", deadline)
        except _ConnectionFailure as error:
            raise BackendUnavailable(
                str(error), f"start the server, or correct {openai_server.URL}"
            ) from error
        if status in (401, 403):
            raise BackendError(self._failure(status, answer))
        self._software = headers.get("server")
        if status == 200:
            try:
                self._models = sorted(str(model["id"]) for model in json.loads(answer)["data"])[:50]
            except (ValueError, TypeError, KeyError):
                self._models = None  # no list in OpenAI's form; a call will show whether the model exists

    def _request(
        self, method: str, address: str, deadline: float, **content: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request; return the status, headers and body of the answer.

        Raises:
            _ConnectionFailure: the connection failed.
            BackendError: the deadline passed, or the answer is too long.
        """
        import httpx2

        left = deadline - time.perf_counter()
        late = BackendError(
            f"{self._server.url} did not answer within {max(left, 0.0):.3g} s "
            f"(raise the limit with {openai_server.TIMEOUT})"
        )
        if left <= 0:
            raise late
        try:
            with self._client.stream(method, address, timeout=left, **content) as response:
                parts, size = [], 0
                for part in response.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > LONGEST_ANSWER_BYTES:
                        raise BackendError(f"{self._server.url} sent {size} bytes, too many for a transcript")
                    if time.perf_counter() > deadline:  # httpx2 limits each read, not their sum
                        raise late
                return response.status_code, response.headers, b"".join(parts)
        except httpx2.TimeoutException as error:
            raise late from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = self._server.hide_key(str(error)) or type(error).__name__
            raise _ConnectionFailure(f"the connection to {self._server.url} failed: {reason}") from error

    def _failure(self, status: int, answer: bytes) -> str:
        """Return why the server did not transcribe."""
        why = {
            401: f"it needs a valid key in {openai_server.KEY}",
            403: f"the key in {openai_server.KEY} has no permission for this",
            404: f"it has no model {self._server.model!r} there, or no such address"
            + (f"; its models: {', '.join(self._models)}" if self._models else ""),
            413: "the clip is too large for it",
            429: "there are too many requests, or no quota is left",
        }.get(status, "the server failed" if status >= 500 else "it refuses the request")
        return f"{self._server.url} answered {status}: {why}; it says {self._quoted(answer)}"

    def _text(self, answer: bytes) -> str:
        try:
            text = json.loads(answer)["text"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str):
            raise BackendError(
                f'{self._server.url} answered 200, but not with {{"text": …}}: {self._quoted(answer)}'
            )
        return text.strip()

    def _quoted(self, answer: bytes) -> str:
        text = " ".join(self._server.hide_key(answer.decode("utf-8", "replace")).split())
        return repr(text[:SHOWN_CHARACTERS]) if text else "nothing"


class _ConnectionFailure(Exception):
    """No answer came, for another reason than a timeout."""


def _require_possible(server: Server, settings: Settings) -> None:
    """Raise BackendError if no server could do what is asked of a model of its own."""
    if settings.task not in ("transcribe", "translate"):
        raise BackendError(f"there is no task {settings.task!r}; choose transcribe or translate")
    if settings.beam_size < 1 or settings.threads < 1:
        raise BackendError("beam_size and threads must be at least 1")
    if settings.language is not None:
        _require_known(server, settings.language)


def _require_known(server: Server, language: str) -> None:
    if language == AUTO:
        raise BackendError("it does not say which language it detects; name one, or leave it out here")
    if server.languages and language not in server.languages:
        raise BackendError(
            f"{server.model} understands {', '.join(server.languages)} ({openai_server.LANGUAGES}) and "
            f"cannot decode {language!r}"
        )


def _require_same(server: Server, checkpoint: Checkpoint) -> None:
    """Raise BackendError if the run's checkpoint is another than the user states."""
    if server.checkpoint_sha256 not in (None, checkpoint.sha256, checkpoint.tensors_sha256):
        raise BackendError(
            f"{openai_server.CHECKPOINT} states that the server runs {server.checkpoint_sha256:.12}…, but "
            f"this run uses {checkpoint.name} ({checkpoint.sha256:.12}…); choose the server's model with "
            "--model, or serve this one"
        )


def _require_stated(server: Server, settings: Settings, names: Iterable[str]) -> None:
    """Raise BackendError if one of some settings is neither the default nor stated by the user."""
    asked, default, stated = settings.as_dict(), Settings().as_dict(), server.stated(settings)
    for name in names:
        if asked[name] != default[name] and name not in stated:
            value = asked[name] if isinstance(asked[name], str) else json.dumps(asked[name])
            raise BackendError(
                f"the API cannot request {name} {value}; start the server with it and state "
                f"{openai_server.DECODING}='{name}={value}', or leave it at {default[name]!r}"
            )


def _wav(audio: np.ndarray) -> bytes:
    """Return the samples as a WAV file of 32-bit floats, so that the server gets exactly these samples.

    soundfile is not used, because it writes the time into the file. The same clip must give the same bytes;
    otherwise a server that caches answers by them would not be detected.
    """
    data = audio.astype("<f4").tobytes()
    IEEE_FLOAT, CHANNELS, WIDTH_BYTES = 3, 1, 4
    form = struct.pack(
        "<HHIIHHH",
        IEEE_FLOAT,
        CHANNELS,
        SAMPLE_RATE_HZ,
        SAMPLE_RATE_HZ * WIDTH_BYTES,
        WIDTH_BYTES,
        8 * WIDTH_BYTES,
        0,
    )
    chunks = {b"fmt ": form, b"fact": struct.pack("<I", len(audio)), b"data": data}
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(c)) + c for name, c in chunks.items())
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _retry_after_seconds(text: str | None) -> float | None:
    """Return the wait that a Retry-After header requests (RFC 9110, section 10.2.3), or None without one."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
