"""First program of a guest with a network grant: open the way to the node's forwarder, then become the guest's program.

    python -I -S stockade_egress.py (fd NUMBER | unix PATH | relay PATH) -- WORDS…

It listens at 127.0.0.1:3128 inside the sandbox, before anything of the guest's own runs. ``fd`` and ``unix`` hand that
listening socket to the node over an inherited socket or one to connect to; the node serves it, and nothing of this
stays. ``relay`` is for a kernel that hands no sockets to the host: a child carries each connection to the node's
socket. When the node has answered, the proxy's variables are set and WORDS replaces this process.

Standard library only: it runs on whatever Python is inside.
"""

from __future__ import annotations

import os
import socket
import sys

ADDRESS = ("127.0.0.1", 3128)
BACKLOG = 64
_PROXY = "http://127.0.0.1:3128"
_NO_PROXY = "localhost,127.0.0.1,::1"
VARIABLES = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _PROXY),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), _NO_PROXY),
}
_CHUNK = 65_536
_READY = b"r"


def main(kind: str, where: str, words: list[str]) -> None:
    """Does not return."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(ADDRESS)
    listener.listen(BACKLOG)
    if kind == "relay":
        with _node(where) as node:
            _agree(node)
        _start_relay(listener, where)
    else:
        _hand_over(listener, kind, where)
    listener.close()
    os.environ.update(VARIABLES)
    try:
        os.execvp(words[0], words)  # noqa: S606 - the guest's own program, by its own words
    except FileNotFoundError:
        print(f"{words[0]}: not found", file=sys.stderr)
        sys.exit(127)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(126)


def _hand_over(listener: socket.socket, kind: str, where: str) -> None:
    with _node(where) if kind == "unix" else socket.socket(fileno=int(where)) as node:
        socket.send_fds(node, [_READY], [listener.fileno()])
        node.recv(1)


def _agree(node: socket.socket) -> None:
    node.sendall(_READY)
    node.recv(1)


def _node(path: str) -> socket.socket:
    node = socket.socket(socket.AF_UNIX)
    node.connect(path)
    return node


def _start_relay(listener: socket.socket, path: str) -> None:
    if os.fork():
        return
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        _relay(listener, path)
    finally:
        os._exit(0)


def _relay(listener: socket.socket, path: str) -> None:
    """Carry connections until the sandbox ends, all in this one process."""
    import asyncio

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            target.write(data)
            await target.drain()
        target.write_eof()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(path)
            writers.append(far_writer)
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        except OSError:
            pass  # the node refused it, or it broke: the guest sees it closed
        finally:
            for each in writers:
                each.close()

    async def serve() -> None:
        server = await asyncio.start_server(carry, sock=listener, backlog=BACKLOG)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    _cut = sys.argv.index("--")
    main(sys.argv[1], sys.argv[2], sys.argv[_cut + 1 :])
