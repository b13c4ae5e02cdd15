"""Shuts an engine's process in before any of the engine's code runs: Linux's Landlock, without privileges.

Inside, files and folders that the harness names can be neither read nor written, processes outside get no
signals, and their memory cannot be read. Whatever a shut-in process starts is shut in too, and none can get
out. Elsewhere than on Linux, and where the kernel offers no Landlock, nothing is shut; the record says so.

Landlock is an allow list, and a rule for a folder holds for all below it. So a folder that holds something
denied, at any depth, gets no rule; each of its other entries gets one. In such a folder nothing can be made,
renamed or removed, and what is put there later by others stays out of reach.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446  # system calls
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
SCOPE_SIGNAL = 1 << 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
# How many rights, lowest bits first, each version of Landlock's interface knows; later ones as the last.
RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
RIGHTS_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the others are for folders only

# What a path is: neither read nor written; read and run; all but making device nodes. The lower one wins.
DENIED, CODE, FREE = range(3)

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITY_VERSION_3 = 0x20080522
# Root keeps what makes it the owner of all files. Others would lead around Landlock: raw memory and disks,
# kernel modules, BPF and tracing, settings of the kernel.
KEPT_CAPABILITIES = (
    *(0, 1, 3, 4),  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID
    *(5, 6, 7),  # KILL, SETGID, SETUID
    14,  # IPC_LOCK: drivers pin memory
)

# A folder with something denied and more entries than this: only its sub-folders are allowed.
MANY_ENTRIES = 2000

# Folders that engines' libraries keep things in. Those of the home folder are made now, as later they cannot
# be where the home folder holds something denied.
CACHES_AT_HOME = (".cache", ".modular", ".nv", ".triton")
CACHE_VARIABLES = (
    *("ASRGATE_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR"),
    *(
        "MODULAR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "TRITON_HOME",
        "NUMBA_CACHE_DIR",
        "CUDA_CACHE_PATH",
        "MPLCONFIGDIR",
    ),
)


NOT_LINUX = f"Landlock is a part of Linux; this is {sys.platform}"


@dataclass(frozen=True)
class Isolation:
    """What a worker is kept from.

    Attributes:
        level: "landlock" or "none".
        abi: version of Landlock's interface in this kernel, None without Landlock.
        files: can it neither read nor write what is denied?
        signals: can it send no signal to a process outside?
        memory: can it not trace processes outside, nor read their memory, environment and open files?
        why: what is missing and for what reason; None when nothing is.
    """

    level: str
    abi: int | None
    files: bool
    signals: bool
    memory: bool
    why: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as the record has them."""
        return asdict(self)


class _Unavailable(Exception):
    """Landlock cannot be used; the message says why."""


def apply(denied: Sequence[str], private: str) -> Isolation:
    """Shut this process in, for good, with all that it will start. Call it before a second thread exists.

    What is denied can be listed by name, but no file in it can be opened, made, changed, renamed or removed.
    A file that has a second hard link elsewhere can be opened by that one, and one that is open already stays
    open. The interpreter's own folders, those of `sys.path` and of PATH, /proc and /sys can only be read, as
    what lies there is run or obeyed outside.

    Args:
        denied: files and folders. A symbolic link stands for itself and for what it leads to. One that does
            not exist cannot be made.
        private: a folder that this process may use freely, even inside a denied one. It becomes TMPDIR.

    Returns: what was achieved. Nothing raises: where Landlock fails, the level is "none".
    """
    os.environ["TMPDIR"] = private
    tempfile.tempdir = None
    abi = None
    try:
        abi = _abi()
        _restrict(abi, _modes(denied, private))
    except (_Unavailable, OSError, ValueError) as error:
        return Isolation("none", abi, files=False, signals=False, memory=False, why=str(error))
    _make_access_truthful(private)
    missing = []
    files = True
    readable = _first_readable(denied)
    if readable is not None:
        files = False
        missing.append(f"{readable} can still be read")
    if abi < 3:
        missing.append(f"Landlock's version {abi} lets denied files be emptied (Linux 6.2 has version 3)")
    if abi < 6:
        missing.append(f"Landlock's version {abi} lets signals out (Linux 6.12 has version 6)")
    memory = True
    try:
        _drop_capabilities()
    except OSError as error:
        memory = False
        missing.append(f"root's capabilities cannot be dropped: {error.strerror}")
    return Isolation("landlock", abi, files, abi >= 6, memory, "; ".join(missing) or None)


