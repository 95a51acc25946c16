"""What code inside a sandbox may ask of its host.

    import stockade_tools as tools

    tools.tickets.search(query="disk full")    # -> JSON value, or raises tools.ToolError
    tools.progress(0.5, "half way")
    tools.inputs["log"]                        # -> "/inputs/log"
    tools.outputs                              # -> "/outputs"

The same module runs in every tier, on whatever Python is inside, so it needs the standard library only. Frames are a
4-byte big-endian length and JSON. Nothing in a frame says who is calling: the host knows it from the channel.
"""

from __future__ import annotations

import os
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

outputs = "/outputs"
inputs: dict[str, str] = {}

_channel: _FdChannel | _SocketChannel | None = None
_lock = allocate_lock()
_last_id = 0


class ToolError(Exception):
    """The host refused the call, or the tool failed. ``type`` is stable; ``remedy`` says what to do, if known."""

    def __init__(self, type: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{type}: {message}" + (f" ({remedy})" if remedy else ""))
        self.type = type
        self.message = message
        self.remedy = remedy


class _FdChannel:
    """Frames over an inherited file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_inheritable(fd, False)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def receive(self, size: int) -> bytes:
        return os.read(self._fd, size)


class _SocketChannel:
    """Frames over WASI's ``sock_send`` and ``sock_recv``, which the host took over."""

    def __init__(self, fd: int) -> None:
        import _socket

        self._socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fileno=fd)

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._socket.send(view) :]

    def receive(self, size: int) -> bytes:
        return self._socket.recv(size)


def call(tool: str, /, **args: Any) -> Any:
    """Call the tool named ``server.tool``; its value comes back, or ``ToolError``."""
    global _last_id
    with _lock:
        _last_id += 1
        _send({"id": _last_id, "tool": tool, "args": args})
        while True:
            answer = _receive()
            if answer.get("id") == _last_id:
                break
    error = answer.get("error")
    if error is not None:
        raise ToolError(error.get("type", "internal"), error.get("message", ""), error.get("remedy", ""))
    return answer.get("value")


def progress(fraction: float, text: str = "") -> None:
    """Tell whoever watches how far this is: ``fraction`` 0..1 and a short text."""
    with _lock:
        _send({"progress": [float(fraction), str(text)[:1000]]})


class _Server:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, tool: str) -> Callable[..., Any]:
        if tool.startswith("__"):
            raise AttributeError(tool)
        name = f"{self._name}.{tool}"
        return lambda **args: call(name, **args)

    def __repr__(self) -> str:
        return f"<tools of {self._name}>"


def __getattr__(name: str) -> _Server:
    if name.startswith("_"):
        raise AttributeError(name)
    return _Server(name)


def _open(kind: str, where: str) -> None:
    global _channel
    if kind == "unix":
        _channel = _FdChannel(_connected(where))
    else:
        _channel = _SocketChannel(int(where)) if kind == "socket" else _FdChannel(int(where))


def _connected(path: str) -> int:
    """The descriptor of the host's socket at ``path``; only the first to connect is served."""
    import _socket

    made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
    made.connect(path)
    return made.detach()


def _send(frame: dict[str, Any]) -> None:
    if _channel is None:
        raise _no_channel()
    body = _dumps(frame).encode()
    _channel.send(len(body).to_bytes(4, "big") + body)


def _no_channel() -> ToolError:
    return ToolError("unavailable", "this program has no channel to its host", "run it as a step")


def _receive() -> Any:
    return _loads(_exactly(int.from_bytes(_exactly(4), "big")).decode())


def _exactly(size: int) -> bytes:
    if _channel is None:
        raise _no_channel()
    data = bytearray()
    while len(data) < size:
        piece = _channel.receive(min(size - len(data), 1 << 20))
        if not piece:
            raise ToolError("unavailable", "the host closed the channel")
        data += piece
    return bytes(data)


def _codec() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """``json``'s own C functions, called as it calls them: importing it costs a cold start a third of its time."""
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner

        settings: Any = _Decoding
        scan = make_scanner(settings)

        def encode(value: Any) -> str:
            options = (None, ": ", ", ", False, False, False)
            return "".join(make_encoder({}, _not_json, encode_basestring_ascii, *options)(value, 0))

        if scan("[1]", 0)[0] != [1] or encode([1]) != "[1]":
            raise TypeError("not the functions of this name that we know")
    except (ImportError, AttributeError, TypeError):
        import json

        return json.loads, lambda value: json.dumps(value, allow_nan=False)
    return lambda text: scan(text, 0)[0], encode


class _Decoding:
    """The settings that ``make_scanner`` asks for: ``json.loads`` without arguments."""

    strict = True
    object_hook = object_pairs_hook = array_hook = None
    parse_float, parse_int, parse_constant = float, int, float


def _not_json(value: Any) -> Any:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_loads, _dumps = _codec()
