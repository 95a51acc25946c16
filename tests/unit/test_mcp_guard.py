"""What an MCP server may say, counted; and what its answers become."""

from __future__ import annotations

import base64
import subprocess
import sys
from typing import Any

import mcp_types as types
import pytest
from mcp_types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

from dataplane import tool_definitions
from dataplane.mcp import guard
from dataplane.mcp.failures import McpFailed
from dataplane.mcp.guard import Guard, LineSplitter, parse
from dataplane.mcp.results import FILES_MOST, value_of
from dataplane.protocol import ArtifactRef

NOTE = JSONRPCNotification(jsonrpc="2.0", method="notifications/message", params={})


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_lines_are_the_same_however_they_arrive(size: int) -> None:
    data = b'{"a":1}\n\n{"b":2}\r\n{"c"'
    splitter = LineSplitter()
    lines = [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])]
    assert [line.strip() for line in lines] == [b'{"a":1}', b'{"b":2}']
    assert splitter.in_mid_message


def test_a_line_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MESSAGE_BYTES_MOST", 100)
    splitter = LineSplitter()
    assert list(splitter.feed(b"x" * 60)) == []
    with pytest.raises(McpFailed, match="above 100 bytes"):
        list(splitter.feed(b"x" * 60))


@pytest.mark.parametrize(
    "line", [b"hello", b"[]", b"{}", b'{"jsonrpc":"1.0","id":1,"result":{}}', b"\xff\xfe", b"[" * 10_000]
)
def test_what_is_no_message_is_garbage(line: bytes) -> None:
    with pytest.raises(McpFailed) as failed:
        parse(line)
    assert failed.value.reason == "mcp_garbage"


def test_a_message_of_many_small_values_is_refused_unread() -> None:
    with pytest.raises(McpFailed, match="262144 values"):
        parse(b'{"jsonrpc":"2.0","id":1,"result":{"a":[' + b"1," * 300_000 + b"1]}}")


def test_notifications_are_dropped_and_a_storm_of_them_ends_it() -> None:
    one = Guard()
    assert not any(one.admit(NOTE, 100) for _ in range(guard.UNASKED_MOST))
    with pytest.raises(McpFailed, match="notifications that nobody asked for"):
        one.admit(NOTE, 100)


def test_an_answer_makes_the_count_begin_again() -> None:
    one = Guard()
    for number in range(5):
        for _ in range(guard.UNASKED_MOST):
            one.admit(NOTE, 1)
        one.sent(JSONRPCRequest(jsonrpc="2.0", id=number, method="tools/list"))
        assert one.admit(JSONRPCResponse(jsonrpc="2.0", id=number, result={}), 10)
    assert one.answers == 5


def test_an_answer_that_nobody_asked_for_counts_as_unasked() -> None:
    one = Guard()
    answer = JSONRPCResponse(jsonrpc="2.0", id=7, result={})
    one.sent(JSONRPCRequest(jsonrpc="2.0", id=7, method="tools/list"))
    assert one.admit(answer, 10)
    assert not one.admit(answer, 10), "the second time it is nobody's"
    with pytest.raises(McpFailed, match="nobody asked for"):
        one.admit(answer, guard.UNASKED_BYTES_MOST + 1)


def test_requests_of_a_server_pass_to_be_refused_and_are_few() -> None:
    one = Guard()
    request = JSONRPCRequest(jsonrpc="2.0", id=1, method="sampling/createMessage", params={})
    assert all(one.admit(request, 10) for _ in range(guard.REQUESTS_MOST))
    with pytest.raises(McpFailed, match="sampling/createMessage") as failed:
        one.admit(request, 10)
    assert failed.value.reason == "mcp_requests"


async def _keep(name: str, media_type: str, data: bytes) -> ArtifactRef:
    return ArtifactRef(id=f"art_{name}", name=name, digest="d", size_bytes=len(data), media_type=media_type)


async def _value(*content: Any, **more: Any) -> Any:
    return (await value_of(types.CallToolResult(content=list(content), **more), _keep))[0]


def _text(text: str) -> types.TextContent:
    return types.TextContent(text=text)


def _image(data: str, kind: str = "image/png") -> types.ImageContent:
    return types.ImageContent(data=data, mime_type=kind)


@pytest.mark.anyio
async def test_an_answer_becomes_a_value() -> None:
    assert await _value(_text("x"), structured_content={"result": 5}) == {"result": 5}
    assert await _value(_text('{"not": "parsed"}')) == '{"not": "parsed"}'
    assert await _value() == []
    encoded = base64.b64encode(b"12345").decode()
    assert await _value(_text("a"), _image(encoded), _image(encoded, "text/html; x")) == [
        {"type": "text", "text": "a"},
        {"type": "image", "media_type": "image/png", "artifact": "artifact://art_image-1", "size_bytes": 5},
        {
            "type": "image",
            "media_type": "application/octet-stream",
            "artifact": "artifact://art_image-2",
            "size_bytes": 5,
        },
    ]


@pytest.mark.anyio
async def test_an_answer_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(McpFailed, match="not base64"):
        await _value(_image("###"))
    with pytest.raises(McpFailed, match="files"):
        await _value(*[_image("eA==")] * (FILES_MOST + 1))
    with pytest.raises(McpFailed, match="no such luck") as failed:
        await _value(_text("no such luck"), is_error=True)
    assert failed.value.reason == "mcp_tool_error"


def test_a_definition_is_pinned_whatever_the_order_of_its_keys() -> None:
    one = {"name": "a", "description": "d", "inputSchema": {"x": 1, "y": 2}, "icons": ["i"]}
    other = {"inputSchema": {"y": 2, "x": 1}, "description": "d", "name": "a"}
    assert tool_definitions.digest(one) == tool_definitions.digest(other)
    assert tool_definitions.changed(one, other | {"annotations": {"readOnlyHint": True}}) == ["annotations"]
    assert tool_definitions.changed(one, other | {"inputSchema": {"x": True, "y": 2}}) == ["inputSchema"]


def test_a_difference_is_bounded() -> None:
    before = {"name": "a", "description": "\n".join("b" * 400 for _ in range(5000))}
    after = {"name": "a", "description": "\n".join("c" * 400 for _ in range(5000))}
    assert len(tool_definitions.difference(before, after)) <= 1201


def test_a_node_that_calls_no_server_does_not_load_the_library() -> None:
    asks = (
        "import sys, dataplane.daemon; print(sorted({'mcp', 'mcp_types', 'httpx2', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
