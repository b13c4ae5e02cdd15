"""A published run says who measured it: signed by ssh-keygen, refused where the signature is another's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from make_run import make_run

from asrgate.harness import cli, record
from asrgate.harness.scoring import gate, score, signature

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def new_key(folder: Path, name: str) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)], check=True
    )
    return folder / name


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    return {name: new_key(tmp_path, name) for name in ("ada", "bob")}


@pytest.fixture
def allowed(keys: dict[str, Path], tmp_path: Path) -> Path:
    """A list in which only Ada is."""
    lines = tmp_path / "allowed_signers"
    public = keys["ada"].with_suffix(".pub").read_text()
    lines.write_text(f'ada@example.org namespaces="asrgate" {public}')
    return lines


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    made: Any = make_run(rounds=3)
    score.score(made, "none", replicates=10)
    gate.judge(made)
    made["digest"] = record.digest_of(made)
    folder = tmp_path / "run"
    folder.mkdir()
    record.write(made, folder / "run.json")
    return folder


def said(capsys: Any) -> str:
    out = capsys.readouterr()
    return " ".join((out.out + out.err).split())


def test_a_signed_run_says_who_signed_it(
    stored: Path, keys: dict[str, Path], allowed: Path, capsys: Any
) -> None:
    assert cli.main(["report", str(stored), "--allowed-signers", str(allowed), "--format", "md"]) == 0
    assert "not signed" in capsys.readouterr().err
    assert cli.main(["sign", str(stored), "--key", str(keys["ada"])]) == 0
    assert (stored / "run.json.sig").read_text().startswith("-----BEGIN SSH SIGNATURE-----")
    capsys.readouterr()
    for command in (["report"], ["table"]):
        assert cli.main([*command, str(stored)]) == 0
        assert "signed, key SHA256:" in (told := said(capsys)) and "not checked against a list" in told
        assert cli.main([*command, str(stored), "--allowed-signers", str(allowed)]) == 0
        assert "signed by ada@example.org, key SHA256:" in said(capsys)
    verify = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", "ada@example.org", "-n", "asrgate"]
    content = (stored / "run.json").read_bytes()
    subprocess.run([*verify, "-s", str(stored / "run.json.sig")], input=content, check=True)


def changed(stored: Path, keys: dict[str, Path]) -> None:
    text = (stored / "run.json").read_text()
    (stored / "run.json").write_text(text.replace('"note": ""', '"note": "" '))  # the same value


def of_another_run(stored: Path, keys: dict[str, Path]) -> None:
    (stored / "other").write_text("{}")
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-n", "asrgate", "-f", str(keys["ada"])]
    subprocess.run([*sign, str(stored / "other")], check=True, capture_output=True)
    shutil.copy(stored / "other.sig", stored / "run.json.sig")


def of_another_namespace(stored: Path, keys: dict[str, Path]) -> None:
    (stored / "run.json.sig").unlink()
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", str(keys["ada"])]
    subprocess.run([*sign, str(stored / "run.json")], check=True, capture_output=True)


def garbage(stored: Path, keys: dict[str, Path]) -> None:
    (stored / "run.json.sig").write_text("Good signature\n")


@pytest.mark.parametrize("spoil", [changed, of_another_run, of_another_namespace, garbage])
@pytest.mark.parametrize("command", ["report", "table", "history"])
def test_a_signature_that_does_not_match_is_one_clear_error(
    spoil: Callable[[Path, dict[str, Path]], None],
    command: str,
    stored: Path,
    keys: dict[str, Path],
    capsys: Any,
) -> None:
    assert cli.main(["sign", str(stored), "--key", str(keys["ada"])]) == 0
    spoil(stored, keys)
    assert cli.main([command, str(stored)]) == 2
    assert "run.json.sig is not the signature of" in said(capsys)


def test_a_signer_who_is_not_in_the_list_is_refused(
    stored: Path, keys: dict[str, Path], allowed: Path, capsys: Any
) -> None:
    assert cli.main(["sign", str(stored), "--key", str(keys["bob"])]) == 0
    assert cli.main(["table", str(stored)]) == 0
    assert cli.main(["table", str(stored), "--allowed-signers", str(allowed)]) == 2
    assert "lists for nobody who may sign in the namespace asrgate" in said(capsys)
    assert cli.main(["table", str(stored), "--allowed-signers", str(stored / "none")]) == 2
    assert "none: No such file or directory" in said(capsys)


def test_what_cannot_be_signed_is_refused(stored: Path, keys: dict[str, Path], capsys: Any) -> None:
    assert cli.main(["sign", str(stored), "--key", str(stored / "no-key")]) == 2
    assert "cannot sign" in said(capsys)
    run: Any = record.read(stored)
    run["complete"] = False
    run["digest"] = record.digest_of(run)
    record.write(run, stored / "run.json")
    assert cli.main(["sign", str(stored), "--key", str(keys["ada"])]) == 2
    assert "is not complete; finish it with" in said(capsys)
    run["complete"] = True
    del run["digest"]
    record.write(run, stored / "run.json")
    assert cli.main(["sign", str(stored), "--key", str(keys["ada"])]) == 2
    assert "has no digest" in said(capsys)
    assert not signature.path_of(stored).exists()


def test_scoring_again_does_not_break_a_signature(stored: Path, keys: dict[str, Path], capsys: Any) -> None:
    assert cli.main(["sign", str(stored), "--key", str(keys["ada"])]) == 0
    before = (stored / "run.json").read_bytes()
    assert cli.main(["rescore", str(stored)]) == 2
    assert "is signed, and scoring it again would break the signature" in said(capsys)
    assert (stored / "run.json").read_bytes() == before
    assert cli.main(["rescore", str(stored), "--output", str(stored / "again.json")]) == 0
    assert record.read(stored / "again.json")["digest"] == record.read(stored)["digest"]


def test_without_the_tool_a_signature_is_not_checked_and_that_is_said(
    stored: Path, keys: dict[str, Path], allowed: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["sign", str(stored), "--key", str(keys["ada"])]) == 0
    monkeypatch.setattr(signature, "TOOL", "no-such-keygen")
    assert cli.main(["table", str(stored)]) == 0
    assert "signed, not checked: ssh-keygen is not installed" in said(capsys)
    assert cli.main(["table", str(stored), "--allowed-signers", str(allowed)]) == 2
