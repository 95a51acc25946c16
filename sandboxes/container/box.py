"""The host's side of one sandbox: its folders, their bounds, and how they go away again.

    <state_dir>/owner                     what this node's containers are labelled with
    <state_dir>/<digest of the label>/
        label  id    for ``reap`` after a crash; the id is on the containers
        copies/      inputs that the guest's uid could not read where they are
        files/       a tmpfs of bounded bytes and inodes under ``full``; watched under ``user``
            tmp/  outputs/
            etc/  guest/  inputs/   read-only inside; here because /proc/self/mountinfo names paths within the mount

All functions block; call them from a worker thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sandboxes.errors import DriverFailed
from sandboxes.execution import Command
from sandboxes.guest import GUEST_DIR
from sandboxes.hostfiles import remove_tree
from sandboxes.spec import Limits, SandboxSpec, Strength
from sandboxes.tmpfs import bound_tmpfs, detach, mount_tmpfs

GUEST_FOLDER = "/run/stockade"
OWN_INODES, OWN_BYTES = 24, 256 * 1024
"""What the box itself keeps in ``files``, beside one inode an input. The bytes matter only if watched."""
_ETC = {
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n",
    "resolv.conf": "# no network\n",
    "hostname": "sandbox\n",
}
_PROGRAM, CHANNEL, EGRESS = "program.sh", "channel", "egress"
_QUEUE = {CHANNEL: 1, EGRESS: 64}


@dataclass(frozen=True, kw_only=True)
class Box:
    """One sandbox's place on the host. ``inputs`` are bound one by one; copies are among them."""

    id: str
    label: str
    root: Path
    strength: Strength
    limits: Limits
    uid: int
    inputs: Mapping[str, Path]
    network: bool = False
    gpus: tuple[str, ...] = ()
    etc: tuple[str, ...] = tuple(_ETC)

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def outputs(self) -> Path:
        return self.files / "outputs"

    @property
    def own_inodes(self) -> int:
        """What in ``files`` is the host's."""
        return OWN_INODES + len(self.inputs)


def owner(state_dir: Path) -> str:
    """This folder's name on its containers, made once."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = state_dir / "owner"
    with contextlib.suppress(FileExistsError), place.open("x") as file:
        file.write(secrets.token_hex(16))
    return place.read_text()


def folder(state_dir: Path, label: str) -> Path:
    """Where ``label`` lives: its digest, so that no label can name a path."""
    return state_dir / hashlib.sha256(label.encode()).hexdigest()[:32]


def create(state_dir: Path, spec: SandboxSpec, label: str, *, strength: Strength, uid: int) -> Box:
    """Make the folders and their bounds. Raises ``DriverFailed``; what was made is gone then."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    root, own_id = folder(state_dir, label), secrets.token_hex(8)
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        raise _exists(label) from None
    try:
        (root / "label").write_text(label)
        (root / "id").write_text(own_id)
        (root / "copies").mkdir()
        inputs = {mount.name: _readable(mount.name, mount.source, root / "copies") for mount in spec.mounts}
        box = Box(
            id=own_id,
            label=label,
            root=root,
            strength=strength,
            limits=spec.limits,
            uid=uid,
            inputs=inputs,
            network=spec.network,
            gpus=spec.gpus,
        )
        _fill(box)
    except OSError as error:
        destroy(root)
        raise DriverFailed(f"cannot make the sandbox {label!r} in {state_dir}: {error}") from error
    except BaseException:
        destroy(root)
        raise
    return box


def relabel(box: Box, label: str, limits: Limits) -> Box:
    """Make a spare somebody's; ``limits`` may differ in what the host alone enforces. Raises ``DriverFailed``."""
    root = folder(box.root.parent, label)
    try:
        (box.root / "label").write_text(label)
        if root.exists():
            raise _exists(label)
        box.root.rename(root)
    except OSError as error:
        raise DriverFailed(f"cannot make the sandbox {label!r} of a spare: {error}") from error
    return replace(box, label=label, root=root, limits=limits)


def _exists(label: str) -> DriverFailed:
    return DriverFailed(f"a sandbox labelled {label!r} exists already; end it or reap it first")


