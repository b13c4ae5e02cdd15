"""The types of a run record, part by part, as run.schema.json describes them: units and meanings are there.

Keys of a class `_XOptional` may be absent. tests/harness/test_record_types.py holds both to each other.
"""

from __future__ import annotations

from typing import Any, TypedDict


class ServerSession(TypedDict):
    """One session of the server scenario: what was asked, and what came of it."""

    purpose: str
    round: int
    is_kept: bool
    rate_per_second: float | None
    seed: int
    requests: int
    answered: int
    failed: int
    arrivals_seconds: float
    finish_seconds: float
    busy_seconds: float
    largest_queue: int
    median_seconds: float | None
    p99_seconds: float | None
    is_cut_off: bool
    is_within: bool | None


class ServerFigures(TypedDict):
    """Figures of the sessions that a result of the server scenario is measured by."""

    rate_per_second: float | None
    achieved_per_second: float
    utilisation: float
    largest_queue: int
    is_overloaded: bool
    max_rate_per_second: float | None


class StreamingFigures(TypedDict):
    """Figures of the streams of a result of the streaming scenario."""

    first_text_median_seconds: float | None
    first_text_p90_seconds: float | None
    unstable_partial_word_ratio: float | None
    partials: int
    busy_fraction: float | None


class GateVerdict(TypedDict):
    """Whether a result may be ranked by its speed, and the reasons against it."""

    ranked: bool
    rank: int | None
    reasons: list[str]


class Isolation(TypedDict):
    """What a worker was kept from before any engine code ran."""

    level: str
    abi: int | None
    files: bool
    signals: bool
    memory: bool
    why: str | None


class LoadTimes(TypedDict):
    """Seconds until an engine was ready."""

    import_seconds: float | None
    load_seconds: float | None
    first_call_seconds: float | None
    warm_call_seconds: float | None


class _ResourcesOptional(TypedDict, total=False):
    calls: int | None
    calls_cpu_seconds: float | None
    outside_cpu_seconds: float | None
    outside_wall_seconds: float | None


class Resources(_ResourcesOptional):
    """What a worker used."""

    peak_rss_bytes: int | None
    peak_vram_process_bytes: int | None
    peak_vram_allocator_bytes: int | None
    cpu_seconds: float | None
    energy_joules: float | None
    energy_source: str | None


class _ProbeOptional(TypedDict, total=False):
    copy_sha256: str
    reference_changed_words: int | None


class ProbeRecord(_ProbeOptional):
    """A clip answered again (seen), and a copy that was never given before (unseen)."""

    kind: str
    clip: str
    seen_seconds: float
    unseen_seconds: float
    seen_cpu_seconds: float | None
    unseen_cpu_seconds: float | None
    changed_words: int | None
    text: str | None
    text_sha256: str | None
    text_words: int | None


class _IntegrityOptional(TypedDict, total=False):
    spliced_over_seen: float | None


class Integrity(_IntegrityOptional):
    """What the checks for cached, early and late work found."""

    probes: list[ProbeRecord]
    unseen_over_seen: float | None
    late_work_seconds: float | None


class Audit(TypedDict):
    """What an engine answered with a checkpoint derived from the run's (`--audit`)."""

    auditable: bool
    error: str | None
    checkpoint_sha256: str | None
    clips: list[str]
    words: int
    changed_words: int
    usual_changed_words: int
    over_run: float | None


class ClipErrors(TypedDict):
    """Errors of one clip's scored answer."""

    clip: str
    wer: float | None
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    output_words: int
    character_errors: int
    reference_characters: int
    exact: bool


class RoundErrors(TypedDict):
    """Errors of one round's answers."""

    round: int
    clips: int
    wer: float | None
    wer_difference: float | None
    length_ratio: float | None
    changed_words: float | None
    empty_clips: list[str]


class VersusReference(TypedDict):
    """A result paired with the reference on the same clips."""

    variant: str
    wer_difference: float | None
    interval: list[float] | None
    probability_worse: float | None
    probability_different: float | None
    same_text_clips: int
    compared_clips: int
    length_ratio: float | None


class WordPair(TypedDict):
    """Words of a reference, and what was heard instead, with how often."""

    reference: str
    text: str
    count: int


class _SecondReadingOptional(TypedDict, total=False):
    differences: list[WordPair]


class SecondReading(_SecondReadingOptional):
    """Errors of the same answers under the second normaliser."""

    wer: float | None
    cer: float | None
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int


class KeywordRecall(TypedDict):
    """Keywords that are in the answers, of those said in the references."""

    recall: float
    found: int
    said: int


class _WordErrorRateOptional(TypedDict, total=False):
    second: SecondReading
    formatted: float | None
    keywords: KeywordRecall
    confusions: list[WordPair]


