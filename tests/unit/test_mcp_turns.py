"""Turns of remote MCP servers: one that hangs cannot hold those of the others."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from dataplane.mcp.failures import McpFailed
from dataplane.mcp.turns import CALLS_MOST, SERVER_CALLS_MOST, RemoteTurns

pytestmark = pytest.mark.anyio


async def test_a_server_has_its_turns_and_no_more() -> None:
    turns = RemoteTurns()
    async with AsyncExitStack() as held:
        for _ in range(SERVER_CALLS_MOST):
            await held.enter_async_context(turns.turn("slow", 5))
        with pytest.raises(McpFailed, match=f"{SERVER_CALLS_MOST} calls") as busy:
            await held.enter_async_context(turns.turn("slow", 0.01))
        assert (busy.value.reason, busy.value.retryable) == ("mcp_busy", True)
        await held.enter_async_context(turns.turn("other", 5))
    async with turns.turn("slow", 5):
        pass


async def test_a_node_has_its_turns_and_no_more() -> None:
    turns = RemoteTurns()
    async with AsyncExitStack() as held:
        for number in range(CALLS_MOST):
            await held.enter_async_context(turns.turn(f"s{number}", 5))
        with pytest.raises(McpFailed, match=f"{CALLS_MOST} of any"):
            await held.enter_async_context(turns.turn("one more", 0.01))
    async with turns.turn("one more", 5):
        pass
