"""A guest's tool calls: granted? → authorized → performed → recorded → only then the guest sees anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import structlog

from dataplane.attempts import Attempt
from dataplane.client import RequestRefused
from dataplane.http_calls import Outcome, failed
from dataplane.lanes import Lane
from dataplane.leases import Lease
from dataplane.protocol import Ack, AuthorizeAnswer, AuthorizeRequest, CallResult, Performance
from dataplane.sendable import Unsendable, encoded_bytes
from dataplane.tool_gateway import ToolGateway
from sandboxes.execution import ToolAnswer

log = structlog.get_logger("stockade.node")
AT_ONCE = 16
RETRY_SECONDS_MOST = 60.0


class GuestCalls:
    """The tool handler of one attempt. ``superseded`` is called when the control plane says the fence is old."""

    def __init__(
        self,
        attempt: Attempt,
        *,
        gateway: ToolGateway,
        lease: Lease,
        authorize: Lane[AuthorizeRequest, AuthorizeAnswer],
        record: Lane[CallResult, Ack],
        superseded: Callable[[Attempt], None],
    ) -> None:
        self._attempt = attempt
        self._gateway = gateway
        self._lease = lease
        self._authorize = authorize
        self._record = record
        self._superseded = superseded
        self._calls = 0
        self._limit = anyio.Semaphore(AT_ONCE)

    async def __call__(self, tool: str, args: Mapping[str, Any]) -> ToolAnswer:
        try:
            encoded_bytes([tool, args])
        except Unsendable as error:
            return _refused("schema", f"the arguments cannot be sent: {error}")
        async with self._limit:
            self._calls += 1
            try:
                return await self._answer(self._calls, tool, dict(args))
            except RequestRefused as error:
                return _refused("tool", f"the control plane refused the call: {error}")
            except Exception:
                # What went wrong here may hold what the guest must not learn; the log has it.
                log.exception("a tool call broke", attempt=self._attempt.assignment.attempt, tool=tool)
                return _refused("tool", "the node could not make the call; its log says why")

    async def _answer(self, number: int, tool: str, args: dict[str, Any]) -> ToolAnswer:
        assignment = self._attempt.assignment
        request = AuthorizeRequest(
            attempt=assignment.attempt, fence=assignment.fence, call=number, tool=tool, args=args
        )
        while True:
            await self._lease.wait_held()
            answer = await self._authorize.ask(request)
            if answer.stale:
                return self._stale()
            if answer.unavailable:
                await anyio.sleep(min(max(answer.retry_seconds, 0.01), RETRY_SECONDS_MOST))
                continue
            if answer.recorded:
                return ToolAnswer(value=answer.value)
            if not answer.allow or answer.perform is None:
                return ToolAnswer(
                    error=answer.error or {"type": "policy_denied", "message": "refused without a reason"}
                )
            outcome = await self._gateway.perform_once(answer.perform, assignment.attempt, assignment.fence)
            if outcome is not None:
                return await self._recorded(answer.perform, outcome)

    async def _recorded(self, work: Performance, outcome: Outcome) -> ToolAnswer:
        assignment = self._attempt.assignment
        result = CallResult(
            attempt=assignment.attempt,
            fence=assignment.fence,
            key=work.key,
            ok=outcome.error is None,
            value=outcome.value,
            error=outcome.error,
            artifacts=list(outcome.artifacts),
        )
        ack = await self._record.ask(result)
        if ack.stale:
            return self._stale()
        if not ack.ok:
            outcome = failed(f"the result was not recorded: {ack.message}")
        return ToolAnswer(value=outcome.value, error=outcome.error)

    def _stale(self) -> ToolAnswer:
        self._superseded(self._attempt)
        return _refused("cancelled", "this attempt was superseded")


def _refused(kind: str, message: str) -> ToolAnswer:
    return ToolAnswer(error={"type": kind, "message": message, "retryable": False})
