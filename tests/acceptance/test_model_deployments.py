"""Model deployments on real nodes with real servers: served, restarted, adopted, ended; never orphaned."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from dataplane.model_wire import NodeEngine
from stockade.cli import places
from tests import model_engines
from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.standalone import Standalone

SERVE_SECONDS = {"llamacpp": 60.0, "sglang": 400.0}
Make = Callable[..., Cluster]


class Api:
    """The resource as a program uses it."""

    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url}/v1/model-deployments"
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        return httpx2.request(
            method, f"{self._url}{path}", headers=self._headers, timeout=30.0, trust_env=False, **more
        )

    def put(self, name: str, engine: NodeEngine, **more: Any) -> dict[str, Any]:
        body = {"engine": engine, "source": model_engines.MODELS[engine], **more}
        answer = self.ask("PUT", f"/{name}", json=body)
        assert answer.status_code in (200, 201), answer.text
        return dict(answer.json())

    def get(self, name: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/{name}").json())

    def replicas(self, name: str) -> list[dict[str, Any]]:
        return list(self.get(name)["status"]["replicas"])

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        found = {one["type"]: one for one in self.get(name)["conditions"]}
        return found.get(kind, {"status": None})

    def ready(self, name: str, engine: NodeEngine, *, count: int = 1) -> list[dict[str, Any]]:
        def is_ready() -> bool:
            return self.condition(name, "Reconciled")["status"] is True and self.get(name)["status"]["ready"] == count

        try:
            wait_for(is_ready, f"{name} being ready", SERVE_SECONDS[engine])
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(self.get(name), indent=1)}") from None
        return self.replicas(name)

    def delete(self, name: str) -> None:
        assert self.ask("DELETE", f"/{name}").status_code == 204

    def log(self, name: str) -> str:
        answer = self.ask("GET", f"/{name}/logs")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["text"])


def api(cluster: Cluster) -> Api:
    return Api(cluster.url, cluster.api_key)


def servers(state: Path) -> dict[int, psutil.Process]:
    """Every process marked as a model server's below a state folder: keepers, servers and what those started."""
    found = {}
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = one.environ().get("STOCKADE_MODEL_SERVER", "")
            if mark.startswith(str(state)) and one.status() != psutil.STATUS_ZOMBIE:
                found[one.pid] = one
    return found


def server_pid(state: Path) -> int:
    """Of the one server itself, its keeper's child."""
    found = servers(state)
    keepers = [one.pid for one in found.values() if any("keeper.py" in part for part in one.cmdline())]
    assert len(keepers) == 1, found
    return next(one.pid for one in found.values() if one.ppid() == keepers[0])


@pytest.fixture(params=["llamacpp", "sglang"])
def engine(request: pytest.FixtureRequest) -> NodeEngine:
    name: NodeEngine = request.param
    model_engines.require(name)
    return name


def test_a_deployment_is_served_restarted_adopted_and_ended(make_cluster: Make, engine: NodeEngine) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    state = cluster.folder / "node-a"
    models = api(cluster)
    models.put("small", engine)
    (replica,) = models.ready("small", engine)
    assert replica["slots"] > 0
    assert replica["restarts"] == 0
    assert models.log("small") != ""

    first = server_pid(state)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: models.replicas("small")[0]["restarts"] == 1, "the end being noticed")
    (again,) = models.ready("small", engine)
    assert again["id"] == replica["id"]
    second = server_pid(state)
    assert second != first

    cluster.kill_node()
    assert servers(state)[second].is_running()
    cluster.start_node()
    models.ready("small", engine)
    assert server_pid(state) == second, "adopted, not started again"

    cluster.kill_node()
    models.delete("small")
    assert second in servers(state)
    cluster.start_node(wait=False)
    wait_for(lambda: not servers(state), "what was deleted meanwhile being ended")

    models.put("small", engine)
    models.ready("small", engine)
    models.delete("small")
    wait_for(lambda: not servers(state), "the end of what was deleted")
    wait_for(lambda: not list((state / "models" / "replicas").iterdir()), "its folder being removed")


def test_a_node_that_is_told_to_stop_ends_its_servers(make_cluster: Make) -> None:
    model_engines.require("llamacpp")
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    models = api(cluster)
    models.put("small", "llamacpp")
    models.ready("small", "llamacpp")
    state = cluster.folder / "node-a"
    assert servers(state)
    cluster.stop()
    assert not servers(state)


def test_a_killed_control_plane_finds_replicas_where_they_are(make_cluster: Make) -> None:
    model_engines.require("llamacpp")
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    models = api(cluster)
    models.put("small", "llamacpp")
    (before,) = models.ready("small", "llamacpp")
    server = server_pid(cluster.folder / "node-a")
    cluster.kill_control_plane()
    cluster.start_control_plane()
    (after,) = models.ready("small", "llamacpp")
    assert (after["id"], after["restarts"]) == (before["id"], 0)
    assert server_pid(cluster.folder / "node-a") == server


