"""`--audit`: with exchanged words in the checkpoint, an engine must answer with those, and as fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tones

from asrgate.harness import record, report
from asrgate.harness.cli.run import RunError
from asrgate.harness.corpus.clips import load_clips
from asrgate.harness.runner import audit
from asrgate.harness.scoring import gate, verify


@pytest.fixture
def audited(asrgate: Callable[..., int], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that measures fakes with --audit; it returns the stored record."""
    monkeypatch.setenv("FAKE_MODEL", str(model))

    def measured(*backends: str, reference: str = "follows") -> record.Run:
        asrgate("--backends", ",".join(backends), "--reference", reference, "--rounds", "2", "--audit")
        return verify.read(tmp_path / "results" / "latest")

    return measured


def test_engines_must_answer_as_the_checkpoint_they_are_given(audited: Any, tmp_path: Path) -> None:
    run = audited("follows-too", "twin", "works-in-audits-only", "refuses-others")
    rows = {row["backend"]: row for row in run["results"]}
    reasons = {name: " ".join(row["gate"]["reasons"]) for name, row in rows.items()}
    ranked = {name for name, row in rows.items() if row["gate"]["ranked"]}
    assert ranked == {"follows", "follows-too"}, reasons
    assert "with another checkpoint 45 of 45 words are not those that follow" in reasons["twin"]
    assert "times as long as in the run (audit)" in reasons["works-in-audits-only"]
    assert "could not be audited: it knows no such checkpoint" in reasons["refuses-others"]
    assert rows["follows-too"]["audit"]["clips"] == ["apples", "bridge", "chairs"]
    assert rows["follows-too"]["audit"]["changed_words"] == 0
    told = report.render(run, "md")
    assert "follows-too@cpu/float32 audited" in told
    assert "twin@cpu/float32 not passed" in told


def test_recordings_are_a_copy_and_splices_that_no_file_holds(spoken: Path) -> None:
    clips = load_clips([spoken])[:3]
    recordings = [audit._recordings(number, clips, 7) for number in range(3)]
    heard = [[tones.hear(samples).split() for samples in made] for made in recordings]
    said = [clip.reference.split() for clip in clips]
    for number, (copy, *splices) in enumerate(heard):
        assert copy == said[number]
        assert len(splices) == 2
        for splice in splices:
            assert splice[:2] == said[number][:2]
            assert splice not in said
    flat = [samples.tobytes() for made in recordings for samples in made]
    assert len(set(flat)) == 9


def test_a_reference_that_ignores_the_checkpoint_lets_nobody_through(audited: Any) -> None:
    run = audited("twin", reference="honest")
    assert not any(row["gate"]["ranked"] for row in run["results"])
    assert "the audit proves nothing" in " ".join(run["results"][0]["gate"]["reasons"])


def test_what_an_audit_lacks_is_told(audited: Any) -> None:
    run = audited("follows-too")
    row = run["results"][1]
    row["audit"]["auditable"] = False
    gate.judge(run)
    assert row["gate"]["ranked"]
    assert "follows-too@cpu/float32 not auditable" in report.context.describe(run)["audit"]
    row["audit"].update(auditable=True, error=None, words=0, changed_words=0)
    gate.judge(run)
    assert not row["gate"]["ranked"]
    del row["audit"]
    gate.judge(run)
    assert row["gate"]["reasons"] == ["it was not audited: the run ended before"]


def test_an_interrupted_audit_is_none(audited: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    really = audit._answers

    def interrupted(state: Any, variant: Any, *others: Any) -> Any:
        if variant.backend == "follows-too":
            raise KeyboardInterrupt
        return really(state, variant, *others)

    monkeypatch.setattr(audit, "_answers", interrupted)
    row = audited("follows-too")["results"][1]
    assert row["gate"]["reasons"] == ["it could not be audited: the run ended before"]


def test_a_removed_or_softened_audit_is_noticed(audited: Any, tmp_path: Path) -> None:
    audited("twin")
    path = tmp_path / "results" / "latest" / "run.json"
    stored = json.loads(path.read_text())
    stored["results"][1]["audit"]["changed_words"] = 0
    path.write_text(json.dumps(stored))
    with pytest.raises(record.RecordError):
        verify.read(path)


@pytest.mark.parametrize("other", [["--no-reference"], ["--executor", "ray"]])
def test_audit_needs_the_reference_on_this_machine(asrgate: Callable[..., int], other: list[str]) -> None:
    with pytest.raises(RunError, match=f"does not go with {' '.join(other)}"):
        from asrgate.harness.cli import run as command

        arguments = command._parser().parse_args(["run", "--audit", *other])
        command._plan(arguments)
