"""The node wire of a whole control plane in this process, spoken to as a node would: one that loses answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from controlplane.app import create_app
from controlplane.config import Settings
from controlplane.engine import Engine

pytestmark = pytest.mark.anyio
CAPACITY = {"cpu_milli": 4000, "memory_bytes": 1 << 30, "slots": 4}
WORKFLOW = {"stockade": "1", "name": "one", "steps": [{"id": "a", "tool": "builtin.noop"}]}


class Plane:
    """A control plane and the ways to it."""

    def __init__(self, client: httpx2.AsyncClient, engine: Engine, settings: Settings) -> None:
        self.client = client
        self.engine = engine
        self.admin = {"X-API-Key": settings.admin_key.read_text().strip()}
        self.join_token = (settings.root / "join.token").read_text().strip()

    async def register(self, boot: str = "boot_1", name: str = "n1") -> str:
        """The bearer."""
        answer = await self.try_register(boot, name)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    async def try_register(self, boot: str = "boot_1", name: str = "n1", **more: Any) -> httpx2.Response:
        body = {
            "identity": name,
            "boot_id": boot,
            "proof": "p" * 64,
            "version": 1,
            "features": ["freeze", "tool_gateway"],
            "capacity": CAPACITY,
            "tiers": {},
            **more,
        }
        return await self.call("register", self.join_token, body)

    async def call(self, what: str, token: str, body: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return await self.client.post(f"/node/v1/{what}", headers=headers, content=json.dumps(body))

    async def pull(self, token: str, boot: str = "boot_1", **more: Any) -> httpx2.Response:
        return await self.call("pull", token, {"node": "", "boot_id": boot, "max": 8, **more})

    async def heartbeat(self, token: str, *attempts: tuple[str, int], boot: str = "boot_1") -> list[dict[str, Any]]:
        """The directives."""
        beat = {"free": CAPACITY, "attempts": attempts}
        answer = await self.pull(token, boot, lane="report", heartbeat=beat)
        assert answer.status_code == 200, answer.text
        return list(answer.json().get("directives", []))

    async def assigned(self, token: str, boot: str = "boot_1") -> tuple[str, int]:
        """Attempt and fence of the next assignment."""
        with anyio.fail_after(10):
            while not (found := (await self.pull(token, boot, wait_seconds=5)).json().get("assignments")):
                pass
        return found[0]["attempt"], found[0]["fence"]

    async def submit(self) -> str:
        answer = await self.client.post("/v1/runs", headers=self.admin, json={"workflow": WORKFLOW})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    async def node(self, name: str = "n1") -> dict[str, Any] | None:
        nodes = (await self.client.get("/v1/nodes", headers=self.admin)).json()["data"]
        return next((one for one in nodes if one["name"] == name), None)

    async def remove(self, name: str = "n1") -> httpx2.Response:
        return await self.client.delete(f"/v1/nodes/{name}", headers=self.admin)


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Plane]:
    settings = Settings(state_dir=folder / "state")
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://plane") as client,
    ):
        yield Plane(client, app.state.services.engine, settings)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with started(tmp_path) as running:
        yield running


async def test_a_cancellation_whose_answer_was_lost_is_said_again(plane: Plane) -> None:
    token = await plane.register()
    run = await plane.submit()
    attempt, fence = await plane.assigned(token)
    await plane.client.post(f"/v1/runs/{run}:cancel", headers=plane.admin, json={"reason": "enough"})
    for _ in range(3):  # the node hears none of the first two answers
        (directive,) = await plane.heartbeat(token, (attempt, fence))
        assert (directive["kind"], directive["attempt"], directive["fence"]) == ("cancel", attempt, fence)
        assert directive["reason"] == "enough"
    ended = await plane.pull(
        token, lane="report", reports=[{"attempt": attempt, "fence": fence, "reason": "cancelled"}]
    )
    assert ended.json()["acks"] == [{"ok": True}]
    assert await plane.heartbeat(token, (attempt, fence)) == [
        {"kind": "cancel", "attempt": attempt, "fence": fence, "reason": "the fence is not current"}
    ]


async def test_a_cancellation_waits_for_a_node_that_registers_again(plane: Plane) -> None:
    token = await plane.register()
    run = await plane.submit()
    attempt, _fence = await plane.assigned(token)
    await plane.client.post(f"/v1/runs/{run}:cancel", headers=plane.admin)
    again = await plane.register()
    (directive,) = (await plane.pull(again)).json()["directives"]
    assert (directive["kind"], directive["attempt"]) == ("cancel", attempt)


async def test_a_parked_poll_ends_when_its_node_registers_again(plane: Plane) -> None:
    token = await plane.register()
    answers: list[int] = []

    async def park() -> None:
        answers.append((await plane.pull(token, wait_seconds=20)).status_code)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(park)
            await anyio.wait_all_tasks_blocked()
            await plane.register()
    assert answers == [401]


async def test_a_lost_nodes_late_report_is_refused_by_its_fence(plane: Plane) -> None:
    token = await plane.register()
    await plane.submit()
    attempt, fence = await plane.assigned(token)
    node = await plane.node()
    assert node is not None
    plane.engine.controller.node_gone(node["id"], "node_lost", "its lease is over")
    later, raised = await plane.assigned(token)
    assert (later != attempt, raised) == (True, fence + 1)
    late = [{"attempt": attempt, "fence": fence, "reason": "tool", "has_result": True, "result": {}}]
    (ack,) = (await plane.pull(token, lane="report", reports=late)).json()["acks"]
    assert (ack["ok"], ack["stale"]) == (False, True)
    assert plane.engine.controller.current(later, raised) is not None


async def test_a_node_that_is_dead_at_a_restart_is_not_shown_ready(tmp_path: Path) -> None:
    async with started(tmp_path) as plane:
        token = await plane.register()
        assert (await plane.node() or {})["status"] == "ready"
    async with started(tmp_path) as plane:
        assert (await plane.node() or {})["status"] == "lost"
        await plane.heartbeat(token)
        assert (await plane.node() or {})["status"] == "ready"


async def test_an_idle_node_can_be_removed_and_its_bearer_ends(tmp_path: Path) -> None:
    async with started(tmp_path) as plane:
        token = await plane.register()
        reader = await plane.client.post(
            "/v1/keys", headers=plane.admin, json={"name": "r", "kind": "service", "scopes": ["read"]}
        )
        refused = await plane.client.delete("/v1/nodes/n1", headers={"X-API-Key": reader.json()["key"]})
        assert refused.status_code == 403
        assert (await plane.remove()).status_code == 204
        assert await plane.node() is None
        assert (await plane.pull(token)).status_code == 401
        assert (await plane.remove()).status_code == 404
    async with started(tmp_path) as plane:
        assert await plane.node() is None


async def test_a_node_with_attempts_is_removed_only_when_it_is_lost(plane: Plane) -> None:
    token = await plane.register()
    await plane.submit()
    attempt, fence = await plane.assigned(token)
    refused = await plane.remove()
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/conflict")
    assert plane.engine.controller.current(attempt, fence) is not None
    node = plane.engine.inventory.by_name("default", "n1")
    assert node is not None
    node.lost = True
    assert (await plane.remove()).status_code == 204
    assert plane.engine.controller.current(attempt, fence) is None
    _again, raised = await plane.assigned(await plane.register(name="n2"))
    assert raised == fence + 1


async def test_registrations_of_one_name_at_the_same_time_are_one_node(plane: Plane) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(plane.register)
    assert len((await plane.client.get("/v1/nodes", headers=plane.admin)).json()["data"]) == 1


async def test_output_with_a_gap_is_told_where_to_go_on(plane: Plane) -> None:
    token = await plane.register()
    await plane.submit()
    attempt, fence = await plane.assigned(token)
    at = {"attempt": attempt, "fence": fence, "stream": "stdout"}
    chunks = [{**at, "offset": 0, "data": "YWI="}, {**at, "offset": 5, "data": "YWI="}, {**at, "offset": -1}]
    stored, gap, wrong = (await plane.call("output", token, chunks)).json()
    assert (stored, gap["ok"], gap["stored_bytes"], wrong["ok"]) == ({"ok": True}, False, 2, False)


async def test_a_name_is_its_first_nodes_until_it_is_removed(tmp_path: Path) -> None:
    async with started(tmp_path) as one:
        token = await one.register()
        taken = await one.try_register(boot="boot_2", proof="x" * 64)
        assert (taken.status_code, (await one.pull(token)).status_code) == (409, 200)
        assert "stockade node rm n1" in taken.json()["detail"]
        assert (await one.remove()).status_code == 204
        assert (await one.try_register(boot="boot_2", proof="x" * 64)).status_code == 200


@pytest.mark.parametrize("amount", [-5, 2**63 - 1])
async def test_amounts_that_no_machine_has_are_refused(tmp_path: Path, amount: int) -> None:
    async with started(tmp_path) as one:
        answer = await one.try_register(capacity={**CAPACITY, "slots": amount})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/capacity/slots")


async def test_a_body_is_not_read_before_the_token(tmp_path: Path) -> None:
    deep = "[" * 5_000 + "]" * 5_000
    async with started(tmp_path) as one:
        url, join = "/node/v1/register", {"Authorization": f"Bearer {one.join_token}"}
        stranger = await one.client.post(url, headers={"Authorization": "Bearer x"}, content=deep)
        friend = await one.client.post(url, headers=join, content='{"x":' + deep + "}")
        large = await one.client.post(url, headers=join, content=b" " * (300 * 1024))
        assert [answer.status_code for answer in (stranger, friend, large)] == [401, 422, 413]


async def test_data_roots_told_by_heartbeat_are_there_after_a_restart(tmp_path: Path) -> None:
    root = {"name": "logs", "size_bytes": 1, "digest": "sha256:0", "files": 1}
    async with started(tmp_path) as one:
        token = await one.register()
        beat = {"free": CAPACITY, "data": [root]}
        assert (await one.pull(token, lane="report", heartbeat=beat)).status_code == 200
    async with started(tmp_path) as again:
        node = await again.node()
        assert node is not None
        assert [data["name"] for data in node["data"]] == ["logs"]
