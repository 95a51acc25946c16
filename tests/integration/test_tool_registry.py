"""The tools that a restart reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from controlplane.runs.journal import Journal
from controlplane.store import Store, canonical, upsert
from controlplane.tables import ToolRow
from controlplane.tools.registry import ToolRegistry

GOOD: dict[str, Any] = {
    "kind": "http",
    "description": "d",
    "effect": "none",
    "input": {"type": "object", "properties": {}},
    "http": {"method": "GET", "url": "https://tools.example/x"},
}


@pytest.mark.anyio
async def test_a_stored_tool_that_is_refused_now_is_left_out_and_the_others_are_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "tools.db")
    store.migrate()
    journal = Journal(store)
    journal.start()
    for name, schema in (("shop.good", GOOD["input"]), ("shop.bad", {"type": "objct"})):
        spec = canonical({**GOOD, "input": schema})
        row = {"tenant": "t", "name": name, "digest": "sha256:0", "spec": spec, "created_ns": 1}
        await journal.write([upsert(ToolRow, row)])
    tools = ToolRegistry(store, journal)
    with capture_logs() as said:
        await tools.load()
    assert tools.get("t", "shop.good") is not None and tools.get("t", "shop.bad") is None
    assert [(one["tool"], bool(one["why"])) for one in said if one["log_level"] == "error"] == [("shop.bad", True)]
    await journal.close()
    store.close()
