"""Compares what each engine of a run wrote with one of them: words, first differing token, exact matches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jiwer

from asrgate.backends.base import AsrgateError
from asrgate.backends.inspection.token_margins import Decision
from asrgate.harness import record
from asrgate.harness.diagnose.token_text import token_text
from asrgate.harness.metrics.word_errors import Sample, first_answers
from asrgate.harness.record_types import ClipRecord, Result, Run


class OutputsError(AsrgateError):
    """Outputs cannot be compared as requested; the message says why and lists the choices."""


@dataclass(frozen=True)
class Chunk:
    """A sequence of words that are equal, or that one side has instead of the other's.

    `kind` is "equal", "substitute", "insert" (only the engine has it) or "delete" (only the reference).
    """

    kind: str
    reference: Sequence[str]
    output: Sequence[str]


@dataclass(frozen=True)
class Token:
    """A token id and its text; the text is None if unknown."""

    id: int
    text: str | None


@dataclass(frozen=True)
class Divergence:
    """The first token in which two transcripts differ.

    Attributes:
        index: how many tokens they share before it.
        reference, output: the token of each; None if its transcript has ended.
        decision: the reference's choice there; None until it is computed, or if it cannot be.
        undecided: why it cannot be computed.
    """

    index: int
    reference: Token | None
    output: Token | None
    decision: Decision | None = None
    undecided: str | None = None


@dataclass(frozen=True)
class Difference:
    """One clip for which an engine's answer differs from the reference's, or (`--all`) is the same.

    Attributes:
        same_text: whether the texts are identical.
        same_tokens: None if one of them did not report its tokens.
        words: None if the record has no texts.
        divergence: None if tokens are the same or unknown.
    """

    clip: str
    audio_seconds: float
    same_text: bool
    same_tokens: bool | None
    words: Sequence[Chunk] | None
    divergence: Divergence | None

    @property
    def is_same(self) -> bool:
        """Whether nothing known about the two answers differs."""
        return self.same_text and self.same_tokens is not False


@dataclass(frozen=True)
class Output:
    """One variant against the reference, over the clips that both answered.

    `token_clips` counts the clips for which both reported their tokens. `unanswered` names clips that only
    the reference answered, `unstable` those whose text differs between rounds (the first is compared).
    """

    variant: str
    clips: int
    same_text: int
    token_clips: int
    same_tokens: int
    unanswered: Sequence[str] = ()
    unstable: Sequence[str] = ()
    answers: Sequence[Difference] = field(default_factory=list)

    @property
    def differences(self) -> list[Difference]:
        """The answers that differ."""
        return [answer for answer in self.answers if not answer.is_same]


@dataclass(frozen=True)
class Outputs:
    """All variants of a run against one; `remarks` say what cannot be compared, and why."""

    run_id: str
    model: str
    reference: str
    clips: int
    outputs: Sequence[Output]
    remarks: Sequence[str]
    has_margins: bool = False


def compare_outputs(run: Run, reference: str | None = None) -> Outputs:
    """Compare what the variants of a run wrote with what its reference wrote.

    Args:
        run: a stored run.
        reference: variant or backend of the run; default: the run's own reference, with the first model.
            Only variants of its model are compared with it.

    Raises:
        OutputsError: there is no such variant in the run, or it answered nothing.
    """
    default = run["settings"]["reference"]
    if "models" in run:
        default += f":{run['models'][0]['name']}"
    row = find_row(run, reference or default)
    right = first_answers(row)
    if not right:
        raise OutputsError(
            f"{row['variant']} answered no clip ({row['error'] or 'no reason given'}), so nothing can be "
            f"compared with it; choose another with --reference: {', '.join(_answering(run)) or 'none'}"
        )
    others = [
        other
        for other in run["results"]
        if other is not row and other.get("model") == row.get("model") and first_answers(other)
    ]
    model = record.model_of(run, row)
    n_vocab = model["dimensions"]["n_vocab"]
    outputs = [_output(run, other, right, n_vocab) for other in others]
    return Outputs(
        run_id=run["run_id"],
        model=model["name"],
        reference=row["variant"],
        clips=len(right),
        outputs=outputs,
        remarks=list(_remarks(run, row, others)),
    )


def find_row(run: Run, name: str) -> Result:
    """Return the run's result of that variant, or of the only variant of that backend.

    Raises:
        OutputsError: there is none, or more than one.
    """
    rows = [row for row in run["results"] if row["variant"] == name]
    rows = rows or [row for row in run["results"] if row["backend"] == name and row["samples"]]
    if len(rows) == 1:
        return rows[0]
    if rows:
        choices = ", ".join(row["variant"] for row in rows)
        raise OutputsError(f"the run has several variants of {name}; choose one of {choices}")
    raise OutputsError(
        f"the run has no {name!r}; variants with answers: {', '.join(_answering(run)) or 'none'}"
    )


def _answering(run: Run) -> list[str]:
    return [row["variant"] for row in run["results"] if first_answers(row)]


def _output(run: Run, row: Result, right: Mapping[str, Sample], n_vocab: int) -> Output:
    mine = first_answers(row)
    answers = [
        _difference(clip, right[clip["name"]], mine[clip["name"]], n_vocab)
        for clip in run["clips"]
        if clip["name"] in right and clip["name"] in mine
    ]
    return Output(
        variant=row["variant"],
        clips=len(answers),
        same_text=sum(answer.same_text for answer in answers),
        token_clips=sum(answer.same_tokens is not None for answer in answers),
        same_tokens=sum(answer.same_tokens is True for answer in answers),
        unanswered=[name for name in right if name not in mine],
        unstable=[] if row["wer"] is None else row["wer"]["unstable_clips"],
        answers=answers,
    )


def _difference(clip: ClipRecord, right: Sample, mine: Sample, n_vocab: int) -> Difference:
    ours, theirs = right["tokens"], mine["tokens"]
    said, heard = right["text"], mine["text"]
    known = ours is not None and theirs is not None
    return Difference(
        clip=clip["name"],
        audio_seconds=clip["audio_seconds"],
        same_text=right["text_sha256"] == mine["text_sha256"],
        same_tokens=ours == theirs if known else None,
        words=None if said is None or heard is None else word_chunks(said, heard),
        divergence=None if ours is None or theirs is None else first_divergence(ours, theirs, n_vocab),
    )


def word_chunks(reference: str, output: str) -> list[Chunk]:
    """Align two texts word by word, as they were written: case and punctuation count."""
    aligned = jiwer.process_words(reference, output)
    words, others = aligned.references[0], aligned.hypotheses[0]
    return [
        Chunk(
            chunk.type,
            words[chunk.ref_start_idx : chunk.ref_end_idx],
            others[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
        for chunk in aligned.alignments[0]
    ]


def first_divergence(reference: Sequence[int], output: Sequence[int], n_vocab: int) -> Divergence | None:
    """Return the first place where two token sequences differ, or None if they do not."""
    if list(reference) == list(output):
        return None
    shared = (a == b for a, b in zip(reference, output, strict=False))
    index = next((i for i, same in enumerate(shared) if not same), min(len(reference), len(output)))
    return Divergence(index, _token(reference, index, n_vocab), _token(output, index, n_vocab))


def _token(tokens: Sequence[int], index: int, n_vocab: int) -> Token | None:
    return Token(tokens[index], token_text(tokens[index], n_vocab)) if index < len(tokens) else None


def _remarks(run: Run, row: Result, others: Sequence[Result]) -> Iterator[str]:
    if not run["settings"]["texts"]:
        yield (
            "the run was stored with --no-texts: hashes say which texts differ, but there are no words or "
            "tokens to show; to see them, run again without --no-texts"
        )
        return
    silent = [r["variant"] for r in [row, *others] if any(_tells_no_tokens(s) for s in r["samples"])]
    if silent:
        yield f"no tokens from {', '.join(silent)}: the engine does not give them, so only texts are compared"
    if not others:
        yield "no other variant of the run answered a clip, so there is nothing to compare"


def _tells_no_tokens(sample: Sample) -> bool:
    return sample["error"] is None and sample["tokens"] is None
