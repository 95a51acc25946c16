"""Steps in containers, from the workflow's JSON to the engine and back; a node that dies leaves none behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandboxes.container.engine import Engine
from stockade.client import Client
from tests import container_engine
from tests.acceptance.cluster import Cluster, wait_for

SANDBOX = {"tier": "container", "image": "python"}
WORK = """
import stockade_tools as tools

def work(factor):
    lines = open(tools.inputs["hello"]).read().count("\\n")
    tools.progress(0.5, "counted")
    said = tools.builtin.noop(n=lines * factor)
    open("/outputs/lines.txt", "w").write(str(lines))
    print("counted", lines)
    return said["n"] == lines * factor and lines > 0
"""


@pytest.fixture(autouse=True)
def engine() -> Iterator[Engine]:
    container_engine.require()
    made = Engine()
    yield made
    made.close()


def workflow(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"stockade": "1", "name": "containers", "steps": list(steps)}


def test_python_shell_inputs_tools_and_artifacts(client: Client) -> None:
    python = {
        "python": WORK, "call": "work", "args": [3], "tools": ["builtin.noop"],
        "inputs": {"hello": "data://examples/hello.json"},
    }  # fmt: skip
    shell = {"shell": "echo from $(id -u); echo '[1, 2]' > /outputs/output.json"}
    run = client.submit(
        workflow({"id": "py", "code": python, "sandbox": SANDBOX}, {"id": "sh", "code": shell, "sandbox": SANDBOX})
    )
    ended = client.wait(run.id)
    assert ended.status == "completed", ended.error
    assert ended.output == {"py": True, "sh": [1, 2]}
    assert {step.path: step.tier for step in client.steps(run.id)} == {"py": "container", "sh": "container"}
    assert "counted" in client.logs(run.id, "py") and "from 2" in client.logs(run.id, "sh")
    assert [one.name for one in client.artifacts(run.id)] == ["lines.txt"]


def test_auto_never_takes_a_container(client: Client) -> None:
    run = client.submit(workflow({"id": "py", "code": {"python": "1"}}))
    client.wait(run.id)
    assert [step.tier for step in client.steps(run.id)] in (["wasm"], ["jail"])


def test_an_image_nobody_has_waits_with_what_makes_it(client: Client) -> None:
    step = {"id": "py", "code": {"python": "1"}, "sandbox": {"tier": "container", "image": "not-made"}}
    run = client.submit(workflow(step))
    try:
        wait_for(lambda: bool(client.steps(run.id)[0].waiting), "the reason why it waits")
        (reason,) = client.steps(run.id)[0].waiting or ()
        assert "not-made" in reason.message and "stockade image build not-made" in reason.fix
    finally:
        client.cancel(run.id)


def test_a_guest_that_fails_in_a_container_is_told_as_everywhere(client: Client) -> None:
    step = {"id": "py", "code": {"python": "raise ValueError('my words')"}, "sandbox": SANDBOX}
    ended = client.wait(client.submit(workflow(step)).id)
    assert ended.status == "failed" and "my words" in client.logs(ended.id, "py", stream="stderr")


def test_containers_left_by_a_killed_node_are_gone_after_its_restart(
    make_cluster: Callable[..., Cluster], engine: Engine
) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    owner_file = cluster.folder / "node-a" / "sandboxes" / "containers" / "owner"
    with cluster.client() as client:
        source = "import time\nprint('up', flush=True)\ntime.sleep(600)"
        run = client.submit(workflow({"id": "py", "code": {"python": source}, "sandbox": SANDBOX}))
        wait_for(lambda: "up" in client.logs(run.id, "py"), "the guest's first words")
        owner = owner_file.read_text()
        cluster.kill_node()
        left = set(engine.owned(owner))  # the guest's, and spares
        assert left, "nothing but the restart ends them"
        cluster.start_node()
        wait_for(lambda: not left & set(engine.owned(owner)), "the restarted node reaping them")
        client.cancel(run.id)
        wait_for(lambda: client.run(run.id).status == "cancelled", "the end of the second attempt")
    cluster.stop()
    assert engine.owned(owner) == [], "a node that ends in order leaves nothing"
