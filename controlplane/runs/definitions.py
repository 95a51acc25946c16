"""From what a request names to a compiled workflow; published ones are found by ``name@version``."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import anyio.to_thread

from controlplane.errors import not_found
from controlplane.store import Store
from controlplane.tables import WorkflowRow
from controlplane.workflows.canonical import digest
from controlplane.workflows.compiled import CompiledWorkflow
from controlplane.workflows.graph import compile_workflow

_KEPT = 64


class Definitions:
    """Compiles off the event loop, and keeps the latest: agents submit one definition many times."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._compiled: OrderedDict[str, CompiledWorkflow] = OrderedDict()

    async def document(self, tenant: str, workflow: dict[str, Any] | str) -> dict[str, Any]:
        """The definition itself. Raises: ApiError not-found for a name that is not published."""
        if isinstance(workflow, dict):
            return workflow
        name, _, version = workflow.partition("@")
        row = await self._store.read(lambda session: session.get(WorkflowRow, (tenant, name, version)))
        if row is None:
            raise not_found("workflow", workflow, "Name it as name@version; GET /v1/workflows lists them.")
        loaded: dict[str, Any] = json.loads(row.definition)
        return loaded

    async def compile(self, document: dict[str, Any]) -> CompiledWorkflow:
        """The compiled form. Raises: WorkflowInvalid."""
        key = digest(document)
        known = self._compiled.get(key)
        if known is None:
            known = await anyio.to_thread.run_sync(compile_workflow, document)
            self._compiled[key] = known
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return known
