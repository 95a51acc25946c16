"""How a worker process is walled in, and the driver's handle on it.

With bubblewrap: own namespaces (no network), a root with nothing but the interpreter, the module, the guest folder
and the sandbox's own files; as root also a uid of its own and a control group. Without bubblewrap: resource limits
and the WebAssembly walls only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import sandboxes
from sandboxes.errors import DriverFailed
from sandboxes.guest import GUEST_DIR
from sandboxes.hostfiles import remove_tree
from sandboxes.jail.cgroups import Group, Hierarchy
from sandboxes.jail.processes import start_time
from sandboxes.spec import MIB, Limits
from sandboxes.tmpfs import bound_tmpfs, detach, mount_tmpfs
from sandboxes.wasm.filter import filter_program

_CODE_ROOT = Path(sandboxes.__file__).resolve().parent.parent
_BOOT = "import sys; sys.path.insert(0, {root!r}); from sandboxes.wasm.worker import main; main()"
_JOIN = 'for f in $GROUPS_TO_JOIN; do echo 0 > "$f" || exit 97; done; unset GROUPS_TO_JOIN; exec "$@"'
_FIRST_UID = 1_500_000_000
_UIDS = 100_000_000
_UNCLAIMED_BYTES = 1 << 40  # only our own code runs before the claim, and v1 lets bounds sink but not rise
WORKER_OVERHEAD_BYTES = 192 * MIB
"""What a worker needs besides the guest's linear memory: the compiled code and the host's interpreter."""


@dataclass(frozen=True, kw_only=True)
class Walls:
    """What this host gives: ``bubblewrap`` program or ``None``; ``hierarchy`` and ``own_uid`` in strength ``full``."""

    bubblewrap: str | None
    hierarchy: Hierarchy | None
    own_uid: bool


class WorkerProcess:
    """One worker. Owns its process group, sockets, pipes, control group and folder; ``destroy`` ends them all."""

    def __init__(self, *, folder: Path, process: subprocess.Popen[bytes], group: Group | None) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.outputs = self.root / "rw" / "outputs"
        self.scratch = self.root / "rw" / "tmp"
        self.group = group
        self._process = process
        self.control: socket.socket
        self.channel: socket.socket
        self.stdout_fd = -1
        self.stderr_fd = -1

    @property
    def pid(self) -> int:
        """Of the outermost process, which leads the process group."""
        return self._process.pid

    def record(self, label: str) -> None:
        """Write down who this is, for ``reap`` after a crash."""
        write_record(self.folder, label=label, pid=self.pid)

    def apply(self, limits: Limits) -> None:
        """Give the control group the claim's own bounds."""
        if self.group is not None:
            # The guest's files are memory too: its file system is charged to whoever writes.
            memory = limits.memory_bytes + limits.disk_bytes + WORKER_OVERHEAD_BYTES
            self.group.create(replace(limits, memory_bytes=memory))
            bound_tmpfs(self.root / "rw", limits)

    def signal(self, number: signal.Signals) -> None:
        """To the whole process group; a dead one is no error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def freeze(self) -> None:
        """Stop every process of the worker."""
        if self.group is not None:
            self.group.freeze()
        else:
            self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        if self.group is not None:
            self.group.thaw()
        else:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL to everything. Does not wait."""
        self.signal(signal.SIGKILL)
        if self.group is not None:
            with contextlib.suppress(OSError):
                self.group.thaw()  # v1 delivers SIGKILL only to the thawed

    def wait(self) -> int:
        """The outermost process's return code; blocks (call it after ``kill`` or the end of ``control``)."""
        return self._process.wait(timeout=10)

    def end_process(self) -> None:
        """Kill, collect, close every descriptor; the folder stays. Blocks. Idempotent."""
        self.kill()
        self.wait()
        self.control.close()
        self.channel.close()
        for fd in (self.stdout_fd, self.stderr_fd):
            if fd >= 0:
                os.close(fd)
        self.stdout_fd = self.stderr_fd = -1
        if self.group is not None:
            with contextlib.suppress(OSError):
                self.group.kill()
                self.group.remove()

    def destroy(self) -> None:
        """``end_process`` and the folder. Blocks. Idempotent."""
        self.end_process()
        detach(self.root / "rw")
        remove_tree(self.folder)


