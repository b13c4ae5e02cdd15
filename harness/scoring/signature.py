"""Signs a stored run, and checks signatures, with the user's own key and tool: `ssh-keygen -Y`.

The signature is of the file's bytes and lies beside it. So it can be checked without this project:

    ssh-keygen -Y verify -f LIST -I SIGNER -n asrgate -s run.json.sig < run.json
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from asrgate.harness.record import RecordError, regular_file_bytes, write_text

NAMESPACE = "asrgate"
TOOL = "ssh-keygen"
LARGEST_BYTES = 1 << 16  # of a signature
NOT_SIGNED = "not signed"
_MISSING = f"{TOOL} is not installed (it comes with OpenSSH)"


def path_of(path: Path) -> Path:
    """Return where the signature of a run.json lies, given the file or its folder."""
    path = path / "run.json" if path.is_dir() else path
    return path.with_name(f"{path.name}.sig")


def sign(path: Path, key: Path) -> Path:
    """Sign a stored run; return the signature's file.

    Args:
        path: run.json or its folder.
        key: private key, or public key of one that an SSH agent holds.

    Raises:
        RecordError: ssh-keygen is missing or refuses.
    """
    signed = path_of(path)
    with signed.with_suffix("").open("rb") as content:
        done = _ssh_keygen("sign", "-q", "-f", str(key), "-n", NAMESPACE, stdin=content.read())
    if done is None or done.returncode != 0:
        raise RecordError(f"cannot sign {signed.with_suffix('')}: {_MISSING if done is None else _why(done)}")
    write_text(signed, done.stdout.decode())
    return signed


def check(path: Path, allowed_signers: Path | None = None) -> str | None:
    """Say in words who signed a run; None if there is no signature beside it.

    Args:
        path: run.json or its folder.
        allowed_signers: who may sign, as ssh-keygen(1) describes such a list.

    Raises:
        RecordError: the signature is none of this file, or by nobody in the list.
    """
    signature = path_of(path)
    signed = signature.with_suffix("")
    if not os.path.lexists(signature):
        return None
    try:
        regular_file_bytes(signature, LARGEST_BYTES)
        content = regular_file_bytes(signed)
        if allowed_signers is not None:
            regular_file_bytes(allowed_signers)
    except OSError as error:
        raise RecordError(f"cannot read {error.filename}: {error.strerror}") from error
    beside = ("-n", NAMESPACE, "-s", str(signature))
    done = _ssh_keygen("check-novalidate", *beside, stdin=content)
    if done is None:
        if allowed_signers is not None:
            raise RecordError(f"cannot check {signature}: {_MISSING}")
        return f"signed, not checked: {_MISSING}"
    found = re.search(r"SHA256:\S+", done.stdout.decode(errors="replace"))
    if done.returncode != 0 or found is None:
        raise RecordError(
            f"{signature} is not the signature of {signed} ({_why(done)}): one of them was changed or "
            "belongs to another run. Take both again from where they were published"
        )
    key = found.group()
    if allowed_signers is None:
        return f"signed, key {key} (not checked against a list)"
    listed = _ssh_keygen("find-principals", "-f", str(allowed_signers), "-s", str(signature), stdin=b"")
    for signer in listed.stdout.decode(errors="replace").split("\n") if listed is not None else []:
        verified = signer and _ssh_keygen(
            "verify", "-f", str(allowed_signers), "-I", signer, *beside, stdin=content
        )
        if verified and verified.returncode == 0:
            return f"signed by {signer}, key {key}"
    raise RecordError(
        f"{signed} is signed with key {key}, which {allowed_signers} lists for nobody who may sign in the "
        f"namespace {NAMESPACE}; add the signer's line, or leave --allowed-signers out"
    )


def _ssh_keygen(what: str, *arguments: str, stdin: bytes) -> subprocess.CompletedProcess[bytes] | None:
    """Run `ssh-keygen -Y`; return None where it is not installed."""
    try:
        return subprocess.run(
            [TOOL, "-Y", what, *arguments],
            input=stdin,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        return None


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return f"{TOOL} says: {lines[-1][:300] if lines else f'exit status {done.returncode}'}"