def _make_access_truthful(private: str) -> None:
    """Have os.access() say of code that it cannot be written: the system call does not know of Landlock.

    Libraries ask it before they cache something beside their code, and otherwise take another folder; so does
    Mojo's importer.
    """
    really = os.access
    code, free = ([os.path.realpath(path) for path in paths] for paths in (_code(), [*_caches(), private]))

    def within(place: str, folders: list[str]) -> bool:
        return any(place == folder or place.startswith(f"{folder}{os.sep}") for folder in folders)

    def access(path: Any, mode: int, **options: Any) -> bool:
        if mode & os.W_OK and not isinstance(path, int):
            place = os.path.realpath(os.fsdecode(path))
            if within(place, code) and not within(place, free):
                return False
        return really(path, mode, **options)

    os.access = access


def available() -> Isolation:
    """Return what `apply` would achieve on this machine; a process of its own tries it."""
    from asrgate.backends import child_process, temporary

    if sys.platform != "linux":
        return Isolation("none", None, files=False, signals=False, memory=False, why=NOT_LINUX)
    try:
        with temporary.folder() as private:
            tried = subprocess.run(
                child_process.command("asrgate.harness.worker.sandbox", private),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=child_process.environment(),
                timeout=60,
                check=True,
            )
        return Isolation(**json.loads(tried.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        why = f"the trial failed: {error}"
        return Isolation("none", None, files=False, signals=False, memory=False, why=why)


def _abi() -> int:
    """Return the version of Landlock's interface.

    Raises:
        _Unavailable: there is none, or this process can no longer be shut in.
    """
    if sys.platform != "linux":
        raise _Unavailable(NOT_LINUX)
    try:
        abi = _call(LANDLOCK_CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)
    except OSError as error:
        raise _Unavailable(
            f"Linux {os.uname().release} offers no Landlock: {error.strerror} (it needs Linux 5.13 or later, "
            "with landlock among the lsm= of its command line, and a container that lets it through)"
        ) from error
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:  # only the calling one would be shut in
        raise _Unavailable(f"the process has {threads} threads already; it must be shut in before the second")
    return abi


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (
        ("handled_files", ctypes.c_uint64),
        ("handled_network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _restrict(abi: int, modes: dict[str, int]) -> None:
    """Put this process into a Landlock domain with these modes of paths.

    Raises:
        OSError: a system call failed; this process is as free as before.
    """
    handled = (1 << RIGHTS_OF_ABI.get(abi, RIGHTS_OF_ABI[max(RIGHTS_OF_ABI)])) - 1
    # Nobody may make device nodes: root could make the disk's and read it.
    rights = {FREE: handled & ~(MAKE_CHAR | MAKE_BLOCK), CODE: EXECUTE | READ_FILE | READ_DIR}
    attributes = _RulesetAttributes(handled, 0, SCOPE_SIGNAL if abi >= 6 else 0)
    ruleset = _call(LANDLOCK_CREATE_RULESET, ctypes.byref(attributes), ctypes.sizeof(attributes), 0)
    try:
        _allow(ruleset, "/", READ_DIR)  # Python looks for modules by listing folders
        for path, mode in _rules(_tree(modes), "/", FREE):
            _allow(ruleset, path, rights[mode])
        libc = _libc()
        if libc.prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        _call(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        entry = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # it has gone, or we may not go there ourselves
        return
    try:
        kind = os.fstat(entry).st_mode
        if stat.S_ISLNK(kind):  # what it leads to has rules of its own
            return
        allowed = rights if stat.S_ISDIR(kind) else rights & RIGHTS_OF_FILES
        beneath = _PathBeneath(allowed, entry)
        _call(LANDLOCK_ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(beneath), 0)
    finally:
        os.close(entry)


@dataclass
class _Node:
    """A path that has a mode of its own, or that leads to one."""

    mode: int | None = None
    entries: dict[str, _Node] = field(default_factory=dict)

    def below(self) -> Iterator[int]:
        for node in self.entries.values():
            if node.mode is not None:
                yield node.mode
            yield from node.below()


def _tree(modes: dict[str, int]) -> _Node:
    root = _Node()
    for path, mode in modes.items():
        node = root
        for name in _names(path):
            node = node.entries.setdefault(name, _Node())
        node.mode = mode
    return root


def _rules(node: _Node, path: str, inherited: int, given: int = DENIED) -> Iterator[tuple[str, int]]:
    """Yield the paths that get a rule, each with its mode; what denies is that a path gets none.

    Args:
        inherited: mode of the folder around it.
        given: what rules for folders around it give already.
    """
    mode = inherited if node.mode is None else node.mode
    if all(other >= mode for other in node.below()):
        if mode > given:
            yield path, mode
            given = mode
    else:
        for name in _entries(path):
            if name not in node.entries:
                yield os.path.join(path, name), mode
    for name, entry in node.entries.items():
        yield from _rules(entry, os.path.join(path, name), mode, given)


def _entries(folder: str) -> list[str]:
    """Return the names in a folder; of its sub-folders only, where there are many."""
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except OSError:  # not ours to list: what is used there has to have a mode of its own
        return []
    if len(entries) > MANY_ENTRIES:
        entries = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    return [entry.name for entry in entries]


def _modes(denied: Iterable[str], private: str) -> dict[str, int]:
    """Return the modes of all paths that differ from what is around them; every other one is free."""
    modes: dict[str, int] = {}

    def give(mode: int, path: str) -> None:
        for place in _places(path):
            for name in (place, *_other_mounts(place, mounts)):
                modes[name] = min(mode, modes.get(name, mode))

    mounts = _mounts()
    for path in _caches():
        give(FREE, path)
    for path in _code():
        give(CODE, path)
    # not to be written: through /proc/sys/kernel/core_pattern root has the kernel run any program
    give(CODE, "/proc")
    give(CODE, "/sys")
    give(FREE, f"/proc/{os.getpid()}")  # threads get their names through it
    for path in (*_disks(), *denied):
        give(DENIED, path)
    give(FREE, private)
    return modes


def _code() -> list[str]:
    """Return what processes outside, rivals' workers too, may run or import later."""
    import site

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = [sys.prefix, sys.base_prefix, sys.executable, os.path.dirname(package), package]
    folders += [path or os.getcwd() for path in sys.path]
    folders += os.environ.get("PATH", "").split(os.pathsep)
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    # a relative PATH entry is nobody's in particular; "/" would leave nothing free
    return [path for path in folders if os.path.isabs(path) and os.path.normpath(path) != "/"]


def _caches() -> list[str]:
    folders = [os.path.join(os.path.expanduser("~"), name) for name in CACHES_AT_HOME]
    folders += [os.path.abspath(os.environ[name]) for name in CACHE_VARIABLES if os.environ.get(name)]
    for folder in folders:
        with suppress(OSError):
            os.makedirs(folder, exist_ok=True)
    return folders


def _disks() -> Iterator[str]:
    """Yield the device nodes by which root reads files and memory around Landlock."""
    yield from ("/dev/mem", "/dev/kmem", "/dev/port")
    for folder, folders, names in os.walk("/dev"):
        folders[:] = [name for name in folders if not os.path.ismount(os.path.join(folder, name))]
        for name in names:
            path = os.path.join(folder, name)
            with suppress(OSError):
                if stat.S_ISBLK(os.lstat(path).st_mode):
                    yield path


def _places(path: str) -> list[str]:
    """Return the symbolic links that a path goes through, each where it lies, and then where it ends."""
    todo = _names(os.path.join(os.getcwd(), path))[::-1]
    places: list[str] = []
    place = "/"
    while todo:
        name = todo.pop()
        if name == "..":
            place = os.path.dirname(place)
            continue
        place = os.path.join(place, name)
        if os.path.islink(place) and len(places) < 40:  # the kernel's own limit
            places.append(place)
            target = os.readlink(place)
            todo += _names(target)[::-1]
            place = "/" if os.path.isabs(target) else os.path.dirname(place)
    return [*places, place]


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


@dataclass(frozen=True)
class _Mount:
    device: str
    root: str  # the folder of the device's file system that is seen
    point: str  # where


def _mounts() -> list[_Mount]:
    found = []
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            root, point = (_unescaped(text) for text in fields[3:5])
            found.append(_Mount(fields[2], root, point))
    return found


def _unescaped(text: str) -> str:
    for character in " \t\n\\":
        text = text.replace(f"\\{ord(character):03o}", character)
    return text


def _other_mounts(path: str, mounts: Sequence[_Mount]) -> Iterator[str]:
    """Yield the other names that a path, or a part of it, has because its file system is mounted twice."""
    own = max(
        (mount for mount in mounts if _beneath(path, mount.point) is not None),
        key=lambda mount: len(mount.point),
        default=None,
    )
    if own is None:
        return
    inside = os.path.join(own.root, _beneath(path, own.point) or "").rstrip("/")
    for mount in mounts:
        if mount.device != own.device or mount == own:
            continue
        rest = _beneath(inside, mount.root)
        if rest is not None:
            yield os.path.join(mount.point, rest).rstrip("/")
        elif _beneath(mount.root, inside) is not None:
            yield mount.point


def _beneath(path: str, folder: str) -> str | None:
    """Return the path from the folder on, "" for the folder itself, None if it lies elsewhere."""
    if path == folder:
        return ""
    prefix = folder.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def _first_readable(denied: Iterable[str]) -> str | None:
    """Return a denied file that can be opened, None as it should be."""
    for path in denied:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                continue
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            continue
        return path
    return None


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilitySets(ctypes.Structure):
    _fields_ = tuple((f"{name}_{half}", ctypes.c_uint32) for half in "01" for name in ("eff", "prm", "inh"))


def _drop_capabilities() -> None:
    """Give up, for this process and what it starts, all capabilities but KEPT_CAPABILITIES.

    Raises:
        OSError: the kernel refuses.
    """
    libc = _libc()
    header, sets = _CapabilityHeader(CAPABILITY_VERSION_3, 0), _CapabilitySets()
    if libc.capget(ctypes.byref(header), ctypes.byref(sets)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if not (sets.prm_0 or sets.prm_1):
        return
    for capability in range(64):
        if capability not in KEPT_CAPABILITIES:
            libc.prctl(PR_CAPBSET_DROP, *map(ctypes.c_ulong, (capability, 0, 0, 0)))  # EINVAL: unknown here
    kept = sum(1 << capability for capability in KEPT_CAPABILITIES)
    sets.eff_0, sets.prm_0, sets.inh_0 = sets.eff_0 & kept, sets.prm_0 & kept, 0
    sets.eff_1 = sets.prm_1 = sets.inh_1 = 0
    if libc.capset(ctypes.byref(header), ctypes.byref(sets)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: Any) -> int:
    """Make a system call.

    Raises:
        OSError: it failed.
    """
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    print(json.dumps(apply((), sys.argv[1]).as_dict()))