def spawn(state_dir: Path, module: Path, library: Path | None, *, fuel: bool, walls: Walls) -> WorkerProcess:
    """Start a worker; it is claimable once its control socket says ``ready``. Blocks for milliseconds."""
    name = secrets.token_hex(8)
    folder = state_dir / name
    root = folder / "root"
    uid = _FIRST_UID + secrets.randbelow(_UIDS) if walls.own_uid else None
    folder.mkdir(mode=0o700, parents=True)
    write_record(folder, label="", pid=None)  # before anything is mounted: a crash from here on leaves what reap knows
    for part in ("", "inputs", "rw"):  # for the worker's uid, which comes here past the closed folder around it
        (root / part).mkdir()
        (root / part).chmod(0o755)
    if walls.hierarchy is not None:
        mount_tmpfs(root / "rw")
    for part in ("outputs", "tmp"):
        (root / "rw" / part).mkdir()
        if uid is not None:
            os.chown(root / "rw" / part, uid, uid)
    (root / "stdin").touch()
    (root / "stdin").chmod(0o644)
    group = None
    control, worker_control = socket.socketpair()
    channel, worker_channel = socket.socketpair()
    stdout_fd, worker_stdout = os.pipe()
    stderr_fd, worker_stderr = os.pipe()
    try:
        setup = {
            "module": str(module),
            "fuel": fuel,
            "root": str(root),
            "guest": str(GUEST_DIR),
            "library": str(library) if library is not None else None,
            "uid": uid,
            "filter": filter_program().hex(),
            "control_fd": worker_control.fileno(),
            "channel_fd": worker_channel.fileno(),
        }
        command = [sys.executable, "-I", "-c", _BOOT.format(root=str(_CODE_ROOT)), json.dumps(setup)]
        env: dict[str, str] = {}
        if walls.bubblewrap is not None:
            command = [walls.bubblewrap, *_namespaces(module, library, root, own_uid=walls.own_uid), *command]
        if walls.hierarchy is not None:
            group = Group(walls.hierarchy, f"stockade-wasm-{name}")
            group.create(Limits(memory_bytes=_UNCLAIMED_BYTES))
            env = {"GROUPS_TO_JOIN": " ".join(str(path) for path in group.joins)}
            command = ["/bin/sh", "-c", _JOIN, "sh", *command]
        process = subprocess.Popen(
            command,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=worker_stdout,
            stderr=worker_stderr,
            pass_fds=(worker_control.fileno(), worker_channel.fileno()),
            start_new_session=True,
        )
    except OSError as error:
        for end in (control, channel):
            end.close()
        os.close(stdout_fd)
        os.close(stderr_fd)
        if group is not None:
            group.remove()
        detach(root / "rw")
        remove_tree(folder)
        raise DriverFailed(f"no worker process could be started: {error}") from error
    finally:
        worker_control.close()
        worker_channel.close()
        os.close(worker_stdout)
        os.close(worker_stderr)
    worker = WorkerProcess(folder=folder, process=process, group=group)
    worker.control, worker.channel, worker.stdout_fd, worker.stderr_fd = control, channel, stdout_fd, stderr_fd
    control.setblocking(False)
    channel.setblocking(False)
    os.set_blocking(stdout_fd, False)
    os.set_blocking(stderr_fd, False)
    worker.record("")
    return worker


def write_record(folder: Path, *, label: str, pid: int | None) -> None:
    """``label`` is empty while nobody claimed the worker, ``pid`` is ``None`` while it is not started."""
    record = {
        "label": label,
        "pid": pid,
        "start": start_time(pid) if pid is not None else None,
        "owner": os.getpid(),
        "owner_start": start_time(os.getpid()),
    }
    fresh = folder / "record.new"
    fresh.write_text(json.dumps(record))
    fresh.replace(folder / "record.json")


def _namespaces(module: Path, library: Path | None, root: Path, *, own_uid: bool) -> list[str]:
    arguments = ["--die-with-parent", "--clearenv", "--cap-drop", "ALL"]
    if own_uid:
        # No user namespace: the worker takes a uid of the host's, which clears these two again.
        arguments += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments += ["--unshare-all"]
    shared = {Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_path("purelib")), module}
    shared = {path.resolve() for path in shared | {_CODE_ROOT / "sandboxes"}} | {Path(sys.prefix)}
    if library is not None:
        shared.add(library)
    outermost = sorted(path for path in shared if not shared & set(path.parents))
    # Folders on the way are made by hand: bubblewrap's own are closed to everybody but its uid.
    for folder in sorted({parent for path in (*outermost, root) for parent in path.parents}):
        if not shared & {folder, *folder.parents} and folder != Path("/"):
            arguments += ["--perms", "0755", "--dir", str(folder)]
    for path in outermost:
        arguments += ["--ro-bind", str(path), str(path)]
    for path in (Path("/lib"), Path("/lib64"), Path("/bin"), Path("/etc/ld.so.cache")):
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.exists():
            arguments += ["--ro-bind", str(path), str(path)]
    arguments += ["--dev", "/dev", "--proc", "/proc", "--bind", str(root), str(root), "--chdir", "/"]
    return [*arguments, "--"]


def find_bubblewrap() -> str | None:
    """Where ``bwrap`` is, if installed."""
    return shutil.which("bwrap")
