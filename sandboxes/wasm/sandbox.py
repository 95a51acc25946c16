"""A live wasm sandbox: its files, and a fresh worker for each command."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from sandboxes.driver import FileInfo
from sandboxes.errors import DriverFailed, SandboxClosed
from sandboxes.execution import (
    Command,
    ConnectionHandler,
    Event,
    Exited,
    ExitReason,
    ToolHandler,
    no_connections,
    no_tools,
)
from sandboxes.hostfiles import list_outputs, read_output, stream_output
from sandboxes.spec import Mount, SandboxSpec
from sandboxes.wasm.launch import WorkerProcess
from sandboxes.wasm.pool import Pool
from sandboxes.wasm.running import Execution


class WasmSandbox:
    """See the port. A worker runs one guest, so every command after the first claims another one for the same files."""

    def __init__(self, *, spec: SandboxSpec, label: str, pool: Pool) -> None:
        self.label = label
        self.name = ""
        self._spec = spec
        self._pool = pool
        self._worker: WorkerProcess | None = None
        self._used = False
        self._execution: Execution | None = None
        self._running: asyncio.Task[None] | None = None
        self._closed = False
        self._frozen = False

    async def claim(self) -> None:
        """Take the first worker and put the mounts in place."""
        self._worker = await self._pool.take()
        self.name = self._worker.folder.name
        self._worker.record(self.label)
        if self._spec.mounts:
            await asyncio.to_thread(_copy_mounts, self._spec.mounts, self._worker.root / "inputs")

    async def execute(
        self, command: Command, tools: ToolHandler = no_tools, connections: ConnectionHandler = no_connections
    ) -> AsyncIterator[Event]:
        """See the port."""
        if self._execution is not None:
            raise DriverFailed("this sandbox runs another command; one at a time")
        if command.language != "python":
            raise DriverFailed(f"tier wasm runs python only, not {command.language}; use tier jail")
        if not isinstance(command.stdin, bytes):
            raise DriverFailed("tier wasm reads its stdin from a file, all of it beforehand; use tier jail")
        worker = await self._next_worker()
        if command.stdin:
            await asyncio.to_thread((worker.root / "stdin").write_bytes, command.stdin)
        inputs = {mount.name: f"/inputs/{mount.name}" for mount in self._spec.mounts}
        execution = Execution(worker, command, inputs, self._spec.limits, tools)
        self._execution = execution
        task = asyncio.get_running_loop().create_task(execution.run())
        task.add_done_callback(lambda _: execution.events.put_nowait(None))
        self._running = task
        try:
            while (event := await execution.events.get()) is not None:
                if isinstance(event, Exited):
                    self._execution = None
                yield event
            await task
        finally:
            execution.end(ExitReason.CANCELLED)
            await asyncio.wait([task])
            self._execution = None

    async def cancel(self) -> None:
        """See the port."""
        if self._execution is not None and self._running is not None:
            self._execution.end(ExitReason.CANCELLED)
            await asyncio.wait([self._running])

    async def outputs(self) -> tuple[FileInfo, ...]:
        """See the port."""
        return await asyncio.to_thread(list_outputs, self._live().outputs)

    async def read_output(self, path: str) -> bytes:
        """See the port."""
        return await asyncio.to_thread(read_output, self._live().outputs, path)

    def stream_output(self, path: str) -> AsyncIterator[bytes]:
        """See the port."""
        return stream_output(self._live().outputs, path)

    async def freeze(self) -> None:
        """See the port."""
        worker = self._live()
        if not self._frozen:
            self._frozen = True
            await asyncio.to_thread(worker.freeze)

    async def thaw(self) -> None:
        """See the port."""
        worker = self._live()
        if self._frozen:
            self._frozen = False
            await asyncio.to_thread(worker.thaw)

    async def close(self) -> None:
        """Kill what runs and delete every file. Idempotent."""
        self._closed = True
        await self.cancel()
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.destroy)

    def _live(self) -> WorkerProcess:
        if self._worker is None or self._closed:
            raise SandboxClosed(f"sandbox {self.label!r} has ended")
        return self._worker

    async def _next_worker(self) -> WorkerProcess:
        worker = self._live()
        if not self._used:
            self._used = True
            return worker
        fresh = await self._pool.take()
        fresh.record(self.label)
        await asyncio.to_thread(_move_files, worker, fresh)
        self._worker = fresh
        self.name = fresh.folder.name
        return fresh


def _copy_mounts(mounts: tuple[Mount, ...], inputs: Path) -> None:
    """Copies: whatever happens to them, the originals stay as they are."""
    for mount in mounts:
        if not mount.name or mount.name in (".", "..") or "/" in mount.name or "\0" in mount.name:
            raise DriverFailed(f"{mount.name!r} cannot name an input; use a plain file name")
        try:
            shutil.copyfile(mount.source, inputs / mount.name)
            (inputs / mount.name).chmod(0o444)
        except OSError as error:
            raise DriverFailed(f"input {mount.name!r} could not be put in place: {error.strerror}") from error


def _move_files(old: WorkerProcess, new: WorkerProcess) -> None:
    """Hand the files of a finished guest to the next worker, whose uid becomes their owner."""
    pairs = ((old.root / "inputs", new.root / "inputs"), (old.outputs, new.outputs), (old.scratch, new.scratch))
    for source, target in pairs:
        owner = target.stat()
        for entry in list(os.scandir(source)):
            shutil.move(source / entry.name, target / entry.name)  # keeps links as links
        if os.geteuid() == 0:
            for _, folders, files, fd in os.fwalk(target):
                for name in (*folders, *files):
                    os.chown(name, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)
    old.destroy()
