"""A node is stopped past its lease: its step goes to another node, and what it says when it wakes is refused.

The guest's process is not the daemon's: while the daemon is stopped, the guest goes on and ends with a result, so that
the daemon, once it may go on, really has a late answer to give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stockade.client import Client
from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.counted_calls import CallService

LEASE_SECONDS = 2.0
CODE = """
import time
import stockade_tools as tools
mine = tools.count.ok(id="code")
print("ran as", mine["nth"], flush=True)
time.sleep(1.5 if mine["nth"] == 1 else 0)
mine["nth"]
"""
STEPS: dict[str, dict[str, Any]] = {
    "code": {"id": "work", "code": {"python": CODE, "tools": ["count.*"]}, "sandbox": {"tier": "wasm"}},
    "tool": {"id": "work", "tool": "count.ok", "args": {"id": "tool"}},
}


@pytest.fixture
def service() -> Iterator[CallService]:
    with CallService() as running:
        yield running


def underway(client: Client, service: CallService, run: str, kind: str) -> bool:
    """The first attempt did what it does before its node is stopped."""
    if kind == "tool":
        return bool(service.calls("tool"))
    return "ran as 1" in client.logs(run, "work")


def only_the_answer_is_left(node: int, kind: str) -> bool:
    """The guest has ended, which the kernel keeps for its stopped parent to find."""
    children = psutil.Process(node).children(recursive=True)
    return kind == "tool" or any(one.status() == psutil.STATUS_ZOMBIE for one in children)


def status_of(client: Client, node: str | None) -> str:
    return next(one.status for one in client.nodes() if one.id == node)


@pytest.mark.parametrize("kind", STEPS)
def test_the_late_report_of_a_node_that_was_stopped_is_refused(
    kind: str, tmp_path: Path, make_cluster: Callable[..., Cluster], service: CallService
) -> None:
    service.hold(lambda id, nth: id == "tool" and nth == 1)
    settings = service.settings(tmp_path / "policy")
    cluster = make_cluster(settings=settings, lease_seconds=LEASE_SECONDS, heartbeat_seconds=0.3)
    cluster.start_control_plane()
    cluster.start_node("node-a")
    cluster.start_node("node-b")
    with cluster.client() as client:
        client.put_tool("count.ok", service.tool())
        run = client.submit({"stockade": "1", "name": "fence", "steps": [STEPS[kind]]}).id
        wait_for(lambda: underway(client, service, run, kind), "the first attempt being underway")
        first = client.step(run, "work")
        names = {node.id: node.name for node in client.nodes()}
        stopped = next(name for name in ("node-a", "node-b") if names[first.node or ""].startswith(f"{name}-"))
        cluster.freeze_node(stopped)
        wait_for(lambda: status_of(client, first.node) == "lost", "the stopped node being declared lost")
        ended = client.wait(run)
        assert (ended.status, ended.error) == ("completed", None)
        second = client.step(run, "work")
        assert (first.number, second.number) == (1, 2)
        assert second.node not in (None, first.node)
        assert second.attempt not in (None, first.attempt)
        assert (second.output if kind == "code" else second.output["nth"]) == 2
        wait_for(lambda: only_the_answer_is_left(cluster.pid(stopped), kind), "the first guest ending")
        before = client.run(run), list(client.events(run))

        cluster.thaw_node(stopped)
        service.release()
        refused = ("report refused: its fence is stale", str(first.attempt))
        wait_for(
            lambda: any(all(word in line for word in refused) for line in cluster.log(stopped).splitlines()),
            f"{stopped} being told that its report is stale",
        )
        wait_for(lambda: status_of(client, first.node) == "ready", "the node being back")
        assert (client.run(run), list(client.events(run))) == before
        assert client.step(run, "work") == second
        own = [event for event in before[1] if event.path == "work"]
        assert [event.type for event in own].count("step.completed") == 1
        assert [event.data["error"]["type"] for event in own if event.type == "step.retrying"] == ["node_lost"]
        performed = service.calls()[kind]
        assert len(performed) == 2
        assert len({one.key for one in performed}) == 1
