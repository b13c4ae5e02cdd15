"""Counts word and character errors for each clip and for the whole set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jiwer

from asrgate.harness.metrics import normalizers
from asrgate.harness.record import probes_of
from asrgate.harness.record_types import (
    ClipErrors,
    ClipRecord,
    Result,
    RoundErrors,
    Run,
    Sample,
    WordErrorRate,
)

MOST_CELLS = 1 << 36  # of two texts' lengths multiplied: those of four hours of speech in characters
LONGEST = 500_000  # words or characters of either: of eight hours of speech


def is_answered(sample: Sample) -> bool:
    """Whether the engine returned a text for the sample, even an empty one."""
    return sample["error"] is None and sample["text_sha256"] is not None


def is_timed(sample: Sample) -> bool:
    """Whether the sample's time counts: it was answered, and in the attempt used for speed and latency."""
    return is_answered(sample) and sample.get("timed", True)


def timed(result: Result) -> list[Sample]:
    """Return the samples of a result whose times count."""
    return [sample for sample in result["samples"] if is_timed(sample)]


def walls_by_clip(result: Result) -> dict[str, list[float]]:
    """Return clip name -> the wall seconds of its samples whose times count."""
    walls: dict[str, list[float]] = {}
    for sample in timed(result):
        walls.setdefault(sample["clip"], []).append(sample["wall_seconds"])
    return walls


def first_answers(result: Result) -> dict[str, Sample]:
    """Return clip name -> the sample of the first round, if that was answered."""
    first: dict[str, Sample] = {}
    for sample in result["samples"]:
        known = first.get(sample["clip"])
        if known is None or sample["round"] < known["round"]:
            first[sample["clip"]] = sample
    return {clip: sample for clip, sample in first.items() if is_answered(sample)}


class WordCounts(NamedTuple):
    """Word errors of a text against a reference."""

    substitutions: int
    deletions: int
    insertions: int

    @property
    def edits(self) -> int:
        """All of them."""
        return sum(self)


def aligned(reference: str, text: str) -> WordCounts:
    """Return the fewest word errors that turn one text into the other; spaces divide words.

    Of two texts that are too long to be aligned in seconds, all words count as wrong unless they are equal.
    """
    counts = (word_count(reference), word_count(text))
    if is_too_long(*counts):
        return _all_wrong(*counts) if reference != text else WordCounts(0, 0, 0)
    words = jiwer.process_words(reference, text)
    return WordCounts(words.substitutions, words.deletions, words.insertions)


def word_count(text: str) -> int:
    """Return the number of words in a normalised text: they are joined by single spaces."""
    return text.count(" ") + 1 if text else 0


def is_too_long(one: int, other: int) -> bool:
    """Whether two texts of so many words, or characters, cannot be aligned in seconds."""
    return one * other > MOST_CELLS or max(one, other) > LONGEST


def _all_wrong(reference: int, output: int) -> WordCounts:
    return WordCounts(min(reference, output), max(0, reference - output), max(0, output - reference))


class Texts:
    """The run's texts, normalised; each distinct text is normalised only once."""

    def __init__(self, run: Run, normalizer: str):
        self._run = run
        self.name = normalizer
        self._normalize = normalizers.normalizer(normalizer)
        self._known: dict[tuple[str, str], str] = {}
        translated = run["settings"]["decoding"].get("task") == "translate"  # always into English
        self._languages = {clip["name"]: "en" if translated else clip["language"] for clip in run["clips"]}
        self._aligned: dict[tuple[str, str], WordCounts] = {}

    @property
    def notes(self) -> list[str]:
        """Texts that the normaliser could not take, in words."""
        return list(getattr(self._normalize, "notes", []))

    def normalised(self, text: str, clip: str) -> str:
        """Return the text's words joined by single spaces."""
        key = (text, self._languages.get(clip, "en"))
        if key not in self._known:
            self._known[key] = self._normalize(*key)
        return self._known[key]

    def aligned(self, reference: str, text: str, clip: str) -> WordCounts:
        """Return how a text differs from another, both normalised; each pair is aligned only once."""
        key = (self.normalised(reference, clip), self.normalised(text, clip))
        if key not in self._aligned:
            self._aligned[key] = aligned(*key)
        return self._aligned[key]

    def edits(self, reference: str, text: str, clip: str) -> int:
        """Return the word errors of a text against another, both normalised."""
        return self.aligned(reference, text, clip).edits

    def words(self, text: str, clip: str) -> int:
        """Return a text's number of words, normalised."""
        return word_count(self.normalised(text, clip))

    def is_unspaced(self, clip: str) -> bool:
        """Whether the clip's text is in a language written without spaces between words."""
        return self._languages.get(clip, "en") in normalizers.UNSPACED_LANGUAGES

    def count_words(self) -> None:
        """Fill `reference_words` of clips and `text_words` of samples and probes."""
        for clip in self._run["clips"]:
            clip["reference_words"] = self._words(clip["reference"], clip["name"])
        for result in self._run["results"]:
            for item in [*result["samples"], *probes_of(result)]:
                item["text_words"] = self._words(item["text"], item["clip"])

    def _words(self, text: str | None, clip: str) -> int | None:
        return None if text is None else self.words(text, clip)


