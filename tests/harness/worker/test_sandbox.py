"""The sandbox of a worker: real processes try what a hostile engine would, and do what an honest one does.

Each attempt is made twice, shut in and free: one that fails when free as well would prove nothing.
"""

import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from paths import SUPPORT
from sandbox_attacks import FILES, MEMORY, PRIVILEGED, SIGNALS, Scene

from asrgate.backends import child_process
from asrgate.harness.worker import sandbox

OFFERED = sandbox.available()
NOBODY = "65534"
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
USERS = ["-", NOBODY] if AS_ROOT else ["-"]
REFUSED = ("EACCES", "EPERM")

needs_landlock = pytest.mark.skipif(
    OFFERED.level != "landlock", reason=f"{platform.system()} {platform.release()}: {OFFERED.why}"
)
needs_scoped_signals = pytest.mark.skipif(
    not OFFERED.signals, reason=f"{platform.system()} {platform.release()}: {OFFERED.why}"
)


@pytest.fixture(scope="module", params=USERS, ids=["oneself", "ordinary user"][: len(USERS)])
def outcomes(request: pytest.FixtureRequest) -> dict[str, dict[str, str | None]]:
    """What became of each attempt, "free" and "shut"."""
    found = {}
    for how in ("free", "shut"):
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are closed to other users
            os.chmod(folder, 0o755)
            Scene(Path(folder)).build()
            done = subprocess.run(
                [sys.executable, str(SUPPORT / "sandbox_attacks.py"), folder, request.param, how],
                env=child_process.environment(),
                stdout=subprocess.PIPE,
                check=True,
                timeout=60,
            )
            found[how] = json.loads(done.stdout)
    return found


@needs_landlock
@pytest.mark.parametrize("attempt", [*FILES, *MEMORY])
def test_files_and_memory_are_out_of_reach(outcomes, attempt):
    assert outcomes["free"][attempt] is None
    assert outcomes["shut"][attempt] in REFUSED


@needs_scoped_signals
@pytest.mark.parametrize("attempt", SIGNALS)
def test_no_signal_gets_out(outcomes, attempt):
    assert outcomes["free"][attempt] is None
    assert outcomes["shut"][attempt] == "EPERM"


