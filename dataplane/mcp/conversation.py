"""The official MCP client over guarded streams: list the tools, compare one with what was reviewed, call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, cast

import httpx2
import mcp_types as types
from mcp import MCPError
from mcp.client.client import Client
from mcp.client.session import ClientSession
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from pydantic import TypeAdapter, ValidationError

from dataplane import tool_definitions
from dataplane.mcp.failures import McpFailed
from dataplane.protocol import McpCall
from dataplane.sendable import Unsendable, encoded_bytes, plain

TOOLS_MOST = 256
PAGES_MOST = 32
DEFINITION_BYTES_MOST = 64 * 1024
DESCRIPTION_MOST = 8 * 1024
DEFINITIONS_BYTES_MOST = 1024 * 1024
LEFT_OUT_MOST = 64
START_SECONDS = 30.0
KEY = "io.stockade/idempotency-key"
"""Where in ``_meta`` of a call its idempotency key is."""
_TEXT_MOST = 500
_ANSWER: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)

Streams = tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]


class Transport(AbstractAsyncContextManager[Streams], Protocol):
    """What the MCP client is given: a context manager that yields the two streams."""


@asynccontextmanager
async def connected(transport: Transport) -> AsyncIterator[Conversation]:
    """A conversation whose handshake is done. Raises ``McpFailed``, and what the transport raises."""
    client = Client(
        transport,
        mode="auto",
        cache=None,
        read_timeout_seconds=START_SECONDS,
        client_info=types.Implementation(name="stockade", version="1"),
    )
    async with client:
        yield Conversation(client.session)


class Conversation:
    """One connection. Calls may overlap."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def definitions(self) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        """What the server offers, and what of it is left out and why. Raises ``McpFailed``."""
        found: list[dict[str, Any]] = []
        left_out: list[dict[str, str]] = []
        cursor: str | None = None
        for _ in range(PAGES_MOST):
            params = types.PaginatedRequestParams(cursor=cursor)
            page = await self._ask(types.ListToolsRequest(params=params), TypeAdapter(types.ListToolsResult))
            for tool in page.tools:
                definition = tool_definitions.pinned(tool.model_dump(by_alias=True, mode="json", exclude_none=True))
                if why := _unusable(definition):
                    left_out.append({"name": plain(tool.name[:128]), "why": why})
                else:
                    found.append(definition)
                if len(found) + len(left_out) > TOOLS_MOST:
                    raise McpFailed("mcp_flood", f"the server offers more than {TOOLS_MOST} tools")
            cursor = page.next_cursor
            if not cursor:
                break
        else:
            raise McpFailed("mcp_flood", f"the server's list of tools has more than {PAGES_MOST} pages")
        names = [one["name"] for one in found]
        if len(set(names)) != len(names):
            raise McpFailed("mcp_garbage", "the server offers two tools of one name")
        if encoded_bytes(found) > DEFINITIONS_BYTES_MOST:
            raise McpFailed("mcp_flood", f"the server's definitions are together above {DEFINITIONS_BYTES_MOST} bytes")
        return found, left_out[:LEFT_OUT_MOST]

    async def call(self, call: McpCall, key: str) -> types.CallToolResult:
        """Call the tool if it still is the one that was reviewed. Raises ``McpFailed``."""
        offered, left_out = await self.definitions()
        live = next((one for one in offered if one["name"] == call.tool), None)
        if live is None:
            why = next((one["why"] for one in left_out if one["name"] == call.tool), "the server does not offer it")
            fix = f"`stockade tool review {call.server}` shows what it offers"
            raise McpFailed("mcp_missing", f"{call.server}.{call.tool} is gone: {why}; {fix}")
        if tool_definitions.digest(live) != tool_definitions.digest(call.reviewed):
            fields = ", ".join(tool_definitions.changed(call.reviewed, live))
            shown = plain(tool_definitions.difference(call.reviewed, live))
            raise McpFailed(
                "mcp_changed",
                f"{call.server}.{call.tool} has changed since review: {fields}; "
                f"look at it and accept it with `stockade tool review {call.server}`\n{shown}",
            )
        meta = cast(types.RequestParamsMeta, {KEY: key})
        params = types.CallToolRequestParams(name=call.tool, arguments=call.args, _meta=meta)
        request = types.CallToolRequest(params=params)
        answer: types.CallToolResult | types.InputRequiredResult = await self._ask(
            request, _ANSWER, call.timeout_seconds
        )
        if isinstance(answer, types.InputRequiredResult):
            why = "the server asks for more input before it answers; here it can ask nobody"
            raise McpFailed("mcp_input_required", why)
        return answer

    async def _ask(self, request: types.ClientRequest, answer: TypeAdapter[Any], seconds: float | None = None) -> Any:
        try:
            return await self._session.send_request(request, answer, request_read_timeout_seconds=seconds)
        except MCPError as error:
            raise failure_of(error) from None
        except (ValidationError, RecursionError):
            raise McpFailed("mcp_garbage", f"the server's answer to {request.method} is not what MCP says") from None


def failure_of(error: MCPError) -> McpFailed:
    """What the client's exception means."""
    if error.code == types.CONNECTION_CLOSED:
        return McpFailed("mcp_exited", "the server closed the connection", retryable=True)
    if error.code == types.REQUEST_TIMEOUT:
        return McpFailed("mcp_timeout", "the server did not answer in time", retryable=True)
    return McpFailed("mcp_error", f"the server answered with error {error.code}: {plain(str(error)[:_TEXT_MOST])}")


def meaning(error: BaseException) -> McpFailed | None:
    """What broke a conversation, as a failure; ``None`` where it was not the server."""
    match error:
        case McpFailed():
            return error
        case MCPError():
            return failure_of(error)
        case BaseExceptionGroup():
            found = [meaning(inner) for inner in error.exceptions]
            return None if None in found else found[0]
        case httpx2.HTTPError() | OSError():
            said = f"the server cannot be reached: {type(error).__name__}: {plain(str(error)[:_TEXT_MOST])}"
            return McpFailed("mcp_unavailable", said, retryable=True)
        case ValueError() | RuntimeError():  # the client's complaints about a handshake; pydantic's are ValueErrors
            return McpFailed("mcp_garbage", f"the server's handshake is not what MCP says ({type(error).__name__})")
    return None


def _unusable(definition: dict[str, Any]) -> str | None:
    try:
        size = encoded_bytes(definition)
    except Unsendable as error:
        return f"its definition cannot be kept: {error}"
    if size > DEFINITION_BYTES_MOST:
        return f"its definition is above {DEFINITION_BYTES_MOST} bytes"
    if len(definition.get("description") or "") > DESCRIPTION_MOST:
        return f"its description is above {DESCRIPTION_MOST} characters"
    return None
