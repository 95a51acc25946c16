"""Performs what the control plane authorized: HTTP calls, MCP calls and the builtins, under the node's lease."""

from __future__ import annotations

from typing import Any

from dataplane.backoff import insist
from dataplane.client import ControlPlane, RequestRefused
from dataplane.http_calls import HttpCalls, Outcome, failed
from dataplane.leases import Lease
from dataplane.mcp.calls import McpCalls
from dataplane.protocol import BuiltinCall, Performance

READ_BYTES_MOST = 1024 * 1024
READ_BYTES_DEFAULT = 64 * 1024


class ToolGateway:
    """One for the node. ``perform`` waits for a held lease and is stopped and begun again if the lease lapses."""

    def __init__(self, control_plane: ControlPlane, http: HttpCalls, mcp: McpCalls, lease: Lease) -> None:
        self._control_plane = control_plane
        self._http = http
        self._mcp = mcp
        self._lease = lease

    async def perform(self, work: Performance, attempt: str, fence: int) -> Outcome:
        """The outcome of an authorized call; repeating it after a lapse sends the same idempotency key."""
        while True:
            outcome = await self.perform_once(work, attempt, fence)
            if outcome is not None:
                return outcome

    async def perform_once(self, work: Performance, attempt: str, fence: int) -> Outcome | None:
        """The same, but ``None`` if the lease lapsed meanwhile: the outcome is unknown."""
        await self._lease.wait_held()
        with self._lease.guard() as scope:
            outcome = await self._act(work, attempt, fence)
        if scope.cancelled_caught or not self._lease.held():
            return None
        return outcome

    async def _act(self, work: Performance, attempt: str, fence: int) -> Outcome:
        if work.http is not None:
            return await self._http.perform(work.http, work.key)
        if work.mcp is not None:
            return await self._mcp.perform(work.mcp, work.key, attempt, fence)
        if work.builtin is None:
            return failed("nothing to perform: neither http nor mcp nor builtin is set")
        try:
            return await self._builtin(work.builtin, attempt, fence)
        except RequestRefused as error:
            return failed(f"the control plane refused: {error}")

    async def _builtin(self, call: BuiltinCall, attempt: str, fence: int) -> Outcome:
        match call.name:
            case "noop":
                return Outcome(value=call.args)
            case "artifact.write":
                return await self._write(call.args, attempt, fence)
            case "artifact.read":
                return await self._read(call.args, attempt, fence)
            case _:
                return failed(f"this node has no builtin {call.name!r}: update the node")

    async def _write(self, args: dict[str, Any], attempt: str, fence: int) -> Outcome:
        name, text, media_type = args.get("name"), args.get("text"), args.get("media_type", "text/plain")
        if not isinstance(name, str) or not isinstance(text, str) or not isinstance(media_type, str):
            return failed("artifact.write needs 'name' and 'text'", kind="schema")
        reference = await insist(lambda: self._control_plane.upload(attempt, fence, name, media_type, text.encode()))
        value = {"id": reference.id, "digest": reference.digest, "size_bytes": reference.size_bytes}
        return Outcome(value=value, artifacts=(reference,))

    async def _read(self, args: dict[str, Any], attempt: str, fence: int) -> Outcome:
        artifact = str(args.get("artifact", "")).removeprefix("artifact://")
        most = args.get("max_bytes", READ_BYTES_DEFAULT)
        if not artifact or "/" in artifact or not isinstance(most, int) or not 0 < most <= READ_BYTES_MOST:
            return failed("artifact.read needs 'artifact', the id of one", kind="schema")

        async def read() -> tuple[bytes, bool]:
            data = bytearray()
            async for chunk in self._control_plane.download(artifact, attempt, fence):
                data += chunk
                if len(data) > most:
                    return bytes(data[:most]), True
            return bytes(data), False

        found, truncated = await insist(read)
        return Outcome(value={"text": found.decode(errors="replace"), "truncated": truncated})