@needs_landlock
def test_owner_and_root_get_no_further(outcomes):
    possible = {name for name in PRIVILEGED if outcomes["free"].get(name, "not tried") is None}
    refused = {name for name in possible if outcomes["shut"][name] in REFUSED}
    assert refused == possible
    assert ("harness's code" in possible) == ("harness's code" in outcomes["free"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path).build()


def run_shut(scene: Scene, code: str, denied: list[str] | None = None, many: int = 2000) -> dict:
    """Run code in a sandboxed process; return what it put into `told`, and the sandbox's `isolation`."""
    start = (
        "import json, os, sys; from pathlib import Path; from asrgate.harness.worker import sandbox\n"
        f"sandbox.MANY_ENTRIES = {many}; told = {{}}\n"
        f"isolation = sandbox.apply({scene.denied if denied is None else denied!r}, {str(scene.private)!r})\n"
    )
    end = "\nprint(json.dumps(told | {'isolation': isolation.as_dict()}))"
    done = subprocess.run(
        [sys.executable, "-c", child_process.WITHOUT_CURRENT_FOLDER + start + code + end],
        cwd=scene.mixed,
        env=child_process.environment(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


HONEST = {
    "a sibling": (
        "told['works'] = Path('open.txt').read_text() == 'what was said'\n"
        "Path('open.txt').write_text('!'); os.truncate('open.txt', 0)"
    ),
    "an imported neighbour": (
        "sys.path.append(os.getcwd()); import module_beside; told['works'] = module_beside.VALUE == 42"
    ),
    "names": "told['works'] = 'manifest.jsonl' in os.listdir() and Path('manifest.jsonl').exists()",
    "numpy": "import numpy as np; told['works'] = bool((np.ones((64, 64)) @ np.ones((64, 64)) == 64).all())",
    "torch": "import torch; told['works'] = bool((torch.ones(64, 64) @ torch.ones(64, 64) == 64).all())",
    "subprocess": "import subprocess; told['works'] = subprocess.check_output(['echo', 'yes']) == b'yes\\n'",
    "temporary files": (
        "import tempfile\nwith tempfile.TemporaryDirectory() as folder:\n"
        "    Path(folder, 'a').write_text('!'); Path(folder, 'sub').mkdir()\n"
        "    os.rename(Path(folder, 'a'), Path(folder, 'sub', 'b'))\n"
        "    told['works'] = folder.startswith(os.environ['TMPDIR'])"
    ),
    "shared memory": (
        "from multiprocessing.shared_memory import SharedMemory\n"
        "block = SharedMemory(create=True, size=64)\n"
        "block.buf[0] = 7; told['works'] = block.buf[0] == 7; block.close(); block.unlink()"
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n"
        "    told['works'] = list(pool.map(abs, [-1, 2])) == [1, 2]\n"
        "Path(f'/proc/self/task/{os.getpid()}/comm').write_text('engine')"
    ),
    "spawned processes": (
        "import multiprocessing\npool = multiprocessing.get_context('spawn').Pool(2)\n"
        "told['works'] = pool.map(abs, [-1, 2]) == [1, 2]; pool.terminate(); pool.join()"
    ),
    "signals to one's own": (
        "import signal, subprocess; child = subprocess.Popen(['sleep', '60']); os.kill(child.pid, 15)\n"
        "told['works'] = child.wait() == -15"
    ),
    "devices": (
        "Path('/dev/null').write_text('!'); os.openpty()\n"
        "told['works'] = len(Path('/dev/urandom').open('rb').read(4)) == 4\n"
        "Path('/proc/meminfo').read_text(); Path('/sys/kernel/mm/transparent_hugepage/enabled').exists()"
    ),
    "the cache": (
        "folder = Path(os.environ['ASRGATE_CACHE'], 'max'); folder.mkdir()\n"
        "(folder / 'a').write_text('!'); os.replace(folder / 'a', folder / 'b'); told['works'] = True"
    ),
    "caches at home": (
        "folder = Path.home() / '.cache' / 'numba'; folder.mkdir(parents=True)\n"
        "(folder / 'a').write_text('!'); told['works'] = True"
    ),
}


@needs_landlock
@pytest.mark.parametrize("what", HONEST)
def test_an_honest_engine_works(scene, what, monkeypatch):
    home = scene.folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("ASRGATE_CACHE", str(scene.corpus / "cache"))  # not there yet, in a denied folder
    told = run_shut(scene, HONEST[what], [*scene.denied, str(home / "clips")])
    assert told["works"]
    assert told["isolation"]["level"] == "landlock"


@needs_landlock
def test_what_does_not_exist_cannot_be_made(scene):
    code = """
for name in ("results", "other"):
    try:
        Path(name).mkdir()
        told[name] = "made"
    except PermissionError:
        told[name] = "refused"
"""
    assert run_shut(scene, code, [str(scene.mixed / "results")])["results"] == "refused"
    told = run_shut(scene, code, [str(scene.corpus / "results")])
    assert told["results"] == told["other"] == "made"


@needs_landlock
def test_of_many_entries_only_folders_are_allowed(scene):
    (scene.mixed / "folder").mkdir()
    (scene.mixed / "folder" / "inside.txt").write_text("what was said")
    code = """
for name in ("open.txt", "folder/inside.txt", "manifest.jsonl"):
    try:
        told[name] = Path(name).read_text()
    except PermissionError:
        told[name] = None
"""
    said = "what was said"
    few = run_shut(scene, code)
    assert [few["open.txt"], few["folder/inside.txt"], few["manifest.jsonl"]] == [said, said, None]
    many = run_shut(scene, code, many=2)
    assert [many["open.txt"], many["folder/inside.txt"], many["manifest.jsonl"]] == [None, said, None]


@needs_landlock
def test_capabilities_that_lead_around_it_are_gone(scene):
    """Root starts with them; what it starts must not get them back."""
    code = """
import subprocess
status = subprocess.check_output(["cat", "/proc/self/status"], text=True)
told["sets"] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")]
"""
    kept = sum(1 << capability for capability in sandbox.KEPT_CAPABILITIES)
    sets = run_shut(scene, code)["sets"]
    assert len(sets) == 5
    if AS_ROOT:
        assert all(held & ~kept == 0 for held in sets)
    else:  # who has none has none to drop
        assert all(held & ~kept == 0 for held in sets[:3])


def test_a_second_mount_is_denied_too():
    """A disk's folder /data/clips, seen at /corpus, at /disk/data/clips, and in part at /part."""
    mounts = [
        sandbox._Mount("8:1", "/", "/"),
        sandbox._Mount("8:2", "/data/clips", "/corpus"),
        sandbox._Mount("8:2", "/", "/disk"),
        sandbox._Mount("8:2", "/data/clips/dev/1", "/part"),
        sandbox._Mount("8:2", "/other", "/other"),
    ]
    assert set(sandbox._other_mounts("/corpus/dev", mounts)) == {"/disk/data/clips/dev", "/part"}
    assert set(sandbox._other_mounts("/disk/data", mounts)) == {"/corpus", "/part"}
    assert set(sandbox._other_mounts("/home", mounts)) == set()


def test_places_of_a_path_are_its_links_and_its_end(tmp_path):
    real = tmp_path.resolve() / "real"
    (real / "inner").mkdir(parents=True)
    (real / "inner" / "file").touch()
    (real / "link").symlink_to("inner")
    (real.parent / "absolute").symlink_to(real)
    assert sandbox._places(str(real.parent / "absolute" / "link" / ".." / "inner" / "file")) == [
        str(real.parent / "absolute"),
        str(real / "link"),
        str(real / "inner" / "file"),
    ]


@pytest.fixture
def own_temporary_folder(monkeypatch):
    """Give back what a sandbox that failed has set in this process."""
    monkeypatch.setenv("TMPDIR", os.environ["TMPDIR"])
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_without_landlock_nothing_is_shut_and_the_reason_is_given(
    tmp_path, monkeypatch, own_temporary_folder, number
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sandbox, "_call", refuse)
    monkeypatch.setattr(sandbox.sys, "platform", "linux")
    isolation = sandbox.apply([str(tmp_path)], str(tmp_path))
    assert (isolation.level, isolation.files, isolation.signals, isolation.memory) == (
        "none",
        False,
        False,
        False,
    )
    assert os.strerror(number) in isolation.why
    assert (tmp_path / "still.txt").write_text("free")
    assert tempfile.gettempdir() == str(tmp_path)


def test_another_system_is_told_apart(tmp_path, monkeypatch, own_temporary_folder):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    for isolation in (sandbox.apply([str(tmp_path)], str(tmp_path)), sandbox.available()):
        assert isolation.level == "none"
        assert "Linux" in isolation.why


@needs_landlock
def test_a_second_thread_would_stay_free(tmp_path, own_temporary_folder):
    """Landlock shuts in the calling thread alone."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        isolation = sandbox.apply([str(tmp_path)], str(tmp_path))
    finally:
        done.set()
        thread.join()
    assert isolation.level == "none"
    assert "threads" in isolation.why


@needs_landlock
def test_what_the_machine_offers_is_what_a_worker_gets(scene):
    assert run_shut(scene, "")["isolation"] == OFFERED.as_dict()


ASKS = """
import os, sys
from asrgate.harness.worker import sandbox
private, code = sys.argv[1], os.path.dirname(os.__file__)
before = os.access(code, os.R_OK)
isolation = sandbox.apply([], private)
after = [os.access(code, os.R_OK), os.access(code, os.W_OK), os.access(private, os.W_OK)]
print(isolation.level, before, *after)
"""


@needs_landlock
def test_libraries_are_told_that_code_cannot_be_written(tmp_path):
    """They ask before they cache something beside it, as the importer of Mojo does."""
    done = subprocess.run(
        [sys.executable, "-c", ASKS, str(tmp_path)],
        env=child_process.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["landlock", "True", "True", "False", "True"]
