"""A control plane in this process whose models are a scripted server and whose node is a function: for the verbs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from controlplane.config import Settings
from controlplane.engine import Engine, engine
from controlplane.identity import Principal
from controlplane.ids import new_id
from controlplane.inference.values import Models
from controlplane.nodes.inventory import Node
from controlplane.runs import queries, reports
from controlplane.services import open_services
from controlplane.tables import CallRow, DecisionRow, EventRow, PrincipalRow, StepRow
from controlplane.workflows.graph import compile_workflow
from dataplane.protocol import Assignment, Capacity, ImageState, Register, Report

WAIT_SECONDS = 30.0
Perform = Callable[[Assignment], Report]


class Bench:
    """An engine and who uses it."""

    def __init__(self, engine: Engine, principal: Principal) -> None:
        self.engine = engine
        self.principal = principal

    async def submit(self, steps: list[dict[str, Any]], input: Any = None, **more: Any) -> str:
        """Begin a run of these steps; its id."""
        document = {"stockade": "1", "name": "t", "defaults": {"model": "scripted"}, "steps": steps, **more}
        run_id = new_id("run")
        await self.engine.service.submit(self.principal, run_id, compile_workflow(document), document, input, {})
        return run_id

    async def until(self, run_id: str, *events: str) -> list[dict[str, Any]]:
        """The run's events, once the last of them is one of these (or the run has ended)."""
        deadline = time.monotonic() + WAIT_SECONDS
        async with self.engine.controller.hub.subscribe(run_id) as news:
            while True:
                found = await self.events(run_id)
                types = [event["type"] for event in found]
                if any(kind in types for kind in (*events, "run.completed", "run.failed", "run.cancelled")):
                    return found
                assert time.monotonic() < deadline, types
                await news.wait(found[-1]["seq"] if found else 0, 1.0)

    async def ended(self, run_id: str) -> dict[str, Any]:
        """The run, at its end."""
        await self.until(run_id)
        shown = await self.engine.store.read(lambda s: queries.get_run(s, "default", run_id))
        assert shown is not None
        return shown

    async def run(self, steps: list[dict[str, Any]], input: Any = None, **more: Any) -> dict[str, Any]:
        """Submit, and wait for the end."""
        return await self.ended(await self.submit(steps, input, **more))

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """All events so far."""
        return await self.engine.store.read(lambda s: queries.events_after(s, "default", run_id, 0, 10_000))

    async def step(self, run_id: str, path: str) -> dict[str, Any]:
        """A step as the API shows it."""
        shown = await self.engine.store.read(lambda s: queries.get_step(s, "default", run_id, path))
        assert shown is not None, path
        return shown

    async def steps(self, run_id: str) -> list[dict[str, Any]]:
        """Every step, by path."""
        page = await self.engine.store.read(lambda s: queries.list_steps(s, "default", run_id, cursor=None, limit=1000))
        found: list[dict[str, Any]] = page["data"]
        return found

    async def journal_bytes(self, run_id: str) -> int:
        """Characters that all rows of the run have."""

        def count(session: Session) -> int:
            total = 0
            for table in (StepRow, EventRow, DecisionRow, CallRow):
                rows = session.exec(select(table).where(table.run == run_id)).all()  # type: ignore[attr-defined]
                total += sum(len(str(value)) for row in rows for value in row.model_dump().values() if value)
            return total

        return await self.engine.store.read(count)


def done(assignment: Assignment, result: Any = None, **more: Any) -> Report:
    """A report of success; ``more`` makes it something else."""
    return Report(attempt=assignment.attempt, fence=assignment.fence, has_result=True, result=result, **more)


def echo(assignment: Assignment) -> Report:
    """Tools give their arguments, programs the length of their source."""
    if assignment.code is not None:
        return done(assignment, len(assignment.code.source), stdout_tail="printed")
    assert assignment.call is not None and assignment.call.builtin is not None
    return done(assignment, assignment.call.builtin.args, reason="tool")


async def _node(running: Engine, perform: Perform) -> None:
    """A node of which only the wire is missing."""
    declared = Register(
        identity="bench", boot_id="b", proof="p", version=1, features=["freeze", "tool_gateway"],
        capacity=Capacity(cpu_milli=8000, memory_bytes=8 << 30, slots=8), tiers={"wasm": "user"},
        images=[ImageState(tier="wasm", image="python", ready=True)],
    )  # fmt: skip
    node = Node(
        id="node_bench", tenant="default", declared=declared, token_hash="", proof_hash="",
        last_seen=time.monotonic() + 3600, seen_ns=time.time_ns(),
    )  # fmt: skip
    running.inventory.add(node)
    running.inventory.changed.set()
    while True:
        await node.wake.wait()
        node.wake.clear()
        for assignment in node.take(100):
            report = perform(assignment)
            reports.take(running.controller, running.dispatcher.tools, node.id, report, lambda _ack: None)


@asynccontextmanager
async def bench(folder: Path, models: Models, perform: Perform = echo) -> AsyncIterator[Bench]:
    """Open the state below ``folder`` (again), and run what is in it."""
    settings = Settings(state_dir=folder / "state")
    async with (
        open_services(settings) as services,
        engine(
            settings, services.store, services.journal, services.identities, services.tools, services.broker, models
        ) as running,
    ):
        row = await services.store.read(lambda s: s.exec(select(PrincipalRow)).first())
        assert row is not None
        scopes = frozenset({"run", "read", "approve", "admin"})
        node = asyncio.create_task(_node(running, perform))
        try:
            yield Bench(running, Principal(tenant="default", id=row.id, kind="person", name="ann", scopes=scopes))
        finally:
            node.cancel()
            await asyncio.wait([node])
