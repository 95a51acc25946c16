"""Output on its way to the control plane: a little in memory, the rest in a file, so a slow reader costs disk only."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from functools import partial
from pathlib import Path

import anyio
import msgspec
import structlog

from dataplane.backoff import insist
from dataplane.client import ControlPlane, RequestRefused
from dataplane.protocol import Ack, OutputChunk

log = structlog.get_logger(__name__)
MEMORY_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
BATCH_BYTES = 1024 * 1024
BATCH_CHUNKS = 256
PROGRESS_SECONDS = 0.1
"""Between two requests that carry nothing but progress."""
_OVERHEAD = 128


class OutputSpool:
    """``put`` never waits; ``serve`` sends in order until cancelled. A stale attempt's chunks are dropped.

    Of progress only the newest of each attempt is kept, and it never waits behind output.

    Bytes the control plane does not take, or does not have any more, leave a line in the stream that says how many;
    what comes after them still arrives.
    """

    def __init__(self, control_plane: ControlPlane, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._control_plane = control_plane
        self._memory_bytes = memory_bytes
        self._memory: deque[OutputChunk] = deque()
        self._memory_used = 0
        self._progress: dict[tuple[str, int], OutputChunk] = {}
        fd, name = tempfile.mkstemp(dir=folder)
        Path(name).unlink()
        self._file = os.fdopen(fd, "w+b")
        self._written = self._read = 0
        self._pending: dict[tuple[str, int], int] = {}
        self._stale: set[tuple[str, int]] = set()
        self._ended: set[tuple[str, int]] = set()
        self._moved: dict[tuple[str, int], dict[str, int]] = {}
        """By stream, how far its offsets at the control plane are from the guest's, once something was lost."""
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
        if chunk.stream == "progress":
            self._progress[key] = chunk
            self._wake.set()
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
        if done:
            self._moved.pop((attempt, fence), None)
        else:
            self._ended.add((attempt, fence))
        return done

    async def serve(self) -> None:
        """Send until cancelled."""
        while True:
            batch = self._take()
            if not batch:
                self._wake = anyio.Event()
                await self._wake.wait()
                continue
            left = len(batch) + 1
            gaps = await self._send(batch)
            while gaps and len(gaps) < left:
                left = len(gaps)
                gaps = await self._send(self._bridged(gaps))
            for chunk, ack in gaps:
                self._lost(chunk, ack.message)
            self._forget(batch)
            if all(chunk.stream == "progress" for chunk in batch):
                await anyio.sleep(PROGRESS_SECONDS)

    async def _send(self, batch: list[OutputChunk]) -> list[tuple[OutputChunk, Ack]]:
        """Send chunks. Returns those not taken because bytes before them are missing there."""
        sent = [self._shifted(chunk) for chunk in batch]
        try:
            acks = await insist(partial(self._control_plane.output, sent))
        except RequestRefused as refused:
            if len(batch) == 1:
                self._lost(batch[0], str(refused))
                return []
            # What is wrong with one chunk must not cost the others.
            half = len(batch) // 2
            return [*await self._send(batch[:half]), *await self._send(batch[half:])]
        gaps: list[tuple[OutputChunk, Ack]] = []
        for chunk, there, ack in zip(batch, sent, acks, strict=True):
            if ack.stale:
                if self._pending.get((chunk.attempt, chunk.fence), 0) > 1:
                    self._stale.add((chunk.attempt, chunk.fence))
            elif not ack.ok and ack.stored_bytes is not None and ack.stored_bytes < there.offset:
                gaps.append((chunk, ack))
            elif not ack.ok:
                self._lost(chunk, ack.message)
        return gaps

    def _shifted(self, chunk: OutputChunk) -> OutputChunk:
        by = self._moved.get((chunk.attempt, chunk.fence), {}).get(chunk.stream, 0)
        return msgspec.structs.replace(chunk, offset=chunk.offset + by) if by else chunk

    def _bridged(self, gaps: list[tuple[OutputChunk, Ack]]) -> list[OutputChunk]:
        """The chunks again; the first of each stream begins where the stored one ends, and says what is missing."""
        again: list[OutputChunk] = []
        seen: set[tuple[str, int, str]] = set()
        for chunk, ack in gaps:
            place = (chunk.attempt, chunk.fence, chunk.stream)
            if place not in seen:
                seen.add(place)
                streams = self._moved.setdefault((chunk.attempt, chunk.fence), {})
                stored = ack.stored_bytes or 0
                missing = chunk.offset + streams.get(chunk.stream, 0) - stored
                said = f"\n[stockade: {missing} bytes of output were lost here]\n".encode()
                streams[chunk.stream] = stored + len(said) - chunk.offset
                chunk = msgspec.structs.replace(chunk, offset=chunk.offset - len(said), data=said + chunk.data)
            again.append(chunk)
        return again

    def _lost(self, chunk: OutputChunk, why: str) -> None:
        log.warning("output lost", attempt=chunk.attempt, stream=chunk.stream, bytes=len(chunk.data), error=why[:300])

    def _take(self) -> list[OutputChunk]:
        newest = list(self._progress.values())[: BATCH_CHUNKS // 2]
        for one in newest:
            del self._progress[one.attempt, one.fence]
        batch = [one for one in newest if (one.attempt, one.fence) not in self._stale]
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
            if chunk.stream == "progress":
                continue
            key = (chunk.attempt, chunk.fence)
            left = self._pending[key] - 1
            if left:
                self._pending[key] = left
                continue
            del self._pending[key]
            if key in self._ended:
                self._ended.discard(key)
                self._moved.pop(key, None)
        self._sent.set()
        self._sent = anyio.Event()

    def close(self) -> None:
        self._file.close()
