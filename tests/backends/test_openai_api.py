"""The openai-api backend against a small server on this machine that answers, refuses, fails and stalls."""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import email.utils
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tones

from asrgate import backends
from asrgate.backends import openai_api
from asrgate.backends.base import BackendError, BackendUnavailable, Checkpoint, Settings
from asrgate.backends.checkpoints.catalog import resolve
from asrgate.backends.openai_api import OpenAiApi
from asrgate.harness import record, report
from asrgate.harness.scoring import verify

KEY = "sk-very-secret-0123456789"
AUDIO = tones.speak("red apple white table")
FAR_FROM_FOREVER = 30.0  # seconds: a busy machine takes some, what hangs here takes far longer
CARRIED = {"task", "language"}

Reply = tuple[int, dict[str, str], bytes]


class TonesServer(ThreadingHTTPServer):
    """Hears tones. `replies` are given first, one a transcription; a number in their place stalls so long."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[Reply | float] = []
        self.always: Reply | None = None
        self.asked: list[dict[str, Any]] = []
        self.seconds_a_word = 0.0
        self.cache: dict[bytes, str] | None = None
        self.lists_models = True
        self.released = threading.Event()  # ends the stalls when the test does

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: TonesServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if not self._allowed():
            return
        if self.path == "/v1/models" and self.server.lists_models:
            self._send(200, {}, json.dumps({"data": [{"id": "tones-1"}, {"id": "tones-2"}]}).encode())
        else:
            self._send(404, {}, b"not here")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._allowed():
            return
        fields = _fields(self.headers["Content-Type"], body)
        self.server.asked.append({**fields, "path": self.path, "headers": dict(self.headers)})
        reply = self.server.replies.pop(0) if self.server.replies else self.server.always
        if isinstance(reply, (int, float)):
            self.server.released.wait(reply)
            self.close_connection = True
        elif reply is not None:
            self._send(*reply)
        elif fields["model"] != "tones-1":
            self._send(404, {}, json.dumps({"error": {"message": "The model does not exist."}}).encode())
        else:
            self._send(200, {}, json.dumps({"text": f" {self._hear(fields['file'])} "}).encode())

    def _hear(self, wav: bytes) -> str:
        if self.server.cache is not None and wav in self.server.cache:
            return self.server.cache[wav]
        samples, rate_hz = soundfile.read(io.BytesIO(wav), dtype="float32")
        assert rate_hz == tones.SAMPLE_RATE_HZ
        time.sleep(self.server.seconds_a_word * len(samples) / tones.WORD_SAMPLES)
        text = tones.hear(samples)
        if self.server.cache is not None:
            self.server.cache[wav] = text
        return text

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization")
        if given in (None, f"Bearer {KEY}"):
            return True
        self._send(401, {}, json.dumps({"error": f"Incorrect API key provided: {given}"}).encode())
        return False

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _fields(content_type: str, body: bytes) -> dict[str, Any]:
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    fields: dict[str, Any] = {}
    for part in message.iter_parts():  # type: ignore[attr-defined]
        content = part.get_payload(decode=True)
        name = part.get_param("name", header="content-disposition")
        fields[name] = content if part.get_filename() else content.decode()
    return fields


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[TonesServer]:
    """A server, named in the environment, and no wait between tries worth speaking of."""
    with TonesServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("ASRGATE_OPENAI_URL", running.url)
        monkeypatch.setenv("ASRGATE_OPENAI_MODEL", "tones-1")
        monkeypatch.setattr(openai_api, "FIRST_WAIT_SECONDS", 0.01)
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def checkpoint(model: Path) -> Checkpoint:
    return resolve(str(model))


@pytest.fixture
def load(checkpoint: Checkpoint) -> Iterator[Callable[..., OpenAiApi]]:
    loaded: list[OpenAiApi] = []

    def call(**settings: Any) -> OpenAiApi:
        loaded.append(OpenAiApi.load(checkpoint, "remote", "as-served", Settings(**settings)))
        return loaded[-1]

    yield call
    for backend in loaded:
        backend._client.close()


def error(status: int, text: str = "", **headers: str) -> Reply:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, text.encode()


# --- answers --------------------------------------------------------------------------------------------


def test_server_is_sent_the_samples_themselves_and_its_text_comes_back(
    server: TonesServer, load: Callable[..., OpenAiApi]
) -> None:
    audio = AUDIO + np.float32(1e-6)  # lost in 16 bits
    heard = load().transcribe(audio, "en")
    assert heard.text == "red apple white table"
    assert heard.tokens is None
    assert set(heard.stage_seconds) == {"wav", "request"}
    (asked,) = server.asked
    assert asked["path"] == "/v1/audio/transcriptions"
    assert (asked["model"], asked["language"], asked["temperature"]) == ("tones-1", "en", "0")
    assert np.array_equal(soundfile.read(io.BytesIO(asked["file"]), dtype="float32")[0], audio)
    assert "Authorization" not in asked["headers"]


def test_address_may_be_the_whole_one(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_URL", f"{server.url}/audio/transcriptions/")
    assert load().transcribe(AUDIO, "en").text == "red apple white table"


def test_connection_is_kept_between_calls(server: TonesServer, load: Callable[..., OpenAiApi]) -> None:
    backend = load()
    for _ in range(3):
        backend.transcribe(AUDIO, "en")
    (connection,) = backend._client._transport._pool.connections
    assert connection.is_idle()


def test_translation_has_its_own_address(
    server: TonesServer, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = resolve(str(model))
    multilingual = Checkpoint(
        "m", content.path, content.sha256, {**content.dimensions, "n_vocab": 51_865}, ""
    )
    backend = OpenAiApi.load(multilingual, "remote", "as-served", Settings(task="translate"))
    backend.transcribe(AUDIO, "de")
    backend._client.close()
    assert server.asked[0]["path"] == "/v1/audio/translations"
    assert "language" not in server.asked[0], "the API has no word for it there"
    assert "language" not in backend.applied_settings, "so it is not claimed either"


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_and_failing_servers_are_asked_again_and_the_tries_are_counted(
    server: TonesServer, load: Callable[..., OpenAiApi], status: int
) -> None:
    server.replies = [error(status, "later"), error(status, "later")]
    heard = load().transcribe(AUDIO, "en")
    assert heard.text == "red apple white table"
    assert set(heard.stage_seconds) == {"wav", "request", "retry_1", "retry_2"}
    assert heard.stage_seconds["retry_1"] >= 0.01 and heard.stage_seconds["retry_2"] >= 0.02, "doubled"
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "why"), [(429, "too many requests"), (500, "the server failed")])
def test_failures_without_end_are_given_up(
    server: TonesServer,
    load: Callable[..., OpenAiApi],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    why: str,
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_RETRIES", "2")
    server.always = error(status, "out of\n order")
    with pytest.raises(
        BackendError, match=rf"answered {status}: .*{why}.* says 'out of order' \(given up after 3 tries\)"
    ):
        load().transcribe(AUDIO, "en")
    assert len(server.asked) == 3


def test_retry_after_is_obeyed(server: TonesServer, load: Callable[..., OpenAiApi]) -> None:
    server.replies = [error(429, Retry_After="1")]
    heard = load().transcribe(AUDIO, "en")
    assert 1.0 <= heard.stage_seconds["retry_1"] < 2.0


def test_retry_after_may_be_a_date() -> None:
    soon = email.utils.formatdate(time.time() + 100, usegmt=True)
    waits = [openai_api._retry_after_seconds(text) for text in (soon, "7", None, "soon", "-1")]
    assert 90 < waits.pop(0) < 101  # type: ignore[operator]
    assert waits == [7.0, None, None, None]


def test_wait_longer_than_the_time_limit_is_not_begun(
    server: TonesServer, load: Callable[..., OpenAiApi]
) -> None:
    server.always = error(429, Retry_After="3600")
    start = time.perf_counter()
    with pytest.raises(BackendError, match="asks for a wait of 3600 s, which the time limit does not allow"):
        load().transcribe(AUDIO, "en")
    assert time.perf_counter() - start < FAR_FROM_FOREVER


def test_silent_server_runs_into_the_time_limit_and_is_not_asked_twice(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_TIMEOUT", "0.3")
    backend = load()
    server.replies = [30.0]
    start = time.perf_counter()
    with pytest.raises(BackendError, match=r"did not answer within.*ASRGATE_OPENAI_TIMEOUT"):
        backend.transcribe(AUDIO, "en")
    assert 0.25 < time.perf_counter() - start < FAR_FROM_FOREVER
    assert len(server.asked) == 1, "it may be at work on the first"


def test_answer_that_trickles_runs_into_the_time_limit(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_TIMEOUT", "0.4")

    def trickle(self: _Handler, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(30):  # each byte in time, all of them not
            if self.server.released.wait(0.1):
                break
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                break
        self.close_connection = True

    backend = load()
    monkeypatch.setattr(_Handler, "_send", trickle)
    with pytest.raises(BackendError, match="did not answer within"):
        backend.transcribe(AUDIO, "en")


def test_broken_connection_is_tried_again(server: TonesServer, load: Callable[..., OpenAiApi]) -> None:
    server.replies = [0.0]  # closes without an answer
    assert "retry_1" in load().transcribe(AUDIO, "en").stage_seconds


@pytest.mark.parametrize(
    "body", [b"<html>Welcome</html>", b"", b"[]", b'{"texts": "a"}', b'{"text": null}', b"\xff\xfe"]
)
def test_answer_of_another_form_is_an_error(
    server: TonesServer, load: Callable[..., OpenAiApi], body: bytes
) -> None:
    server.replies = [(200, {}, body)]
    with pytest.raises(BackendError, match="answered 200, but not with"):
        load().transcribe(AUDIO, "en")
    assert len(server.asked) == 1


def test_answer_without_end_is_cut_off(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_api, "LONGEST_ANSWER_BYTES", 1000)
    server.replies = [(200, {}, b" " * 5000)]
    with pytest.raises(BackendError, match="too many for a transcript"):
        load().transcribe(AUDIO, "en")


def test_unknown_model_is_refused_with_those_there_are(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_MODEL", "whisper-9")
    backend = load()
    assert backend.applied_settings["server_lists_model"] is False
    with pytest.raises(BackendError, match=r"has no model 'whisper-9'.*its models: tones-1, tones-2"):
        backend.transcribe(AUDIO, "en")
    assert len(server.asked) == 1, "asking again would change nothing"


def test_redirect_is_not_followed(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_KEY", KEY)
    server.replies = [error(307, Location="http://127.0.0.1:9/v1/audio/transcriptions")]
    with pytest.raises(BackendError, match="answered 307"):
        load().transcribe(AUDIO, "en")


def test_absent_server_is_unavailable(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, server: TonesServer
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(BackendUnavailable, match=r"connection to http://127.0.0.1:9/v1 failed"):
        OpenAiApi.load(checkpoint, "remote", "as-served", Settings())


def test_server_without_a_list_of_models_will_do(server: TonesServer, load: Callable[..., OpenAiApi]) -> None:
    server.lists_models = False
    backend = load()
    assert backend.applied_settings["server_lists_model"] is None
    assert backend.transcribe(AUDIO, "en").text


# --- the key --------------------------------------------------------------------------------------------


def test_key_is_sent_and_shown_nowhere(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_KEY", KEY)
    backend = load()
    backend.transcribe(AUDIO, "en")
    assert server.asked[0]["headers"]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in json.dumps(backend.applied_settings)
    assert KEY not in repr(backend._server)
    assert KEY not in repr(vars(backend))
    server.replies = [error(400, f"cannot use {KEY}")]
    with pytest.raises(BackendError, match="cannot use <key>"):
        backend.transcribe(AUDIO, "en")


def test_wrong_key_is_refused_at_load_without_quoting_it(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_KEY", "sk-wrong-key")
    with pytest.raises(BackendError, match=r"answered 401.*valid key in ASRGATE_OPENAI_KEY") as caught:
        load()
    assert "sk-wrong-key" not in str(caught.value)


def test_openai_key_of_the_user_goes_to_no_other_server(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    load().transcribe(AUDIO, "en")
    assert "Authorization" not in server.asked[0]["headers"]


# --- the environment ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("URL", "", "no server is named"),
        ("URL", "localhost:8000", "not an http:// or https:// address"),
        ("URL", "http://h:port/v1", "not an http:// or https:// address"),
        ("URL", "http://user:pass@host/v1", "has more than scheme, host, port and path"),
        ("URL", "https://host/v1?api-key=secret", "has more than"),
        ("MODEL", " ", "model is not named"),
        ("KEY", "two\nlines", "characters that a header cannot carry"),
        ("CHECKPOINT", "abc", "is not a SHA-256"),
        ("DECODING", "beam=1", "states 'beam', which is not one of the settings it can state"),
        ("DECODING", "task=transcribe", "states 'task', which is not one of the settings it can state"),
        ("DECODING", "beam_size=many", "which is not of type int"),
        ("DECODING", "suppress_blank=1", "which is not of type bool"),
        ("TIMEOUT", "0", "not a number of seconds"),
        ("TIMEOUT", "inf", "not a number of seconds"),
        ("RETRIES", "1.5", "not a whole number"),
    ],
)
def test_environment_that_cannot_be_understood_makes_it_unavailable(
    server: TonesServer, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    OpenAiApi.check("remote", "as-served")
    monkeypatch.setenv(f"ASRGATE_OPENAI_{variable}", value)
    with pytest.raises(BackendUnavailable, match=message) as caught:
        OpenAiApi.check("remote", "as-served")
    assert caught.value.remedy
    assert "pass" not in str(caught.value) and "secret" not in str(caught.value)


def test_listing_asks_no_server(server: TonesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_URL", "http://127.0.0.1:9/v1")
    OpenAiApi.check("remote", "as-served")


def test_audio_leaves_the_machine_only_for_who_names_the_backend() -> None:
    assert "openai-api@remote/as-served" in map(str, backends.of("openai-api"))
    assert not [variant for variant in backends.every() if variant.device == "remote"]


# --- what is claimed, and what the gate makes of it -----------------------------------------------------


def test_only_what_the_request_carries_is_claimed(
    server: TonesServer, load: Callable[..., OpenAiApi]
) -> None:
    applied = load(language="en").applied_settings
    assert set(asdict(Settings())) & set(applied) == CARRIED
    assert applied["checkpoint_sha256"] is None and applied["stated_by_the_user"] == []


def test_what_the_user_states_is_recorded_as_stated(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_DECODING", "beam_size=5; temperature=0; suppress_tokens=-1")
    applied = load(beam_size=5).applied_settings
    assert (applied["beam_size"], applied["temperature"], applied["suppress_tokens"]) == (5, 0.0, "-1")
    assert applied["stated_by_the_user"] == ["beam_size", "temperature", "suppress_tokens"]
    assert "threads" not in applied


def test_beams_that_nobody_states_are_refused(server: TonesServer, load: Callable[..., OpenAiApi]) -> None:
    with pytest.raises(BackendError, match=r"cannot request beam_size 5.*state"):
        load(beam_size=5)


def test_other_weights_stated_than_measured_are_refused(
    server: TonesServer, load: Callable[..., OpenAiApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_CHECKPOINT", "0" * 64)
    with pytest.raises(BackendError, match="states that the server runs 000000000000…, but this run uses"):
        load()


def row_of(tmp_path: Path) -> dict[str, Any]:
    run = record.read(tmp_path / "results" / "latest")
    return next(row for row in run["results"] if row["backend"] == "openai-api")


@pytest.mark.slow
def test_server_nobody_vouches_for_is_another_model_as_the_server_calls_it(
    server: TonesServer, asrgate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_KEY", KEY)
    monkeypatch.setenv("ASRGATE_OPENAI_RETRIES", "1")
    server.replies = [error(503, f"{KEY} is busy")]
    assert asrgate("--backends", "openai-api", "--rounds", "1", "--warmup", "0", "--audit") == 0
    run = verify.read(tmp_path / "results" / "latest")
    row = row_of(tmp_path)
    assert row["variant"] == "openai-api@remote/as-served:tones-1" and row["wer"]["wer"] == 0
    assert row["gate"] == {"ranked": True, "rank": 1, "reasons": []}  # within its model, which is no other's
    assert [model["name"] for model in run["models"]] == ["fake.en", "tones-1"]
    assert record.model_of(run, row)["identity"] == {
        "backend": "openai-api",
        "revision": "as served",
        "languages": [],
        "licence": "unknown",
        "server": server.url,
    }
    assert row["resources"]["peak_rss_bytes"] is None and row["resources"]["energy_joules"] is None
    assert any("1 of 5 answers needed retries, 1 in all" in text for text in run["warnings"])
    facts = report.context.describe(run)
    assert f"tones-1 (what the server {server.url} calls it; its weights are unknown)" in facts["model"]
    assert "openai-api@remote/as-served:tones-1 not auditable: its weights are on a server" in facts["audit"]
    told = "; ".join(report.context.warnings(run))
    assert "tones-1 does not apply beam_size, threads, temperature" in told
    for path in (tmp_path / "results" / "latest").rglob("*"):
        assert path.is_dir() or KEY not in path.read_text(), path


@pytest.mark.slow
def test_server_the_user_vouches_for_is_ranked_and_its_cache_is_found_out(
    server: TonesServer,
    asrgate: Callable[..., int],
    tmp_path: Path,
    checkpoint: Checkpoint,
    spoken: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = spoken / "letter.wav"
    monkeypatch.setenv("ASRGATE_OPENAI_CHECKPOINT", checkpoint.sha256)
    monkeypatch.setenv("ASRGATE_OPENAI_DECODING", "as-asked")
    server.seconds_a_word = 0.02
    asrgate("--backends", "openai-api", "--rounds", "1", "--warmup", "1", clips=clip)
    row = row_of(tmp_path)
    assert row["gate"]["ranked"], row["gate"]["reasons"]
    assert row["applied_settings"]["stated_by_the_user"][:2] == ["checkpoint_sha256", "beam_size"]
    server.cache = {}
    asrgate("--backends", "openai-api", "--rounds", "1", "--warmup", "1", clips=clip)
    row = row_of(tmp_path)
    assert "answers were cached" in " ".join(row["gate"]["reasons"])


def own_model() -> Checkpoint:
    """Return what a run hands over for a model that the server alone knows."""
    found = OpenAiApi.model_identity()
    assert found is not None
    return Checkpoint(found.name, Path(), found.sha256, {})


@pytest.mark.slow
def test_a_model_of_its_own_is_held_to_the_words_spoken(
    server: TonesServer, asrgate: Callable[..., int], tmp_path: Path
) -> None:
    server.always = (200, {}, b'{"text": "red"}')
    asrgate("--backends", "openai-api", "--rounds", "1", "--warmup", "0")
    told = "; ".join(row_of(tmp_path)["gate"]["reasons"])
    assert "of the number of words in the reference texts" in told and "above the ceiling" in told


def test_a_checkpoint_that_the_user_states_makes_it_one_of_the_run(
    server: TonesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_model()
    monkeypatch.setenv("ASRGATE_OPENAI_MODEL", "tones-2")
    assert own_model().sha256 != own.sha256, "it is another model"
    monkeypatch.setenv("ASRGATE_OPENAI_CHECKPOINT", "0" * 64)
    assert OpenAiApi.model_identity() is None


def test_settings_of_its_own_model_are_stated_or_left_alone(
    server: TonesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**settings: Any) -> OpenAiApi:
        found = OpenAiApi.load(own_model(), "remote", "as-served", Settings(**settings))
        found._client.close()
        return found

    applied = load(threads=3).applied_settings
    assert {name for name in asdict(Settings()) if applied[name] is None} - {"language"} == set(
        applied["not_applied"]
    )
    assert "threads" in applied["not_applied"] and applied["task"] == "transcribe"
    assert applied["checkpoint_sha256"] == own_model().sha256 and applied["stated_by_the_user"] == []
    for change in ({"beam_size": 2}, {"temperature": 0.5}, {"suppress_tokens": ""}, {"language": "auto"}):
        with pytest.raises(BackendError, match=r"cannot request|does not say which language"):
            load(**change)
    for impossible in ({"task": "sing"}, {"threads": 0}, {"beam_size": 0}):
        with pytest.raises(BackendError):
            load(**impossible)
    monkeypatch.setenv("ASRGATE_OPENAI_DECODING", "beam_size=2")
    applied = load(beam_size=2).applied_settings
    assert applied["beam_size"] == 2 and "beam_size" not in applied["not_applied"]


def test_languages_that_its_model_lacks_are_refused_where_the_user_states_them(
    server: TonesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OpenAiApi.load(own_model(), "remote", "as-served", Settings())
    assert backend.transcribe(AUDIO, "de").text, "nobody says that it lacks any"
    backend._client.close()
    monkeypatch.setenv("ASRGATE_OPENAI_LANGUAGES", "en, fr")
    identity = OpenAiApi.model_identity()
    assert identity is not None and identity.languages == ("en", "fr")
    backend = OpenAiApi.load(own_model(), "remote", "as-served", Settings())
    with pytest.raises(BackendError, match=r"understands en, fr .*cannot decode 'de'"):
        backend.transcribe(AUDIO, "de")
    backend._client.close()


@pytest.mark.slow
def test_failing_server_is_an_error_in_its_row(
    server: TonesServer, asrgate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASRGATE_OPENAI_RETRIES", "0")
    server.always = error(500, "CUDA out of memory")
    asrgate("--backends", "openai-api", "--rounds", "1", "--warmup", "0")
    row = row_of(tmp_path)
    assert all("answered 500" in sample["error"] for sample in row["samples"])
    assert "answered 0 of 5 clips" in row["gate"]["reasons"][0]
    assert "CUDA out of memory" in row["gate"]["reasons"][0]
