"""Memory, pids and cpu bounds of strength ``full``, in whichever cgroup hierarchy the host has.

Groups are made below the host process's own group, so bounds on the node bound its guests too. All calls block for
microseconds to milliseconds: call them from a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandboxes.spec import Limits

_PERIOD_MICROSECONDS = 100_000
_EXTRA_PIDS = 2  # bubblewrap outside and its init inside
_HOST_LEAF = "stockade-host"
_V1_NEEDED = ("memory", "pids", "cpu", "freezer")


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """Where groups can be made: one folder per controller (v1), or the same folder for all (v2)."""

    version: int
    folders: Mapping[str, Path]


def find(mounts: str, own: str) -> Hierarchy | str:
    """Read ``/proc/self/mounts`` and ``/proc/self/cgroup``; a sentence if the host has not what ``full`` needs."""
    own_paths: dict[str, str] = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own_paths[controller] = path
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mounts.splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup":
            for controller in set(options.split(",")) & set(_V1_NEEDED):
                v1[controller] = _below(Path(where), own_paths.get(controller, "/"))
        elif kind == "cgroup2":
            v2 = _below(Path(where), own_paths.get("", "/"))
    if all(controller in v1 for controller in _V1_NEEDED):
        return Hierarchy(version=1, folders=v1)
    if v2 is not None:
        offered = _read(v2 / "cgroup.controllers").split()
        missing = [name for name in ("memory", "pids", "cpu") if name not in offered]
        if not missing:
            return Hierarchy(version=2, folders={name: v2 for name in ("memory", "pids", "cpu")})
        return (
            f"cgroup v2 does not offer {', '.join(missing)} at {v2}; delegate them to the node (systemd: Delegate=yes)"
        )
    lacking = ", ".join(name for name in _V1_NEEDED if name not in v1)
    return f"the host has no cgroup controller for {lacking}; mount cgroup2 at /sys/fs/cgroup"


def _below(mount: Path, path: str) -> Path:
    """The process's own group; in a container its path may lie outside the mount, then the mount is the root."""
    own = mount / path.lstrip("/")
    if own.name == _HOST_LEAF:  # where _delegate() put this process: groups belong beside it
        own = own.parent
    return own if own.is_dir() else mount


class Group:
    """The bounds of one sandbox. A process joins by writing ``0``, which means itself, to each file of ``joins``."""

    def __init__(self, hierarchy: Hierarchy, name: str) -> None:
        self.version = hierarchy.version
        self._by_controller = {controller: folder / name for controller, folder in hierarchy.folders.items()}
        self.folders = tuple(dict.fromkeys(self._by_controller.values()))
        # v1: a thread that moves only itself skips the kernel's global lock, whose writers wait for an RCU grace
        # period; through cgroup.procs the four joins take about 15 ms. v2 has no such file for memory.
        self.joins = tuple(folder / ("cgroup.procs" if self.version == 2 else "tasks") for folder in self.folders)

    def create(self, limits: Limits) -> None:
        """Make the folders and write the bounds. Raises ``OSError`` with the file that refused."""
        if self.version == 2:
            _delegate(self.folders[0].parent)
        for folder in self.folders:
            folder.mkdir(exist_ok=True)
        for controller, name, value in settings(self.version, limits):
            file = self._by_controller[controller] / name
            if file.exists():  # swap accounting may be compiled out, and then there is no swap to bound
                file.write_text(value)

    def oom_kills(self) -> int:
        """How many processes the kernel killed here for memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _counter(_read(self._by_controller["memory"] / name), "oom_kill")

    def memory_peak_bytes(self) -> int | None:
        """Highest memory use so far, page cache included; ``None`` on kernels that do not keep it."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        text = _read(self._by_controller["memory"] / name).strip()
        return int(text) if text.isdigit() else None

    def freeze(self) -> None:
        """Stop every process; returns when they are stopped, or after a second. Nothing, if the group is gone."""
        if self.version == 2:
            if self._tell(self.folders[0] / "cgroup.freeze", "1"):
                self._await(lambda: _counter(_read(self.folders[0] / "cgroup.events"), "frozen") == 1)
        else:
            state = self._by_controller["freezer"] / "freezer.state"
            if self._tell(state, "FROZEN"):
                self._await(lambda: _read(state).strip() == "FROZEN")

    def thaw(self) -> None:
        """Let them go on. Nothing, if the group is gone."""
        if self.version == 2:
            self._tell(self.folders[0] / "cgroup.freeze", "0")
        else:
            self._tell(self._by_controller["freezer"] / "freezer.state", "THAWED")

    def kill(self) -> None:
        """Kill every process, frozen ones too; returns when the group is empty, or after a second."""
        with contextlib.suppress(FileNotFoundError):
            if self.version == 2:
                (self.folders[0] / "cgroup.kill").write_text("1")
            self._await(self._killed)

    def _killed(self) -> bool:
        pids = _read(self.folders[0] / "cgroup.procs").split()
        for pid in pids if self.version == 1 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self.thaw()  # v1 delivers even SIGKILL only to the thawed
        return not pids

    def remove(self) -> None:
        """Delete the (empty) folders. Idempotent. Raises ``OSError`` if a process is still there after a second."""

        def removed() -> bool:
            for folder in self.folders:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    return False
            return True

        if not self._await(removed):
            raise OSError(f"control group {self.folders[0].name} still has processes")

    @staticmethod
    def _tell(file: Path, word: str) -> bool:
        """Write it; false if the group was removed meanwhile, which its end does at any moment."""
        try:
            file.write_text(word)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return False
        return True

    @staticmethod
    def _await(done: Callable[[], bool], seconds: float = 1.0) -> bool:
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True


def settings(version: int, limits: Limits) -> list[tuple[str, str, str]]:
    """``(controller, file, value)`` in the order they must be written."""
    memory, pids = str(limits.memory_bytes), str(limits.pids + _EXTRA_PIDS)
    quota = max(1000, int(limits.cpu * _PERIOD_MICROSECONDS))
    if version == 2:
        return [
            ("memory", "memory.max", memory),
            ("memory", "memory.swap.max", "0"),
            ("memory", "memory.oom.group", "1"),
            ("pids", "pids.max", pids),
            ("cpu", "cpu.max", f"{quota} {_PERIOD_MICROSECONDS}"),
        ]
    return [
        ("memory", "memory.limit_in_bytes", memory),
        ("memory", "memory.memsw.limit_in_bytes", memory),
        ("pids", "pids.max", pids),
        ("cpu", "cpu.cfs_period_us", str(_PERIOD_MICROSECONDS)),
        ("cpu", "cpu.cfs_quota_us", str(quota)),
    ]


def _delegate(parent: Path) -> None:
    """Let ``parent`` hand its controllers down. v2 wants it free of processes: ours move to a leaf of their own."""
    control = parent / "cgroup.subtree_control"
    if {"memory", "pids", "cpu"} <= set(_read(control).split()):
        return
    if (parent / "cgroup.type").exists():  # absent at the true root, which may hold processes
        leaf = parent / _HOST_LEAF
        leaf.mkdir(exist_ok=True)
        for pid in _read(parent / "cgroup.procs").split():
            with contextlib.suppress(OSError):
                (leaf / "cgroup.procs").write_text(pid)
    control.write_text("+memory +pids +cpu")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _counter(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
