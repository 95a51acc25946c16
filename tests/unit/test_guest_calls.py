"""A call that breaks inside the node: the guest learns that it did, the log learns why."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from dataplane.attempts import Attempt
from dataplane.guest_calls import GuestCalls
from dataplane.leases import Lease
from dataplane.protocol import Assignment

pytestmark = pytest.mark.anyio


class Broken:
    async def ask(self, request: Any) -> Any:
        raise RuntimeError("the key is hunter2")


async def test_a_broken_call_is_logged_and_its_cause_is_kept_from_the_guest() -> None:
    assignment = Assignment(attempt="att_1", fence=1, run="run_1", path="a", number=1, wall_seconds=1.0)
    lease, broken = Lease(), Broken()
    lease.configure(10.0, 10.0)
    lease.renew(lease.clock())
    parts: Any = {"gateway": None, "lease": lease, "authorize": broken, "record": broken}
    calls = GuestCalls(Attempt(assignment), superseded=lambda attempt: None, **parts)
    with capture_logs() as logs:
        answer = await calls("mail.send", {})
    assert answer.error is not None
    assert "hunter2" not in answer.error["message"]
    assert [(entry["event"], entry["tool"], entry["log_level"]) for entry in logs] == [
        ("a tool call broke", "mail.send", "error")
    ]
