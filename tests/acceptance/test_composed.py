"""deploy/compose.yaml really started: work from outside, its walls, and ``kill -9`` of everything at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxes.container.engine import Engine
from stockade.client import Client
from tests import container_engine
from tests.acceptance.cluster import REPOSITORY, STOP_SECONDS, wait_for
from tests.compose_engine import Composed, Generation, docker, require

LONG = "import time\nprint('up', flush=True)\ntime.sleep(6)\n{'slept': True}"
HELLO = json.loads((REPOSITORY / "examples" / "hello.json").read_text())


@pytest.fixture(params=["1.29", "v2"])
def composed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Composed]:
    generation: Generation = request.param
    require(generation)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    files = ["compose.yaml"] if generation == "1.29" else ["compose.yaml", "compose.jail.yaml"]
    with Composed(tmp_path, generation, *files) as started:
        yield started


def workflow(**sandbox: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"id": "first", "code": {"python": "6 * 7"}},
        {"id": "second", "code": {"python": LONG}, "needs": ["first"], **({"sandbox": sandbox} if sandbox else {})},
    ]
    return {"stockade": "1", "name": "composed", "steps": steps}


def spoke(client: Client, run: str) -> bool:
    """Whether the second step's guest has begun."""
    begun = [step.path for step in client.steps(run) if step.attempt is not None]
    return "second" in begun and "up" in client.logs(run, "second")


def attempt(client: Client, run: str) -> str | None:
    """The attempt that the first step ended with."""
    return next(step.attempt for step in client.steps(run) if step.path == "first")


def test_work_from_outside_goes_on_after_kill_9_of_everything(composed: Composed) -> None:
    with composed.client() as client:
        ended = client.wait(client.submit(HELLO, {}).id)
        assert ended.status == "completed", ended.error
        (node,) = client.nodes()
        tiers = {"wasm", "jail"} if composed.has_walls else {"wasm"}
        wait_for(lambda: {tier for one in client.nodes() for tier in one.tiers} == tiers, f"the tiers {tiers}")
        run = client.submit(workflow())
        wait_for(lambda: spoke(client, run.id), "the second step's first words")
        first = attempt(client, run.id)
    composed.kill()
    assert composed.containers() == []
    composed.up()
    with composed.client() as client:
        ended = client.wait(run.id)
        assert ended.status == "completed", ended.error
        assert attempt(client, run.id) == first, "what was completed is not done again"
        assert [one.name for one in client.nodes()] == [node.name], "the node is the one it was"
    _is_tight(composed)


def _is_tight(composed: Composed) -> None:
    """No container has root, a capability, a writable root, or a secret in what everybody with the engine can read."""
    key = composed.compose("exec", "-T", "control-plane", "cat", "/var/lib/stockade/control/admin.key").strip()
    token = composed.compose("exec", "-T", "opa", "cat", "/run/stockade/opa/opa.token").strip()
    for told in json.loads(docker("inspect", *composed.containers(all_of_them=True))):
        host = told["HostConfig"]
        assert told["Config"]["User"] == "10001:10001" and host["ReadonlyRootfs"] and not host["Privileged"]
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert key not in json.dumps(told) and token not in json.dumps(told)
        assert not any("docker.sock" in str(mount) for mount in told["Mounts"])
    found = composed.compose("exec", "-T", "node", "find", "/run/stockade", "-type", "f").split()
    assert sorted(found) == ["/run/stockade/join/ca.pem", "/run/stockade/join/token"], "no key of the control plane"


@pytest.mark.parametrize("composed", ["1.29"], indirect=True)
def test_containers_left_by_kill_9_of_everything_are_gone_after_restart(
    composed: Composed, tmp_path: Path, image_cache: Path
) -> None:
    container_engine.require()
    engine = Engine()
    token = composed.folder / "join.token"
    token.write_text(composed.compose("exec", "-T", "node", "cat", "/run/stockade/join/token"))
    command = [
        *(sys.executable, "-m", "stockade.cli.main", "node", "--url", composed.url, "--name", "outside"),
        *("--ca-file", str(composed.ca_file), "--join-token-file", str(token), "--state-dir", str(tmp_path / "node")),
        *("--cache-dir", str(image_cache)),
    ]
    owner_file = tmp_path / "node" / "sandboxes" / "containers" / "owner"

    def start() -> subprocess.Popen[bytes]:
        with (tmp_path / "node.log").open("ab") as log:
            return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    node = start()
    try:
        with composed.client() as client:
            run = client.submit(workflow(tier="container", image="python"))
            wait_for(lambda: spoke(client, run.id), "the guest's first words in a container")
            first = attempt(client, run.id)
        owner = owner_file.read_text()
        node.kill()
        node.wait()
        composed.kill()
        left = set(engine.owned(owner))
        assert left, "nothing but a restart ends them"
        composed.up()
        node = start()
        wait_for(lambda: not left & set(engine.owned(owner)), "the restarted node reaping them")
        with composed.client() as client:
            ended = client.wait(run.id)
            assert ended.status == "completed", ended.error
            assert attempt(client, run.id) == first
        node.terminate()
        assert node.wait(STOP_SECONDS + 30.0) == 0
        assert engine.owned(owner) == [], "a node that ends in order leaves nothing"
    finally:
        if node.poll() is None:
            node.kill()
            node.wait()
        engine.close()
