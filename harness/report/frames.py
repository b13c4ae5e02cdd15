"""Runs as pandas DataFrames, and as Parquet: the columns of the CSV files, with numbers as numbers."""

from __future__ import annotations

import importlib.util
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asrgate.backends.base import AsrgateError
from asrgate.harness import record
from asrgate.harness.metrics.word_errors import errors, first_answers, walls_by_clip
from asrgate.harness.record import errors_of
from asrgate.harness.record_types import Run
from asrgate.harness.report import context, tables

if TYPE_CHECKING:
    from pandas import DataFrame

TEXTS = {  # columns that hold text even where all of a run's are empty; the others then hold numbers
    *("reason", "remedy", "compared_with", "energy_source", "error", "text", "text_sha256", "reference"),
    *("model_tensors_sha256", "interrupted", "isolation", "beaten_by"),
}
ERRORS = (
    *("substitutions", "deletions", "insertions", "reference_words", "output_words"),
    *("character_errors", "reference_characters"),
)


class ParquetMissing(AsrgateError):
    """No library that writes Parquet is installed."""


def of_runs(runs: Sequence[Run]) -> DataFrame:
    """Return one line per run: what was measured, where, and how."""
    import pandas

    frame = _frame(_run_line(run) for run in runs)
    for name in ("started_at", "finished_at"):
        if name in frame:
            frame[name] = pandas.to_datetime(frame[name], utc=True)
    return frame


def of_rows(runs: Sequence[Run]) -> DataFrame:
    """Return one line per run and variant, with all figures, as in summary.csv."""
    return _frame(line for run in runs for line in tables.summary_lines(run))


def of_samples(runs: Sequence[Run]) -> DataFrame:
    """Return one line per measured call, as in samples.csv, with the run's id."""
    return _frame({"run_id": run["run_id"]} | line for run in runs for line in tables.sample_lines(run))


def of_clips(runs: Sequence[Run]) -> DataFrame:
    """Return one line per run, variant and clip: the clip, its scored answer and that answer's errors.

    Errors are those of the first round's text under the run's normaliser; missing where a clip has no
    reference text. `wall_median_seconds` is over the calls whose times count. A field of the manifest is a
    column `tag_NAME`.
    """
    return _frame(line for run in runs for line in _clip_lines(run))


def parquet(frame: DataFrame) -> bytes:
    """Return the frame as a Parquet file.

    Raises:
        ParquetMissing: pyarrow is not installed.
    """
    require_parquet()
    file = io.BytesIO()
    frame.to_parquet(file, engine="pyarrow", index=False)
    return file.getvalue()


def require_parquet() -> None:
    """Raise ParquetMissing if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ParquetMissing(
            "Parquet needs pyarrow: python -m pip install pyarrow. CSV needs nothing: --output samples.csv"
        )


def _frame(lines: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Return a frame in which a column has the same type in every run, whether or not it is empty there."""
    import pandas

    frame = pandas.DataFrame(list(lines))
    for name in frame.columns[frame.isna().all()]:
        frame[name] = frame[name].astype("object" if name in TEXTS else "float64")
    return frame


def _run_line(run: Run) -> dict[str, Any]:
    return {
        "run_id": run["run_id"],
        "started_at": run["started_at"],
        "finished_at": run["finished_at"],
        "complete": run["complete"],
        "interrupted": run["interrupted"],
        "model": context.model_names(run),
        "model_tensors_sha256": None if "models" in run else run["checkpoint"]["tensors_sha256"],
        "scenario": context.scenario(run),
        "decoding": context.decoding(run),
        "machine": context.machine(run),
        "reference": run["settings"]["reference"],
        "rounds": run["settings"]["rounds"],
        "clips": len(run["clips"]),
        "audio_seconds": sum(clip["audio_seconds"] for clip in run["clips"]),
        "normalizer": run["scoring"]["normalizer"]["name"],
        "warnings": "; ".join(context.warnings(run)),
    }


def _clip_lines(run: Run) -> Iterator[dict[str, Any]]:
    for result in run["results"]:
        counted = {entry["clip"]: entry for entry in errors_of(result)}
        answers, walls = first_answers(result), walls_by_clip(result)
        for clip in run["clips"] if result["status"] != "unavailable" else ():
            entry, answer = counted.get(clip["name"]), answers.get(clip["name"])
            found: Mapping[str, Any] = {} if entry is None else entry
            seconds = walls.get(clip["name"])
            yield {
                "run_id": run["run_id"],
                "model": record.model_of(run, result)["name"],
                "variant": result["variant"],
                "clip": clip["name"],
                "clip_sha256": clip["sha256"],
                "audio_seconds": clip["audio_seconds"],
                "language": clip["language"],
                "errors": None if entry is None else errors(entry),
                **{name: found.get(name) for name in ERRORS},
                "wall_median_seconds": None if seconds is None else statistics.median(seconds),
                "reference": clip["reference"],
                "text": None if answer is None else answer["text"],
                **{f"tag_{name}": value for name, value in clip["tags"].items()},
            }