def count(run: Run, result: Result, first: Mapping[str, Sample], texts: Texts) -> WordErrorRate | None:
    """Return a result's `wer` without intervals and comparison, or None if no clip was answered."""
    if not any(is_answered(sample) for sample in result["samples"]):
        return None
    per_clip = [
        _clip_errors(clip, said, first.get(clip["name"]), texts)
        for clip in run["clips"]
        if (said := clip["reference"]) is not None
    ]
    reference_words = sum(entry["reference_words"] for entry in per_clip)
    return {
        "wer": ratio(sum(map(errors, per_clip)), reference_words),
        "interval": None,
        "substitutions": sum(entry["substitutions"] for entry in per_clip),
        "deletions": sum(entry["deletions"] for entry in per_clip),
        "insertions": sum(entry["insertions"] for entry in per_clip),
        "reference_words": reference_words,
        "output_words": sum(entry["output_words"] for entry in per_clip),
        "cer": ratio(
            sum(entry["character_errors"] for entry in per_clip),
            sum(entry["reference_characters"] for entry in per_clip),
        ),
        "exact_matches": sum(entry["exact"] for entry in per_clip),
        "clips": len(per_clip),
        "unstable_clips": _unstable_clips(result),
        "per_clip": per_clip,
        "rounds": [],
        "versus_reference": None,
    }


def wer_only(run: Run, first: Mapping[str, Sample], texts: Texts) -> float | None:
    """Return the WER that `count` would, without counting characters."""
    spoken = {clip["name"]: said for clip in run["clips"] if (said := clip["reference"]) is not None}
    heard = {clip: first[clip]["text"] or "" if clip in first else "" for clip in spoken}
    return _word_error_rate(spoken, heard, texts)


def _word_error_rate(spoken: Mapping[str, str], heard: Mapping[str, str], texts: Texts) -> float | None:
    wrong = sum(texts.edits(said, heard[clip], clip) for clip, said in spoken.items())
    return ratio(wrong, sum(texts.words(said, clip) for clip, said in spoken.items()))


def by_round(
    run: Run, result: Result, reference: Result | None, texts: Texts, is_of_engine: bool = False
) -> list[RoundErrors]:
    """Return what each round's answers are worth: an engine may go bad after its first.

    Each entry is of the clips that were asked for in its round. `wer_difference` and `length_ratio` compare
    with the reference engine's answers to the same clips in the same round, or else in its first;
    `changed_words` with the engine's own first answers, as a share of their words. `empty_clips` were
    answered without a word where the reference engine understood at least half of what is said.

    With `is_of_engine`, the engine has a model of its own, and `reference` another: then `length_ratio`
    compares with the reference texts, and `wer_difference` with the engine's own first answers.
    """
    spoken = {clip["name"]: clip["reference"] for clip in run["clips"]}
    first = _texts_of(first_answers(result))
    their_rounds = {} if reference is None else _answers_by_round(reference)
    their_first = {} if reference is None else _texts_of(first_answers(reference))
    found = []
    for number, asked in sorted(_answers_by_round(result).items()):
        theirs = their_first | _texts_of(their_rounds.get(number, {}))
        entry = _round(number, asked, first, theirs, spoken, texts)
        if is_of_engine:
            _compare_with_itself(entry, asked, first, spoken, texts)
        found.append(entry)
    return found


def _compare_with_itself(
    entry: RoundErrors,
    asked: Mapping[str, Sample],
    first: Mapping[str, str],
    spoken: Mapping[str, str | None],
    texts: Texts,
) -> None:
    """Replace what an entry of `by_round` compares with an engine that has another model."""
    ours = _texts_of(asked)
    said = {clip: text for clip in ours if (text := spoken[clip]) is not None}
    words = sum(texts.words(text, clip) for clip, text in said.items())
    entry["length_ratio"] = ratio(sum(texts.words(ours[clip], clip) for clip in said), words)
    both = [clip for clip in said if clip in first]
    more = sum(texts.edits(said[c], ours[c], c) - texts.edits(said[c], first[c], c) for c in both)
    entry["wer_difference"] = ratio(more, sum(texts.words(said[clip], clip) for clip in both))


