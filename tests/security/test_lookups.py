"""A name whose server is silent holds up nobody who needs another one."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from dataplane.egress import system_lookup
from dataplane.lookups import FewLookups

pytestmark = pytest.mark.anyio
_MANY = 64


class NameServer:
    """Stands where the system's resolver is: silent about one name until it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.speaks = threading.Event()

    def getaddrinfo(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked.append(host)
        if host == "silent.example" and not self.speaks.wait(30):
            raise socket.gaierror(socket.EAI_AGAIN, "silent")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.speaks.set()


async def test_a_silent_name_takes_one_thread_and_none_that_others_need(names: NameServer) -> None:
    answers: list[list[str]] = []

    async def ask() -> None:
        answers.append(await system_lookup("silent.example"))

    try:
        async with anyio.create_task_group() as group:
            for _ in range(_MANY):
                group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(5):
                assert await system_lookup("other.example") == ["192.0.2.1"]
                await asyncio.get_running_loop().run_in_executor(None, int)  # the loop's own threads are free
            with anyio.move_on_after(0.01):
                await ask()  # one that gives up takes the answer from nobody
            assert not answers
            names.speaks.set()
    finally:
        names.speaks.set()
    assert answers == [["192.0.2.1"]] * _MANY
    assert names.asked.count("silent.example") == 1
    await system_lookup("silent.example")
    assert names.asked.count("silent.example") == 2, "an answer is kept for nobody who asks later"


async def test_an_attempt_asks_for_two_names_at_once_and_for_each_once() -> None:
    asked: list[str] = []
    answer = anyio.Event()

    async def lookup(host: str) -> list[str]:
        asked.append(host)
        await answer.wait()
        return [host]

    few = FewLookups(lookup)
    found: list[list[str]] = []

    async def ask(host: str) -> None:
        found.append(await few(host))

    async with anyio.create_task_group() as group:
        for host in ("a", "a", "a", "b", "b", "c", "c"):
            group.start_soon(ask, host)
        await anyio.wait_all_tasks_blocked()
        assert asked == ["a", "b"]
        answer.set()
    assert asked == ["a", "b", "c"] and sorted(found) == [["a"]] * 3 + [["b"]] * 2 + [["c"]] * 2
    assert await few("a") == ["a"] and asked[-1] == "a"
