"""Output on its way to the control plane: a little in memory, the rest in a file, so a slow reader costs disk only."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from functools import partial
from pathlib import Path

import anyio
import msgspec

from dataplane.backoff import insist
from dataplane.client import ControlPlane, RequestRefused
from dataplane.protocol import OutputChunk

MEMORY_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
BATCH_BYTES = 1024 * 1024
BATCH_CHUNKS = 256
_OVERHEAD = 128


class OutputSpool:
    """``put`` never waits; ``serve`` sends in order until cancelled. A stale attempt's chunks are dropped."""

    def __init__(self, control_plane: ControlPlane, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._control_plane = control_plane
        self._memory_bytes = memory_bytes
        self._memory: deque[OutputChunk] = deque()
        self._memory_used = 0
        fd, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
        self._file = os.fdopen(fd, "w+b")
        self._written = self._read = 0
        self._pending: dict[tuple[str, int], int] = {}
        self._stale: set[tuple[str, int]] = set()
        self._wake = anyio.Event()
        self._sent = anyio.Event()

    @property
    def spilled_bytes(self) -> int:
        """Bytes that wait in the file."""
        return self._written - self._read

    def put(self, chunk: OutputChunk) -> None:
        """Queue a chunk; neighbours of one stream are joined up to ``CHUNK_BYTES``."""
        key = (chunk.attempt, chunk.fence)
        if key in self._stale:
            return
        if not self.spilled_bytes and self._joined(chunk):
            return
        self._pending[key] = self._pending.get(key, 0) + 1
        size = len(chunk.data) + len(chunk.text) + _OVERHEAD
        if self.spilled_bytes or self._memory_used + size > self._memory_bytes:
            record = msgspec.msgpack.encode(chunk)
            self._file.seek(self._written)
            self._file.write(len(record).to_bytes(4, "big") + record)
            self._written += 4 + len(record)
        else:
            self._memory.append(chunk)
            self._memory_used += size
        self._wake.set()

    def _joined(self, chunk: OutputChunk) -> bool:
        last = self._memory[-1] if self._memory else None
        if (
            last is None
            or chunk.stream == "progress"
            or (last.attempt, last.fence, last.stream) != (chunk.attempt, chunk.fence, chunk.stream)
            or last.offset + len(last.data) != chunk.offset
            or len(last.data) + len(chunk.data) > CHUNK_BYTES
            or self._memory_used + len(chunk.data) > self._memory_bytes
        ):
            return False
        last.data += chunk.data
        self._memory_used += len(chunk.data)
        return True

    async def flushed(self, attempt: str, fence: int, seconds: float) -> bool:
        """Wait until nothing of the attempt waits any more; ``False`` if that took longer than ``seconds``."""
        with anyio.move_on_after(seconds):
            while self._pending.get((attempt, fence)):
                await self._sent.wait()
        done = not self._pending.get((attempt, fence))
        self._stale.discard((attempt, fence))
        return done

    async def serve(self) -> None:
        """Send until cancelled."""
        while True:
            batch = self._take()
            if not batch:
                self._wake = anyio.Event()
                await self._wake.wait()
                continue
            try:
                acks = await insist(partial(self._control_plane.output, batch))
                for chunk, ack in zip(batch, acks, strict=True):
                    if ack.stale and self._pending.get((chunk.attempt, chunk.fence), 0) > 1:
                        self._stale.add((chunk.attempt, chunk.fence))
            except RequestRefused:
                pass  # refused for good: this output is lost, the attempt's report still tells its tail
            self._forget(batch)

    def _take(self) -> list[OutputChunk]:
        batch: list[OutputChunk] = []
        total = 0
        while len(batch) < BATCH_CHUNKS and total < BATCH_BYTES:
            chunk = self._next()
            if chunk is None:
                break
            if (chunk.attempt, chunk.fence) in self._stale:
                self._forget([chunk])
                continue
            batch.append(chunk)
            total += len(chunk.data) + len(chunk.text) + _OVERHEAD
        return batch

    def _next(self) -> OutputChunk | None:
        if self._memory:
            chunk = self._memory.popleft()
            self._memory_used -= len(chunk.data) + len(chunk.text) + _OVERHEAD
            return chunk
        if not self.spilled_bytes:
            return None
        self._file.seek(self._read)
        size = int.from_bytes(self._file.read(4), "big")
        chunk = msgspec.msgpack.decode(self._file.read(size), type=OutputChunk)
        self._read += 4 + size
        if self._read == self._written:
            self._file.seek(0)
            self._file.truncate()
            self._read = self._written = 0
        return chunk

    def _forget(self, chunks: list[OutputChunk]) -> None:
        for chunk in chunks:
            key = (chunk.attempt, chunk.fence)
            left = self._pending[key] - 1
            if left:
                self._pending[key] = left
            else:
                del self._pending[key]
        self._sent.set()
        self._sent = anyio.Event()

    def close(self) -> None:
        self._file.close()
