"""Fixtures for runs with fake engines: a folder of spoken tones, a checkpoint, a private cache and lock."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile

SUPPORT = Path(__file__).parent / "support"
FAKES = SUPPORT / "fakes"
sys.path.insert(0, str(SUPPORT))  # what several tests import
sys.path.insert(0, str(FAKES))  # also makes the fake backends' entry points known to this process
os.environ["PYTHONPATH"] = os.pathsep.join(  # and to the workers it starts
    [str(FAKES), *filter(None, [os.environ.get("PYTHONPATH")])]
)

# Tests in the background of a script inherit an ignored SIGINT, and SIGHUP under nohup, which what they start
# would ignore too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import tones  # noqa: E402
from fake_checkpoint import write_fake_checkpoint  # noqa: E402

# Needs that nobody can install: a test that skips for another one fails under --all-needs.
ONLY_SOME_MACHINES = ("GPU", "bfloat16", "AVX-512", "AMX", "Landlock", "../shared", "memory files")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --all-needs, for where everything is installed that can be."""
    parser.addoption("--all-needs", action="store_true", help="a test that lacks what can be installed fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Under --all-needs, let a test fail that skips for a lack that could be mended."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--all-needs"):
        reason = report.longrepr[2]
        if not any(need in reason for need in ONLY_SOME_MACHINES):
            report.outcome, report.longrepr = "failed", f"--all-needs: {reason}"
    return report


@pytest.fixture(scope="session", autouse=True)
def own_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the machine-wide lock and the caches of all tests away from the user's and other sessions'."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("ASRGATE_LOCKS", str(folder))
        patch.setattr("tempfile.tempdir", None)
        patch.setenv("ASRGATE_CACHE", str(folder / "cache"))
        patch.setenv("ASRGATE_OFFLINE", "1")  # a test of a source deletes it
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty cache."""
    monkeypatch.setenv("ASRGATE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five clips of tones, each with its text beside it."""
    folder = tmp_path_factory.mktemp("spoken")
    for name, text in tones.TEXTS.items():
        soundfile.write(folder / f"{name}.wav", tones.speak(text), tones.SAMPLE_RATE_HZ, subtype="PCM_16")
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of OpenAI's format, small and random."""
    return write_fake_checkpoint(tmp_path_factory.mktemp("model") / "fake.en.pt")


@pytest.fixture
def asrgate(spoken: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Call `asrgate run` on the spoken clips with `honest` as the reference; returns the exit status."""
    from asrgate.harness.cli import main

    monkeypatch.setenv("FAKE_CLIPS", str(spoken))

    def call(*arguments: str, clips: Path = spoken) -> int:
        models = [] if "--model" in arguments else ["--model", str(model)]
        return main(
            ["run", "--audio", str(clips), *models, "--reference", "honest"]
            + ["--results", str(tmp_path / "results"), "--threads", "1", "--quiet", *arguments]
        )

    return call


@pytest.fixture
def asrgate_weights() -> Callable[..., int]:
    """Call `asrgate weights …`; returns the exit status, and lets errors through."""
    from asrgate.harness.cli import weights

    def call(*arguments: str) -> int:
        parser = argparse.ArgumentParser()
        weights.add_parser(parser.add_subparsers())
        args = parser.parse_args(["weights", *arguments])
        return int(args.func(args))

    return call
