"""Authorized calls of MCP tools. The MCP library is loaded by the first of them: most nodes never need it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import structlog

from dataplane.backoff import insist
from dataplane.client import ControlPlane, RequestRefused
from dataplane.data_roots import DataRoots
from dataplane.egress import Lookup, system_lookup
from dataplane.http_calls import Outcome, failed
from dataplane.mcp.failures import McpFailed
from dataplane.mcp.turns import RemoteTurns
from dataplane.protocol import ArtifactRef, McpCall
from dataplane.scrubbing import Scrubber
from dataplane.sendable import Unsendable, encoded_bytes
from sandboxes.driver import Driver
from sandboxes.spec import Tier

if TYPE_CHECKING:
    from dataplane.mcp.conversation import Conversation
    from dataplane.mcp.processes import StdioServers

log = structlog.get_logger("stockade.node")
_LIBRARY = ("dataplane.mcp.processes", "dataplane.mcp.remote", "dataplane.mcp.results")
_KINDS = {"mcp_timeout": "timeout", "egress_refused": "policy_denied"}


class McpCalls:
    """One for the node. ``serve`` must run while calls are performed."""

    def __init__(
        self,
        control_plane: ControlPlane,
        drivers: Mapping[Tier, Driver],
        roots: DataRoots,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._control_plane, self._drivers, self._roots, self._lookup = control_plane, drivers, roots, lookup
        self._wanted, self._loaded = anyio.Event(), anyio.Event()
        self._processes: StdioServers | None = None
        self._turns = RemoteTurns()

    async def serve(self) -> None:
        """Own the servers' processes, from the first call on."""
        await self._wanted.wait()
        for module in _LIBRARY:  # a second of work the first time; the node's other tasks go on
            await anyio.to_thread.run_sync(import_module, module)
        from dataplane.mcp.processes import StdioServers

        self._processes = StdioServers(self._drivers, self._roots)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._processes.serve)
            await anyio.lowlevel.checkpoint()
            self._loaded.set()

    async def perform(self, call: McpCall, key: str, attempt: str, fence: int) -> Outcome:
        """What the call came to; never raises for what the server does."""
        self._wanted.set()
        await self._loaded.wait()
        try:
            return await self._perform(call, key, attempt, fence)
        except McpFailed as failure:
            kind = _KINDS.get(failure.reason, "tool")
            return failed(str(failure), retryable=failure.retryable, kind=kind, reason=failure.reason)
        except RequestRefused as error:
            return failed(f"the control plane refused a file of the answer: {error}")
        except Exception as error:  # no server may make the node's own failure, which is tried again, of a call
            log.exception("a call of an MCP server broke", server=call.server, tool=call.tool)
            return failed(f"the node broke off with {type(error).__name__}; its log has the details")

    async def _perform(self, call: McpCall, key: str, attempt: str, fence: int) -> Outcome:
        from dataplane.mcp.results import value_of

        async def listing(conversation: Conversation) -> Any:
            tools, left_out = await conversation.definitions()
            return {"server": call.server, "server_id": call.server_id, "tools": tools, "left_out": left_out}

        if not call.tool:
            return Outcome(value=await self._with_server(call, listing))
        result = await self._with_server(call, lambda conversation: conversation.call(call, key))

        async def keep(name: str, media_type: str, data: bytes) -> ArtifactRef:
            return await insist(lambda: self._control_plane.upload(attempt, fence, name, media_type, data))

        value, artifacts = await value_of(result, keep)
        if call.endpoint is not None and call.endpoint.secrets:
            scrubber = Scrubber(secret.value for secret in call.endpoint.secrets)
            value = await anyio.to_thread.run_sync(scrubber.json, value)
        try:
            encoded_bytes(value)
        except Unsendable as error:
            raise McpFailed("mcp_garbage", f"the answer cannot be sent on: {error}") from None
        return Outcome(value=value, artifacts=artifacts)

    async def _with_server(self, call: McpCall, act: Any) -> Any:
        if call.process is not None and self._processes is not None:
            return await self._processes.perform(call.server_id, call.process, act, call.timeout_seconds)
        if call.endpoint is None:
            raise McpFailed("mcp_unavailable", "the call names neither a process nor an endpoint")
        from dataplane.mcp import remote

        async with self._turns.turn(call.server_id, call.timeout_seconds):
            return await remote.perform(call.endpoint, act, call.timeout_seconds, self._lookup)