def test_replicas_spread_move_and_change_one_at_a_time(make_cluster: Make) -> None:
    model_engines.require("llamacpp")
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node("node-a")
    cluster.start_node("node-b")
    models = api(cluster)
    models.put("small", "llamacpp", replicas=2)
    before = models.ready("small", "llamacpp", count=2)
    assert len({one["node"] for one in before}) == 2
    least = 2

    models.put("small", "llamacpp", replicas=2, context_tokens=1024)

    def is_done() -> bool:
        nonlocal least
        told = models.get("small")
        least = min(least, told["status"]["ready"])
        return models.condition("small", "Reconciled")["status"] is True and all(
            one["current"] for one in told["status"]["replicas"]
        )

    wait_for(is_done, "both replicas being as specified")
    assert least == 1, "one served while the other changed"
    assert {one["id"] for one in models.replicas("small")} == {one["id"] for one in before}

    kept = next(one for one in models.replicas("small") if one["node_name"].startswith("node-a"))
    cluster.kill_node("node-b")
    wait_for(
        lambda: {one["node"] for one in models.replicas("small")} == {kept["node"]}, "the lost node's replica moving"
    )
    models.ready("small", "llamacpp", count=2)
    cluster.start_node("node-b", wait=False)
    wait_for(lambda: not servers(cluster.folder / "node-b"), "the node that is back ending what moved")
    models.put("small", "llamacpp", replicas=0, context_tokens=1024)
    wait_for(lambda: not servers(cluster.folder / "node-a"), "none being left")


def test_what_cannot_be_placed_waits_and_says_why(make_cluster: Make, tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    models = api(cluster)
    models.put("small", "llamacpp")

    def waits_for(reason: str) -> Callable[[], bool]:
        return lambda: models.condition("small", "Placed").get("reason") == reason

    wait_for(waits_for("NoNode"), "no node")
    cluster.start_node()
    models.put("small", "llamacpp", source="another.gguf")
    wait_for(waits_for("NoModel"), "no model")
    assert model_engines.MODELS["llamacpp"] in models.condition("small", "Placed")["fix"]
    models.put("small", "llamacpp", gpus=1)
    wait_for(waits_for("NoRoom"), "no GPU")
    assert "GPU" in models.condition("small", "Placed")["message"]
    models.put("small", "llamacpp", args={"threads": "no-number"})
    wait_for(lambda: models.condition("small", "Available").get("reason") == "Failed", "a server that does not start")
    assert models.condition("small", "Available")["message"]
    models.delete("small")


def test_the_command_line_applies_waits_shows_and_removes(tmp_path: Path, image_cache: Path) -> None:
    model = model_engines.require("llamacpp")
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"name": "small", "engine": "llamacpp", "source": model, "aliases": ["tiny"]}))
    up = Standalone(tmp_path, image_cache)
    up.environment["STOCKADE_COMPONENTS"] = str(places.components())
    with up:

        def model_command(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
            done = up.command("model", *arguments)
            assert done.returncode == code, done.stdout + done.stderr
            return done

        flags = ("--name", "large", "--engine", "sglang", "--source", "not-there", "--arg", "dtype=bfloat16")
        absent = model_command("apply", *flags, "--wait", "--timeout", "3", code=5)
        assert ("sglang" if model_engines.absent("sglang") else "not-there") in absent.stderr
        assert "fix:" in absent.stderr
        refused = model_command("apply", "--name", "odd", "--engine", "llamacpp", "--source", "../x", code=2)
        assert "/source" in refused.stderr
        applied = model_command("apply", str(file), "--wait", "--timeout", "120")
        assert "ready" in applied.stdout
        assert "small: 0 of 1 ready" in applied.stderr
        listed = model_command("ls").stdout
        assert [line.split()[:4] for line in listed.splitlines() if line.startswith("small")] == [
            ["small", "llamacpp", model, "1/1"]
        ]
        assert json.loads(model_command("get", "small", "-o", "json").stdout)["status"]["ready"] == 1
        assert "listening" in model_command("logs", "small").stdout
        model_command("rm", "small")
        model_command("rm", "large")
        assert model_command("ls", "-o", "name").stdout == ""
        assert "stockade model ls" in model_command("rm", "small", code=3).stderr
        wait_for(lambda: not servers(tmp_path / "state" / "node"), "its server ending")


def test_kill_9_of_up_ends_model_servers_and_of_its_node_does_not(tmp_path: Path, image_cache: Path) -> None:
    model_engines.require("llamacpp")
    up = Standalone(tmp_path, image_cache)
    up.environment["STOCKADE_COMPONENTS"] = str(places.components())
    with up:
        state = tmp_path / "state" / "node"
        models = Api(up.url, (tmp_path / "state" / "control" / "admin.key").read_text().strip())
        models.put("small", "llamacpp")
        models.ready("small", "llamacpp")
        server = server_pid(state)
        node = next(one for one in up.descendants() if "stockade.cli.main node" in " ".join(one.cmdline()))
        node.kill()
        models.ready("small", "llamacpp")
        wait_for(lambda: "model server adopted" in up.log("node"), "the next node adopting it")
        assert server_pid(state) == server
        up.kill()
        wait_for(lambda: not servers(state), "the end of the servers", 5.0)
