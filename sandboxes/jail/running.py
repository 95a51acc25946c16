"""One command in a jail: start it, drain it, watch it, kill it, judge it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from sandboxes import connections
from sandboxes.channel import Channel, file_result
from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, ConnectionHandler, Event, Exited, ExitReason, Stderr, Stdout, ToolHandler
from sandboxes.hostfiles import outputs_bytes, usage
from sandboxes.jail import launch, processes
from sandboxes.jail.box import OWN_BYTES, OWN_INODES, Box, reopen
from sandboxes.outbox import Outbox
from sandboxes.spec import Strength
from sandboxes.verdict import Verdict, judge, too_much_left

WATCH_SECONDS = 0.05
_DRAIN_SECONDS = 2.0  # after everything is dead, pipes end by themselves
_CHUNK = 65_536
_TAIL = 500


class Run:
    """``start`` once, then ``next`` until ``Exited``. ``stop`` may come at any time, and then ``ended`` soon."""

    def __init__(self, box: Box, command: Command, tools: ToolHandler, handler: ConnectionHandler) -> None:
        self._box, self._command, self._handler = box, command, handler
        self._outbox = Outbox(box.limits.output_bytes)
        self._channel = Channel(tools, self._outbox)
        self._cause: ExitReason | None = None
        self._stopping = asyncio.Event()
        self._launched: launch.Launched | None = None
        self._peak_bytes = 0
        self._stderr_tail = b""
        self._task: asyncio.Task[None] | None = None
        self._killed = False  # after bubblewrap's word on the guest's end, so nothing can start any more

    def start(self) -> None:
        """Begin; this object owns the task until ``ended``."""
        self._task = asyncio.create_task(self._main(), name=f"jail {self._box.label}")

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

    async def freeze(self) -> None:
        """Stop its progress."""
        if self._box.group is not None:
            await to_thread.run_sync(self._box.group.freeze)
        elif self._launched is not None:
            await to_thread.run_sync(processes.stop, self._launched.process.pid)

    async def thaw(self) -> None:
        """Let it go on."""
        if self._box.group is not None:
            await to_thread.run_sync(self._box.group.thaw)
        elif self._launched is not None:
            await to_thread.run_sync(processes.resume, self._launched.process.pid)

    @property
    def _alive(self) -> launch.Launched:
        if self._launched is None:
            raise DriverFailed("the command has not been started")
        return self._launched

    async def _main(self) -> None:
        started = time.monotonic()
        try:
            self._outbox.end(await self._run(started))
        except DriverFailed as error:
            self._outbox.end(error)
        except Exception as error:
            failure = DriverFailed(f"the jail could not run the command: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._outbox.end(failure)

    async def _run(self, started: float) -> Exited:
        await to_thread.run_sync(self._prepare)
        self._launched = launched = await launch.launch(self._box, self._command)
        code: int | None = None
        try:
            await to_thread.run_sync(self._box.record, launched.process.pid)
            async with anyio.create_task_group() as side:
                side.start_soon(self._feed)
                side.start_soon(self._watch, started)
                side.start_soon(self._kill_when_told)
                if launched.network is not None:
                    side.start_soon(self._network, launched.network, side)
                with anyio.CancelScope() as patience:
                    async with anyio.create_task_group() as drains:
                        drains.start_soon(self._drain, launched.stdout, Stdout)
                        drains.start_soon(self._drain, launched.stderr, Stderr)
                        if self._command.language == "python":
                            inputs = {name: f"/inputs/{name}" for name in self._box.inputs}
                            drains.start_soon(self._channel.serve, launched.channel, self._command, inputs, side)
                        code = await self._exit_code()
                        await to_thread.run_sync(self._kill)
                        self._killed = True
                        patience.deadline = anyio.current_time() + _DRAIN_SECONDS
                side.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_DRAIN_SECONDS, shield=True):
                if not self._killed:
                    await to_thread.run_sync(self._kill)
                await launched.process.wait()
            launched.close()
        return await to_thread.run_sync(self._exited, code, started)

    def _prepare(self) -> None:
        reopen(self._box)
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            (self._box.outputs / "output.json").unlink()  # a former command's result is not this one's
        launch.write_program(self._box, self._command)

    async def _exit_code(self) -> int | None:
        """bubblewrap's word; ``None`` if it ended without one."""
        async for line in self._alive.status:
            with contextlib.suppress(ValueError):
                word = json.loads(line).get("exit-code")
                if isinstance(word, int):
                    return word
        return None

    async def _drain(self, stream: asyncio.StreamReader, kind: type[Stdout | Stderr]) -> None:
        while data := await stream.read(_CHUNK):
            self._outbox.put_output(kind, data)
            if kind is Stderr:
                self._stderr_tail = (self._stderr_tail + data)[-_TAIL:]

    async def _network(self, node: socket.socket, side: TaskGroup) -> None:
        listener = await connections.taken(node)
        if listener is not None:
            with listener:
                await connections.serve(listener, self._handler, side)

    async def _feed(self) -> None:
        stdin = self._alive.stdin
        with contextlib.suppress(OSError):
            async for piece in self._command.stdin_pieces():
                stdin.write(piece)
                await stdin.drain()
            stdin.close()

    async def _watch(self, started: float) -> None:
        """Wall time, memory, files: whatever the kernel does not bound by itself here."""
        deadline = started + self._box.limits.wall_seconds
        while True:
            await anyio.sleep(max(0.0, min(WATCH_SECONDS, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                self.stop(ExitReason.TIMEOUT)
                return
            if cause := await to_thread.run_sync(self._overuse):
                self.stop(cause)
                return

    def _overuse(self) -> ExitReason | None:
        box, limits = self._box, self._box.limits
        if box.group is not None:
            return ExitReason.OOM if box.group.oom_kills() else None
        resident = processes.resident_bytes(processes.tree(self._alive.process.pid)[1:])
        self._peak_bytes = max(self._peak_bytes, resident)
        if resident > limits.memory_bytes:
            return ExitReason.OOM
        return ExitReason.DISK if self._disk_is_over() else None

    def _disk_is_over(self) -> bool:
        size, inodes = usage(self._box.files)
        return size > self._box.limits.disk_bytes + OWN_BYTES or inodes > self._box.limits.inodes + OWN_INODES

    async def _kill_when_told(self) -> None:
        await self._stopping.wait()
        await to_thread.run_sync(self._kill)

    def _kill(self) -> None:
        """Kill all of it. The PID namespace's first process takes the rest with it."""
        process = self._alive.process
        if process.returncode is None:
            processes.send([process.pid], signal.SIGSTOP)  # so that it starts nothing while we look
            processes.send(list(reversed(processes.tree(process.pid))), signal.SIGKILL)
        if self._box.group is not None:
            self._box.group.kill()

    def _judge(self, code: int | None) -> Verdict | None:
        reopen(self._box)
        group = self._box.group
        cause = self._cause
        if cause is None and self._box.strength is Strength.USER and self._disk_is_over():
            cause = ExitReason.DISK
        verdict = judge(code=code, cause=cause, oom_kills=group.oom_kills() if group is not None else 0)
        if verdict is not None and verdict.reason is ExitReason.EXITED:
            size = outputs_bytes(self._box.outputs)
            if size > self._box.limits.disk_bytes:
                verdict = too_much_left(code=verdict.code, size_bytes=size, limit_bytes=self._box.limits.disk_bytes)
        if group is not None:
            self._peak_bytes = group.memory_peak_bytes() or 0
        return verdict

    def _exited(self, code: int | None, started: float) -> Exited:
        verdict = self._judge(code)
        if verdict is None:
            text = self._stderr_tail.decode(errors="replace").strip()
            raise DriverFailed(f"bubblewrap could not start the guest: {text or 'it was killed'}")
        sent = self._channel.result
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
            wall_seconds=time.monotonic() - started,
            memory_peak_bytes=self._peak_bytes or None,
        )