class WordErrorRate(_WordErrorRateOptional):
    """Errors over all clips that have a reference text."""

    wer: float | None
    interval: list[float] | None
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    output_words: int
    cer: float | None
    exact_matches: int
    clips: int
    unstable_clips: list[str]
    per_clip: list[ClipErrors]
    rounds: list[RoundErrors]
    versus_reference: VersusReference | None


class Speed(TypedDict):
    """Audio seconds over processing seconds."""

    rtfx: float
    rtf: float
    interval: list[float] | None
    audio_seconds: float
    wall_seconds: float
    tokens_per_second: float | None


class Latency(TypedDict):
    """Latency as the scenario counts it."""

    count: int
    min_seconds: float
    median_seconds: float
    iqr_seconds: float
    p90_seconds: float
    p99_seconds: float
    stage_seconds: dict[str, float]


class Partial(TypedDict):
    """A text shown before the final one of a stream."""

    seconds: float
    audio_seconds: float
    text: str | None


class _SampleOptional(TypedDict, total=False):
    language: str
    attempt: int
    batch: int
    request: int
    arrival_seconds: float | None
    start_seconds: float | None
    finish_seconds: float | None
    partials: list[Partial]
    first_text_seconds: float | None
    final_latency_seconds: float | None
    busy_seconds: float | None
    host: int
    timed: bool


class Sample(_SampleOptional):
    """One answer: a clip in a round, or a request."""

    clip: str
    round: int
    wall_seconds: float
    worker_seconds: float | None
    cpu_seconds: float | None
    late_work_seconds: float | None
    stage_seconds: dict[str, float]
    text: str | None
    text_sha256: str | None
    text_words: int | None
    tokens: list[int] | None
    token_count: int | None
    error: str | None


class LanguageMistake(TypedDict):
    """A language, and another that an engine took it for, with how often."""

    spoken: str
    detected: str
    count: int


class LanguageIdentification(TypedDict):
    """Clips whose language an engine detected rightly, of those whose language the manifest names."""

    accuracy: float
    right: int
    clips: int
    mistakes: list[LanguageMistake]


class TimedWord(TypedDict):
    """A word, and when it is said, in seconds from the clip's start. Null: texts are left out."""

    word: str | None
    start: float
    end: float


class WordAnswer(TypedDict):
    """A clip answered with the times of its words, after the last round."""

    clip: str
    wall_seconds: float
    text: str | None
    words: list[TimedWord]
    error: str | None


class WordAnswers(TypedDict):
    """What an engine answered when it was asked for word times (`--word-timestamps`)."""

    available: bool
    error: str | None
    answers: list[WordAnswer]


class TimeOffset(TypedDict):
    """How far starts, or ends, are from those of the reference: absolute differences."""

    mean_seconds: float
    p95_seconds: float


class WordTimes(TypedDict):
    """Offsets of word times, over the words that are equal in reference and answer and aligned."""

    clips: int
    reference_words: int
    aligned_words: int
    start: TimeOffset | None
    end: TimeOffset | None
    changed_words: float | None
    over_call: float | None


class _ResultOptional(TypedDict, total=False):
    language_id: LanguageIdentification
    word_answers: WordAnswers
    word_times: WordTimes
    model: str
    batch_size: int
    takes_batches: bool
    sessions: list[ServerSession]
    server: ServerFigures | None
    is_emulated: bool
    streaming: StreamingFigures | None
    isolation: Isolation | None
    killed_by: str
    audit: Audit


class Result(_ResultOptional):
    """What one variant did in a run."""

    variant: str
    backend: str
    device: str
    precision: str
    status: str
    error: str | None
    remedy: str | None
    gate: GateVerdict
    applied_settings: dict[str, Any] | None
    load: LoadTimes
    resources: Resources
    integrity: Integrity | None
    wer: WordErrorRate | None
    rtfx: Speed | None
    latency: Latency | None
    samples: list[Sample]


class ServerTerms(TypedDict):
    """What was asked of the server scenario."""

    rate_per_second: float | None
    p99_seconds: float | None
    requests: int
    limit_seconds: float


class RoundsRule(TypedDict):
    """`--rounds auto`: when a run has enough rounds (harness/runner/stopping.py)."""

    least: int
    most: int
    within: float
    budget_seconds: float


class Stopped(TypedDict):
    """Why a run of `--rounds auto` ended, and variants whose speed ratio is not as precise as asked for."""

    reason: str
    wide: list[str]


class _RunSettingsOptional(TypedDict, total=False):
    max_rtf: float
    max_memory_bytes: int
    audit: bool
    word_timestamps: bool
    rounds_rule: RoundsRule
    slices: list[str]
    sample: int | None
    augment: list[str]
    keywords: list[str]
    scenario: str
    batch_sizes: list[int]
    chunk_seconds: float
    server: ServerTerms
    executor: str


