"""`--executor ray` with a stand-in for Ray: what is lost, lacking or unlike, and what becomes of it."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import tones
from fake_checkpoint import write_fake_checkpoint
from fake_ray import ActorDiedError, ActorUnavailableError, Call, FakeRay, RayError

from asrgate.backends import Variant
from asrgate.backends.base import BackendUnavailable
from asrgate.harness import record, report
from asrgate.harness.corpus.clips import Clip
from asrgate.harness.report import tables
from asrgate.harness.report.parts import parts
from asrgate.harness.runner import journal
from asrgate.harness.runner.cluster import connect, coordinator
from asrgate.harness.runner.cluster.connect import ClusterError
from asrgate.harness.scoring import machines

SAID = ["red apple", "stone river", "paper", "green house", "brown", "white table"]
CPU, GPU = Variant("honest", "cpu", "float32"), Variant("whisper-cuda", "cuda", "float16")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    """The stand-in, imported as `ray`."""
    fake = FakeRay(seed=3)
    monkeypatch.setitem(sys.modules, "ray", fake)
    yield fake
    assert fake.running == 0, "Ray was left running"
    assert all(actor.is_dead for actor in fake.actors), "an actor was left running"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short clips, every other one with a word in its reference that nobody says."""
    folder = tmp_path_factory.mktemp("clips")
    for number, text in enumerate(SAID):
        soundfile.write(folder / f"clip{number}.wav", tones.speak(text), tones.SAMPLE_RATE_HZ)
        (folder / f"clip{number}.txt").write_text(f"{text} paper" if number % 2 else text)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, clips: Path, model: Path) -> record.Run:
    """The record of the local executor."""
    from asrgate.harness.cli import main

    results = tmp_path_factory.mktemp("alone")
    asked = ["--audio", str(clips), "--model", str(model), "--reference", "honest", "--backends", "twin"]
    assert main(["run", *asked, "--rounds", "2", "--threads", "1", "--quiet", "--results", str(results)]) == 0
    return record.read(results / "latest")


