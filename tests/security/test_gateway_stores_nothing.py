"""A gateway process that has an external service's key in memory leaves it in no file, argument or variable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.acceptance.cluster import Cluster
from tests.scripted_model import NAME, Say, ScriptedModel

KEY = "canary-of-an-external-service-5c1e77"


def test_a_gateway_that_used_a_key_has_stored_it_nowhere(tmp_path: Path) -> None:
    with ScriptedModel(lambda _: Say(text="hello")) as server:
        host, _, port = server.authority.rpartition(":")
        (tmp_path / "policy").mkdir()
        tables = {"egress": {host: [int(port)]}, "models": {"far": True}}
        (tmp_path / "policy" / "data.json").write_text(json.dumps({"tenants": {"default": tables}}))
        settings = {
            "STOCKADE_POLICY_DIR": str(tmp_path / "policy"),
            "STOCKADE_PRIVATE_HOSTS": server.authority,
        }
        with Cluster(tmp_path, settings=settings) as cluster:
            cluster.start_control_plane()
            gateway = cluster.start_gateway()
            headers = {"Authorization": f"Bearer {cluster.api_key}"}

            def put(path: str, body: Any) -> None:
                httpx2.put(f"{cluster.url}/v1/{path}", json=body, headers=headers).raise_for_status()

            put("secrets/models-key", {"value": KEY})
            external = {"url": server.url, "model": NAME, "secret": "models-key"}
            put("model-deployments/far", {"engine": "external", "external": external})
            body = {"model": "far", "messages": [{"role": "user", "content": "Say hello."}]}
            answer = httpx2.post(f"{gateway}/openai/v1/chat/completions", json=body, headers=headers, timeout=60)
            assert answer.status_code == 200 and KEY not in answer.text, answer.text
            (asked,) = server.asked()
            assert asked.headers["Authorization"] == f"Bearer {KEY}", "it had the key"

            (process,) = [one for one in psutil.Process().children() if one.cmdline()[-1:] == ["gateway"]]
            assert KEY not in "\n".join([*process.cmdline(), *process.environ().values()])
            assert {one.path for one in process.open_files()} <= {str(tmp_path / "gateway.log")}
        state = tmp_path / "gateway"
        assert not state.exists() or list(state.iterdir()) == [], "no database, no file"
        files = [one for one in tmp_path.rglob("*") if one.is_file()]
        assert tmp_path / "gateway.log" in files
        assert [one for one in files if KEY.encode() in one.read_bytes()] == []
