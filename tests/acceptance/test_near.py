"""Work goes to its data unless the wait there costs more than moving it: two real nodes, both with room for one step.

What moving a gigabyte costs is set, what waiting costs is measured from earlier runs; explanations show both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.cli.main import main
from stockade.client import Client, Step
from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.counted_calls import CallService

GB = 1_000_000_000
BYTES_PER_SECOND = 250_000_000
MOVE_SECONDS = GB / BYTES_PER_SECOND
SHORT, LONG = 1.5, 12.0
"""How long the two kinds of other work take: less, and more, than moving."""


def step(id: str, python: str = "1", **more: Any) -> dict[str, Any]:
    return {"id": id, "code": {"python": python}, "sandbox": {"tier": "wasm"}, **more}


def workflow(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"stockade": "1", "name": name, "steps": list(steps)}


def busy(name: str, seconds: float) -> dict[str, Any]:
    """Work that has to be on node-a, and tells the service when it has begun and is about to end."""
    python = f"import time\nimport stockade_tools as tools\ntools.count.ok(id='{name}')\ntime.sleep({seconds})"
    code = {"python": f"{python}\ntools.count.ok(id='{name}-end')", "tools": ["count.*"]}
    return workflow(name, step("work", resources={"labels": {"place": "a"}, "cpu": 0.1}) | {"code": code})


NEAR = workflow("near", step("work", near="data://big", resources={"cpu": 0.1}))


@pytest.fixture
def service() -> Iterator[CallService]:
    with CallService() as running:
        running.hold(lambda id, nth: id == "short-end" and nth == 2)
        yield running


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster], tmp_path: Path, service: CallService) -> Cluster:
    """node-a exports a gigabyte (of a file with nothing in it); node-b does not."""
    cluster = make_cluster(
        settings=service.settings(tmp_path / "policy") | {"STOCKADE_NODE_BYTES_PER_SECOND": str(BYTES_PER_SECOND)},
        heartbeat_seconds=0.3,
        lease_seconds=15.0,
    )
    root = tmp_path / "big"
    root.mkdir()
    with (root / "data.bin").open("wb") as file:
        file.truncate(GB)
    cluster.start_control_plane()
    cluster.start_node("node-a", data={"big": root}, arguments=["--slots", "1", "--label", "place=a"])
    cluster.start_node("node-b", arguments=["--slots", "1", "--label", "place=b"])
    with cluster.client() as client:
        client.put_tool("count.ok", service.tool())
        wait_for(lambda: any(root.size_bytes == GB for node in client.nodes() for root in node.data), "the data")
    return cluster


def ids(client: Client) -> dict[str, str]:
    return {node.labels["place"]: node.id for node in client.nodes()}


def finished(client: Client, run: str) -> Step:
    """The work of a run, at its end."""
    assert client.wait(run).status == "completed"
    return client.step(run, "work")


def run(client: Client, document: dict[str, Any]) -> Step:
    return finished(client, client.submit(document).id)


def occupied(client: Client, service: CallService, name: str, seconds: float) -> str:
    """A run whose work has just begun on node-a."""
    before = len(service.calls()[name])
    started = client.submit(busy(name, seconds)).id
    wait_for(lambda: len(service.calls()[name]) > before, "the other work running")
    return started


def costs(shown: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Node -> its terms."""
    return {one["node"]: one["terms"] for one in shown}


def test_a_step_near_a_gigabyte_goes_there_unless_the_wait_costs_more_than_moving_it(
    cluster: Cluster, service: CallService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STOCKADE_URL", cluster.url)
    monkeypatch.setenv("STOCKADE_API_KEY", cluster.api_key)
    with cluster.client() as client:
        at = ids(client)
        # Both free: to the data.
        placed = run(client, NEAR)
        assert placed.node == at["a"]
        terms = costs((placed.placement or {})["top"])
        assert terms[at["a"]]["near"] == 0.0
        assert terms[at["b"]]["near"] == pytest.approx(MOVE_SECONDS)

        # How long the other work takes is learnt by running it.
        for name, seconds in (("short", SHORT), ("long", LONG)):
            assert run(client, busy(name, seconds)).node == at["a"]

        # A short wait: it waits, says so with numbers, and goes to the data.
        other = occupied(client, service, "short", SHORT)
        waiting = client.submit(NEAR).id
        wait_for(lambda: client.step(waiting, "work").status == "waiting", "the step waiting for the better node")
        shown = client.step(waiting, "work")
        (reason,) = shown.waiting or ()
        assert reason.code == "waiting_for_better_node"
        assert "node node-a-" in reason.message and f"costs {MOVE_SECONDS:.1f} s" in reason.message
        assert costs((shown.placement or {})["busy"])[at["a"]]["wait"] < MOVE_SECONDS
        service.release()
        assert finished(client, waiting).node == at["a"]
        assert client.wait(other).status == "completed"

        # A long wait: it goes to the free node, and shows what waiting would have cost.
        other = occupied(client, service, "long", LONG)
        moved = client.submit(NEAR).id
        placed = finished(client, moved)
        assert placed.node == at["b"]
        assert client.run(other).status == "running"
        explained = placed.placement or {}
        assert costs(explained["top"])[at["b"]]["near"] == pytest.approx(MOVE_SECONDS)
        assert costs(explained["busy"])[at["a"]]["wait"] > MOVE_SECONDS
        capsys.readouterr()
        main(["explain", moved, "work"])
        text = capsys.readouterr().out
        assert "left out: 1 by slots" in text
        assert f"near {MOVE_SECONDS:.3f}" in text
        assert "is full: would cost" in text and "(wait " in text
        client.cancel(other)


def test_an_artifact_is_used_where_it_is_and_fetched_once_where_that_is_full(
    cluster: Cluster, service: CallService
) -> None:
    make = "open('/outputs/model.bin', 'wb').write(bytes(64 << 20))"
    with cluster.client() as client:
        at = ids(client)
        made = run(client, workflow("make", step("work", make, resources={"labels": {"place": "a"}, "cpu": 0.1})))
        assert made.report is not None
        (artifact,) = made.report.artifacts
        size = 64 << 20
        assert artifact.size_bytes == size

        inputs = {"model": f"artifact://{artifact.id}"}
        read = "import os\nos.path.getsize('/inputs/model')"
        use = workflow("use", {**step("work"), "code": {"python": read, "inputs": inputs}})
        first = run(client, use)
        assert (first.node, first.output) == (at["a"], size), "the node that made it holds it"
        terms = costs((first.placement or {})["top"])
        assert (terms[at["a"]]["move"], terms[at["b"]]["move"]) == (0.0, pytest.approx(size / BYTES_PER_SECOND))

        run(client, busy("long", LONG))
        other = occupied(client, service, "long", LONG)
        second = run(client, use)
        assert (second.node, second.output) == (at["b"], size), "moving it costs less than the wait"
        wait_for(lambda: all(node.cached for node in client.nodes()), "both nodes telling that they hold it")
        assert client.run(other).status == "running"
        third = run(client, use)
        terms = costs((third.placement or {})["top"])
        assert (third.node, terms[at["b"]]["move"]) == (at["b"], 0.0)
        client.cancel(other)


def test_near_an_earlier_step_is_where_that_step_left_what_it_made(cluster: Cluster) -> None:
    make = step("make", "open('/outputs/x', 'wb').write(bytes(32 << 20))", resources={"labels": {"place": "b"}})
    with cluster.client() as client:
        started = client.submit(workflow("after", make, step("work", near="make"))).id
        assert client.wait(started).status == "completed"
        assert client.step(started, "work").node == client.step(started, "make").node == ids(client)["b"]
