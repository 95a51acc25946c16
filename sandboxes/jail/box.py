"""The host's side of one sandbox: its folders, bounds and record, and how all of it goes away again.

    <state_dir>/<digest of the label>/
        record.json      label, strength, and while a command runs the process: what ``reap`` needs after a crash
        inputs/          copies of inputs that the guest's uid could not read
        files/           a tmpfs of bounded bytes and inodes under ``full``; watched under ``user``
            tmp/  outputs/
            etc/  guest/  empty/   read-only inside; here because /proc/self/mountinfo names paths within the mount

All functions block; call them from a worker thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from sandboxes.errors import DriverFailed
from sandboxes.hostfiles import remove_tree
from sandboxes.jail import processes, python, rootfs
from sandboxes.jail.cgroups import Group, Hierarchy
from sandboxes.spec import Limits, SandboxSpec, Strength

_MOUNT_FLAGS = 2 | 4  # MS_NOSUID | MS_NODEV
_DETACH = 2  # MNT_DETACH
OWN_INODES, OWN_BYTES = 24, 256 * 1024
"""What the box itself keeps in ``files``. The inodes are beside the guest's own; the bytes only if watched."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One sandbox's place on the host. ``group`` is set under ``full``."""

    label: str
    root: Path
    strength: Strength
    limits: Limits
    uid: int
    group: Group | None
    inputs: dict[str, Path]
    network: bool

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def outputs(self) -> Path:
        return self.files / "outputs"

    def folders(self) -> rootfs.Folders:
        """The host's folders as the guest's root wants them."""
        return rootfs.Folders(
            etc=self.files / "etc",
            guest=self.files / "guest",
            empty=self.files / "empty",
            tmp=self.files / "tmp",
            outputs=self.outputs,
            inputs=self.inputs,
            network=self.network,
        )

    def record(self, pid: int | None) -> None:
        """Write what a later ``reap`` needs; ``pid`` is bubblewrap's."""
        started = processes.start_time(pid) if pid is not None else None
        fresh = self.root / "record.json.new"
        fresh.write_text(json.dumps({"label": self.label, "strength": self.strength, "pid": pid, "started": started}))
        fresh.replace(self.root / "record.json")


def folder(state_dir: Path, label: str) -> Path:
    """Where ``label`` lives: its digest, so that no label can name a path."""
    return state_dir / hashlib.sha256(label.encode()).hexdigest()[:32]


def create(
    state_dir: Path, spec: SandboxSpec, label: str, *, strength: Strength, uid: int, hierarchy: Hierarchy | None
) -> Box:
    """Make the folders, the bounds and the record. Raises ``DriverFailed``; what was made is gone then."""
    state_dir.mkdir(parents=True, exist_ok=True)
    state_dir.chmod(_root_mode(strength))
    root = folder(state_dir, label)
    try:
        root.mkdir()
    except FileExistsError:
        raise DriverFailed(f"a sandbox labelled {label!r} exists already; end it or reap it first") from None
    group = Group(hierarchy, f"stockade-{root.name}") if hierarchy is not None else None
    box = Box(
        label=label,
        root=root,
        strength=strength,
        limits=spec.limits,
        uid=uid,
        group=group,
        inputs={mount.name: mount.source for mount in spec.mounts},
        network=spec.network,
    )
    try:
        root.chmod(_root_mode(strength))
        box.record(None)
        _fill(box)
        if group is not None:
            group.create(spec.limits)
    except OSError as error:
        destroy(root, group)
        raise DriverFailed(f"cannot make the sandbox {label!r} in {state_dir}: {error}") from error
    except BaseException:
        destroy(root, group)
        raise
    return box


