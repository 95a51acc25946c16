"""A model server as processes and files: started through its keeper, found again by a later daemon, ended.

<state_dir>/models/replicas/<replica>/
    server.json    what was started: the wish, port, digest of all it was started with, lifeline, scratch folder
    alive          locked by the keeper while it lives; its process id
    ended          the exit status          output.log  what it wrote
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from dataplane.model_wire import ModelReplica
from dataplane.models import keeper
from dataplane.models.log_file import LogFile
from dataplane.models.server import LOOPBACK, Launch

MARK = "STOCKADE_MODEL_SERVER"
"""In the environment of all that belongs to a server: its folder. What lost its keeper is found by it."""
SCRATCH_PREFIX = "stockade-model-"


class Record(msgspec.Struct, kw_only=True):
    """What a later daemon must know. ``digest`` is over all that the server was started with, but for the port."""

    wanted: ModelReplica
    port: int
    digest: str
    lifeline: int
    scratch: str
    restarts: int = 0


class ServerProcess:
    """A keeper with its server; ``start`` one, or ``adopt`` what an earlier daemon started. Everything here blocks."""

    def __init__(self, folder: Path, record: Record, child: subprocess.Popen[bytes] | None) -> None:
        self.folder = folder
        self.record = record
        self._child = child

    @classmethod
    def start(cls, folder: Path, record: Record, launch: Launch) -> ServerProcess:
        """Raises: OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in ("alive", "ended"):
            (folder / left).unlink(missing_ok=True)
        # Short: servers put sockets there, whose paths have at most 107 bytes.
        record.scratch = tempfile.mkdtemp(prefix=SCRATCH_PREFIX)
        _write(folder / "server.json", msgspec.json.encode(record))
        own = {MARK: str(folder), "HOME": record.scratch, "TMPDIR": record.scratch}
        command = [sys.executable, "-I", "-S", keeper.__file__, str(folder), str(record.lifeline), *launch.command]
        output = LogFile(folder / "output.log").open()
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=record.scratch,
                env={**launch.environment, **own}, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(output)
        return cls(folder, record, child)

    @classmethod
    def adopt(cls, folder: Path) -> ServerProcess | None:
        """The server of an earlier daemon, if its keeper lives."""
        record = read_record(folder)
        return cls(folder, record, None) if record is not None and _holder(folder) else None

    @property
    def pid(self) -> int:
        """The keeper's; 0 if it is gone."""
        return self._child.pid if self._child is not None else _holder(self.folder)

    def ended(self) -> str | None:
        """How it ended, in words; ``None`` while it runs."""
        if self._child is not None:
            if self._child.poll() is None:
                return None
        elif _holder(self.folder):
            return None
        try:
            code = int((self.folder / "ended").read_text())
        except (OSError, ValueError):
            return "its keeper was killed"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"it was ended by {signal.Signals(-code).name}"
        return f"it ended with {code}"

    def ask_to_end(self) -> None:
        """SIGTERM to the server."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the server and all it started, now."""
        self._signal(signal.SIGUSR1)

    def clear(self) -> None:
        """After the end: whatever escaped the keeper, and its scratch folder."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        sweep([self.folder])
        remove_scratch(self.record)

    def _signal(self, number: signal.Signals) -> None:
        if pid := self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def read_record(folder: Path) -> Record | None:
    """What was started in a folder, if that can still be read."""
    try:
        return msgspec.json.decode((folder / "server.json").read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None


def remove_scratch(record: Record) -> None:
    """Delete the scratch folder; nothing else, whatever the record says."""
    path = Path(record.scratch)
    if path.name.startswith(SCRATCH_PREFIX) and path.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(path, ignore_errors=True)


def sweep(folders: Iterable[Path]) -> int:
    """Kill every process that is marked as belonging to one of the folders; how many there were."""
    marks = {f"{MARK}={folder}".encode() for folder in folders}
    killed = 0
    for entry in Path("/proc").glob("[0-9]*") if marks else ():
        with contextlib.suppress(OSError):  # it is gone, or another user's
            if marks.intersection((entry / "environ").read_bytes().split(b"\0")):
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
    return killed


def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago; a server that finds it taken is started again."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def _holder(folder: Path) -> int:
    """The process id of the keeper that holds the folder's lock; 0 if none does."""
    try:
        fd = os.open(folder / "alive", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.pread(fd, 32, 0)
        return int(said) if said.isdigit() else 0
    finally:
        os.close(fd)
    return 0


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(path)
