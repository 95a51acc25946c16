"""What a guest sees: the bubblewrap arguments.

/usr        the host's, read-only (with /bin, /lib, ... as the host links them)
/etc        made up: passwd, group, hosts, resolv.conf, nsswitch.conf, and the loader's cache
/opt/python the interpreter, where the host has none below /usr
/inputs     read-only files      /outputs, /tmp   the box's own folders, bounded
/run/stockade  the guest module, and the program of this command
/dev, /proc    new ones, chatty files masked      nothing else, all of it read-only
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sandboxes.spec import Limits, Strength

GUEST_FOLDER = "/run/stockade"
_SCRATCH = "/tmp"  # noqa: S108 - the guest's own, not the host's
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - likewise
_SHARED_MEMORY_BYTES = 64 * 1024 * 1024
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": _SCRATCH,
    "TMPDIR": _SCRATCH,
    "LANG": "C.UTF-8",
    "USER": "guest",
}
_ROOT_ENTRIES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_HOST_ETC_FILES = ("ld.so.cache",)
_HOST_ETC_FOLDERS = ("alternatives",)  # links from /usr/bin to /usr/bin
_NETWORK_ETC_FOLDERS = ("ssl/certs",)  # the authorities that the host trusts
_MASKED_FILES = ("cmdline", "diskstats", "interrupts", "kallsyms", "kcore", "keys", "modules", "partitions")
_MASKED_FOLDERS = ("acpi", "bus", "fs", "irq", "scsi")


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """The Python a guest runs: its path inside and on the host, and what must be bound for it (``(host, inside)``)."""

    path: str
    on_host: Path
    binds: tuple[tuple[Path, str], ...] = ()


@cache
def interpreter() -> Interpreter:
    """The system's Python if it is below /usr, else the one that runs this process, moved to /opt/python."""
    if (system := Path("/usr/bin/python3")).exists():
        return Interpreter(path=str(system), on_host=system)
    prefix = Path(sys.base_prefix).resolve()
    own = prefix / "bin" / "python3"
    if prefix.is_relative_to("/usr"):
        return Interpreter(path=str(own), on_host=own)
    return Interpreter(path="/opt/python/bin/python3", on_host=own, binds=((prefix, "/opt/python"),))


def etc_files(uid: int) -> Mapping[str, str]:
    """The made-up /etc of a guest that runs as ``uid``."""
    return {
        "passwd": f"root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nguest:x:{uid}:{uid}:guest:/tmp:/bin/sh\n",
        "group": f"root:x:0:\nguest:x:{uid}:\n",
        "hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
        "resolv.conf": "# no network\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        **{name: "" for name in _HOST_ETC_FILES if Path("/etc", name).exists()},  # mount points
    }


def etc_folders(*, network: bool) -> tuple[str, ...]:
    """Mount points below /etc that are folders."""
    names = (*_HOST_ETC_FOLDERS, *(_NETWORK_ETC_FOLDERS if network else ()))
    return tuple(name for name in names if Path("/etc", name).is_dir())


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The host's folders behind the guest's."""

    etc: Path
    guest: Path
    empty: Path
    tmp: Path
    outputs: Path
    inputs: Mapping[str, Path]
    network: bool = False


def arguments(strength: Strength, folders: Folders, limits: Limits) -> list[str]:
    """Everything between ``bwrap`` and the guest's command, without the file descriptors."""
    return [
        *_walls(strength),
        *_system(),
        *("--ro-bind", str(folders.etc), "/etc"),
        *(word for name in _HOST_ETC_FILES for word in ("--ro-bind-try", f"/etc/{name}", f"/etc/{name}")),
        *_etc_folders(folders.network),
        *("--proc", "/proc", *_masks(folders.empty)),
        *("--dev", "/dev"),
        *("--perms", "1777", "--size", str(min(_SHARED_MEMORY_BYTES, limits.memory_bytes)), "--tmpfs", _SHARED_MEMORY),
        *("--remount-ro", "/dev"),
        *("--perms", "0755", "--dir", "/run"),
        *("--ro-bind", str(folders.guest), GUEST_FOLDER),
        *("--bind", str(folders.tmp), _SCRATCH),
        *("--bind", str(folders.outputs), "/outputs"),
        *("--dir", "/inputs"),
        *(word for name, path in folders.inputs.items() for word in ("--ro-bind", str(path), f"/inputs/{name}")),
        *("--remount-ro", "/"),
        *("--chdir", _SCRATCH),
        *(word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)),
    ]


def _etc_folders(network: bool) -> Iterator[str]:
    for name in etc_folders(network=network):
        yield from ("--ro-bind", f"/etc/{name}", f"/etc/{name}")


def _walls(strength: Strength) -> list[str]:
    common = ["--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox", "--cap-drop", "ALL"]
    if strength is Strength.USER:
        return ["--unshare-all", *common]
    # As root bubblewrap needs no user namespace, and without one the guest's uid is real: nobody else on the host
    # has it. The three capabilities last until setpriv has taken that uid and emptied the bounding set.
    shares = [word for name in ("ipc", "pid", "net", "uts", "cgroup") for word in (f"--unshare-{name}",)]
    keeps = [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
    return [*shares, *common, *keeps]


@cache
def _system() -> tuple[str, ...]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _ROOT_ENTRIES:
        entry = Path("/", name)
        if entry.is_symlink():
            words += ["--symlink", str(entry.readlink()), str(entry)]
        elif entry.is_dir():
            words += ["--ro-bind", str(entry), str(entry)]
    for source, inside in interpreter().binds:
        words += [
            "--perms",
            "0755",
            "--dir",
            str(Path(inside).parent),
        ]  # bubblewrap's own are closed to the guest's uid
        words += ["--ro-bind", str(source), inside]
    return tuple(words)


def _masks(empty: Path) -> Iterator[str]:
    files, folders = _masked()
    for place in files:
        yield from ("--ro-bind", "/dev/null", place)
    for place in folders:
        yield from ("--ro-bind", str(empty), place)


@cache
def _masked() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which files and folders of /proc this kernel has."""
    files = tuple(f"/proc/{name}" for name in _MASKED_FILES if Path("/proc", name).exists())
    return files, tuple(f"/proc/{name}" for name in _MASKED_FOLDERS if Path("/proc", name).is_dir())