def _fill(box: Box) -> None:
    for name in ("inputs", "files"):
        _open_folder(box.root / name)
    if box.strength is Strength.FULL:
        inodes = box.limits.inodes + OWN_INODES
        _mount_tmpfs(box.files, f"size={box.limits.disk_bytes},nr_inodes={inodes},mode=0755")
    for name in ("etc", "guest", "empty"):
        _open_folder(box.files / name)
    for name, text in rootfs.etc_files(box.uid).items():
        open_file(box.files / "etc" / name, text.encode())
    for name in rootfs.etc_folders(network=box.network):
        _open_folder(box.files / "etc" / name)
    for name, data in python.prepared().files.items():
        place = box.files / "guest" / name
        _open_folder(place.parent)
        open_file(place, data)
    for name, source in box.inputs.items():
        box.inputs[name] = _readable(name, source, box.root / "inputs", box.strength)
    for own in (box.files / "tmp", box.outputs):
        own.mkdir()
        if os.geteuid() == 0:
            os.chown(own, box.uid, box.uid)
    reopen(box)


def open_file(place: Path, data: bytes) -> None:
    """Write what any uid may read, whatever this process's umask is. Only in folders that others cannot reach."""
    place.write_bytes(data)
    place.chmod(0o644)


def _open_folder(place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o755)


def reopen(box: Box) -> None:
    """Undo what a command did to the permissions of its two folders: bubblewrap enters, and the host reads, them."""
    for place in (box.files / "tmp", box.outputs):
        place.chmod(0o711)


def _root_mode(strength: Strength) -> int:
    """Whether others may pass: only bubblewrap as nobody needs to."""
    return 0o711 if strength is Strength.USER and os.geteuid() == 0 else 0o700


def _readable(name: str, source: Path, copies: Path, strength: Strength) -> Path:
    """``source`` if any uid may read it, else a copy that any uid may; no copy is made of a folder."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise DriverFailed(f"{name!r} is no name for an input; use one without a slash")
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise DriverFailed(f"cannot read the input {name!r}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        # Bubblewrap as root binds any path before it takes the guest's uid; as nobody it must get there itself.
        is_open = mode & (stat.S_IROTH | stat.S_IXOTH) == stat.S_IROTH | stat.S_IXOTH
        if os.geteuid() == 0 and not (is_open and (strength is Strength.FULL or _reachable(source.resolve().parent))):
            raise DriverFailed(f"the input {name!r} is a folder closed to the sandbox's user; chmod -R o+rX it")
        return source.resolve()
    if not stat.S_ISREG(mode):
        raise DriverFailed(f"the input {name!r} is neither a regular file nor a folder")
    # As root bubblewrap reaches any path; as somebody else it needs our permissions, which we have.
    if mode & stat.S_IROTH and (os.geteuid() != 0 or _reachable(source.parent)):
        return source
    copy = copies / name
    shutil.copyfile(source, copy)
    copy.chmod(0o444)
    return copy


def _reachable(place: Path) -> bool:
    """Whether any uid may enter ``place``."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (place, *place.parents))


def _mount_tmpfs(place: Path, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", _MOUNT_FLAGS, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount tmpfs: {os.strerror(number)}")


def destroy(root: Path, group: Group | None) -> None:
    """Everything of one sandbox: processes, bounds, mount, folders. Idempotent; ``OSError`` if something stays."""
    if group is not None:
        group.kill()
        group.remove()
    if os.geteuid() == 0:
        ctypes.CDLL(None).umount2(os.fsencode(root / "files"), _DETACH)  # EINVAL where nothing is mounted
    remove_tree(root)


def kill_recorded(root: Path) -> None:
    """End the processes that ``record.json`` names, if they are still the ones it meant."""
    record = read_record(root)
    pid, started = record.get("pid"), record.get("started")
    if not isinstance(pid, int) or started is None or processes.start_time(pid) != started:
        return
    processes.send(list(reversed(processes.tree(pid))), signal.SIGKILL)
    until = time.monotonic() + 1.0
    while processes.start_time(pid) == started and time.monotonic() < until:
        time.sleep(0.002)


def read_record(root: Path) -> dict[str, object]:
    """The record, or nothing if there is none or it is torn."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((root / "record.json").read_text())
        if isinstance(record, dict):
            return record
    return {}
