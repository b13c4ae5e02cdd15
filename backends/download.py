"""Downloads that resume, are checked, and are never mistaken for the whole file while they are not."""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from backends.base import AsrbenchError
from backends.cache import locked
from backends.sha256 import hash_now

BLOCK_BYTES = 1 << 18
STALL_SECONDS = 30.0  # a server that sends nothing for so long is gone

Progress = Callable[[int, "int | None"], None]  # bytes so far, bytes in all where the server tells


class DownloadError(AsrbenchError):
    """A file could not be fetched; the message says why and whether running again resumes."""


def download(url: str, target: Path, sha256: str, progress: Progress | None = None) -> Path:
    """Fetch `url` to `target`, through `<target>.part`, and return the target once its SHA-256 is right.

    What an earlier, broken download left in the `.part` file is continued where the server can. Two
    processes that want the same file take turns, and the second finds it done.

    Raises:
        DownloadError: no connection, an HTTP error, a stalled or short answer, a full disk (the `.part`
            file stays), or other content than expected (the `.part` file goes).
    """
    part = target.with_name(target.name + ".part")
    with locked(target):
        try:
            if target.is_file() and hash_now(target) == sha256:
                return target
            have = part.stat().st_size if part.exists() else 0
            if have == 0 or hash_now(part) != sha256:
                _fetch(url, part, have, progress)
                found = hash_now(part)
                if found != sha256:
                    part.unlink()
                    raise DownloadError(
                        f"{url} sent another file than expected (SHA-256 {found[:12]}…, not {sha256[:12]}…). "
                        "It was deleted. Run again; if it repeats, something on the way changes the file"
                    )
            os.replace(part, target)
        except urllib.error.HTTPError as error:
            error.close()
            raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise DownloadError(f"cannot reach {url}: {error.reason}.{_kept(part)}") from error
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise DownloadError(f"the connection to {url} broke: {error!r}.{_kept(part)}") from error
        except OSError as error:
            raise DownloadError(
                f"cannot write {error.filename or part}: {error.strerror}. Free some space, or set "
                f"ASRBENCH_CACHE to another folder.{_kept(part)}"
            ) from error
    return target


def reachable(url: str, timeout_seconds: float = 3.0) -> bool:
    """Whether the server answers a HEAD request in time; name resolution, which has no timeout, included."""
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
                if answer.status == 200:
                    answered.set()
        except (OSError, http.client.HTTPException):
            pass  # the answer is no
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=ask, name="is the server there?", daemon=True).start()
    done.wait(timeout_seconds)
    return answered.is_set()


def _fetch(url: str, part: Path, have: int, progress: Progress | None) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        part.unlink()  # the server has no such range: what is here belongs to some other file
        return _fetch(url, part, 0, progress)
    with answer:
        resumed = answer.status == 206 and _range_start(answer.headers.get("Content-Range")) == have
        if answer.status == 206 and not resumed:
            raise DownloadError(f"{url} answered with another range than the one asked for.{_kept(part)}")
        done = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None and length.isdigit() else None
        with part.open("ab" if resumed else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise DownloadError(f"the connection to {url} ended after {done} of {total} bytes.{_kept(part)}")


def _range_start(content_range: str | None) -> int | None:
    # "bytes 100-199/200" (RFC 9110, section 14.4)
    start = (content_range or "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _kept(part: Path) -> str:
    if not part.exists() or part.stat().st_size == 0:
        return ""
    return f" The {part.stat().st_size} bytes that came are kept in {part}; run again to go on from there"
