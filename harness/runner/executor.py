"""What measures a run: the seam between the order of a run and whoever holds the engines."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Executor(ABC):
    """Holds the engines of one run, asks them, and hands what they say to a RunState."""

    @abstractmethod
    def load(self) -> None:
        """Load and warm up every engine; one that cannot is a failure of its own."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Answers that a round asks of each variant."""

    @property
    @abstractmethod
    def probe_calls(self) -> int:
        """Answers that the checks ask of each variant."""

    @abstractmethod
    def round(self, number: int, order: list[str]) -> dict[str, float | None]:
        """Have every variant answer the clips of a round that it has not answered.

        Returns:
            How busy other programs were meanwhile: foreign_cpu_fraction, load_average_1min.
        """

    @abstractmethod
    def check(self) -> None:
        """Check each engine's answers for cached and late work, and collect what it used."""

    def time_words(self) -> None:
        """Ask each engine that can for the times of words, once all figures of speed are there.

        An executor without it is not asked to: see `--word-timestamps` in cli/run.py.
        """
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """End every engine."""
