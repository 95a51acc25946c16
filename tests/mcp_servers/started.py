"""The servers of ``server.py``, started by a node's own parts. As a program it says how much memory misbehaviour costs.

python -m tests.mcp_servers.started FOLDER     # {"before": bytes, "after": bytes}: the peak of this process
"""

from __future__ import annotations

import json
import resource
import sys
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from dataplane.data_roots import DataRoots
from dataplane.mcp.conversation import Conversation
from dataplane.mcp.failures import McpFailed
from dataplane.mcp.processes import StdioServers
from dataplane.protocol import McpCall, McpProcess
from sandboxes.driver import Driver
from sandboxes.jail.driver import JailDriver
from sandboxes.spec import MIB, Strength

SERVERS = Path(__file__).parent
PACKAGES = Path(sysconfig.get_paths()["purelib"])
FLOODS = ("flood", "storm", "answers", "ask", "large", "values", "deep", "flood_stderr")


def process(mode: str, tier: str = "jail") -> McpProcess:
    """A server of that mode; ``FOLDER/state`` is what it reads."""
    return McpProcess(
        tier=tier,
        image="python",
        command=["python3", "/inputs/servers/server.py", mode],
        env={"PYTHONPATH": "/inputs/packages"},
        mounts={"servers": "servers", "packages": "packages", "state": "state"},
        memory_bytes=384 * MIB,
    )


@asynccontextmanager
async def servers(folder: Path, driver: Driver | None = None, **options: Any) -> AsyncIterator[StdioServers]:
    """A node's servers; afterwards nothing of them is left."""
    driver = driver or JailDriver(folder / "jails", Strength.USER)
    roots = DataRoots({"servers": SERVERS, "packages": PACKAGES, "state": folder / "state"})
    made = StdioServers({driver.tier: driver}, roots, **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.serve)
        await anyio.wait_all_tasks_blocked()
        yield made
        tasks.cancel_scope.cancel()
    await driver.close()
    assert await driver.reap(keep=()) == (), "every sandbox is gone"


async def definitions(conversation: Conversation) -> list[dict[str, Any]]:
    """What the server offers."""
    return (await conversation.definitions())[0]


async def reviewed(made: StdioServers, mode: str, tool: str, tier: str = "jail") -> Callable[..., McpCall]:
    """Makes calls of a tool as it is now."""
    offered = await made.perform(mode, process(mode, tier), definitions, 30)
    definition = next(one for one in offered if one["name"] == tool)

    def call(**args: Any) -> McpCall:
        return McpCall(
            server="s", server_id=mode, process=process(mode, tier), tool=tool, args=args, reviewed=definition,
            timeout_seconds=20,
        )  # fmt: skip

    return call


def calling(call: McpCall) -> Callable[[Conversation], Awaitable[Any]]:
    """For ``perform``."""
    return lambda conversation: conversation.call(call, "key")


async def _measure(folder: Path) -> dict[str, int]:
    async with servers(folder) as made:
        add = await reviewed(made, "well", "add")
        await made.perform("well", process("well"), calling(add(a=1, b=1)), 30)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for mode in FLOODS:
            go = await reviewed(made, mode, "go")
            try:
                await made.perform(mode, process(mode), calling(go()), 3)
            except McpFailed:
                continue
            raise AssertionError(f"{mode} was not refused")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"before": before * 1024, "after": after * 1024}


if __name__ == "__main__":
    print(json.dumps(anyio.run(partial(_measure, Path(sys.argv[1])))))
