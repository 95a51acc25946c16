"""What code reached, and tried to reach, over its network grant: one event of the journal a flow.

A record is a node's word. It is bounded and shown; nothing is decided by it. That its step may have read from outside
follows from the grant, not from here.
"""

from __future__ import annotations

import re
from typing import Any

import anyio

from controlplane.runs.controller import Controller
from controlplane.runs.journal import JournalFailed
from controlplane.runs.state import StepState
from dataplane.flow_wire import FlowRecord
from dataplane.protocol import Ack

FLOWS_MOST = 1000
"""Events of one attempt; a node's forwarder opens no more flows than that."""
_AMOUNT_MOST = 2**53
_UNSHOWN = re.compile(r"[^\x21-\x7e]")


class FlowRecords:
    """Answers ``/node/v1/flows``."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def record(self, node: str, records: list[FlowRecord]) -> list[Ack]:
        """One ack a record, in order; each is durable when it is acknowledged."""
        acks: list[Ack] = [Ack(ok=False)] * len(records)

        async def one(index: int, record: FlowRecord) -> None:
            acks[index] = await self._record(node, record)

        async with anyio.create_task_group() as group:
            for index, record in enumerate(records):
                group.start_soon(one, index, record)
        return acks

    async def _record(self, node: str, record: FlowRecord) -> Ack:
        if self._controller.is_parked(record.attempt):
            return Ack(ok=False, message="not stored, send it again")
        found = self._controller.current(record.attempt, record.fence)
        if found is None or found[1].node != node:
            return Ack(ok=False, stale=True, message="the fence is not current")
        run, step = found
        if not _is_new(step, record):
            return Ack(ok=True)
        shown = _shown(record)
        try:
            await self._controller.applied(run, lambda machine: machine.event("egress.flow", step, shown))
        except JournalFailed:
            step.flows.discard((record.attempt, record.number))
            return Ack(ok=False, message="not stored, send it again")
        return Ack(ok=True)


def _is_new(step: StepState, record: FlowRecord) -> bool:
    """Whether it is to be stored: once, and no more of an attempt than there can be."""
    key = (record.attempt, record.number)
    if not 0 < record.number <= FLOWS_MOST or key in step.flows:
        return False
    step.flows = {one for one in step.flows if one[0] == record.attempt} | {key}
    return True


def _shown(record: FlowRecord) -> dict[str, Any]:
    return {
        "attempt": record.attempt,
        "number": record.number,
        "host": _text(record.host, 255),
        "port": min(max(record.port, 0), 65535),
        "method": _text(record.method, 16),
        "address": _text(record.address, 64),
        "sent_bytes": _amount(record.sent_bytes),
        "received_bytes": _amount(record.received_bytes),
        "seconds": min(max(record.seconds, 0.0), 1e9) if record.seconds == record.seconds else 0.0,
        "ended": _text(record.ended, 64),
        "decision": _text(record.decision, 64),
    }


def _text(value: str, most: int) -> str:
    return _UNSHOWN.sub("_", value[:most])


def _amount(value: int) -> int:
    return min(max(value, 0), _AMOUNT_MOST)
