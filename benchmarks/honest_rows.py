"""How often the gate refuses honest engines: real runs, on an idle machine and on a busy one.

    python benchmarks/honest_rows.py --runs 30 --model tiny.en          # idle, if nothing else runs
    python benchmarks/honest_rows.py --runs 30 --model tiny.en --burn   # beside a process for each core
    python benchmarks/honest_rows.py --write docs/trust.md              # the table of all runs so far

Each run adds a line to results/honest_rows.jsonl, with the share of all cores that other programs used. Rows
are single-stream ones and one of a batch; among the engines is a server on this machine, whose work no
processor time of its worker tells. The table counts the rows of the published runs as well.
"""

from __future__ import annotations

import argparse
import contextlib
import email.parser
import email.policy
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from regression_power import put_between_markers

from asrgate import backends
from asrgate.backends import openai_server
from asrgate.backends.base import Settings, Transcript
from asrgate.backends.checkpoints import catalog
from asrgate.harness.record import probes_of
from asrgate.harness.scoring import verify

ROOT = Path(__file__).parent.parent
STORED = ROOT / "results" / "honest_rows.jsonl"
PUBLISHED = ROOT / "results" / "published"
ENGINES = (
    "faster-whisper@cpu/float32",
    "faster-whisper@cpu/int8",
    "faster-whisper-batched@cpu/float32",
    "torch-fast@cpu/float32",
    "torch-fast@cpu/bfloat16",
    "max@cpu/float32",
    "max@cpu/int8",
    "max-hybrid@cpu/float32",
    "transformers@cpu/float32",
    "openai-api@remote/as-served",
)
SCENARIOS = {
    "single-stream": (["--rounds", "3"], ENGINES),
    "offline": (["--rounds", "2"], ("torch-fast@cpu/float32",)),
}
BATCHES = ["--batch-sizes", "1,4"]
# What the gate says of answers, not of how they came about: of an honest engine it is as true as of another.
OF_TEXTS = re.compile(
    r"^WER |^wrote \d|words changed between|answered nothing to|inaudible noise changes|noise nobody can hear"
    r"|^the reference .* itself"
)
# Share of the cores that others used, up to. The engine that serves is one of them.
MACHINES = {"idle": 0.2, "busy": 1.0}
SERVED = "served"  # the server's name for its model


def measure(model: str, folder: Path) -> list[dict[str, Any]]:
    """Make one run of each scenario; return a line of the store for each.

    Raises:
        SystemExit: a run did not end as runs do.
    """
    lines = []
    for scenario, (options, engines) in SCENARIOS.items():
        command = [
            sys.executable,
            "-m",
            "asrgate",
            "run",
            "--model",
            model,
            "--results",
            str(folder),
            "--quiet",
        ]
        command += ["--scenario", scenario, "--backends", ",".join(engines), *options]
        command += BATCHES if scenario == "offline" else []
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
        run = json.loads((folder / "latest" / "run.json").read_text(encoding="utf-8"))
        lost = {row["variant"]: row["error"] for row in run["results"] if row["status"] != "ok"}
        if lost:
            raise SystemExit(f"not measured: {lost}")
        lines.append(line_of(run))
    return lines


def line_of(run: Any) -> dict[str, Any]:
    """Return the line of a run: what others used of the cores, and each row's reasons."""
    shares = [entry["foreign_cpu_fraction"] or 0.0 for entry in run["rounds"]]
    return {
        "others": round(statistics.median(shares), 3),
        "model": run["checkpoint"]["name"],
        "scenario": run["settings"]["scenario"],
        "rows": {row["variant"]: row["gate"]["reasons"] for row in run["results"] if row["status"] == "ok"},
        "splices": {row["variant"]: _splices(row) for row in run["results"] if row["status"] == "ok"},
    }


def _splices(row: Any) -> list[tuple[float, float | None]]:
    """Return of each splice its time over its clip's, and the share of words that the reference has not."""
    return [
        (
            round(probe["unseen_seconds"] / probe["seen_seconds"], 3),
            None
            if probe.get("reference_changed_words") is None
            else round(probe["reference_changed_words"] / max(probe["text_words"] or 0, 1), 3),
        )
        for probe in probes_of(row)
        if probe["kind"] == "spliced"
    ]


