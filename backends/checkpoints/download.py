"""Downloads that resume, are verified, and are never mistaken for the whole file before they are complete."""

from __future__ import annotations

import http.client
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asrgate.backends.base import AsrgateError
from asrgate.backends.checkpoints.cache import locked
from asrgate.backends.checkpoints.sha256 import hash_now

BLOCK_BYTES = 1 << 18
STALL_SECONDS = 30.0  # a server that sends nothing for this long counts as gone

Progress = Callable[[int, "int | None"], None]  # bytes so far; total bytes, if the server reports them


class DownloadError(AsrgateError):
    """A file could not be downloaded; the message says why and whether running again resumes."""


def download(url: str, target: Path, sha256: str, progress: Progress | None = None) -> Path:
    """Download `url` to `target`, through `<target>.part`, and return the target once its SHA-256 is right.

    A `.part` file left by an interrupted download is continued if the server allows it. Two processes that
    want the same file take turns, and the second finds it complete.

    Raises:
        DownloadError: no connection, an HTTP error, a stalled or short answer, a full disk (the `.part`
            file stays), or unexpected content (the `.part` file is deleted).
    """
    part = target.with_name(target.name + ".part")
    with locked(target), _explained(url, part):
        if target.is_file() and hash_now(target) == sha256:
            return target
        have = part.stat().st_size if part.exists() else 0
        if have == 0 or hash_now(part) != sha256:
            _fetch(_request(url), part, have, progress)
            found = hash_now(part)
            if found != sha256:
                part.unlink()
                raise DownloadError(
                    f"{url} sent an unexpected file (SHA-256 {found[:12]}…, not {sha256[:12]}…). "
                    "It was deleted. Run again; if this repeats, something on the way changes the file"
                )
        os.replace(part, target)
    return target


def fetch_unverified(
    url: str, target: Path, limit_bytes: int, *, token: str | None = None, progress: Progress | None = None
) -> Path:
    """Download `url` to `target`, through `<target>.part` as `download` does; the caller verifies the file.

    An existing target is left alone, so the address must be one whose content never changes. The caller holds
    a lock.

    Args:
        url: the address.
        target: the file; its folder must exist.
        limit_bytes: a longer file is refused.
        token: sent as a bearer token to the address's own host, never to one that it redirects to.
        progress: called with (bytes, total bytes or None).

    Raises:
        DownloadError: as `download`, or the file is too long.
    """
    part = target.with_name(target.name + ".part")
    with _explained(url, part):
        if not target.is_file():
            have = part.stat().st_size if part.exists() else 0
            _fetch(_request(url, token), part, have, progress, limit_bytes)
            os.replace(part, target)
    return target


@contextmanager
def _explained(url: str, part: Path) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"cannot reach {url}: {error.reason}.{_kept(part)}") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DownloadError(f"the connection to {url} broke: {error!r}.{_kept(part)}") from error
    except ValueError as error:  # a setting of the user, such as HF_ENDPOINT, made it invalid
        raise DownloadError(f"{url} is not a valid address: {error}") from error
    except OSError as error:
        raise DownloadError(
            f"cannot write {error.filename or part}: {error.strerror}. Free some space, or set "
            f"ASRGATE_CACHE to another folder.{_kept(part)}"
        ) from error


def why_unreachable(url: str, timeout_seconds: float, token: str | None = None) -> str:
    """Return "" if the server answers a HEAD request in time, or else what went wrong.

    The time includes name resolution, which has no timeout of its own.
    """
    answers: list[str] = []

    def ask() -> None:
        try:
            with _open(_request(url, token, method="HEAD"), timeout_seconds) as answer:
                answers.append("" if answer.status == 200 else f"{url} answered {answer.status}")
        except urllib.error.HTTPError as error:
            error.close()
            answers.append(f"{url} answered {error.code} {error.reason}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.append(f"cannot reach {url}: {getattr(error, 'reason', None) or error}")
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=ask, name="is the server there?", daemon=True).start()
    done.wait(timeout_seconds)
    return answers[0] if answers else f"{url} did not answer within {timeout_seconds:.1f} s"


class _TokenStaysHome(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but sends the token only to the host that it was meant for."""

    def redirect_request(self, req: urllib.request.Request, *rest: Any) -> urllib.request.Request | None:
        new = super().redirect_request(req, *rest)
        if new is not None and _origin(new.full_url) != _origin(req.full_url):
            new.remove_header("Authorization")
        return new


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _request(url: str, token: str | None = None, method: str = "GET") -> urllib.request.Request:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return urllib.request.Request(url, headers=headers, method=method)


def _open(request: urllib.request.Request, timeout_seconds: float) -> Any:
    return urllib.request.build_opener(_TokenStaysHome).open(request, timeout=timeout_seconds)


def _fetch(
    request: urllib.request.Request,
    part: Path,
    have: int,
    progress: Progress | None,
    limit_bytes: int | None = None,
) -> None:
    url = request.full_url
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = _open(request, STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        error.close()
        part.unlink()  # the server has no such range, so this part belongs to some other file
        request.remove_header("Range")
        return _fetch(request, part, 0, progress, limit_bytes)
    with answer:
        resumed = answer.status == 206 and _range_start(answer.headers.get("Content-Range")) == have
        if answer.status == 206 and not resumed:
            raise DownloadError(f"{url} answered with a range that was not requested.{_kept(part)}")
        done = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None and length.isdigit() else None
        _check_length(url, part, total or 0, limit_bytes)
        with part.open("ab" if resumed else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                done += len(block)
                _check_length(url, part, done, limit_bytes)
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise DownloadError(f"the connection to {url} ended after {done} of {total} bytes.{_kept(part)}")


def _check_length(url: str, part: Path, length: int, limit_bytes: int | None) -> None:
    if limit_bytes is not None and length > limit_bytes:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"{url} sends more than the {limit_bytes:,} bytes allowed; the download was deleted"
        )


def _range_start(content_range: str | None) -> int | None:
    # "bytes 100-199/200" (RFC 9110, section 14.4)
    start = (content_range or "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else None


def _kept(part: Path) -> str:
    if not part.exists() or part.stat().st_size == 0:
        return ""
    return f" The {part.stat().st_size} bytes received are kept in {part}; run again to continue from there"
