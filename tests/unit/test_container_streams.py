"""The engine's framing of two streams, whole and in pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxes.container.streams import BadStream, Splitter
from sandboxes.execution import Stderr, Stdout


def framed(number: int, data: bytes) -> bytes:
    return bytes([number, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@given(st.lists(st.tuples(st.sampled_from((1, 2)), st.binary(max_size=50)), max_size=8), st.integers(1, 30))
def test_pieces_of_any_size_give_the_same_streams(frames: list[tuple[int, bytes]], step: int) -> None:
    wire = b"".join(framed(number, data) for number, data in frames)
    splitter, seen = Splitter(), {Stdout: b"", Stderr: b""}
    for start in range(0, len(wire), step):
        for kind, data in splitter.feed(wire[start : start + step]):
            seen[kind] += data
    assert seen[Stdout] == b"".join(data for number, data in frames if number == 1)
    assert seen[Stderr] == b"".join(data for number, data in frames if number == 2)


@pytest.mark.parametrize("header", [b"\x00\0\0\0\0\0\0\1", b"\x03\0\0\0\0\0\0\1", b"\x01x\0\0\0\0\0\1", b"HTTP/1.1"])
def test_what_is_no_header_is_refused(header: bytes) -> None:
    with pytest.raises(BadStream):
        list(Splitter().feed(header))