@contextlib.contextmanager
def other_work(burn: bool) -> Iterator[None]:
    """Keep every core busy with other processes while the context lasts, if they are to burn."""
    count = len(os.sched_getaffinity(0)) if burn else 0
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@contextlib.contextmanager
def server(model: str, threads: int) -> Iterator[None]:
    """Serve a model as OpenAI's servers do, from a process of its own, and name it in the environment."""
    command = [sys.executable, __file__, "--model", model, "--serve", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            os.environ[openai_server.URL] = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
            os.environ[openai_server.MODEL] = SERVED
            os.environ[openai_server.CHECKPOINT] = catalog.resolve(model).sha256
            os.environ[openai_server.DECODING] = openai_server.AS_ASKED
            yield
        finally:
            process.kill()


def serve(model: str, threads: int) -> None:
    """Answer requests with faster-whisper until killed; print the port first."""
    settings = Settings(threads=threads)
    engine = backends.load("faster-whisper").load(catalog.resolve(model), "cpu", "float32", settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._reply({"data": [{"id": SERVED}]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._reply({"text": _transcribed(engine, self.headers["Content-Type"], body).text})

        def _reply(self, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    print(listening.server_port, flush=True)
    listening.serve_forever()


def _transcribed(engine: Any, content_type: str, body: bytes) -> Transcript:
    import soundfile

    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    parts = parser.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body).iter_parts()
    (sound,) = [part.get_payload(decode=True) for part in parts if part.get_filename()]
    samples, _ = soundfile.read(io.BytesIO(sound), dtype="float32")
    return engine.transcribe(samples, "en")


def table(lines: list[dict[str, Any]]) -> str:
    """Return how many rows of each engine were made and refused, by machine."""
    made: Counter[tuple[str, str]] = Counter()
    for_texts, for_conduct = made.copy(), made.copy()
    for line in lines:
        machine = next(m for m, most in MACHINES.items() if line["others"] <= most)
        for variant, reasons in line["rows"].items():
            engine = variant.partition("@")[0]
            kind = engine if line["scenario"] == "single-stream" else f"{engine}, {line['scenario']}"
            key = machine, kind
            made[key] += 1
            of_texts = [bool(OF_TEXTS.search(reason)) for reason in reasons]
            for_texts[key] += any(of_texts)
            for_conduct[key] += not all(of_texts)
    found = ["| engine | " + " | ".join(f"{m}: rows | refused | for its texts" for m in MACHINES) + " |"]
    found.append("|---|" + "---|" * 3 * len(MACHINES))
    for engine in [*sorted({engine for _, engine in made}), None]:
        cells = []
        for machine in MACHINES:
            keys = [key for key in made if key[0] == machine and engine in (None, key[1])]
            cells += [str(sum(count[key] for key in keys)) for count in (made, for_conduct, for_texts)]
        found.append(f"| {engine or 'all'} | " + " | ".join(cells) + " |")
    return "\n".join(found) + "\n"


def published() -> list[dict[str, Any]]:
    """Return the lines of the published runs, judged as the gate judges now."""
    return [line_of(verify.read(path)) for path in sorted(PUBLISHED.glob("*/run.json"))]


def stored() -> list[dict[str, Any]]:
    """Return the lines of all runs so far."""
    return (
        [json.loads(line) for line in STORED.read_text(encoding="utf-8").splitlines()]
        if STORED.exists()
        else []
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=0, metavar="N", help="make so many more")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--burn", action="store_true", help="keep each core busy with a process of its own")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between its markers")
    parser.add_argument("--serve", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.model, arguments.serve)
    with (
        server(arguments.model, len(os.sched_getaffinity(0))) if arguments.runs else contextlib.nullcontext()
    ):
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder, other_work(arguments.burn):
                lines = measure(arguments.model, Path(folder))
            with STORED.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    found = table(published() + stored())
    print(found)
    if arguments.write:
        put_between_markers(arguments.write, "honest", found)


if __name__ == "__main__":
    main()
