"""The worker's part of the tools that examine an engine, `debug-encoder` and `compare-outputs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np


def answer(backend: Any, message: Mapping[str, Any], audio: np.ndarray) -> dict[str, Any]:
    """Carry out an "examine" message; return a JSON-ready reply with `error` None.

    Messages, by `method`:

        encoder_trace: write the layers' arrays to the .npz file `path`.
        decision: `language`, `tokens`, `index`, `other` as in inspection.token_margins.Decides; the reply is
            a Decision's fields.

    Raises:
        BackendError: the backend cannot do it.
    """
    return {"error": None, **_METHODS[message["method"]](backend, message, audio)}


def _encoder_trace(backend: Any, message: Mapping[str, Any], audio: np.ndarray) -> dict[str, Any]:
    trace = backend.encoder_trace(audio)
    np.savez(message["path"], **trace)
    return {}


def _decision(backend: Any, message: Mapping[str, Any], audio: np.ndarray) -> dict[str, Any]:
    names = ("language", "tokens", "index", "other")
    return asdict(backend.decision(audio, **{name: message[name] for name in names}))


_METHODS: dict[str, Callable[[Any, Mapping[str, Any], np.ndarray], dict[str, Any]]] = {
    "encoder_trace": _encoder_trace,
    "decision": _decision,
}
