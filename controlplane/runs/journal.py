"""The journal writer: group commit by drain, never by timer.

Whoever has decided something queues its writes and goes on; one thread drains the queue, up to 256 transitions a
transaction, commits, and wakes the waiters once per commit. Nothing is acknowledged or shown before it is durable.
A transaction that fails is split: each of its transitions is tried alone, so a poison one fails only its own waiter.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from controlplane.store import Store, Write

log = structlog.get_logger(__name__)
BATCH = 256


class JournalFailed(Exception):
    """A transition could not be made durable (disk full, constraint). Nothing of it is stored."""


class _Entry:
    __slots__ = ("done", "writes")

    def __init__(self, writes: Sequence[Write], done: Callable[[BaseException | None], None] | None) -> None:
        self.writes = writes
        self.done = done


class Journal:
    """FIFO and durable. ``append`` never blocks; ``done`` runs on the loop after the commit, with the error if any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: deque[_Entry] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.commits = 0
        self.transitions = 0

    def start(self) -> None:
        """Start the writer thread; call on the loop that will be woken."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def append(self, writes: Sequence[Write], done: Callable[[BaseException | None], None] | None = None) -> None:
        """Queue one transition."""
        with self._ready:
            if self._closed:
                raise JournalFailed("the journal is closed")
            self._queue.append(_Entry(writes, done))
            self._ready.notify()

    async def write(self, writes: Sequence[Write]) -> None:
        """Queue one transition and wait until it is durable. Raises ``JournalFailed``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        self.append(writes, done)
        await future

    async def close(self) -> None:
        """Commit what is queued, then end the thread."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        connection = self._store.writer()
        try:
            while True:
                with self._ready:
                    while not self._queue and not self._closed:
                        self._ready.wait()
                    if not self._queue:
                        return
                    batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                self._acknowledge(self._commit(connection, batch))
        finally:
            connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: list[_Entry]) -> list[tuple[_Entry, BaseException | None]]:
        try:
            _transaction(connection, batch)
        except Exception as error:  # a value the database will not take must not end the writer
            if len(batch) == 1:
                log.error("a transition was not stored", error=str(error))
                return [(batch[0], JournalFailed(f"not stored: {error}"))]
            return [pair for entry in batch for pair in self._commit(connection, [entry])]
        self.commits += 1
        self.transitions += len(batch)
        return [(entry, None) for entry in batch]

    def _acknowledge(self, results: list[tuple[_Entry, BaseException | None]]) -> None:
        waiting = [(entry.done, error) for entry, error in results if entry.done is not None]
        if not waiting or self._loop is None or self._loop.is_closed():
            return

        def wake() -> None:
            for done, error in waiting:
                done(error)

        self._loop.call_soon_threadsafe(wake)


def _transaction(connection: sqlite3.Connection, batch: list[_Entry]) -> None:
    groups: dict[str, list[tuple[object, ...]]] = {}
    for entry in batch:
        for write in entry.writes:
            groups.setdefault(write.sql, []).append(write.row)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for sql, rows in groups.items():
            # Every row must have landed: an update whose condition no longer holds is a conflict, never a silent no.
            if connection.executemany(sql, rows).rowcount != len(rows) and not sql.startswith("DELETE"):
                raise sqlite3.IntegrityError("the row changed since the transition was decided")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