def _round(
    number: int,
    asked: Mapping[str, Sample],
    first: Mapping[str, str],
    theirs: Mapping[str, str],
    spoken: Mapping[str, str | None],
    texts: Texts,
) -> RoundErrors:
    """Return an entry of `by_round`; `first`, `theirs` and `spoken` are texts by clip."""
    ours = _texts_of(asked)
    heard = {clip: ours.get(clip, "") for clip in asked}  # what failed counts as all words missing
    scored = {clip: said for clip in asked if (said := spoken[clip]) is not None}
    shared = [clip for clip in scored if clip in theirs]
    their_wrong = sum(texts.edits(scored[clip], theirs[clip], clip) for clip in shared)
    our_wrong = sum(texts.edits(scored[clip], heard[clip], clip) for clip in shared)
    shared_words = sum(texts.words(scored[clip], clip) for clip in shared)
    both = [clip for clip in ours if clip in theirs]
    again = [clip for clip in asked if clip in first]
    return {
        "round": number,
        "clips": len(asked),
        "wer": _word_error_rate(scored, heard, texts),
        "wer_difference": ratio(our_wrong - their_wrong, shared_words),
        "length_ratio": ratio(
            sum(texts.words(ours[clip], clip) for clip in both),
            sum(texts.words(theirs[clip], clip) for clip in both),
        ),
        "changed_words": ratio(
            sum(texts.edits(first[clip], heard[clip], clip) for clip in again),
            sum(texts.words(first[clip], clip) for clip in again),
        ),
        "empty_clips": [
            clip
            for clip in both
            if not texts.words(ours[clip], clip) and _is_understood(spoken[clip], theirs[clip], clip, texts)
        ],
    }


def _is_understood(said: str | None, heard: str, clip: str, texts: Texts) -> bool:
    """Whether an answer has at least half of the words right, or any where it is not known what is said."""
    if said is None:
        return texts.words(heard, clip) > 0
    return 0 < texts.words(said, clip) >= 2 * texts.edits(said, heard, clip)


def _character_errors(letters: str, heard: str) -> int:
    if is_too_long(len(letters), len(heard)):
        return 0 if letters == heard else max(len(letters), len(heard))
    found = jiwer.process_characters(letters, heard)
    return int(found.substitutions + found.deletions + found.insertions)


def _texts_of(answers: Mapping[str, Sample]) -> dict[str, str]:
    return {clip: sample["text"] or "" for clip, sample in answers.items() if is_answered(sample)}


def _answers_by_round(result: Result) -> dict[int, dict[str, Sample]]:
    """Return round -> clip -> its first sample there."""
    found: dict[int, dict[str, Sample]] = {}
    for sample in result["samples"]:
        found.setdefault(sample["round"], {}).setdefault(sample["clip"], sample)
    return found


def _clip_errors(clip: ClipRecord, said: str, sample: Sample | None, texts: Texts) -> ClipErrors:
    reference = texts.normalised(said, clip["name"])
    answer = "" if sample is None else sample["text"] or ""
    text = texts.normalised(answer, clip["name"])
    words = texts.aligned(said, answer, clip["name"])
    # if a language has no spaces, the normaliser added those between its letters
    spelled = texts.is_unspaced(clip["name"])
    letters, heard = (t.replace(" ", "") if spelled else t for t in (reference, text))
    reference_words = word_count(reference)
    return {
        "clip": clip["name"],
        "wer": ratio(words.edits, reference_words),
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "reference_words": reference_words,
        "output_words": word_count(text),
        "character_errors": _character_errors(letters, heard),
        "reference_characters": len(letters),
        "exact": sample is not None and text == reference,
    }


def _unstable_clips(result: Result) -> list[str]:
    hashes: dict[str, set[str | None]] = {}
    for sample in result["samples"]:
        if is_answered(sample):
            hashes.setdefault(sample["clip"], set()).add(sample["text_sha256"])
    return [clip for clip, found in hashes.items() if len(found) > 1]


def errors(counts: ClipErrors) -> int:
    """Return all word errors of a clip."""
    return counts["substitutions"] + counts["deletions"] + counts["insertions"]


def ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
