"""An engine that completes every run as it is submitted, for tests of the endpoints alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from controlplane.identity import Principal
from controlplane.runs.journal import Journal
from controlplane.store import canonical, upsert
from controlplane.tables import EventRow, RunDefinitionRow, RunRow, StepRow, partition_of
from controlplane.workflows.compiled import CompiledWorkflow


class QuietHub:
    """Never has news: what a stream shows comes from the journal."""

    closing = False

    @asynccontextmanager
    async def subscribe(self, run_id: str) -> AsyncIterator[QuietHub]:
        yield self

    def since(self, after_seq: int) -> None:
        return None

    async def wait(self, after_seq: int, timeout: float) -> None:  # noqa: ASYNC109 - the port is so
        raise AssertionError("the stream should have ended")

    def live(self, run_id: str) -> Mapping[str, Mapping[str, Any]]:
        return {}


class RecordingRuns:
    """A run is completed as soon as it is submitted."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.hub = QuietHub()
        self.decided: list[tuple[str, bool, str]] = []

    async def submit(
        self,
        principal: Principal,
        run: str,
        compiled: CompiledWorkflow,
        definition: dict[str, Any],
        input: Any,
        labels: Any,
    ) -> None:
        key = {"tenant": principal.tenant, "partition": partition_of(run)}
        head = RunRow(
            **key, id=run, seq=3, status="completed", workflow_name=compiled.definition.name,
            workflow_version=compiled.definition.version, workflow_digest=compiled.digest, principal=principal.id,
            labels=canonical(labels), created_ns=1_000, updated_ns=2_000, finished_ns=2_000,
        )  # fmt: skip
        kept = RunDefinitionRow(**key, run=run, definition=canonical(definition), input=canonical(input))
        step = StepRow(**key, run=run, path="a", verb="set", status="completed", attempt="att_1", output='{"x":1}')
        child = StepRow(**key, run=run, path="m[0]/b#1", verb="approve", status="waiting")
        events = [
            EventRow(**key, run=run, seq=seq, type=kind, at_ns=seq)
            for seq, kind in ((1, "run.created"), (2, "step.completed"), (3, "run.completed"))
        ]
        await self._journal.write([upsert(type(row), row.model_dump()) for row in (head, kept, step, child, *events)])

    async def validate(self, principal: Principal, document: dict[str, Any], input: Any) -> dict[str, Any]:
        return {"valid": True, "problems": [], "name": document["name"]}

    async def cancel(self, principal: Principal, run_id: str, reason: str) -> None:
        return None

    async def decide_approval(self, principal: Principal, run_id: str, path: str, approve: bool, comment: str) -> None:
        self.decided.append((path, approve, comment))