@pytest.fixture
def on_cluster(
    asrgate: Callable[..., int], clips: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """Call `asrgate run --executor ray` as `alone` was run; returns the exit status."""
    # the pages take longer than these runs, and have tests of their own
    monkeypatch.setattr(report, "write_all", lambda run, folder: record.write(run, folder / "run.json"))

    def call(*arguments: str) -> int:
        asked = (
            "--executor",
            "ray",
            "--backends",
            "twin",
            "--rounds",
            "1",
            "--warmup",
            "1",
            "--workers",
            "2",
        )
        return asrgate(*asked, *arguments, clips=clips)

    return call


def latest(tmp_path: Path) -> record.Run:
    return record.read(tmp_path / "results" / "latest")


def assert_merged_as_from_one_process(run: record.Run, alone: record.Run) -> None:
    assert run["complete"]
    for row, expected in zip(run["results"], alone["results"], strict=True):
        assert row["variant"] == expected["variant"]
        rounds = row["wer"]["rounds"]
        assert row["wer"] == expected["wer"] | {"rounds": expected["wer"]["rounds"][: len(rounds)]}
        assert row["wer"]["wer"] > 0 and len(rounds) == run["settings"]["rounds"]
        got, wanted = (
            [(s["round"], s["clip"], s["text"], s["tokens"]) for s in r["samples"]] for r in (row, expected)
        )
        assert got == wanted[: run["settings"]["rounds"] * len(SAID)]
    orders = [[(entry["round"], entry["order"]) for entry in r["rounds"]] for r in (run, alone)]
    assert orders[0] == orders[1][: run["settings"]["rounds"]]


def sometimes(ray: FakeRay, methods: set[str], losses: int) -> Callable[[Call], RayError | None]:
    """Lose a call in three of those methods, until so many are lost."""
    left = [losses]

    def lost(call: Call) -> RayError | None:
        if call.method in methods and left[0] and ray.random.random() < 1 / 3:
            left[0] -= 1
            return ActorUnavailableError("RPC error")
        return None

    return lost


@pytest.mark.slow
def test_lost_places_lose_nothing_and_duplicate_nothing(
    on_cluster: Callable[..., int], ray: FakeRay, alone: record.Run, tmp_path: Path
) -> None:
    lost: list[Call] = []
    chance = sometimes(ray, {"begin", "open", "measure", "probe", "resources"}, losses=4)

    def note(call: Call) -> RayError | None:
        error = chance(call)
        if error is not None:
            lost.append(call)
        return error

    ray.lost = note
    assert on_cluster("--rounds", "2") == 0
    run = latest(tmp_path)
    assert_merged_as_from_one_process(run, alone)
    given = [[clip.name for clip in call.arguments[1]] for call in lost if call.method == "measure"]
    assert given
    assert [entry["clips"] for entry in run["retries"]] == given
    count = sum(map(len, given))
    assert machines.lost_calls(run) == count
    assert any(f"{count} calls were lost with their process or machine" in said for said in run["warnings"])
    kinds = [Counter(probe["kind"] for probe in row["integrity"]["probes"]) for row in run["results"]]
    assert kinds == [{"dithered": 5, "spliced": 5}] * 2
    assert not (tmp_path / "results" / "latest" / journal.NAME).exists()
    (entry,) = run["hosts"]
    assert (entry["number"], entry["actors"], entry["timed"]) == (0, 2, True)
    assert {sample["host"] for row in run["results"] for sample in row["samples"]} == {0}
    assert ray.needs["num_cpus"] == 1
    assert ray.needs["max_task_retries"] == 0


@pytest.mark.slow
def test_a_place_lost_for_good_leaves_its_work_to_the_others(
    on_cluster: Callable[..., int], ray: FakeRay, alone: record.Run, tmp_path: Path
) -> None:
    ray.lost = lambda call: ActorDiedError() if call.actor.number and call.method == "measure" else None
    assert on_cluster() == 0
    assert len(ray.actors) == 2
    run = latest(tmp_path)
    assert_merged_as_from_one_process(run, alone)
    assert len(run["retries"]) == 1


@pytest.mark.slow
def test_clips_that_end_every_place_end_the_run_which_then_goes_on(
    on_cluster: Callable[..., int],
    ray: FakeRay,
    alone: record.Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from asrgate.harness.cli import main

    def poison(call: Call) -> RayError | None:
        has_it = call.method == "measure" and any(clip.name == "clip4" for clip in call.arguments[1])
        return ActorUnavailableError() if has_it else None

    ray.lost = poison
    assert on_cluster("--workers", "3") == 2
    said = capsys.readouterr().err
    assert "4 actors were lost while they had the clips clip4" in said
    (folder,) = (path for path in (tmp_path / "results").iterdir() if path.name != "latest")
    kept = sum(len(row["samples"]) for row in record.read(folder)["results"])
    assert 0 < kept < 2 * 6

    # as if killed between the two variants' answers to one clip
    lines = (folder / journal.NAME).read_text().splitlines(keepends=True)
    del lines[max(n for n, line in enumerate(lines) if line.startswith('{"sample"'))]
    (folder / journal.NAME).write_text("".join(lines))
    ray.lost = lambda call: None
    assert main(["run", "--resume", str(folder), "--quiet", "--workers", "1"]) == 0
    run = record.read(folder)
    assert_merged_as_from_one_process(run, alone)
    assert len(run["retries"]) == 4
    assert [entry["number"] for entry in run["hosts"]] == [0, 1]
    by_attempt = Counter(sample["attempt"] for row in run["results"] for sample in row["samples"])
    assert by_attempt[0] == kept - 1
    (timed,) = {s["host"] for row in run["results"] for s in row["samples"] if s["timed"]}
    assert run["hosts"][timed]["timed"] and not run["hosts"][1 - timed]["timed"]


def test_no_place_left_or_none_given_is_an_error(
    on_cluster: Callable[..., int], ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.lost = lambda call: ActorUnavailableError() if call.method == "open" else None
    assert on_cluster() == 2
    assert "all 2 actors of the cluster are lost" in capsys.readouterr().err
    ray.is_full = True
    assert on_cluster("--timeout", "7") == 2
    assert "the cluster provided no actor within 7 s" in capsys.readouterr().err
    ray.is_full, ray.alive = False, [{"CPU": 1.0, "GPU": 8.0}, {}]
    assert on_cluster("--threads", "2") == 2
    said = capsys.readouterr().err
    assert "no node of the cluster has 2 CPUs for one engine; its nodes have: 1 CPUs" in said


def test_a_machine_without_files_is_sent_weights_and_samples(
    on_cluster: Callable[..., int],
    ray: FakeRay,
    alone: record.Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path / "cache"))
    asked = Counter[str]()

    def elsewhere(call: Call) -> tuple[Any, ...]:
        def moved(thing: Any) -> Any:
            return replace(thing, path=Path("/nowhere") / thing.path.name)

        asked[call.method] += 1
        first, *rest = call.arguments or (None,)
        if call.method == "begin":
            return (replace(first, checkpoint=moved(first.checkpoint)),)
        if call.method == "measure":
            return (first, [moved(clip) for clip in rest[0]], *rest[1:])
        return call.arguments

    ray.before = elsewhere
    assert on_cluster("--workers", "1") == 0
    assert_merged_as_from_one_process(latest(tmp_path), alone)
    sha256 = alone["checkpoint"]["sha256"]
    assert (
        record.hashlib.sha256((tmp_path / "cache/weights" / f"{sha256}.pt").read_bytes()).hexdigest()
        == sha256
    )
    assert asked["open"] == 2  # once in vain
    assert asked["measure"] == 1 + 3
    assert latest(tmp_path)["retries"] == []


@pytest.mark.slow
def test_engines_of_several_models_each_get_their_own_weights(
    on_cluster: Callable[..., int], ray: FakeRay, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_fake_checkpoint(tmp_path / "small.en.pt", seed=1)
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_MODEL", str(model))

    def elsewhere(call: Call) -> tuple[Any, ...]:
        if call.method != "begin":
            return call.arguments
        (job,) = call.arguments

        def moved(found: Any) -> Any:
            return replace(found, path=Path("/nowhere") / found.path.name)

        models = {name: moved(found) for name, found in job.models.items()}
        return (replace(job, checkpoint=moved(job.checkpoint), models=models),)

    ray.before = elsewhere
    asked = [
        "--model",
        str(model),
        "--model",
        str(small),
        "--reference",
        "follows",
        "--backends",
        "brings-model",
    ]
    assert on_cluster(*asked, "--workers", "1") == 0
    run = latest(tmp_path)
    assert [(row["backend"], row["model"], len(row["samples"])) for row in run["results"]] == [
        ("follows", "fake.en", 6),
        ("follows", "small.en", 6),
        ("brings-model", "bringsmodel-model", 6),
    ]
    one, other, _ = run["results"]
    assert one["wer"]["wer"] < 0.5 < other["wer"]["wer"]  # it answers by its file, and that one is not known
    sent = {path.stem for path in (tmp_path / "cache" / "weights").glob("*.pt")}
    assert sent == {entry["sha256"] for entry in run["models"][:2]}


def test_times_of_unlike_machines_are_kept_apart(
    on_cluster: Callable[..., int], ray: FakeRay, alone: record.Run, tmp_path: Path
) -> None:
    def unlike(call: Call, reply: Any) -> Any:
        if call.method == "begin" and call.actor.number:
            host = reply["host"] | {"host_class": "Imaginary 1, 1 cores, no GPU, 1 GiB"}
            return reply | {"machine": "elsewhere", "host": host}
        if call.method == "measure" and call.actor.number:
            for answers in reply["answers"].values():
                for answer in answers:
                    answer["wall_seconds"] *= 1000  # beyond what other work can do to a call
        return reply

    ray.after = unlike
    assert on_cluster() == 0
    run = latest(tmp_path)
    assert_merged_as_from_one_process(run, alone)
    kinds = machines.class_of(run)
    assert [entry["actors"] for entry in run["hosts"]] == [1, 1]
    chosen = run["host"]["host_class"]
    for row in run["results"]:
        timed = [s for s in row["samples"] if s["timed"]]
        assert 0 < len(timed) < len(row["samples"])
        assert {kinds[s["host"]] for s in timed} == {chosen}
        assert row["rtfx"]["wall_seconds"] == pytest.approx(sum(s["wall_seconds"] for s in timed))
        assert row["latency"]["count"] == len(timed)
    first, second = ([(s["clip"], s["round"], s["host"]) for s in row["samples"]] for row in run["results"])
    assert first == second  # all variants answer a clip at the same actor
    assert any("measured on 2 kinds of machine" in said and chosen in said for said in run["warnings"])

    (part,) = (part for part in parts(run) if part.title == "By machine")
    assert len(part.rows) == 4
    assert [line[0] for line in part.rows[:2]] == [chosen] * 2
    rows = {(row["host_class"] == chosen, row["variant"]): row["rtfx"] for row in machines.rows(run)}
    slow, quick = sorted(rows[flag, alone["results"][0]["variant"]] for flag in (True, False))
    assert quick > 5 * slow
    assert "## By machine" in report.render(run, "md")
    header, *lines = tables.samples(run).splitlines()
    place = header.split(",").index("host")
    assert {line.split(",")[place] for line in lines} == {"0", "1"}


def test_unlike_software_is_refused(
    on_cluster: Callable[..., int], ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(call: Call, reply: Any) -> Any:
        if call.method == "begin" and call.actor.number:
            reply = reply | {"versions": reply["versions"] | {"torch": "0.1", "git_commit": "f" * 40}}
        return reply

    ray.after = other
    assert on_cluster() == 2
    said = capsys.readouterr().err
    assert "nodes have different software (torch " in said
    assert "git_commit" not in said


@pytest.mark.slow
def test_an_engine_that_fails_at_one_place_is_out_and_no_text_stays_anywhere(
    on_cluster: Callable[..., int], tmp_path: Path
) -> None:
    assert on_cluster("--backends", "killed-for-memory,not-installed,caches-answers", "--no-texts") == 1
    rows = {row["backend"]: row for row in latest(tmp_path)["results"]}
    assert (rows["not-installed"]["status"], rows["not-installed"]["remedy"]) == (
        "unavailable",
        "pip install unobtainium",
    )
    assert "the worker was killed by SIGKILL while" in rows["killed-for-memory"]["error"]
    assert rows["killed-for-memory"]["killed_by"] == "SIGKILL"
    assert len(rows["honest"]["samples"]) == 6
    reasons = " ".join(rows["caches-answers"]["gate"]["reasons"])
    assert "copies that it had not heard took" in reasons
    stored = json.dumps(latest(tmp_path))
    assert not any(text in stored for text in SAID if " " in text)
    for folder in Path(os.environ["TMPDIR"]).glob("asrgate-*/slot?"):
        assert folder.is_file() or not list(folder.iterdir())


def test_a_clip_that_changes_during_the_run_is_an_error(
    on_cluster: Callable[..., int], ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed(call: Call) -> tuple[Any, ...]:
        if call.method != "measure":
            return call.arguments
        first, clips, *rest = call.arguments
        return (first, [replace(clip, sha256="0" * 64) for clip in clips], *rest)

    ray.before = changed
    assert on_cluster() == 2
    assert "an actor of the cluster cannot continue: " in (said := capsys.readouterr().err)
    assert "changed during the run" in said


def test_places_take_what_the_neediest_variant_needs(ray: FakeRay) -> None:
    ray.alive = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 9.0}, {"CPU": 3.0, "GPU": 8.0}, {"memory": 1.0}]
    assert connect.room([CPU], 4, None) == (4 + 2, {"num_cpus": 4, "num_gpus": 0})
    assert connect.room([CPU, GPU], 4, None) == (2, {"num_cpus": 4, "num_gpus": 1})
    assert connect.room([GPU], 1, 3) == (3, {"num_cpus": 1, "num_gpus": 1})
    connect.check(GPU)
    ray.alive = [{"CPU": 16.0}]
    with pytest.raises(BackendUnavailable, match="no node of the cluster has a GPU"):
        connect.check(GPU)
    with pytest.raises(ClusterError, match="would measure it under load"):
        connect.check(Variant("openai-api", "remote", "server"))


def test_chunks_hold_every_clip_once_and_no_hour() -> None:
    def clip(number: int, seconds: float) -> Clip:
        return Clip(str(number), Path("x.wav"), seconds, "0" * 64, "en", None)

    many = [clip(number, 5 + number % 30) for number in range(1_000)]
    for actors in (1, 3, 50, 2_000):
        divided = list(coordinator.chunks(many, actors))
        assert [c for chunk in divided for c in chunk.clips] == many
        assert max(len(chunk.clips) for chunk in divided) <= coordinator.CHUNK_CLIPS
        assert len(divided) >= min(len(many), actors * coordinator.CHUNKS_PER_ACTOR)
    long = list(coordinator.chunks([clip(number, 3_600) for number in range(9)], 1))
    assert [len(chunk.clips) for chunk in long] == [1] * 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "2"], "--workers works only with --executor ray"),
        (["--ray-address", "auto"], "--ray-address works only with --executor ray"),
        (["--executor", "ray", "--ray-address", "ray://x:1"], "is neither HOST:PORT of a Ray head node"),
        (["--executor", "ray", "--ray-address", "localhost:1"], "no Ray cluster answers at localhost:1"),
        (["--executor", "ray", "--scenario", "offline"], "offline runs on one machine"),
    ],
)
def test_bad_arguments_are_one_clear_error(
    asrgate: Callable[..., int],
    ray: FakeRay,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert asrgate("--backends", "twin", *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_ray_that_is_not_installed_is_one_clear_error(
    asrgate: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert asrgate("--backends", "twin", "--executor", "ray") == 2
    assert capsys.readouterr().err.strip().endswith("python -m pip install ray")
