"""Names asked of the system in threads of their own: a name server that is silent holds up nobody but who needs it.

A thread that waits for a name server cannot be stopped, so giving up frees none: they are few for each name instead.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import anyio

_THREADS_MOST = 128
_NAMES_AT_ONCE = 2


class SystemLookups:
    """One for an event loop. Whoever asks for a name that is being asked for gets the same answer."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS_MOST, thread_name_prefix="name-lookup")
        self._under_way: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """Every address the system's resolver gives. Raises ``OSError`` and ``UnicodeError``."""
        found = self._under_way.get(host)
        if found is None:
            found = asyncio.get_running_loop().run_in_executor(self._threads, _addresses, host)
            self._under_way[host] = found
            found.add_done_callback(lambda ended: self._ended(host, ended))
        return list(await asyncio.shield(found))  # who gives up takes the answer from nobody

    def _ended(self, host: str, ended: asyncio.Future[list[str]]) -> None:
        del self._under_way[host]
        if not ended.cancelled():
            ended.exception()  # looked at, also if nobody waits any more


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


@dataclass(kw_only=True)
class _Name:
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    answers: int = 0
    found: list[str] = field(default_factory=list)


class FewLookups:
    """One attempt's lookups: of two names at once, each once at a time; others wait, within their own time."""

    def __init__(self, lookup: Callable[[str], Awaitable[list[str]]]) -> None:
        self._lookup = lookup
        self._places = anyio.CapacityLimiter(_NAMES_AT_ONCE)
        self._names: dict[str, _Name] = {}

    async def __call__(self, host: str) -> list[str]:
        """The addresses; an answer that came while this one waited is its own too. Raises what the lookup raises."""
        name = self._names.setdefault(host, _Name())
        known = name.answers
        async with name.lock:
            if name.answers == known:
                async with self._places:
                    name.found = await self._lookup(host)
                name.answers += 1
            return name.found