def _fill(box: Box) -> None:
    box.files.mkdir(mode=0o755)
    if box.strength is Strength.FULL:
        mount_tmpfs(box.files)
        bound_tmpfs(box.files, box.limits, box.own_inodes)
    for name in ("etc", "guest", "inputs"):
        _folder(box.files / name)
    for name, text in _ETC.items():
        _file(box.files / "etc" / name, text.encode())
    for source in ("runner.py", "stockade_tools.py", "stockade_egress.py"):
        _file(box.files / "guest" / source, (GUEST_DIR / source).read_bytes())
    for name, bound in box.inputs.items():
        if bound.is_dir():
            _folder(box.files / "inputs" / name)
        else:
            _file(box.files / "inputs" / name, b"")
    for own in (box.files / "tmp", box.outputs):
        _folder(own)
        if os.geteuid() == 0:
            os.chown(own, box.uid, box.uid)
    reopen(box)


def _folder(place: Path) -> None:
    place.mkdir()
    place.chmod(0o755)  # whatever the umask


def _file(place: Path, data: bytes) -> None:
    place.write_bytes(data)
    place.chmod(0o644)


def reopen(box: Box) -> None:
    """Undo what a command did to the permissions of its two folders: the engine and the host enter them."""
    for place in (box.files / "tmp", box.outputs):
        place.chmod(0o711)


def _readable(name: str, source: Path, copies: Path) -> Path:
    """``source`` if any uid may read it, else a copy that any uid may. The engine reaches any path."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise DriverFailed(f"{name!r} is no name for an input; use one without a slash")
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise DriverFailed(f"cannot read the input {name!r}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        if mode & (stat.S_IROTH | stat.S_IXOTH) != stat.S_IROTH | stat.S_IXOTH:
            raise DriverFailed(f"the input {name!r} is a folder closed to the sandbox's user; chmod -R o+rX it")
        return source.resolve()
    if not stat.S_ISREG(mode):
        raise DriverFailed(f"the input {name!r} is neither a regular file nor a folder")
    if mode & stat.S_IROTH:
        return source.resolve()
    shutil.copyfile(source, copies / name)
    (copies / name).chmod(0o444)
    return copies / name


def write_program(box: Box, command: Command) -> list[str]:
    """Put shell text where the guest reads it; the guest's command line comes back."""
    if command.language == "python":
        return ["python3", "-I", "-X", "utf8", f"{GUEST_FOLDER}/runner.py", "unix", f"{GUEST_FOLDER}/{CHANNEL}"]
    if command.language == "argv":
        return list(command.argv)
    _file(box.files / "guest" / _PROGRAM, command.source.encode())
    return ["/bin/sh", f"{GUEST_FOLDER}/{_PROGRAM}"]


def with_network(words: Sequence[str], *, relayed: bool) -> list[str]:
    """The same command line behind the program that opens the guest's way to its proxy."""
    egress = ["python3", "-I", "-S", "-X", "utf8", f"{GUEST_FOLDER}/stockade_egress.py"]
    return [*egress, "relay" if relayed else "unix", f"{GUEST_FOLDER}/{EGRESS}", "--", *words]


def listen(box: Box, name: str) -> socket.socket:
    """A fresh socket where the guest of the next command connects. It does not block."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    guest = os.open(box.files / "guest", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = Path(f"/proc/self/fd/{guest}", name)  # a socket's own path may have 107 bytes only
        place.unlink(missing_ok=True)
        listener.bind(str(place))
        place.chmod(0o666)
        listener.listen(_QUEUE[name])
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(guest)
    return listener


def names_of(root: Path) -> tuple[str, str]:
    """Label and id of whose folder it is; its own name where one was never written."""
    found = []
    for name in ("label", "id"):
        try:
            found.append((root / name).read_text() or root.name)
        except OSError:
            found.append(root.name)
    return found[0], found[1]


def destroy(root: Path) -> None:
    """Bounds and folders; the container is gone already. Idempotent; ``OSError`` if something stays."""
    if os.geteuid() == 0:
        detach(root / "files")
    remove_tree(root)
