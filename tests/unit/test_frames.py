"""The host's end of the guest channel, against a hostile guest."""

from __future__ import annotations

import json
import struct

import pytest

from sandboxes import frames
from sandboxes.execution import Progress, ToolAnswer


def _wire(value: object) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack(">I", len(body)) + body


def test_frames_survive_any_cut() -> None:
    stream = _wire({"id": 1, "tool": "a.b", "args": {}}) + _wire({"progress": [7, "x"]}) + _wire({"result": [1, None]})
    reader = frames.FrameReader()
    seen = [frame for index in range(len(stream)) for frame in reader.feed(stream[index : index + 1])]
    assert seen == [
        frames.ToolCall(call_id=1, tool="a.b", args={}),
        Progress(fraction=1.0, text="x"),
        frames.Result(value=[1, None]),
    ]


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"nonsense", b'{"id":"1","tool":"a","args":{}}', b'{"progress":[NaN,""]}', b"[" * 100_000]
)
def test_anything_else_ends_the_channel(body: bytes) -> None:
    with pytest.raises(frames.BadFrame):
        frames.parse(body)


def test_a_length_beyond_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(frames.BadFrame):
        list(frames.FrameReader().feed(b"\xff\xff\xff\xff"))


@pytest.mark.parametrize("value", [b"NaN", b"1e999", b'"\\ud800"', b"[" * 100_000, b"", b"\xff"])
def test_a_result_that_is_not_strict_json_is_a_schema_error(value: bytes) -> None:
    frame = frames.parse(b'{"result":' + value + b"}")
    assert isinstance(frame, frames.Result)
    assert frame.schema_error is not None


def test_a_tool_value_that_is_not_json_becomes_an_error() -> None:
    answer = json.loads(frames.answer_frame(3, ToolAnswer(value={1, 2}))[4:])
    assert answer["id"] == 3
    assert answer["error"]["type"] == "internal"
