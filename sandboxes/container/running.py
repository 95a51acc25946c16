"""One command: a container of its own, created, attached to, started, drained, watched, judged, removed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from sandboxes import connections
from sandboxes.channel import Channel, file_result
from sandboxes.command_rules import refuse_unlaunchable
from sandboxes.container.box import OWN_BYTES, reopen, write_program
from sandboxes.container.launch import Live, Setting, launch
from sandboxes.container.memory_peak import MemoryPeak
from sandboxes.container.streams import Splitter
from sandboxes.errors import DriverFailed, TierUnavailable
from sandboxes.execution import Command, ConnectionHandler, Event, Exited, ExitReason, Stderr, ToolHandler
from sandboxes.hostfiles import outputs_bytes, usage
from sandboxes.outbox import Outbox
from sandboxes.spec import Strength
from sandboxes.verdict import judge, too_much_left

_WATCH_SECONDS = 0.05
_DRAIN_SECONDS = 2.0  # after everything is dead, the streams end by themselves
_HEARSAY_SECONDS = 0.5  # how far the engine's word on memory may come after its word on the end
_KILLED, _NO_PROGRAM = 137, 127
_CHUNK, _TAIL = 65_536, 500


class Run:
    """``start`` once, then ``next`` until ``Exited``. ``stop`` may come at any time, and then ``ended`` soon."""

    def __init__(
        self, setting: Setting, command: Command, tools: ToolHandler, handler: ConnectionHandler, spare: Live | None
    ) -> None:
        """``spare``: a container of this sandbox whose runner waits for its job, if there is one and it is Python."""
        self._setting, self._engine, self._box = setting, setting.engine, setting.box
        self._command, self._handler = command, handler
        self._outbox = Outbox(self._box.limits.output_bytes)
        self._channel = Channel(tools, self._outbox)
        self._cause: ExitReason | None = None
        self._stopping = asyncio.Event()
        self._live = spare
        self._is_spare = spare is not None
        self._peak: MemoryPeak | None = None
        self._has_network = False
        self._running = False
        self._frozen = False
        self._ended = False
        self._pausing = asyncio.Lock()
        self._stderr_tail = b""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; this object owns the task until ``ended``."""
        self._task = asyncio.create_task(self._main(), name=f"container {self._box.label}")

    async def next(self) -> Event:
        """The next event. Raises ``DriverFailed`` if the platform could not run it."""
        return await self._outbox.get()

    def stop(self, cause: ExitReason) -> None:
        """Kill it for ``cause``, unless it was already being killed."""
        self._cause = self._cause or cause
        self._stopping.set()

    async def ended(self) -> None:
        """Wait until nothing of it is left."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def freeze(self, *, on: bool) -> None:
        """Stop its progress, or let it go on; before its start, the start is what waits for the word."""
        self._frozen = on
        await self._obey_freeze()

    async def _obey_freeze(self) -> None:
        async with self._pausing:
            if self._running and self._live is not None and not self._stopping.is_set():
                container, on = self._live.container, self._frozen
                await to_thread.run_sync(lambda: self._engine.pause(container, on=on))

    async def _main(self) -> None:
        try:
            self._outbox.end(await self._run())
        except DriverFailed as error:
            self._outbox.end(error)
        except Exception as error:
            failure = DriverFailed(f"the container could not run the command: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._outbox.end(failure)

    async def _run(self) -> Exited:
        with contextlib.ExitStack() as stack:

            def created(container: str) -> None:
                stack.enter_context(self._engine.on_oom(container, self._hear_oom()))

            try:
                refuse_unlaunchable(self._command)
                if self._live is None:
                    self._live = await self._launch(created)
                else:
                    created(self._live.container)
                started = time.monotonic()
                self._peak = MemoryPeak(self._live.container)
                self._running = True
                code = await self._serve(self._live, started)
                wall_seconds = time.monotonic() - started
                self._running, self._ended = False, True
                oom = await self._was_oom(self._live.container, code)
                return await self._setting.files.run(self._exited, code, oom, wall_seconds)
            finally:
                self._running = False
                if self._live is not None:
                    self._live.close()
                    await self._let_go(self._live.container)

    async def _let_go(self, container: str) -> None:
        """What has ended is deleted later; what may not have ended, now."""
        if self._ended:
            self._setting.remains.put(container)
        else:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self._engine.remove, container)

    async def _launch(self, created: Callable[[str], None]) -> Live:
        words = await self._setting.files.run(self._prepare)
        python = self._command.language == "python"
        # Python's variables travel with its job: some would change the interpreter itself.
        env: Mapping[str, str] = {} if python else self._command.env
        stdin = bool(self._command.stdin)
        return await launch(self._setting, words, env=env, stdin=stdin, channel=python, created=created)

    async def _serve(self, live: Live, started: float) -> int:
        """From the start to the end; the exit code."""
        async with anyio.create_task_group() as side:
            side.start_soon(self._obey_freeze)
            side.start_soon(self._feed, live.attached)
            side.start_soon(self._watch, started)
            if self._peak is not None:
                side.start_soon(self._measure, self._peak)
            side.start_soon(self._kill_when_told, live.container)
            if live.network is not None:
                side.start_soon(self._network, live.network, side)
            with anyio.CancelScope() as patience:
                async with anyio.create_task_group() as drains:
                    drains.start_soon(self._drain, live.attached)
                    drains.start_soon(self._meet, live, side)
                    code = await to_thread.run_sync(
                        self._engine.wait, live.container, limiter=self._setting.waits, abandon_on_cancel=True
                    )
                    patience.deadline = anyio.current_time() + _DRAIN_SECONDS
                    if live.channel is None and live.listener is not None:
                        live.listener.close()
                        drains.cancel_scope.deadline = patience.deadline
            side.cancel_scope.cancel()
        return code

    def _prepare(self) -> list[str]:
        reopen(self._box)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            (self._box.outputs / "output.json").unlink()  # a former command's result is not this one's
        return write_program(self._box, self._command)

    async def _drain(self, attached: socket.socket) -> None:
        """Read for ever: an undrained stream keeps the engine from ending the container."""
        loop, splitter = asyncio.get_running_loop(), Splitter()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(attached, _CHUNK):
                for kind, piece in splitter.feed(data):
                    self._outbox.put_output(kind, piece)
                    if kind is Stderr:
                        self._stderr_tail = (self._stderr_tail + piece)[-_TAIL:]
        if self._peak is not None:
            await to_thread.run_sync(self._peak.read)

    async def _feed(self, attached: socket.socket) -> None:
        if not self._command.stdin and not self._is_spare:  # which was made before anybody knew
            return
        with contextlib.suppress(OSError):
            async for piece in self._command.stdin_pieces():
                await asyncio.get_running_loop().sock_sendall(attached, piece)
            attached.shutdown(socket.SHUT_WR)

    async def _meet(self, live: Live, side: TaskGroup) -> None:
        if (channel := await live.connected()) is not None:
            inputs = {name: f"/inputs/{name}" for name in self._box.inputs}
            await self._channel.serve(channel, self._command, inputs, side)

    async def _network(self, node: socket.socket, side: TaskGroup) -> None:
        """The first to connect is the program that opens the way, before anything of the guest's own has run."""
        with contextlib.suppress(OSError):
            first, _ = await asyncio.get_running_loop().sock_accept(node)
            first.setblocking(False)
            with first:
                if self._setting.runtime == "runsc":
                    listener = node if await connections.agreed(first) else None
                else:
                    node.close()
                    listener = await connections.taken(first)
            if listener is not None:
                self._has_network = True
                with listener:
                    await connections.serve(listener, self._handler, side)

    async def _watch(self, started: float) -> None:
        """Wall time, and files where the kernel does not bound them."""
        deadline = started + self._box.limits.wall_seconds
        watched = self._box.strength is Strength.USER
        while True:
            left = deadline - time.monotonic()
            await anyio.sleep(max(0.0, min(_WATCH_SECONDS, left) if watched else left))
            if time.monotonic() >= deadline:
                self.stop(ExitReason.TIMEOUT)
                return
            if watched and await self._setting.files.run(self._disk_is_over):
                self.stop(ExitReason.DISK)
                return

    async def _measure(self, peak: MemoryPeak) -> None:
        while True:
            await to_thread.run_sync(peak.read)
            await anyio.sleep(_WATCH_SECONDS)

    def _disk_is_over(self) -> bool:
        size, inodes = usage(self._box.files)
        limits = self._box.limits
        return size > limits.disk_bytes + OWN_BYTES or inodes > limits.inodes + self._box.own_inodes

    def _hear_oom(self) -> Callable[[], None]:
        """For the thread that hears events."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self.stop, ExitReason.OOM)

        return heard

    async def _kill_when_told(self, container: str) -> None:
        await self._stopping.wait()
        async with self._pausing:
            if self._frozen and self._setting.runtime == "runsc":  # which signals nothing that is paused
                await to_thread.run_sync(lambda: self._engine.pause(container, on=False))
            await to_thread.run_sync(self._engine.kill, container)

    async def _was_oom(self, container: str, code: int) -> bool:
        if self._cause is not None:
            return False
        if await to_thread.run_sync(self._engine.oom_killed, container):
            return True
        if code == _KILLED:
            with anyio.move_on_after(_HEARSAY_SECONDS):
                await self._stopping.wait()
        return False

    def _exited(self, code: int, oom: bool, wall_seconds: float) -> Exited:
        reopen(self._box)
        cause = self._cause
        if cause is None and self._box.strength is Strength.USER and self._disk_is_over():
            cause = ExitReason.DISK
        verdict = judge(code=code, cause=cause, oom_kills=int(oom))
        if code == _NO_PROGRAM and cause is None and self._box.network and not self._has_network:
            raise TierUnavailable("the image cannot be given a network: put python3 on its PATH")
        if verdict is None or (code == _NO_PROGRAM and cause is None and self._never_ran()):
            text = self._stderr_tail.decode(errors="replace").strip()
            raise TierUnavailable(f"the image cannot run Python: {text}; put python3 on its PATH")
        sent = self._channel.result
        if verdict.reason is ExitReason.EXITED:
            size, most = outputs_bytes(self._box.outputs), self._box.limits.disk_bytes
            if size > most:
                verdict = too_much_left(code=verdict.code, size_bytes=size, limit_bytes=most)
        if verdict.reason is not ExitReason.EXITED:
            sent = None
        elif sent is None and verdict.code == 0:
            sent = file_result(self._box.outputs)
        value, schema_error = sent.value() if sent is not None else (None, None)
        return Exited(
            code=verdict.code,
            reason=verdict.reason,
            signal=verdict.signal,
            message=verdict.message,
            result=value,
            has_result=sent is not None and schema_error is None,
            schema_error=schema_error,
            output_truncated=self._outbox.truncated,
            wall_seconds=wall_seconds,
            memory_peak_bytes=self._peak.bytes if self._peak is not None else None,
        )

    def _never_ran(self) -> bool:
        return self._command.language == "python" and (self._live is None or self._live.channel is None)
