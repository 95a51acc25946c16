"""A network grant: one way out, served by the host, of one sandbox, for as long as its command runs. Nothing more.

Every promise of isolation is held with a grant as without one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import anyio

from sandboxes.conformance import isolation
from sandboxes.conformance.check import Bench, Check, after, ended, expect, python, returns, shell
from sandboxes.driver import Feature
from sandboxes.execution import ConnectionHandler
from sandboxes.testing import Play

_AT_ONCE_MOST = 64
_GRANTED = frozenset({Feature.PYTHON, Feature.NETWORK})
_ASK = """
def ask(many):
    import socket
    said = []
    for _ in range(many):
        with socket.create_connection(("127.0.0.1", 3128), timeout=10) as proxy:
            proxy.sendall(b"ping")
            proxy.shutdown(socket.SHUT_WR)
            said.append(b"".join(iter(lambda: proxy.recv(100), b"")).decode())
    return said
"""
_FIND = """
import socket
try:
    socket.create_connection(("127.0.0.1", 3128), timeout=2)
    answer = "connected"
except OSError:
    answer = "refused"
answer
"""
_OUTSIDE = """
def outside(port):
    import socket
    reached = []
    for host, at in (("127.0.0.1", port), ("192.0.2.1", 80), ("169.254.169.254", 80), ("::1", port)):
        try:
            socket.create_connection((host, at), timeout=2).sendall(b"hello")
            reached.append(host)
        except OSError:
            pass
    for name in ("example.com", "metadata.google.internal"):
        try:
            socket.getaddrinfo(name, 80)
            reached.append(name)
        except OSError:
            pass
    with open("/proc/net/dev") as file:
        devices = sorted(line.split(":")[0].strip() for line in file if ":" in line)
    return [reached, [name for name in devices if name != "lo"]]
"""
_HOLD = """
import os, socket
held = [socket.create_connection(("127.0.0.1", 3128), timeout=10) for _ in range(3)]
for one in held: one.sendall(b"held")
for one in held: one.recv(4)
print("held", flush=True)
os._exit(0)
"""
_CROWD = """
import socket
crowd = [socket.create_connection(("127.0.0.1", 3128), timeout=10) for _ in range(90)]
met = 0
for one in crowd[:64]:
    one.settimeout(10)
    met += one.recv(1) == b"h"
met
"""
_VARIABLES = 'echo "$HTTP_PROXY $HTTPS_PROXY $http_proxy $https_proxy"; echo "$NO_PROXY"; exit 3'
_PROXY, _NO_PROXY = b"http://127.0.0.1:3128", b"localhost,127.0.0.1,::1"


def answering(text: bytes) -> ConnectionHandler:
    """Reads to the end and says ``text`` and what it read."""

    async def handle(connection: socket.socket) -> None:
        loop, seen = asyncio.get_running_loop(), b""
        while data := await loop.sock_recv(connection, 100):
            seen += data
        await loop.sock_sendall(connection, text + seen)

    return handle


async def _served(bench: Bench) -> None:
    async with bench.open() as sandbox:
        for number in range(2):  # a second command has it as well
            outcome = await bench.run(sandbox, args=[2], connections=answering(f"{number}".encode()))
            expect(outcome.end.result == [f"{number}ping"] * 2, outcome)


async def _own_only(bench: Bench) -> None:
    async with bench.open() as one, bench.open() as other:
        first = await bench.run(one, args=[1], connections=answering(b"one"))
        second = await bench.run(other, args=[1], connections=answering(b"other"))
    expect(first.end.result == ["oneping"] and second.end.result == ["otherping"], (first, second))


async def _nowhere_else(bench: Bench) -> None:
    met: list[bytes] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(await reader.read(5))
        writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    async with server:
        outcome = await bench.once(args=[server.sockets[0].getsockname()[1]])
    expect(outcome.end.result == [[], []] and met == [], (outcome, met))


async def _ends_with_the_command(bench: Bench) -> None:
    ended_handlers = 0

    async def hold(connection: socket.socket) -> None:
        nonlocal ended_handlers
        try:
            await asyncio.get_running_loop().sock_sendall(connection, b"here")
            await anyio.sleep_forever()
        finally:
            ended_handlers += 1

    async with bench.open() as sandbox:
        with anyio.fail_after(20):
            outcome = await bench.run(sandbox, connections=hold)
        expect(ended(outcome) and outcome.stdout == b"held\n" and ended_handlers == 3, (outcome, ended_handlers))


async def _bounded(bench: Bench) -> None:
    now, most = 0, 0

    async def hold(connection: socket.socket) -> None:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        try:
            await asyncio.get_running_loop().sock_sendall(connection, b"h")
            await anyio.sleep_forever()
        finally:
            now -= 1

    async with bench.open() as sandbox:
        outcome = await bench.run(sandbox, connections=hold)
    expect(outcome.end.result == _AT_ONCE_MOST and most == _AT_ONCE_MOST and now == 0, (outcome, most, now))


_PLAY = Play(result=[], has_result=True)

CHECKS = (
    Check(
        name="network_is_served_by_the_host",
        needs=_GRANTED,
        network=True,
        programs=python(_ASK, _PLAY, call="ask"),
        verify=_served,
    ),
    Check(
        name="network_of_one_sandbox_is_no_others",
        needs=_GRANTED,
        network=True,
        programs=python(_ASK, _PLAY, call="ask"),
        verify=_own_only,
    ),
    Check(
        name="network_leads_to_the_proxy_and_nowhere_else",
        needs=_GRANTED | {Feature.PROC},
        network=True,
        programs=python(_OUTSIDE, _PLAY, call="outside"),
        verify=_nowhere_else,
    ),
    Check(
        name="no_proxy_without_a_grant",
        needs=_GRANTED,
        programs=python(_FIND, Play(result="refused", has_result=True)),
        verify=returns("refused"),
    ),
    Check(
        name="network_is_in_the_environment_of_a_shell",
        needs=frozenset({Feature.SHELL, Feature.NETWORK}),
        network=True,
        programs=shell(_VARIABLES, Play(code=3)),
        verify=after(lambda o: ended(o, 3) and o.stdout.split() == [_PROXY] * 4 + [_NO_PROXY]),
    ),
    Check(
        name="network_ends_with_the_command",
        needs=_GRANTED,
        network=True,
        programs=python(_HOLD, _PLAY),
        verify=_ends_with_the_command,
    ),
    Check(
        name="network_connections_are_bounded",
        needs=_GRANTED,
        network=True,
        programs=python(_CROWD, _PLAY),
        verify=_bounded,
    ),
    *(
        dataclasses.replace(
            check, name=f"{check.name}_with_a_network_grant", network=True, needs=check.needs | {Feature.NETWORK}
        )
        for check in isolation.CHECKS
    ),
)  # fmt: skip
