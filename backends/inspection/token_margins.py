"""How narrowly openai-whisper chose a token: the margin between it and another engine's token.

Two correct engines may still differ if two tokens are practically equally likely, because rounding decides.
Such a difference has a small margin; a difference caused by a fault usually has a large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from asrgate.backends.base import BackendError
from asrgate.backends.whisper_common.constants import FRAMES_PER_SECOND


@dataclass(frozen=True)
class Decision:
    """One choice of a token.

    Attributes:
        window_start_seconds: the time in the clip at which the decoded window begins.
        step: the number of tokens that were sampled in the window before this one.
        chosen: the sampled id, which may be the end of text.
        other: the id that it is compared with.
        margin: by how much `chosen` won, in logits (natural logarithm), after Whisper's rules. The timestamp
            rule compares the sum of all timestamps with the best text token; if it decided, so does the
            margin. None if the rules forbid `other` at this step.
        timestamp_rule: whether the timestamp rule decided between text and timestamp.
    """

    window_start_seconds: float
    step: int
    chosen: int
    other: int
    margin: float | None
    timestamp_rule: bool


@runtime_checkable
class Decides(Protocol):
    """What a backend needs beyond `asrgate.backends.base.Backend` so that its choices can be examined."""

    def decision(
        self, audio: np.ndarray, language: str, tokens: Sequence[int], index: int, other: int | None
    ) -> Decision:
        """Transcribe the clip again and return the choice at which another engine diverged.

        Args:
            audio: float32, shape (samples,), mono, 16 kHz, in [-1, 1].
            language: ISO 639-1 code.
            tokens: the tokens of this backend's Transcript for the clip.
            index: the index in `tokens` of the first token that the other engine lacks. It equals their
                number if only the other engine goes on.
            other: the other engine's token at that index; None if its transcript had ended.

        Raises:
            BackendError: the clip yields different tokens this time, or the choice cannot be found.
        """
        ...


@dataclass(frozen=True, eq=False)
class Window:
    """One call of whisper.decoding.decode: its log-mel (n_mels, 3000), its DecodingOptions and its result."""

    log_mel: Any
    options: Any
    tokens: Sequence[int]
    no_speech_prob: float
    avg_logprob: float


@contextmanager
def recorded_windows(model: Any) -> Iterator[list[Window]]:
    """Record every window that whisper.transcribe decodes with the model in this context, in order."""
    windows: list[Window] = []
    decode = model.decode

    def recording(log_mel: Any, options: Any) -> Any:
        result = decode(log_mel, options)
        windows.append(Window(log_mel, options, result.tokens, result.no_speech_prob, result.avg_logprob))
        return result

    model.decode = recording
    try:
        yield windows
    finally:
        del model.decode  # restores the class's own method


def decide(
    model: Any,
    windows: Sequence[Window],
    segments: Sequence[dict[str, Any]],
    tokens: Sequence[int],
    index: int,
    other: int | None,
) -> Decision:
    """Return the decision at token `index` of a finished transcription; see `Decides.decision`.

    A transcript lacks what whisper.transcribe drops: the unfinished end of a window, and empty segments. So
    the engines may have diverged at the token after the last common one, or at the next token that was kept.
    Of these decisions, the one in which `other` was allowed and closest is returned.

    Args:
        model: the whisper.model.Whisper.
        windows: from `recorded_windows`.
        segments: from the dict that whisper.transcribe returned.
    """
    positions = _positions(windows, segments)
    again = [token for segment in segments for token in segment["tokens"]]
    if again[: index + 1] != list(tokens[: index + 1]):
        raise BackendError(
            "decoded again, the clip gives different tokens than the record has; the record comes from "
            "another machine or version, or the engine's answers vary"
        )
    candidates = list(positions[index : index + 1])
    if index > 0:
        window, start, step = positions[index - 1]
        candidates.insert(0, (window, start, step + 1))
    elif not candidates and windows:
        candidates = [(windows[0], 0.0, 0)]
    decisions = [
        _decision(model, window, start, step, other) for window, start, step in dict.fromkeys(candidates)
    ]
    differing = [decision for decision in decisions if decision.chosen != decision.other]
    if not differing:
        raise BackendError(
            "no single choice explains the difference: the engines cut the windows differently"
        )
    return min(differing, key=lambda decision: float("inf") if decision.margin is None else decision.margin)


def _positions(
    windows: Sequence[Window], segments: Sequence[dict[str, Any]]
) -> list[tuple[Window, float, int]]:
    """Return each transcript token's window, the window's start in seconds, and the token's step in it."""
    positions = []
    remaining = iter(windows)
    seek, window, step = None, None, 0
    for segment in segments:
        if segment["seek"] != seek:
            seek, step = segment["seek"], 0
            # a window skipped as silent has no segments; all others pass these two figures on unchanged
            figures = segment["avg_logprob"], segment["no_speech_prob"]
            window = next(w for w in remaining if (w.avg_logprob, w.no_speech_prob) == figures)
        assert window is not None and seek is not None
        kept = list(segment["tokens"])
        if kept:  # otherwise it is an empty segment that was dropped
            ends = range(step, len(window.tokens) - len(kept) + 1)
            step = next(at for at in ends if list(window.tokens[at : at + len(kept)]) == kept)
            positions += [(window, seek / FRAMES_PER_SECOND, step + i) for i in range(len(kept))]
            step += len(kept)
    return positions


def _decision(model: Any, window: Window, start_seconds: float, step: int, other: int | None) -> Decision:
    import torch
    from whisper.decoding import ApplyTimestampRules, DecodingTask

    task = DecodingTask(model, window.options)
    tokenizer = task.tokenizer
    sampled = list(window.tokens[:step])
    prefix = torch.tensor([[*task.initial_tokens, *sampled]], device=model.device)
    with torch.no_grad():
        features = model.embed_audio(window.log_mel[None].to(model.device))
        logits = model.logits(prefix, features)[:, -1].float()
    begin = tokenizer.timestamp_begin
    # Make text outweigh timestamps, so that the rule that compares them does not hide what the others allow.
    weighed = logits.clone()
    weighed[:, :begin] += 1e4
    for rule in task.logit_filters:
        rule.apply(weighed, prefix)
    allowed = torch.where(weighed.isinf(), -torch.inf, logits)[0].double()
    chosen = window.tokens[step] if step < len(window.tokens) else tokenizer.eot
    other = tokenizer.eot if other is None else other
    has_rule = any(isinstance(rule, ApplyTimestampRules) for rule in task.logit_filters)
    by_rule = has_rule and (chosen >= begin) != (other >= begin)
    of_chosen, of_other = allowed[chosen], allowed[other]
    is_possible = bool(of_other.isfinite())
    if by_rule and chosen >= begin:
        of_chosen = allowed[begin:].logsumexp(0)
    elif by_rule:
        of_other = allowed[begin:].logsumexp(0)
    return Decision(
        window_start_seconds=start_seconds,
        step=step,
        chosen=chosen,
        other=other,
        margin=float(of_chosen - of_other) if is_possible else None,
        timestamp_rule=by_rule,
    )
