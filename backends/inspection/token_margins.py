"""How narrowly openai-whisper chose a token: the margin between it and the token that another engine chose.

Two engines that are both correct may still differ where two tokens are practically equal, because rounding
decides. Such a difference has a small margin; a difference caused by a fault usually does not.
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
        window_start_seconds: where in the clip the decoded window begins.
        step: the number of tokens sampled in the window before.
        chosen: the sampled id, which may be the end of text.
        other: the id that it is compared with.
        margin: by how much `chosen` won, in logits (natural logarithm), after Whisper's rules. If the
            timestamp rule decided between text and timestamp, it compares the timestamps' sum with the best
            text token, and so does the margin. None if the rules forbid `other` there.
        timestamp_rule: whether that rule decided.
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
            index: index of the first token in `tokens` that the other engine lacks; may be their number.
            other: the other engine's token there; None if its transcript had ended.

        Raises:
            BackendError: the clip does not give the same tokens again, or the choice cannot be found.
        """
        ...


@dataclass(frozen=True, eq=False)
class Window:
    """One call of whisper.decoding.decode: log-mel window (n_mels, 3000), DecodingOptions, sampled tokens."""

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

    A transcript leaves out what whisper.transcribe drops (the unfinished end of a window, empty segments). So
    the engines may have diverged at the token after the last common one, or at the next one that was kept.
    Of these places, the one where `other` was possible and closest is returned.

    Args:
        model: the whisper.model.Whisper.
        windows: as `recorded_windows` kept them.
        segments: of the dict that whisper.transcribe returned.
    """
    places = _places(windows, segments)
    again = [token for segment in segments for token in segment["tokens"]]
    if again[: index + 1] != list(tokens[: index + 1]):
        raise BackendError(
            "decoded again, the clip gives different tokens than the record has; the record comes from "
            "another machine or version, or its engine is not stable"
        )
    candidates = list(places[index : index + 1])
    if index > 0:
        window, start, step = places[index - 1]
        candidates.insert(0, (window, start, step + 1))
    elif not candidates and windows:
        candidates = [(windows[0], 0.0, 0)]
    found = [
        _decision(model, window, start, step, other) for window, start, step in dict.fromkeys(candidates)
    ]
    parted = [decision for decision in found if decision.chosen != decision.other]
    if not parted:
        raise BackendError(
            "no single choice explains the difference: the engines cut the windows differently"
        )
    return min(parted, key=lambda decision: float("inf") if decision.margin is None else decision.margin)


def _places(windows: Sequence[Window], segments: Sequence[dict[str, Any]]) -> list[tuple[Window, float, int]]:
    """Return each transcript token's window, the second at which that begins, and the token's step in it."""
    places = []
    remaining = iter(windows)
    seek, window, step = None, None, 0
    for segment in segments:
        if segment["seek"] != seek:
            seek, step = segment["seek"], 0
            # windows skipped as silent have no segments; those of the others have these two figures unchanged
            figures = segment["avg_logprob"], segment["no_speech_prob"]
            window = next(w for w in remaining if (w.avg_logprob, w.no_speech_prob) == figures)
        assert window is not None and seek is not None
        kept = list(segment["tokens"])
        if kept:  # otherwise it is an empty segment that was dropped
            ends = range(step, len(window.tokens) - len(kept) + 1)
            step = next(at for at in ends if list(window.tokens[at : at + len(kept)]) == kept)
            places += [(window, seek / FRAMES_PER_SECOND, step + i) for i in range(len(kept))]
            step += len(kept)
    return places


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
    # The rule that weighs timestamps against text must not hide what the others allow: let text outweigh.
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
