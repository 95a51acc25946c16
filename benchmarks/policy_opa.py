"""The same questions to a real OPA server: alone, in batches, and at 500 a second with each decision stored.

stored_at_500_per_second   from when a question was due until its decision is durable in the journal (SQLite, fsync)
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.report import summary
from controlplane.authorization.bundle import Bundle
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.engine import PolicyEngine
from controlplane.authorization.opa.address import OpaAddress
from controlplane.authorization.opa.archive import archive
from controlplane.authorization.opa.engine import OpaEngine
from controlplane.authorization.values import PolicyUnavailable, Question
from controlplane.runs.journal import Journal
from controlplane.store import Store, insert
from controlplane.tables import DecisionRow
from stockade.cli import opa_child, places

PER_SECOND = 500
_TOKEN = "0123456789abcdef" * 2
_READY_SECONDS = 30.0
_Measure = Callable[[Enforcer, float], Awaitable[Any]]


async def measure(
    bundle: Bundle, seconds: float, asked: Callable[[int], Question], parts: dict[str, _Measure]
) -> dict[str, Any]:
    """``parts`` with an OPA server deciding, and the stored ones; or why there is none."""
    program = places.component("opa")
    if program is None:
        return {"absent": "no opa program (make components-opa)"}
    with tempfile.TemporaryDirectory() as folder:
        async with _served(bundle, program, Path(folder)) as engine:
            enforcer = Enforcer(engine, {})
            found = {name: await part(enforcer, seconds) for name, part in parts.items()}
            found["stored_at_500_per_second"] = await _stored(enforcer, Path(folder), seconds, asked)
            return {"version": opa_child.version(program), **found}


@asynccontextmanager
async def _served(bundle: Bundle, program: Path, folder: Path) -> AsyncIterator[PolicyEngine]:
    """It takes its bundle from a file here, all else is as ``stockade up`` starts it."""
    packed, config, listens = folder / "bundle.tar.gz", folder / "config.json", folder / "opa.sock"
    packed.write_bytes(archive(bundle))
    config.write_text(json.dumps({"bundles": {"stockade": {"resource": f"file://{packed}"}}}))
    command = opa_child.command(program, listens)
    command[command.index("--config-file") + 1] = str(config)
    server = await asyncio.create_subprocess_exec(
        *command, env=opa_child.environment("", _TOKEN), stderr=asyncio.subprocess.DEVNULL
    )
    engine = OpaEngine(bundle, OpaAddress.parse(f"unix://{listens}"), _TOKEN)
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not engine.is_ready:
                with suppress(PolicyUnavailable):
                    await engine.start()
                await asyncio.sleep(0.01)
        yield engine
    finally:
        await engine.close()
        server.kill()
        await server.wait()


async def _stored(
    enforcer: Enforcer, folder: Path, seconds: float, asked: Callable[[int], Question]
) -> dict[str, float]:
    store = Store(folder / "log.db")
    store.migrate()
    journal = Journal(store)
    journal.start()
    taken: list[float] = []
    refused = 0

    async def one(index: int, due: float) -> None:
        nonlocal refused
        (answer,) = await enforcer.ask_many([asked(index)])
        if isinstance(answer, PolicyUnavailable):
            refused += 1
            return
        place = {"tenant": "default", "partition": 0, "v": 1, "run": None, "path": "", "at_ns": time.time_ns()}
        await journal.write([insert(DecisionRow, place | answer.log_row())])
        taken.append(time.perf_counter() - due)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for index in range(int(seconds * PER_SECOND)):
            due = begun + index / PER_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(index, due))
    await journal.close()
    store.close()
    return {"refused": refused, **summary(taken)}
