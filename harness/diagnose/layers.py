"""How far one engine's layers are from another's: statistics, errors, and the first layer that diverges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asrgate.backends.inspection.encoder_trace import LOG_MEL

# What rounding alone does, with a margin, by the precision that an engine computes in. log_mel is judged by
# its largest absolute error (Whisper scales it to about -1 to 1.5), every other layer by its relative error.
LAYER_TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}
LOG_MEL_TOLERANCES = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 1e-2}


@dataclass(frozen=True)
class Statistics:
    """Statistics over all elements of one layer; None if one of them is not finite."""

    mean: float | None
    std: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True)
class LayerError:
    """One layer of the tested engine compared with the reference's.

    Attributes:
        cosine: cosine similarity of the two arrays as vectors; None when one is zero or not finite.
        relative_error: Frobenius norm of the difference over that of the reference; None as above.
        max_absolute_error: None when an element is not finite.
        tolerance: the limit of the layer's error: absolute for log_mel, relative for the others.
        diverges: whether the error is above it, or is not a number.
    """

    layer: str
    tested: Statistics
    reference: Statistics
    cosine: float | None
    relative_error: float | None
    max_absolute_error: float | None
    tolerance: float
    diverges: bool


def layer_errors(
    tested: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    tolerance: float,
    log_mel_tolerance: float,
) -> list[LayerError]:
    """Compare two traces of the same layers (inspection.encoder_trace), in the reference's order."""
    return [
        _layer_error(name, tested[name], array, log_mel_tolerance if name == LOG_MEL else tolerance)
        for name, array in reference.items()
    ]


def first_divergence(layers: Sequence[LayerError]) -> LayerError | None:
    """Return the first layer whose error is beyond tolerance, or None.

    The layers form a chain, so every layer after a fault is wrong too, and none before it. No layer is fed
    the reference's values: the engine is examined as it runs, and a backend needs no entry point in its
    middle. The drawback: a fault that only adds to the rounding of earlier layers can show one layer late.
    """
    return next((layer for layer in layers if layer.diverges), None)


def _layer_error(name: str, tested: np.ndarray, reference: np.ndarray, tolerance: float) -> LayerError:
    ours, theirs = tested.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    cosine = relative = absolute = None
    if np.isfinite(ours).all() and np.isfinite(theirs).all():
        difference, norms = ours - theirs, (np.linalg.norm(ours), np.linalg.norm(theirs))
        absolute = float(np.abs(difference).max())
        if norms[1] > 0:
            relative = float(np.linalg.norm(difference) / norms[1])
        elif norms[0] == 0:
            relative = 0.0
        if min(norms) > 0:
            cosine = float(ours @ theirs / (norms[0] * norms[1]))
    judged = absolute if name == LOG_MEL else relative
    return LayerError(
        layer=name,
        tested=_statistics(ours),
        reference=_statistics(theirs),
        cosine=cosine,
        relative_error=relative,
        max_absolute_error=absolute,
        tolerance=tolerance,
        diverges=judged is None or judged > tolerance,
    )


def _statistics(values: np.ndarray) -> Statistics:
    if not np.isfinite(values).all():
        return Statistics(None, None, None, None)
    return Statistics(float(values.mean()), float(values.std()), float(values.min()), float(values.max()))
