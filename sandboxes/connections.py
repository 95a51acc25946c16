"""The host's end of a guest's only way out: takes the guest's listening socket and serves what connects there.

    guest                                   node
    127.0.0.1:3128 listens ── handed over ─► ``listener``      runc, jail: the socket itself, in the guest's namespace
    127.0.0.1:3128 ── relay, a unix socket ─► ``listener``     runsc: the unix socket, in the sandbox's own folder

What was handed over is judged before it is used: the image's Python, which may be anybody's, sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from anyio.abc import TaskGroup

from sandboxes.errors import DriverFailed
from sandboxes.execution import ConnectionHandler

AT_ONCE = 64
"""Connections of one sandbox that are open together; more wait in the listener's queue."""
_READY = b"r"
_TOOK = b"t"


async def taken(node: socket.socket) -> socket.socket | None:
    """The listening socket that the guest hands over through ``node``; ``None`` if it ended before it did.

    Raises ``DriverFailed`` for anything that is no listening TCP socket.
    """
    fds: list[int] = []
    try:
        data, fds = await _received(node)
        if not data:
            return None
        if data != _READY or len(fds) != 1:
            raise DriverFailed("the guest handed over something else than one socket for its proxy")
        listener = socket.socket(fileno=fds.pop())
        if not _listens(listener):
            listener.close()
            raise DriverFailed("what the guest handed over for its proxy is no listening TCP socket")
        listener.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(node, _TOOK)
        return listener
    except (ConnectionError, BrokenPipeError):
        return None
    finally:
        for fd in fds:
            socket.close(fd)


async def agreed(node: socket.socket) -> bool:
    """Whether the guest said through ``node`` that it is ready to relay; it then knows that we are."""
    loop = asyncio.get_running_loop()
    try:
        ready = await loop.sock_recv(node, 1) == _READY
        await loop.sock_sendall(node, _TOOK)
    except OSError:
        return False
    return ready


async def _received(node: socket.socket) -> tuple[bytes, list[int]]:
    while True:
        try:
            data, fds, _flags, _address = socket.recv_fds(node, 1, 1, socket.MSG_CMSG_CLOEXEC)
            return data, fds
        except (BlockingIOError, InterruptedError):
            await _readable(node)


async def _readable(node: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(node, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(node)


def _listens(candidate: socket.socket) -> bool:
    try:
        return (
            candidate.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
            and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
            and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        )
    except OSError:  # no socket at all
        return False


async def serve(listener: socket.socket, handler: ConnectionHandler, side: TaskGroup) -> None:
    """Hand every connection to ``handler``, in tasks of ``side``, until cancelled or until the listener breaks."""
    loop, slots = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)
    with contextlib.suppress(OSError):
        while True:
            await slots.acquire()
            connection, _ = await loop.sock_accept(listener)
            side.start_soon(_handle, connection, handler, slots.release)


async def _handle(
    connection: socket.socket, handler: Callable[[socket.socket], Awaitable[None]], done: Callable[[], None]
) -> None:
    try:
        with connection:
            connection.setblocking(False)
            await handler(connection)
    finally:
        done()
