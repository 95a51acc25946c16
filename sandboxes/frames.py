"""The host's end of a guest's channel: 4-byte big-endian length and JSON, whatever carries it.

Guest to host: ``{"id","tool","args"}``, ``{"progress":[fraction,text]}``, ``{"result":value}``,
``{"schema_error":text}``. Host to guest: one job first (``job_frame``), then ``{"id","value"}`` or
``{"id","error":{type,message,remedy}}``. Everything that arrives is hostile; a frame that is not one of these ends
the channel with ``BadFrame``.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxes.execution import Command, Progress, ToolAnswer

MAX_RESULT_BYTES = 16 * 1024 * 1024
MAX_FRAME_BYTES = MAX_RESULT_BYTES + 64 * 1024
MAX_PROGRESS_CHARS = 1000


class BadFrame(Exception):
    """The guest broke the protocol."""


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """The guest asks; answer with ``answer_frame(call_id, ...)``."""

    call_id: int
    tool: str
    args: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The guest's result, or why it has none that counts."""

    value: Any = None
    schema_error: str | None = None


Frame = ToolCall | Progress | Result


def job_frame(command: Command, inputs: Mapping[str, str]) -> bytes:
    """The first frame: what ``guest/runner.py`` is to run. ``inputs`` maps names to guest paths."""
    return encode(
        {
            "source": command.source,
            "call": command.call,
            "args": list(command.args),
            "inputs": dict(inputs),
            "env": dict(command.env),
        }
    )


def answer_frame(call_id: int, answer: ToolAnswer) -> bytes:
    """What the guest's pending call returns. A value that is not JSON becomes an error of type ``internal``."""
    if answer.error is not None:
        return encode({"id": call_id, "error": dict(answer.error)})
    try:
        return encode({"id": call_id, "value": answer.value})
    except (TypeError, ValueError, RecursionError) as error:
        return encode({"id": call_id, "error": {"type": "internal", "message": f"the tool's value: {error}"}})


def encode(frame: Mapping[str, Any]) -> bytes:
    """Length and JSON. ``ValueError`` for NaN."""
    body = json.dumps(frame, allow_nan=False).encode()
    return struct.pack(">I", len(body)) + body


def strict_json(text: bytes) -> Any:
    """Parse a guest's JSON: UTF-8, finite numbers, real Unicode, at most ``MAX_RESULT_BYTES``. ``ValueError`` else."""
    if len(text) > MAX_RESULT_BYTES:
        raise ValueError(f"above {MAX_RESULT_BYTES} bytes")
    try:
        value = json.loads(text.decode(), parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


class FrameReader:
    """Cuts a byte stream into frames; holds at most one incomplete frame of ``MAX_FRAME_BYTES``."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames completed by ``data``. ``BadFrame`` on the first one that is none."""
        self._data += data
        start = 0
        while len(self._data) - start >= 4:
            size = int.from_bytes(self._data[start : start + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise BadFrame(f"a frame of {size} bytes; the most is {MAX_FRAME_BYTES}")
            if len(self._data) - start - 4 < size:
                break
            yield parse(bytes(self._data[start + 4 : start + 4 + size]))
            start += 4 + size
        del self._data[:start]


def parse(body: bytes) -> Frame:
    """One frame's body. ``BadFrame`` if it is none of the four."""
    if body.startswith(b'{"result":'):
        try:
            return Result(value=strict_json(body[10:-1].strip()))
        except ValueError as error:
            return Result(schema_error=f"the result is not strict JSON: {error}")
    try:
        frame = json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"not JSON: {error}") from None
    match frame:
        case {"id": int(call_id), "tool": str(tool), "args": dict(args)}:
            return ToolCall(call_id=call_id, tool=tool, args=args)
        case {"progress": [int() | float() as fraction, str(text)]}:
            return Progress(fraction=min(1.0, max(0.0, float(fraction))), text=text[:MAX_PROGRESS_CHARS])
        case {"schema_error": str(text)}:
            return Result(schema_error=text[:2000])
        case _:
            raise BadFrame("a frame that is neither a call, progress nor a result")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value
