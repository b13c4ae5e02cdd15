"""What a hostile engine tries against the sandbox: `python sandbox_attacks.py FOLDER USER free|shut`.

Prints the outcome of each attempt as JSON: the name of its error, null where it succeeded. USER is a user id
to become first, or "-".
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from paths import ROOT

from asrgate.harness.worker import sandbox

DESCRIPTOR = 100  # of a denied file, open in the process outside
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_PTRACER = 1, 4, 0x59616D61
PTRACE_ATTACH, PTRACE_DETACH, PIDFD_GETFD = 16, 17, 438
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


class Scene:
    """Files around a worker: `corpus` and two entries of `mixed` are denied, the rest is not."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.corpus, self.mixed, self.elsewhere = (folder / name for name in ("corpus", "mixed", "elsewhere"))
        self.private = self.corpus / "private"
        self.target = self.elsewhere / "target.txt"
        self.link = self.mixed / "link.txt"
        self.manifest = self.mixed / "manifest.jsonl"
        self.open = self.mixed / "open.txt"
        self.denied = [str(path) for path in (self.corpus, self.manifest, self.link)]

    def build(self) -> Scene:
        for folder in (self.corpus, self.mixed, self.private, self.corpus / "part", self.elsewhere):
            folder.mkdir()
        for file in (self.target, self.manifest, self.open, self.corpus / "text.txt"):
            file.write_text("what was said")
        self.link.symlink_to(self.target)
        (self.folder / "way_in").symlink_to(self.corpus)
        (self.mixed / "module_beside.py").write_text("VALUE = 42\n")
        return self

    def victim(self, name: str) -> Path:
        """A denied file for one attempt."""
        path = self.corpus / f"{name}.txt"
        if not path.exists():
            path.write_text("what was said")
        return path


def read(path: Path | str) -> None:
    with open(path, "rb") as file:
        assert file.read(1)


def append(path: Path | str) -> None:
    with open(path, "ab") as file:
        file.write(b"!")


def open_only(path: Path | str, mode: str) -> None:
    open(path, mode).close()


def checked(result: int) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read_by_own_link(scene: Scene) -> None:
    (scene.private / "own").symlink_to(scene.victim("own"))
    read(scene.private / "own")


def read_from_inside(scene: Scene) -> None:
    os.chdir(scene.corpus)
    read("text.txt")


def plant_module() -> None:
    """Put a module where the harness's Python looks for modules first."""
    path = ROOT / "planted_by_a_test.py"
    try:
        path.write_text("")
    finally:
        path.unlink(missing_ok=True)


def trace(pid: int) -> None:
    checked(libc.ptrace(PTRACE_ATTACH, pid, None, None))
    os.waitpid(pid, 0x40000000)  # __WALL
    checked(libc.ptrace(PTRACE_DETACH, pid, None, None))


def take_descriptor(pid: int) -> None:
    checked(libc.syscall(PIDFD_GETFD, os.pidfd_open(pid), DESCRIPTOR, 0))


def mount(scene: Scene) -> None:
    """Mount the denied folder elsewhere, in a name space of one's own."""
    corpus, place = os.fsencode(scene.corpus), os.fsencode(scene.elsewhere)
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    checked(libc.mount(corpus, place, None, ctypes.c_ulong(MS_BIND), None))
    read(scene.elsewhere / "text.txt")


def a_disk() -> str:
    return next(path for path in sandbox._disks() if os.path.exists(path) and "/loop" not in path)


def from_daemon(work: Callable[[], object]) -> None:
    """Do it in a process that has left its parent and its session."""
    told, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(tell, (outcome(work) or "").encode())
        os._exit(0)
    os.wait()
    os.close(tell)
    with open(told) as pipe:
        if name := pipe.read():
            raise OSError(getattr(errno, name), name)


Attempt = Callable[[Scene, int, int], object]

