"""A step that needs a whole node gets it although small steps never stop coming."""

from __future__ import annotations

from typing import Any

from stockade.client import Client
from tests.acceptance.cluster import Cluster, wait_for


def workflow(cpu: int, items: int) -> dict[str, Any]:
    code = {"python": "import time\ntime.sleep(0.2)"}
    body = [{"id": "one", "code": code, "resources": {"cpu": cpu}, "sandbox": {"tier": "wasm"}}]
    over = list(range(items))
    steps = [{"id": "all", "map": {"over": over, "concurrency": 64}, "do": body}]
    return {"stockade": "1", "name": f"cpu-{cpu}", "steps": steps}


def test_small_steps_do_not_overtake_a_large_one_for_ever(cluster: Cluster, client: Client) -> None:
    capacity = client.nodes()[0].capacity["cpu_milli"] // 1000
    small = client.submit(workflow(1, 2000)).id
    wait_for(lambda: client.run(small).steps.by_status.get("completed", 0) > 0, "a small step ending")
    large = client.submit(workflow(capacity, 1)).id
    assert client.wait(large).status == "completed"
    assert client.run(small).status == "running"
    client.cancel(small)
    client.wait(small)
