"""The policy processes seen from the control plane: a template, and the workers it forks.

They only carry: who gets which question, and who is killed when, is ``embedded.py``'s. Everything here runs on the
event loop's thread, also starting the template, because the kernel's parent-death signal is tied to that thread.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from controlplane.authorization.batch import Asked
from controlplane.authorization.channel import Channel

_COMMAND = struct.Struct("<cI")
# In its slot of the page a worker counts the questions it begins; beside it stands whether to stop after one.
_WORD = struct.Struct("=Q")
_SLOT = struct.Struct("=QQ")
_SLOTS = mmap.PAGESIZE // _SLOT.size
# Of a process id, the id of the clock of its processor time: the system's own arithmetic.
_CLOCK_OF_PROCESS = 2
ENDED = "its process ended"
"""Why a worker is gone that nobody here has ended."""
_PROGRAM = Path(__file__).with_name("worker.py")
_PID = msgspec.msgpack.Decoder(int)
_WRONG = msgspec.msgpack.Decoder(str)
_ANSWERS = msgspec.msgpack.Decoder(list[tuple[bool, str]])


class Owner(Protocol):
    """Whom the processes tell what happened to them."""

    def loaded(self, template: Template) -> None:
        """It has loaded the bundle and can fork."""

    def lost(self, template: Template, why: str) -> None:
        """It is gone, and its workers with it, each of which is told too."""

    def ready(self, worker: WorkerProcess) -> None:
        """It can be asked."""

    def answered(self, worker: WorkerProcess, questions: Sequence[Asked], answers: Sequence[tuple[bool, str]]) -> None:
        """One frame of answers, in the order of its questions."""

    def died(self, worker: WorkerProcess, why: str) -> None:
        """It is gone; what is still in ``worker.waiting`` has no answer."""


class Template:
    """A started template. Raises: OSError if the process cannot be started."""

    def __init__(self, owner: Owner, bundle: Mapping[str, Any]) -> None:
        self._owner = owner
        self.is_alive = True
        self.is_loaded = False
        self._free = deque(range(_SLOTS))
        self.started_at = asyncio.get_running_loop().time()
        with ExitStack() as undo, tempfile.TemporaryFile() as page:
            page.truncate(mmap.PAGESIZE)
            self.page = undo.enter_context(mmap.mmap(page.fileno(), mmap.PAGESIZE))
            ours, theirs = socket.socketpair()
            undo.enter_context(ours)
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
        self._channel = Channel(ours, self._take, lambda: self.end(ENDED))
        self._channel.send(bundle)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def fork(self) -> WorkerProcess:
        """A new worker, which says when it is ready. Raises: OSError if it cannot be asked for."""
        if not self._free:
            raise OSError(0, "every slot is taken")
        slot = self._free.popleft()
        _SLOT.pack_into(self.page, slot * _SLOT.size, 0, 0)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._channel.send_raw(_COMMAND.pack(b"f", slot), theirs)
            except OSError:
                ours.close()
                self._free.append(slot)
                raise
        return WorkerProcess(self._owner, self, slot, ours)

    def finish(self, slot: int, pid: int) -> None:
        """Kill the worker in ``slot``; its ``pid`` is 0 if it never said it."""
        if not self.is_alive:
            return
        # Its pid is nobody else's until the template reaps it, which it does when told: after this.
        if pid:
            with suppress(ProcessLookupError):  # unless the template was killed this moment
                os.kill(pid, signal.SIGKILL)
        self._free.append(slot)
        try:
            self._channel.send_raw(_COMMAND.pack(b"k", slot))
        except OSError as problem:
            self.end(f"it takes no commands: {problem.strerror}")

    def end(self, why: str) -> None:
        """Hang up, kill it (the kernel kills its workers with it) and tell the owner."""
        if self.is_alive:
            self.is_alive = False
            self._channel.close()
            self._process.kill()
            self._owner.lost(self, why)

    def retire(self) -> None:
        """Hang up: it kills and reaps its workers, and ends."""
        self.is_alive = False
        self._channel.close()

    def reap(self, wait_seconds: float = 0) -> bool:
        """Collect the ended process. True when it is gone; waits at most ``wait_seconds``, then kills it."""
        try:
            self._process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return False
        return True

    def _take(self, frame: bytes) -> None:
        try:
            wrong = _WRONG.decode(frame)
        except msgspec.MsgspecError:
            wrong = "it does not speak as it should"
        if wrong:
            self.end(f"it could not load the bundle: {wrong}")
        elif not self.is_loaded:
            self.is_loaded = True
            self._owner.loaded(self)


class WorkerProcess:
    """A worker that ``Template.fork`` has asked for."""

    def __init__(self, owner: Owner, template: Template, slot: int, ours: socket.socket) -> None:
        self._owner = owner
        self._template = template
        self._slot = slot
        self._loop = asyncio.get_running_loop()
        self._answered = 0
        self.pid = 0
        self.is_alive = True
        self.is_alone = False
        # The only one of the questions it waits for that is still its own, once it is suspect.
        self.keeps: Asked | None = None
        self.has_stood_back = False
        self._seen_busy = 0.0
        self.was_busy_seconds = 0.0
        self.waiting: deque[Sequence[Asked]] = deque()
        self.seen_progress = 0
        self.seen_at = self._loop.time()
        self._channel = Channel(ours, self._take, lambda: self.end(ENDED))

    def ask(self, questions: Sequence[Asked]) -> None:
        """Send one frame; its answers come to ``Owner.answered``."""
        if not self.waiting:
            self.seen_at = self._loop.time()
        self.waiting.append(questions)
        self._channel.send([(one.rule, one.text) for one in questions])

    def progress(self) -> int:
        """How many questions it has begun, ever."""
        begun: int = _WORD.unpack_from(self._template.page, self._slot * _SLOT.size)[0]
        return begun

    def look(self) -> bool:
        """Read its count. False if it is still where it was when last looked at."""
        progress = self.progress()
        if progress == self.seen_progress:
            return False
        self.seen_progress, self.seen_at, self._seen_busy = progress, self._loop.time(), self._processor_seconds()
        return True

    @property
    def busy_seconds(self) -> float:
        """How long it has computed since ``look`` saw it move; at most how long that is ago, which is also the
        answer where the system does not tell."""
        if sys.platform != "linux":
            return self._loop.time() - self.seen_at
        return max(0.0, self._processor_seconds() - self._seen_busy)

    def _processor_seconds(self) -> float:
        if sys.platform != "linux":
            return 0.0
        try:
            return time.clock_gettime((~self.pid << 3) | _CLOCK_OF_PROCESS)
        except OSError:
            return 0.0  # it has just ended

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
        self._channel.read()

    def stand_back(self, keeps: Asked | None, nice: int) -> None:
        """It has only this question left, does no other, and lets others have the processor; cannot be undone."""
        self.keeps, self.has_stood_back = keeps, True
        _WORD.pack_into(self._template.page, self._slot * _SLOT.size + _WORD.size, 1)
        try:
            os.setpriority(os.PRIO_PROCESS, self.pid, nice)
        except OSError:
            return  # it has just ended, or may not

    def end(self, why: str) -> None:
        """Kill it now and tell the owner."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.was_busy_seconds = self.busy_seconds if not self.look() else 0.0
        self._channel.close()
        self._template.finish(self._slot, self.pid)
        self._owner.died(self, why)

    def _take(self, frame: bytes) -> None:
        try:
            if not self.pid:
                self.pid = _PID.decode(frame)
                self._owner.ready(self)
                return
            answers = _ANSWERS.decode(frame)
        except msgspec.MsgspecError:
            answers = []
        # One that stands back stops within a frame.
        if not self.waiting or not answers or (len(answers) != len(self.waiting[0]) and not self.has_stood_back):
            self.end("it does not speak as it should")
            return
        questions = self.waiting.popleft()
        self._answered += len(answers)
        self.seen_at = self._loop.time()
        self._owner.answered(self, questions, answers)
