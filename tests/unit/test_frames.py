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


def _one(body: bytes) -> frames.Frame | frames.Large:
    (frame,) = frames.FrameReader().feed(struct.pack(">I", len(body)) + body)
    return frame


def test_frames_survive_any_cut() -> None:
    stream = _wire({"id": 1, "tool": "a.b", "args": {}}) + _wire({"progress": [7, "x"]}) + _wire({"result": [1, None]})
    reader = frames.FrameReader()
    seen = [frame for index in range(len(stream)) for frame in reader.feed(stream[index : index + 1])]
    assert seen == [
        frames.ToolCall(call_id=1, tool="a.b", args={}),
        Progress(fraction=1.0, text="x"),
        frames.Result(text=b"[1, null]"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"{}", b"nonsense", b'{"id":"1","tool":"a","args":{}}', b'{"progress":[NaN,""]}', b"[" * 60_000),
        b'{"progress":[' + b"9" * 5000 + b',""]}',
        b'{"progress":[1e999,""]}',
        b'{"id":1e400,"tool":"a","args":{}}',
        b'{"id":1,"tool":"\xff","args":{}}',
    ],
)
def test_anything_else_ends_the_channel(body: bytes) -> None:
    with pytest.raises(frames.BadFrame):
        _one(body)


def test_a_length_beyond_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(frames.BadFrame):
        list(frames.FrameReader().feed(b"\xff\xff\xff\xff"))


@pytest.mark.parametrize(
    "value", [b"NaN", b"1e999", b'"\\ud800"', b"[" * 100_000, b"", b"\xff", b"9" * 5000, b"[" * 129 + b"]" * 129]
)
def test_a_result_that_is_not_strict_json_is_a_schema_error(value: bytes) -> None:
    frame = _one(b'{"result":' + value + b"}")
    assert isinstance(frame, frames.Result)
    assert frame.value()[0] is None
    assert frame.value()[1]


def test_a_tool_value_that_is_not_json_becomes_an_error() -> None:
    answer = json.loads(frames.answer_frame(3, ToolAnswer(value={1, 2}))[4:])
    assert answer["id"] == 3
    assert answer["error"]["type"] == "internal"


def test_progress_beyond_what_a_float_can_be_is_bounded() -> None:
    assert _one(b'{"progress":[' + b"9" * 400 + b',"x"]}') == Progress(fraction=1.0, text="x")
    assert _one(b'{"progress":[-' + b"9" * 400 + b',"x"]}') == Progress(fraction=0.0, text="x")


def test_whatever_breaks_in_parsing_is_the_guests_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: bytes, values_most: int) -> None:
        raise MemoryError

    monkeypatch.setattr("sandboxes.strict_json.load", broken)
    with pytest.raises(frames.BadFrame):
        _one(b'{"progress":[1,"x"]}')


def test_a_second_result_ends_the_channel_however_it_is_said() -> None:
    for second in ({"result": 2}, {"schema_error": "x"}):
        reader = frames.FrameReader()
        seen = reader.feed(_wire({"result": 1}) + _wire(second))
        assert isinstance(next(seen), frames.Result)
        with pytest.raises(frames.BadFrame):
            next(seen)


def test_results_and_large_calls_are_not_parsed_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(text: bytes, values_most: int) -> None:
        raise AssertionError(text[:40])

    monkeypatch.setattr("sandboxes.strict_json.load", parsed)
    assert _one(b'{"result":[' + b"[]," * 100_000 + b"1]}") == frames.Result(text=b"[" + b"[]," * 100_000 + b"1]")
    call = json.dumps({"id": 1, "tool": "a.b", "args": {"text": "x" * 70_000}}).encode()
    large = _one(call)
    assert large == frames.Large(body=call)
    monkeypatch.undo()
    assert isinstance(large, frames.Large)
    assert frames.parse_call(large).args == {"text": "x" * 70_000}


@pytest.mark.parametrize("body", [b'{"progress":[1,"' + b"x" * 70_000 + b'"]}', b"[" * 70_000, b"x" * 70_000])
def test_a_large_frame_is_a_call_or_the_guests_failure(body: bytes) -> None:
    large = _one(body)
    assert isinstance(large, frames.Large)
    with pytest.raises(frames.BadFrame):
        frames.parse_call(large)


def test_a_call_has_fewer_values_than_a_result() -> None:
    many = b"[" + b"0," * 150_000 + b"0]"
    large = _one(b'{"id":1,"tool":"a.b","args":{"many":' + many + b"}}")
    assert isinstance(large, frames.Large)
    with pytest.raises(frames.BadFrame, match="100000 values"):
        frames.parse_call(large)
    assert frames.Result(text=many).value() == ([0] * 150_001, None)
