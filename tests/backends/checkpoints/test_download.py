"""Downloads against a server on loopback that breaks off, ignores ranges, lies and stalls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from download_server import CONTENT, SHA256, Server, server
from paths import ROOT

from asrgate.backends.checkpoints import download as module
from asrgate.backends.checkpoints.download import DownloadError, download, why_unreachable

__all__ = ["server"]  # a fixture: pytest finds it by its name here


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "tiny.en.pt"


def part_of(target: Path) -> Path:
    return target.with_name("tiny.en.pt.part")


def test_a_whole_file_arrives_with_its_progress(server: Server, target: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert download(server.url, target, SHA256, lambda done, total: seen.append((done, total))) == target
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and seen == sorted(seen)
    assert not part_of(target).exists()


def test_a_broken_download_is_kept_and_resumed(server: Server, target: Path) -> None:
    server.break_after = 700_000
    with pytest.raises(
        DownloadError, match=r"ended after 700000 of 2097152 bytes.*kept in .*\.part; run again"
    ):
        download(server.url, target, SHA256)
    assert not target.exists(), "half a download is no model"
    assert part_of(target).stat().st_size == 700_000
    server.break_after = None
    seen: list[int] = []
    download(server.url, target, SHA256, lambda done, total: seen.append(done))
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=700000-"] and min(seen) > 700_000


def test_a_server_that_ignores_ranges_starts_over(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT[:1000])
    server.honours_ranges = False
    download(server.url, target, SHA256)
    assert target.read_bytes() == CONTENT


def test_wrong_content_is_deleted_and_never_gets_the_name(server: Server, target: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(DownloadError, match="sent an unexpected file"):
        download(server.url, target, SHA256)
    assert not target.exists() and not part_of(target).exists()


def test_a_part_of_another_file_is_found_out(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(b"another model" * 1000)
    with pytest.raises(DownloadError, match="sent an unexpected file"):
        download(server.url, target, SHA256)
    assert download(server.url, target, SHA256).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT + b"more")
    assert download(server.url, target, SHA256).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_part_that_is_already_whole_needs_no_server(target: Path) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(CONTENT)
    assert download("http://127.0.0.1:9/tiny.en.pt", target, SHA256).read_bytes() == CONTENT


def test_a_good_file_is_left_alone_and_a_bad_one_replaced_only_by_a_good_one(
    server: Server, target: Path
) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    download(server.url, target, SHA256)
    assert server.asked == []
    target.write_bytes(b"damaged")
    server.break_after = 10
    with pytest.raises(DownloadError):
        download(server.url, target, SHA256)
    assert target.read_bytes() == b"damaged"
    server.break_after = None
    assert download(server.url, target, SHA256).read_bytes() == CONTENT


def test_http_errors_and_refused_connections_say_so(server: Server, target: Path) -> None:
    server.status = 404
    with pytest.raises(DownloadError, match="answered 404 Not Found"):
        download(server.url, target, SHA256)
    with pytest.raises(DownloadError, match=r"cannot reach http://127.0.0.1:9/x: .*refused"):
        download("http://127.0.0.1:9/x", target, SHA256)


def test_a_server_that_stalls_is_given_up(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    server.break_after, server.stalls = 300_000, True
    with pytest.raises(DownloadError, match=r"broke: TimeoutError.*bytes received are kept"):
        download(server.url, target, SHA256)
    assert 0 < part_of(target).stat().st_size <= 300_000


def test_a_full_disk_keeps_what_came(server: Server, target: Path) -> None:
    # a limit on the file's size stands for the full disk: the write fails half way just so
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        "from pathlib import Path; from asrgate.backends.checkpoints.download import *\n"
        f"try: download({server.url!r}, Path({str(target)!r}), {SHA256!r})\n"
        "except DownloadError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "ASRGATE_CACHE" in done.stdout and "are kept in" in done.stdout
    assert not target.exists() and 0 < part_of(target).stat().st_size <= 1_000_000
    assert download(server.url, target, SHA256).read_bytes() == CONTENT


def test_two_processes_fetch_the_file_once(server: Server, target: Path) -> None:
    code = (
        "from pathlib import Path; from asrgate.backends.checkpoints.download import download;"
        f"print(download({server.url!r}, Path({str(target)!r}), {SHA256!r}))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in started] == [str(target)] * 3
    assert server.asked == [None]
    assert target.read_bytes() == CONTENT


def test_a_server_that_answers_is_reachable_and_one_that_refuses_is_not(server: Server) -> None:
    assert not why_unreachable(server.url, 2)
    server.status = 403
    assert why_unreachable(server.url, 2)
    assert why_unreachable("http://127.0.0.1:9/x", 2)
