"""A container's two output streams, taken apart: the engine sends both over one connection, in frames."""

from __future__ import annotations

from collections.abc import Iterator

from sandboxes.execution import Stderr, Stdout

_HEADER_BYTES = 8
_KINDS: dict[int, type[Stdout | Stderr]] = {1: Stdout, 2: Stderr}


class BadStream(Exception):
    """Not the engine's framing."""


class Splitter:
    """Cuts what arrives into pieces of one stream each; holds back at most an incomplete header."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._kind: type[Stdout | Stderr] = Stdout
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[type[Stdout | Stderr], bytes]]:
        """The pieces in ``data``. ``BadStream`` on a header that is none."""
        view = memoryview(data)
        while view:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                yield self._kind, bytes(piece)
                continue
            missing = _HEADER_BYTES - len(self._header)
            self._header += view[:missing]
            view = view[missing:]
            if len(self._header) == _HEADER_BYTES:
                self._kind, self._left = _parse(self._header)
                self._header.clear()


def _parse(header: bytearray) -> tuple[type[Stdout | Stderr], int]:
    kind = _KINDS.get(header[0])
    if kind is None or any(header[1:4]):
        raise BadStream(f"the engine sent the header {header.hex()}, which names no output stream")
    return kind, int.from_bytes(header[4:], "big")