# What is tried; `outside` is the process id of one that was there before, `rival` that of another engine.
FILES: dict[str, Attempt] = {
    "read": lambda scene, outside, rival: read(scene.victim("read")),
    "read one file": lambda scene, outside, rival: read(scene.manifest),
    "append": lambda scene, outside, rival: append(scene.victim("append")),
    "append to one file": lambda scene, outside, rival: append(scene.manifest),
    "truncate": lambda scene, outside, rival: os.truncate(scene.victim("truncate"), 0),
    "rename over": lambda scene, outside, rival: os.rename(scene.open, scene.victim("over")),
    "rename over one file": lambda scene, outside, rival: os.rename(scene.private / "x", scene.manifest),
    "rename away": lambda scene, outside, rival: os.rename(scene.victim("away"), scene.private / "away"),
    "rename folder": lambda scene, outside, rival: os.rename(scene.corpus / "part", scene.corpus / "moved"),
    "hard link": lambda scene, outside, rival: os.link(scene.victim("hard"), scene.elsewhere / "hard"),
    "make": lambda scene, outside, rival: (scene.corpus / "made.txt").write_text("!"),
    "make folder": lambda scene, outside, rival: (scene.corpus / "made").mkdir(),
    "through link": lambda scene, outside, rival: read(scene.folder / "way_in" / "text.txt"),
    "through own link": lambda scene, outside, rival: read_by_own_link(scene),
    "target of link": lambda scene, outside, rival: read(scene.target),
    "dots": lambda scene, outside, rival: read(f"{scene.mixed}/../corpus/text.txt"),
    "from inside": lambda scene, outside, rival: read_from_inside(scene),
    "folder outside stands in": lambda scene, outside, rival: read(f"/proc/{outside}/cwd/text.txt"),
    "root of outside": lambda scene, outside, rival: read(f"/proc/{outside}/root{scene.corpus}/text.txt"),
    "descriptor of outside": lambda scene, outside, rival: read(f"/proc/{outside}/fd/{DESCRIPTOR}"),
    "from daemon": lambda scene, outside, rival: from_daemon(lambda: read(scene.victim("daemon"))),
    "delete": lambda scene, outside, rival: scene.victim("delete").unlink(),
    "delete link": lambda scene, outside, rival: scene.link.unlink(),
    "delete one file": lambda scene, outside, rival: scene.manifest.unlink(),
}
MEMORY: dict[str, Attempt] = {
    "memory of outside": lambda scene, outside, rival: open_only(f"/proc/{outside}/mem", "rb"),
    "memory of rival": lambda scene, outside, rival: open_only(f"/proc/{rival}/mem", "rb"),
    "environment of outside": lambda scene, outside, rival: read(f"/proc/{outside}/environ"),
    "environment of rival": lambda scene, outside, rival: read(f"/proc/{rival}/environ"),
    "maps of rival": lambda scene, outside, rival: read(f"/proc/{rival}/maps"),
    "names of open files": lambda scene, outside, rival: os.readlink(f"/proc/{rival}/fd/{DESCRIPTOR}"),
    "trace rival": lambda scene, outside, rival: trace(rival),
    "take descriptor": lambda scene, outside, rival: take_descriptor(outside),
}
SIGNALS: dict[str, Attempt] = {
    "signal outside": lambda scene, outside, rival: os.kill(outside, signal.SIGUSR1),
    "signal rival": lambda scene, outside, rival: os.kill(rival, signal.SIGUSR1),
    "signal group": lambda scene, outside, rival: os.killpg(os.getpgid(rival), signal.SIGUSR1),
    "signal by descriptor": lambda scene, outside, rival: signal.pidfd_send_signal(
        os.pidfd_open(rival), signal.SIGUSR1
    ),
    "signal from daemon": lambda scene, outside, rival: from_daemon(lambda: os.kill(rival, signal.SIGUSR1)),
    "stop rival": lambda scene, outside, rival: os.kill(rival, signal.SIGSTOP),
}
# Free, only the owner of the harness's code can do the first two, and only root the others, where it may.
PRIVILEGED: dict[str, Attempt] = {
    "harness's code": lambda scene, outside, rival: open_only(sandbox.__file__, "ab"),
    "plant module": lambda scene, outside, rival: plant_module(),
    "core pattern": lambda scene, outside, rival: open_only("/proc/sys/kernel/core_pattern", "ab"),
    "device node": lambda scene, outside, rival: os.mknod(scene.private / "n", 0o20666, os.makedev(1, 3)),
    "disk": lambda scene, outside, rival: open_only(a_disk(), "rb"),
    "ports of devices": lambda scene, outside, rival: checked(libc.iopl(3)),
    "mount": lambda scene, outside, rival: mount(scene),
}


def outcome(work: Callable[[], object]) -> str | None:
    """Name of the error, None if there is none."""
    try:
        work()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    except Exception as error:
        return repr(error)
    return None


def in_a_fork(work: Callable[[], object]) -> Any:
    """Return what the work returns, which a fork does."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with open(tell, "w") as pipe:
                json.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(tell)
    with open(told) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def become(user: int, scene: Scene) -> None:
    """Become an ordinary user, who owns the scene."""
    for path in (scene.folder, *scene.folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def be_open() -> None:
    """Lift what forbids looking into processes anyway: a changed user, and Yama."""
    libc.prctl(PR_SET_DUMPABLE, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    libc.prctl(PR_SET_PTRACER, *map(ctypes.c_ulong, (2**64 - 1, 0, 0, 0)))


def start_rival() -> int:
    """Start a process that waits in a group of its own; return its id."""
    told, tell = os.pipe()
    rival = os.fork()
    if rival == 0:
        libc.prctl(PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))
        be_open()
        os.setpgid(0, 0)
        os.write(tell, b"!")
        while True:
            signal.pause()
    os.read(told, 1)
    return rival


def attack(scene: Scene, user: int | None, shut: bool) -> dict[str, str | None]:
    """Make all attempts beside a rival, each in a process of its own; return their outcomes."""
    attempts = FILES | MEMORY | SIGNALS | (PRIVILEGED if user is None else {})
    (scene.private / "x").write_text("mine")
    if user is not None:
        become(user, scene)
    be_open()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.chdir(scene.corpus)
    os.dup2(os.open("text.txt", os.O_RDONLY), DESCRIPTOR)
    for place in ("read", "append", "truncate", "over", "away", "hard", "own", "daemon", "delete"):
        scene.victim(place)
    outside, rival = os.getpid(), start_rival()

    def engine() -> dict[str, str | None]:
        if shut:
            isolation = sandbox.apply(scene.denied, str(scene.private))
            if isolation.level != "landlock":
                return dict.fromkeys(attempts, isolation.why)

        def make(attempt: Attempt) -> str | None:
            os.close(DESCRIPTOR)
            return outcome(lambda: attempt(scene, outside, rival))

        return {name: in_a_fork(lambda attempt=attempt: make(attempt)) for name, attempt in attempts.items()}

    try:
        return in_a_fork(engine)
    finally:
        with suppress(ProcessLookupError):
            os.kill(rival, signal.SIGKILL)


if __name__ == "__main__":
    folder, user, how = sys.argv[1:]
    print(json.dumps(attack(Scene(Path(folder)), None if user == "-" else int(user), how == "shut")))
