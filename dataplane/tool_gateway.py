"""Performs what the control plane authorized: HTTP calls and the builtins, under the node's lease."""

from __future__ import annotations

from typing import Any

import msgspec

from dataplane.backoff import insist
from dataplane.client import ControlPlane, RequestRefused
from dataplane.http_calls import HttpCalls, Outcome, failed
from dataplane.leases import Lease
from dataplane.protocol import BuiltinCall, Performance
from dataplane.sendable import encoded_bytes

READ_BYTES_MOST = 4 * 1024 * 1024


class ToolGateway:
    """One for the node. ``perform`` waits for a held lease and is stopped and begun again if the lease lapses."""

    def __init__(self, control_plane: ControlPlane, http: HttpCalls, lease: Lease) -> None:
        self._control_plane = control_plane
        self._http = http
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
        if work.builtin is None:
            return failed("nothing to perform: neither http nor builtin is set")
        try:
            return await self._builtin(work.builtin, attempt, fence)
        except RequestRefused as error:
            return failed(f"the control plane refused: {error}")

    async def _builtin(self, call: BuiltinCall, attempt: str, fence: int) -> Outcome:
        match call.name:
            case "noop":
                return Outcome(value=call.args.get("value"))
            case "artifact.write":
                return await self._write(call.args, attempt, fence)
            case "artifact.read":
                return await self._read(call.args, attempt, fence)
            case _:
                return failed(f"this node has no builtin {call.name!r}: update the node")

    async def _write(self, args: dict[str, Any], attempt: str, fence: int) -> Outcome:
        name, content = args.get("name"), args.get("data")
        if not isinstance(name, str) or not name:
            return failed("artifact.write needs 'name', a text", kind="schema")
        if isinstance(content, str):
            data, media_type = content.encode(), "text/plain"
        else:
            data, media_type = msgspec.json.encode(content), "application/json"
        asked = args.get("media_type")
        kind = asked if isinstance(asked, str) else media_type
        reference = await insist(lambda: self._control_plane.upload(attempt, fence, name, kind, data))
        value = {"artifact": reference.id, "digest": reference.digest, "size_bytes": reference.size_bytes}
        return Outcome(value=value, artifacts=(reference,))

    async def _read(self, args: dict[str, Any], attempt: str, fence: int) -> Outcome:
        artifact = args.get("artifact")
        if not isinstance(artifact, str) or not artifact or "/" in artifact:
            return failed("artifact.read needs 'artifact', the id of one", kind="schema")

        async def read() -> bytes | None:
            data = bytearray()
            async for chunk in self._control_plane.download(artifact, attempt, fence):
                data += chunk
                if len(data) > READ_BYTES_MOST:
                    return None
            return bytes(data)

        found = await insist(read)
        if found is None:
            return failed(f"the artifact is above {READ_BYTES_MOST} bytes: mount it as an input of a code step instead")
        try:
            value = msgspec.json.decode(found)
            encoded_bytes(value)
            return Outcome(value=value)
        except (ValueError, RecursionError):
            return Outcome(value=found.decode(errors="replace"))
