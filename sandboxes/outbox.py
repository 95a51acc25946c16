"""What a guest has said and nobody has read yet: bounded, and never a reason to stop draining its pipes."""

from __future__ import annotations

import asyncio
from collections import deque

from sandboxes.execution import Event, Exited, Progress, Stderr, Stdout

_MAX_PROGRESS = 1000


class Outbox:
    """Events in order. Neighbouring chunks of one stream are merged, so its size is that of the kept output."""

    def __init__(self, output_bytes: int) -> None:
        self.truncated = False
        self._left = output_bytes
        self._waiting: deque[Progress | Exited | tuple[type[Stdout | Stderr], bytearray]] = deque()
        self._progress = 0
        self._failure: Exception | None = None
        self._changed = asyncio.Event()

    def put_output(self, kind: type[Stdout | Stderr], data: bytes) -> None:
        """Keep ``data`` up to what is left of the cap; the rest is thrown away and noted."""
        kept = data[: self._left]
        self.truncated = self.truncated or len(kept) < len(data)
        self._left -= len(kept)
        if not kept:
            return
        last = self._waiting[-1] if self._waiting else None
        if isinstance(last, tuple) and last[0] is kind:
            last[1].extend(kept)
        else:
            self._waiting.append((kind, bytearray(kept)))
        self._changed.set()

    def put_progress(self, progress: Progress) -> None:
        """Keep it unless a thousand are unread; a newer one replaces its unread neighbour."""
        if self._waiting and isinstance(self._waiting[-1], Progress) and self._progress >= _MAX_PROGRESS:
            self._waiting[-1] = progress
        elif self._progress < _MAX_PROGRESS:
            self._waiting.append(progress)
            self._progress += 1
        self._changed.set()

    def end(self, last: Exited | Exception) -> None:
        """Nothing follows ``last``; an exception is raised to the reader after what came before."""
        if isinstance(last, Exited):
            self._waiting.append(last)
        else:
            self._failure = last
        self._changed.set()

    async def get(self) -> Event:
        """The next event, in order. Raises what ``end`` was given."""
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        event = self._waiting.popleft()
        if isinstance(event, tuple):
            kind, data = event
            return kind(data=bytes(data))
        if isinstance(event, Progress):
            self._progress -= 1
        return event
