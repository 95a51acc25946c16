"""GPUs are given out whole, to one step at a time, and a step that finds too few waits and says for what.

The GPUs are declared ones (``--fake-gpus``): no hardware is behind them, which everything that shows them says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.cli.main import main
from stockade.client import Client
from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.counted_calls import CallService

HOLDING = "import stockade_tools as tools\ntools.count.ok(id='{}')\n'{}'"


@pytest.fixture
def service() -> Iterator[CallService]:
    with CallService() as running:
        running.hold(lambda _id, _nth: True)
        yield running


def workflow(name: str, gpus: int, **more: Any) -> dict[str, Any]:
    """One step that keeps its GPUs until the service answers."""
    code = {"python": HOLDING.format(name, name), "tools": ["count.*"]}
    step = {"id": "work", "code": code, "sandbox": {"tier": "wasm"}, "resources": {"gpu": gpus, "cpu": 0.1, **more}}
    return {"stockade": "1", "name": name, "steps": [step]}


def start(cluster: Cluster, service: CallService, client: Client, gpus: str) -> None:
    cluster.start_node("node-a", arguments=["--fake-gpus", gpus])
    client.put_tool("count.ok", service.tool())


def holders(client: Client) -> dict[str, str]:
    """Device -> who has it, of all nodes."""
    return {gpu.uuid: gpu.holder for node in client.nodes() for gpu in node.gpus if gpu.holder is not None}


def test_a_step_that_needs_two_gpus_waits_with_reason_and_fix_and_then_runs(
    make_cluster: Callable[..., Cluster],
    tmp_path: Path,
    service: CallService,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster = make_cluster(settings=service.settings(tmp_path / "policy"))
    cluster.start_control_plane()
    with cluster.client() as client:
        start(cluster, service, client, "2x80Gi")
        first = client.submit(workflow("one", 1)).id
        wait_for(lambda: bool(service.calls("one")), "the first step holding a GPU")
        second = client.submit(workflow("two", 2)).id
        wait_for(lambda: client.step(second, "work").status == "waiting", "the second step waiting")
        (reason,) = client.step(second, "work").waiting or ()
        node = client.nodes()[0]
        assert reason.code == "gpu"
        assert reason.message == (
            f"it needs 2 GPUs; 1 node could take it but lacks GPUs now: node {node.name} has 1 GPU free of 2"
        )
        assert reason.fix == f"wait: it would fit on node {node.name} with 1 GPU more free; or ask for less"
        assert len(holders(client)) == 1

        never = client.validate(workflow("three", 3)).placements[0].waiting or []
        assert [one.code for one in never] == ["gpu"]
        assert "ask for less or join a larger node" in (never[0].fix or "")
        larger = client.validate(workflow("four", 1, gpu_memory="96Gi")).placements[0].waiting or []
        assert larger[0].fix == "ask for at most 80 GiB per GPU, or join a node with larger ones"

        assert all(gpu.fake for gpu in node.gpus)
        monkeypatch.setenv("STOCKADE_URL", cluster.url)
        monkeypatch.setenv("STOCKADE_API_KEY", cluster.api_key)
        main(["node", "ls"])
        main(["explain", second, "work"])
        shown = capsys.readouterr().out
        assert "1 free of 2: fake 80Gi (fake)" in shown
        assert reason.message in shown and (reason.fix or "") in shown
        assert "left out: 1 by gpu" in shown

        service.release()
        assert client.wait(first).status == "completed"
        assert client.wait(second).status == "completed"
        assert holders(client) == {}
        main(["explain", second, "work"])
        assert "fake-gpu-0, fake-gpu-1 (declared, not real)" in capsys.readouterr().out


def test_a_killed_control_plane_gives_no_gpu_to_two_steps(
    make_cluster: Callable[..., Cluster], tmp_path: Path, service: CallService
) -> None:
    cluster = make_cluster(settings=service.settings(tmp_path / "policy"), lease_seconds=10.0, heartbeat_seconds=0.3)
    cluster.start_control_plane()
    with cluster.client() as client:
        start(cluster, service, client, "1x80Gi,1x24Gi")
        first = client.submit(workflow("large", 1, gpu_memory="80Gi")).id
        wait_for(lambda: bool(service.calls("large")), "the first step holding the large GPU")
        attempt = client.step(first, "work").attempt
        assert holders(client) == {"fake-gpu-0": attempt}

        cluster.kill_control_plane()
        cluster.start_control_plane()
        assert holders(client) == {"fake-gpu-0": attempt}
        wait_for(lambda: client.nodes()[0].status == "ready", "the node being heard again")
        again = client.submit(workflow("again", 1, gpu_memory="80Gi")).id
        small = client.submit(workflow("small", 1)).id
        wait_for(lambda: bool(service.calls("small")), "a step on the GPU that is free")
        wait_for(lambda: client.step(again, "work").status == "waiting", "the step for the large GPU waiting")
        held = holders(client)
        assert held == {"fake-gpu-0": attempt, "fake-gpu-1": client.step(small, "work").attempt}
        assert client.step(first, "work").attempt == attempt

        service.release()
        for run in (first, small, again):
            assert client.wait(run).status == "completed"
        assert client.step(again, "work").detail["gpus"] == ["fake-gpu-0"]
        assert holders(client) == {}
