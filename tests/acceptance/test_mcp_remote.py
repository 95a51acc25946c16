"""A Streamable HTTP MCP server through the command line: egress, a secret in its header, nothing of it elsewhere."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.types import Receive, Scope, Send

from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.test_examples import ended
from tests.acceptance.test_mcp import step, stockade

CANARY = "canary-5b1e9d0c"


@pytest.fixture
def remote() -> Iterator[tuple[int, list[str]]]:
    """A server's port, and the Authorization headers it was sent."""
    seen: list[str] = []
    server = MCPServer("tickets")

    @server.tool(description="Opens a ticket.")
    def open_ticket(title: str) -> str:
        return f"opened {title} for {seen[-1]}"

    inner = server.streamable_http_app()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(dict(scope["headers"]).get(b"authorization", b"").decode())
        await inner(scope, receive, send)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: running.started, "the MCP server listening")
        yield listener.getsockname()[1], seen
        running.should_exit = True
        thread.join(20)


def test_a_remote_server_gets_its_secret_and_gives_none_away(
    make_cluster: Callable[..., Cluster], remote: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, seen = remote
    policy = tmp_path / "policy"
    policy.mkdir()
    granted = {"egress": {"127.0.0.1": [port]}, "secrets": {"k": {"tickets.*": ["127.0.0.1"]}}}
    (policy / "data.json").write_text(json.dumps({"tenants": {"default": granted}}))
    cluster = make_cluster(settings={"STOCKADE_POLICY_DIR": str(policy), "STOCKADE_PRIVATE_HOSTS": f"127.0.0.1:{port}"})
    cluster.start_control_plane()
    cluster.start_node("node-a")
    at = ("--url", f"http://127.0.0.1:{port}/mcp")
    with cluster.client() as client:
        client.set_secret("k", CANARY)
        stockade(cluster, "tool", "add", "tickets", *at, "--secret", "Authorization=Bearer k")
        stockade(cluster, "tool", "review", "tickets", "--yes")
        assert seen and set(seen) == {f"Bearer {CANARY}"}
        document = step("tickets.open_ticket", title="disk full")
        refused = ended(client, client.submit(document).id)
        assert refused.error is not None and "does not name the secret" in refused.error.message
        document["steps"][0]["secrets"] = ["k"]
        run = ended(client, client.submit(document).id)
        assert run.status == "completed", run.error
        assert run.output == {"result": "opened disk full for Bearer ***"}
        elsewhere = stockade(cluster, "tool", "add", "else", "--url", "http://127.0.0.1:9/mcp", code=4)
        assert "may not reach 127.0.0.1:9" in elsewhere.stderr
    kept = b"".join(path.read_bytes() for path in cluster.folder.rglob("*") if path.is_file())
    assert CANARY.encode() not in kept
