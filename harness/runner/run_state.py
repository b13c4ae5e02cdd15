"""The state of a run that is being measured: its record and journal, and what is left to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from asrgate.backends.base import SAMPLE_RATE_HZ
from asrgate.harness import record
from asrgate.harness.corpus.audio import dithered
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.record_types import ProbeRecord, RoundRecord, Sample
from asrgate.harness.runner import journal, resume
from asrgate.harness.runner.plan import Plan, blank_record
from asrgate.harness.runner.progress import Progress
from asrgate.harness.worker.client import WorkerError

WARMUP_SECONDS = 30.0  # one whole window
WARMUP_SEED = 1_000_000  # added to the run's


class RunState:
    """What an executor reads and fills: it measures, and this keeps what it measured.

    Attributes:
        record: the run's record, which grows.
        results: variant -> its result in the record.
        failed: variants that are out of the run.
        audio_seed: of altered copies of the clips; the executor draws it once the engines are loaded, so that
            none can make the copies beforehand.
    """

    def __init__(
        self, plan: Plan, run_id: str, folder: Path, progress: Progress, kept: journal.Kept | None = None
    ):
        """Begin a run, or resume one.

        Args:
            kept: what the journal has of the run that is resumed.
        """
        self.plan = plan
        self.folder = folder
        self.progress = progress
        self.record = blank_record(plan, run_id)
        self.results = {result["variant"]: result for result in self.record["results"]}
        self.failed = set(kept.failures) if kept else set()
        self.audio_seed = 0
        self._attempt = len(kept.attempts) if kept else 0
        self._journal = self._begin(kept) if plan.texts and plan.scenario.is_resumable else None
        self._done = resume.restore(self.record, kept) if kept else set()

    # --- what is left to do

    @property
    def names(self) -> list[str]:
        """Variants that are still in the run, in the order of the plan."""
        return [name for name in map(str, self.plan.variants) if name not in self.failed]

    @property
    def rounds_left(self) -> list[int]:
        """Numbers of the rounds that are not complete."""
        finished = {entry["round"] for entry in self.record["rounds"]}
        return sorted(set(range(self.plan.rounds)) - finished)

    @property
    def samples_done(self) -> int:
        """How many samples the run had before this process began."""
        return len(self._done)

    def order(self, number: int) -> list[str]:
        """Return the variants in the order in which they take turns in a round; each begins as often."""
        everyone = [str(variant) for variant in self.plan.variants]
        shift = number % max(len(everyone), 1)
        return [name for name in everyone[shift:] + everyone[:shift] if name not in self.failed]

    def is_done(self, name: str, number: int, clip: Clip) -> bool:
        """Whether a variant answered a clip in a round before the run was cut off."""
        return (name, number, clip.name) in self._done

    @property
    def language(self) -> str:
        """Language of the warm-up clip."""
        return self.plan.settings.language or self.plan.clips[0].call_language

    def warmup_clip(self, samples: np.ndarray) -> np.ndarray:
        """Return speech that is none of the clips: nothing learned from it helps a measured call.

        It is the clip with its halves exchanged. Reversed speech, say, would warm up as well, but makes
        engines hallucinate for seconds.

        Args:
            samples: of the `middle_clip`.
        """
        start = samples[: int(WARMUP_SECONDS * SAMPLE_RATE_HZ)]
        exchanged = np.roll(start, len(start) // 2)
        return dithered(exchanged, self.plan.seed + WARMUP_SEED)

    @property
    def middle_clip(self) -> Clip:
        """The clip of median length."""
        clips: Sequence[Clip] = self.plan.clips
        return sorted(clips, key=lambda clip: clip.audio_seconds)[len(clips) // 2]

    # --- what was measured

    def answered(
        self, name: str, number: int, clip: Clip, answer: dict[str, Any], fields: dict[str, Any]
    ) -> None:
        """Keep an answer as a sample.

        Args:
            fields: what the sample has in this scenario, or with this executor, alone.
        """
        sample = _sample(clip, number, answer)
        sample.update(cast(Any, fields))
        self.note("sample", {**sample, "attempt": self._attempt}, variant=name)
        if "attempts" in self.record:
            sample["attempt"] = self._attempt
        self.results[name]["samples"].append(sample)
        self.progress.answered(name, clip.name, number, answer["wall_seconds"], answer["error"])

    def checked(self, name: str, probes: list[ProbeRecord]) -> None:
        """Keep what a variant answered to probes; what follows is derived when the run is over."""
        self.results[name]["integrity"] = {
            "probes": probes,
            "unseen_over_seen": None,
            "late_work_seconds": None,
        }

    def failure(self, name: str, doing: str, error: WorkerError) -> None:
        """Take a variant out of the run; the error goes into its result."""
        self.failed.add(name)
        result = self.results[name]
        result["status"] = "unavailable" if error.unavailable else "error"
        result["error"], result["remedy"] = str(error), error.remedy
        told = {"status": result["status"], "error": result["error"], "remedy": result["remedy"]}
        if error.killed_by is not None:
            told["killed_by"] = result["killed_by"] = error.killed_by
        self.note("failure", told, variant=name)
        self.progress.failed(name, doing, str(error))

    def round_over(self, entry: RoundRecord) -> None:
        """Keep a round's entry and write the record."""
        entry["audio_seed"] = self.audio_seed
        if "attempts" in self.record:
            entry["attempt"] = self._attempt
        self.record["rounds"].append(entry)
        self.note("round", entry)
        if self._journal is not None:
            self._journal.sync()
        self.save()

    def note(self, kind: str, value: Mapping[str, Any], **fields: Any) -> None:
        """Write a line of the journal, if the run has one."""
        if self._journal is not None:
            self._journal.add(kind, value, **fields)

    def save(self) -> None:
        """Write the record.

        Raises:
            RecordError: it cannot be written.
        """
        self.record["digest"] = record.digest_of(self.record)
        stored = self.record if self.plan.texts else record.without_texts(self.record)
        record.write(stored, self.folder / "run.json")

    def close(self) -> None:
        """Write the record for the last time; the journal stays only if the run can be resumed."""
        self.save()
        if self._journal is None:
            return
        if self.record["complete"]:
            self._journal.remove()
        else:
            self._journal.sync()
            self._journal.close()

    def _begin(self, kept: journal.Kept | None) -> journal.Journal:
        record.sweep(self.folder)
        opened = journal.Journal(self.folder, kept.size_bytes if kept else 0)
        if kept is None:
            head = {"run_id": self.record["run_id"], "started_at": self.record["started_at"]}
            plan = resume.fingerprint(self.record)
            argv = [journal.as_kept(argument) for argument in self.plan.command[1:]]
            opened.add("plan", plan, journal_version=journal.VERSION, argv=argv, **head)
        opened.add("attempt", {"host": self.record["host"], "versions": self.record["versions"]})
        opened.sync()
        return opened


def _sample(clip: Clip, number: int, answer: dict[str, Any]) -> Sample:
    text, tokens = answer["text"], answer["tokens"]
    detected: Any = {"language": answer["language"]} if "language" in answer else {}
    return {
        **detected,
        "clip": clip.name,
        "round": number,
        "wall_seconds": answer["wall_seconds"],
        "worker_seconds": answer["worker_seconds"],
        "cpu_seconds": answer["cpu_seconds"],
        "late_work_seconds": answer["late_work_seconds"],
        "stage_seconds": answer["stage_seconds"],
        "text": text,
        "text_sha256": None if text is None else record.text_sha256(text),
        "text_words": None,
        "tokens": tokens,
        "token_count": None if tokens is None else len(tokens),
        "error": answer["error"],
    }
