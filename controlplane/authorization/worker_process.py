"""One policy worker seen from the control plane: a process, a socket, and a page in which it counts questions.

It only carries: who gets which question, and who is killed when, is ``embedded.py``'s. Everything here runs on the
event loop's thread, also starting the process, because the kernel's parent-death signal is tied to that thread.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

_LENGTH = struct.Struct("<I")
_CHUNK_BYTES = 1 << 18
_PROGRAM = Path(__file__).with_name("worker.py")


@dataclass(eq=False, slots=True)
class Asked:
    """One question on its way: which rule, with what input, and where the answer goes."""

    batch: Any
    index: int
    rule: int
    encoded: bytes


class Owner(Protocol):
    """Whom a worker tells what happened to it."""

    def ready(self, worker: WorkerProcess) -> None:
        """It has loaded the bundle."""

    def answered(self, worker: WorkerProcess, questions: Sequence[Asked], answers: Sequence[tuple[bool, Any]]) -> None:
        """One frame of answers, in the order of its questions."""

    def died(self, worker: WorkerProcess, why: str) -> None:
        """It is gone; what is still in ``worker.waiting`` has no answer."""


class WorkerProcess:
    """A started worker. Raises: OSError if the process cannot be started."""

    def __init__(self, owner: Owner, bundle: Mapping[str, Any]) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._received = bytearray()
        self._answered = 0
        self.is_ready = False
        self.is_alive = True
        self.waiting: deque[Sequence[Asked]] = deque()
        self.seen_progress = 0
        self.seen_at = self._loop.time()
        with ExitStack() as undo, tempfile.TemporaryFile() as page:
            page.truncate(mmap.PAGESIZE)
            self._page = undo.enter_context(mmap.mmap(page.fileno(), mmap.PAGESIZE))
            self._socket, theirs = socket.socketpair()
            undo.enter_context(self._socket)
            with theirs:
                self._process = subprocess.Popen(
                    # -I: nothing from the environment or the working directory is imported.
                    [sys.executable, "-I", str(_PROGRAM), str(os.getpid()), str(page.fileno())],
                    stdin=theirs.fileno(),
                    # A rule's print and a panic's report could quote the input: they go nowhere.
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(page.fileno(),),
                    env={key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ},
                )
            undo.pop_all()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self.read)
        self._write(bundle)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, questions: Sequence[Asked]) -> None:
        """Send one frame; its answers come to ``Owner.answered``."""
        if not self.waiting:
            self.seen_at = self._loop.time()
        self.waiting.append(questions)
        self._write([(one.rule, one.encoded) for one in questions])

    def progress(self) -> int:
        """How many questions it has begun, ever."""
        return int.from_bytes(self._page[:8], sys.byteorder)

    @property
    def stuck_in(self) -> Asked | None:
        """The question it is in, or was in when it ended; None if it has begun none of what it was sent."""
        ahead = self.seen_progress - self._answered - 1
        if ahead < 0:
            return None
        for questions in self.waiting:
            if ahead < len(questions):
                return questions[ahead]
            ahead -= len(questions)
        return None

    def read(self) -> None:
        """Take what has arrived, without waiting."""
        if not self.is_alive:
            return
        try:
            chunk = self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.end("its process ended")
            return
        self._received += chunk
        while len(self._received) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                return
            frame = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            self._take(msgspec.msgpack.decode(frame))

    def end(self, why: str) -> None:
        """Kill it now and tell the owner; its process is reaped by ``reap``."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.seen_progress = self.progress()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._page.close()
        self._process.kill()
        self._owner.died(self, why)

    def reap(self, wait_seconds: float = 0) -> bool:
        """Collect the killed process. True when it is gone; waits at most ``wait_seconds``."""
        try:
            self._process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _take(self, frame: Any) -> None:
        if not self.is_ready:
            if frame:
                self.end(f"it could not load the bundle: {frame}")
                return
            self.is_ready = True
            self._owner.ready(self)
            return
        questions = self.waiting.popleft()
        self._answered += len(questions)
        self.seen_at = self._loop.time()
        self._owner.answered(self, questions, frame)

    def _write(self, value: Any) -> None:
        body = msgspec.msgpack.encode(value)
        frame = _LENGTH.pack(len(body)) + body
        if self._unsent:
            self._unsent += frame
            return
        try:
            sent = self._socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it died; the reader will see that, and has the questions in `waiting`
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._loop.add_writer(self._socket, self._flush)

    def _flush(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()
        if not self._unsent:
            self._loop.remove_writer(self._socket)
