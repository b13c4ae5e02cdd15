"""What every Whisper engine must honour in the same way: settings, languages and suppressed tokens."""

from __future__ import annotations

from collections.abc import Sequence

from asrgate.backends.base import AUTO, BackendError, Checkpoint, Settings, Word, did_you_mean


def require_honourable(checkpoint: Checkpoint, settings: Settings, detects_language: bool = False) -> None:
    """Raise BackendError if no Whisper engine could decode this checkpoint with these settings.

    Args:
        detects_language: whether the engine can tell which language is spoken, and says so.
    """
    if settings.task not in ("transcribe", "translate"):
        raise BackendError(f"there is no task {settings.task!r}; choose transcribe or translate")
    if settings.temperature != 0.0:
        raise BackendError(
            f"temperature {settings.temperature} would sample at random, so engines would not be comparable"
        )
    if settings.beam_size < 1:
        raise BackendError(f"beam_size must be 1 (greedy) or more, not {settings.beam_size}")
    if settings.threads < 1:
        raise BackendError(f"threads must be 1 or more, not {settings.threads}")
    if settings.task == "translate" and not checkpoint.is_multilingual:
        raise BackendError(
            f"{checkpoint.name} is English-only and cannot translate; use a multilingual model"
        )
    if settings.language == AUTO:
        if not checkpoint.is_multilingual:
            raise BackendError(
                f"{checkpoint.name} is English-only and cannot detect a language; use a multilingual model"
            )
        if not detects_language:
            raise BackendError("it does not say which language it detects; name one, or leave it out here")
    elif settings.language is not None:
        require_language(checkpoint, settings.language)
    suppressed_tokens(settings, checkpoint)


def to_decode_in(checkpoint: Checkpoint, language: str, known: Sequence[str]) -> str | None:
    """Return the language of a call, None if the engine has to detect it; raises as `require_language`."""
    if language == AUTO and checkpoint.is_multilingual:
        return None
    require_language(checkpoint, language, known)
    return language


def require_language(checkpoint: Checkpoint, language: str, known: Sequence[str] = ()) -> None:
    """Raise BackendError if the checkpoint cannot decode in the language.

    Args:
        checkpoint: the model.
        language: an ISO 639-1 code.
        known: the engine's languages; empty if they cannot be known without importing the engine.
    """
    if not checkpoint.is_multilingual:
        if language != "en":
            raise BackendError(
                f"{checkpoint.name} is English-only and cannot decode {language!r}; use a multilingual "
                "model, or only English clips"
            )
        return
    if known and language not in known:
        raise BackendError(
            f"{checkpoint.name} has no language {language!r}.{did_you_mean(language, known)} "
            f"It has {', '.join(sorted(known))}"
        )


def suppressed_tokens(settings: Settings, checkpoint: Checkpoint) -> list[int]:
    """Return `suppress_tokens` as ids; -1 stands for Whisper's list of non-speech symbols.

    Raises:
        BackendError: the setting is not a comma-separated list of token ids of this vocabulary.
    """
    try:
        tokens = (
            [int(part) for part in settings.suppress_tokens.split(",")] if settings.suppress_tokens else []
        )
    except ValueError as error:
        raise BackendError(
            f"suppress_tokens must be token ids separated by commas, or -1, not {settings.suppress_tokens!r}"
        ) from error
    n_vocab = checkpoint.dimensions["n_vocab"]
    if any(not -1 <= token < n_vocab for token in tokens):
        raise BackendError(f"suppress_tokens must be between 0 and {n_vocab - 1}, or -1, not {tokens}")
    return tokens


def timed_word(text: str, start: float, end: float) -> Word:
    """Return a word as Whisper's alignment gives it: with blanks around, and perhaps numpy's numbers."""
    return Word(text.strip(), float(start), float(end))
