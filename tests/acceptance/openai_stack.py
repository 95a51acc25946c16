"""What tests of the ``openai`` package talk to: the gateway, before a real llama.cpp server and a scripted one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx2

from tests.acceptance.cluster import Cluster
from tests.llama_server import LlamaServer

HELLO: Any = [{"role": "user", "content": "Say hello."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class ScriptedServer:
    """A model server that answers what a test tells it: for failures that no real one makes on demand."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.requests: list[dict[str, Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version: ClassVar[str] = "HTTP/1.1"

            def do_POST(self) -> None:
                server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, body = server.answers.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing is said."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def will(self, *answers: tuple[int, Any]) -> None:
        self.requests.clear()
        self.answers = [
            (status, body if isinstance(body, bytes) else json.dumps(body).encode()) for status, body in answers
        ]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def said(content: str, **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice], "usage": usage}


class Stack:
    """The control plane, a real model server as ``small`` (alias ``gpt-4o``), and a scripted one as ``script``."""

    def __init__(self, cluster: Cluster, llama: LlamaServer, script: ScriptedServer) -> None:
        self.cluster = cluster
        self.llama = llama
        self.script = script
        self.headers = {"Authorization": f"Bearer {cluster.api_key}"}

        self.gateway = cluster.url
        """Where the OpenAI routes are asked: of the control plane, or of a gateway process."""

    @property
    def base(self) -> str:
        return f"{self.gateway}/openai/v1"

    def deploy(self, name: str, url: str, **more: Any) -> None:
        body = {"engine": "external", "external": {"url": url, "model": "m"}, **more}
        answer = httpx2.put(f"{self.cluster.url}/v1/model-deployments/{name}", json=body, headers=self.headers)
        assert answer.status_code in (200, 201), answer.text

    def get(self, path: str) -> Any:
        answer = httpx2.get(f"{self.cluster.url}{path}", headers=self.headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def key(self, *scopes: str) -> str:
        body = {"name": "k", "kind": "service", "scopes": list(scopes)}
        return str(httpx2.post(f"{self.cluster.url}/v1/keys", json=body, headers=self.headers).json()["key"])


def running(folder: Path, llama: LlamaServer, script: ScriptedServer) -> Iterator[Stack]:
    """It, with the models that the tests name. Ends it when it is closed."""
    (folder / "policy").mkdir()
    tables = {
        "egress": {"127.0.0.1": [llama.port, script.port]},
        "models": {"*": False, "small": True, "script": True, "stale": True, "backup": True},
    }
    (folder / "policy" / "data.json").write_text(json.dumps({"tenants": {"default": tables}}))
    settings = {
        "STOCKADE_POLICY_DIR": str(folder / "policy"),
        "STOCKADE_PRIVATE_HOSTS": f"127.0.0.1:{llama.port},127.0.0.1:{script.port},127.0.0.1:1",
    }
    with Cluster(folder, settings=settings) as cluster:
        cluster.start_control_plane()
        stack = Stack(cluster, llama, script)
        stack.deploy("small", llama.url, aliases=["gpt-4o"], modalities=["text", "embeddings"], context_tokens=2048)
        stack.deploy("script", f"http://127.0.0.1:{script.port}/v1")
        stack.deploy("forbidden", llama.url)
        yield stack