class RunSettings(_RunSettingsOptional):
    """What was asked of the engines (`decoding`) and of the harness."""

    decoding: dict[str, Any]
    rounds: int
    warmup: int
    timeout_seconds: float
    device: str
    reference: str
    wer_tolerance: float
    max_wer: float
    length_tolerance: float
    seed: int
    texts: bool


class _ModelIdentityOptional(TypedDict, total=False):
    server: str


class ModelIdentityRecord(_ModelIdentityOptional):
    """What an engine declares of the model that it brings along."""

    backend: str
    revision: str
    languages: list[str]
    licence: str


class _CheckpointOptional(TypedDict, total=False):
    identity: ModelIdentityRecord


class CheckpointRecord(_CheckpointOptional):
    """A model of a run."""

    name: str
    sha256: str
    tensors_sha256: str | None
    dimensions: dict[str, int]
    note: str


class NormalizerRecord(TypedDict):
    """The normaliser that scored the texts."""

    name: str
    sha256: str
    version: str


class BootstrapRecord(TypedDict):
    """How intervals were resampled."""

    replicates: int
    seed: int
    level: float


class AlsoResult(TypedDict):
    """Errors of one variant under a further normaliser."""

    variant: str
    wer: float | None
    interval: list[float] | None
    cer: float | None


class AlsoScored(TypedDict):
    """The same texts under a further normaliser."""

    normalizer: NormalizerRecord
    results: list[AlsoResult]


class _ScoringOptional(TypedDict, total=False):
    second: NormalizerRecord
    also: list[AlsoScored]


class Scoring(_ScoringOptional):
    """How texts became figures."""

    normalizer: NormalizerRecord
    bootstrap: BootstrapRecord


class _ClipRecordOptional(TypedDict, total=False):
    language_told: bool


class ClipRecord(_ClipRecordOptional):
    """A clip as every engine was given it."""

    name: str
    audio_filepath: str
    audio_seconds: float
    sha256: str
    language: str
    reference: str | None
    reference_sha256: str | None
    reference_words: int | None
    tags: dict[str, Any]


class _RoundRecordOptional(TypedDict, total=False):
    attempt: int
    audio_seed: int


class RoundRecord(_RoundRecordOptional):
    """The order of a round, and the load that other programs put on the machine."""

    round: int
    order: list[str]
    load_average_1min: float | None
    foreign_cpu_fraction: float | None


class _AttemptOptional(TypedDict, total=False):
    timed: bool


class Attempt(_AttemptOptional):
    """A process that measured part of a resumed run."""

    number: int
    started_at: str
    finished_at: str | None
    host: dict[str, Any]
    versions: dict[str, Any]


class _ClusterHostOptional(TypedDict, total=False):
    timed: bool


class ClusterHost(_ClusterHostOptional):
    """A machine of a run on a cluster."""

    number: int
    actors: int
    host: dict[str, Any]
    versions: dict[str, Any]


class Retry(TypedDict):
    """Clips that were lost with an actor and given to another."""

    round: int
    host: int
    clips: list[str]


class FrontPlace(TypedDict):
    """A row on a front, and its WER minus that of the row before it there."""

    variant: str
    wer_difference: float | None
    interval: list[float] | None


class Beaten(TypedDict):
    """A row that another beats in errors and speed beyond the intervals; how much."""

    variant: str
    by: str
    wer_difference: float
    interval: list[float]
    speed_ratio: float
    speed_interval: list[float]


class Answer(TypedDict):
    """The row to choose, its WER minus the most accurate one's, and rows that are no worse choice."""

    question: str
    variant: str
    wer_difference: float
    interval: list[float] | None
    alike: list[str]


class Across(TypedDict):
    """The rows of all models against each other."""

    front: list[FrontPlace]
    memory_front: list[FrontPlace]
    beaten: list[Beaten]
    answers: list[Answer]


class _RunOptional(TypedDict, total=False):
    across: Across
    models: list[CheckpointRecord]
    stopped: Stopped
    digest: str
    attempts: list[Attempt]
    hosts: list[ClusterHost]
    retries: list[Retry]


class Run(_RunOptional):
    """Everything one run asked, met and measured."""

    schema_version: int
    run_id: str
    started_at: str
    finished_at: str | None
    complete: bool
    interrupted: str | None
    command: list[str]
    host: dict[str, Any]
    versions: dict[str, str | None]
    settings: RunSettings
    checkpoint: CheckpointRecord
    scoring: Scoring
    clips: list[ClipRecord]
    rounds: list[RoundRecord]
    warnings: list[str]
    results: list[Result]
