"""What the gateway adds to a model server: the same request to the server itself and through the gateway, in turns.

external    control plane → server at a URL
tunnel      control plane → the tunnel of a node → its server
added       p50, p95, p99 of each pair's difference: the gateway's time less the bare server's right before it

One token is asked for, so that the server's own time is small. Every call through the gateway is authenticated, decided
by policy, and its decision stored with fsync before the server hears of it. Connections are made before the clock
starts.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.report import percentile, summary
from stockade.cli import places

MODEL = "smollm2-135m.gguf"
READY_SECONDS = 120.0
_ASKED = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 1, "temperature": 0}
_ARGUMENTS = ("-c", "2048", "-np", "2", "-t", "1", "--device", "none", "--jinja", "--host", "127.0.0.1")


def run(arguments: list[str]) -> dict[str, Any]:
    """The report; ``{"absent": …}`` without llama.cpp."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gateway")
    parser.add_argument("--requests", type=int, default=300, help="of each kind")
    parser.add_argument("--without-node", action="store_true")
    given = parser.parse_args(arguments)
    program = places.component("llama-server")
    if program is None:
        return {"absent": "no llama-server (make components-llamacpp)"}
    model = places.components() / "models" / MODEL
    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as name:
        folder, port = Path(name), _free_port()
        with _process([str(program), "-m", str(model), "--port", str(port), *_ARGUMENTS], folder / "server.log"):
            _await(lambda: _status(port, "/health") == 200, "llama-server", folder / "server.log")
            with _control_plane(folder, port) as (plane, key):
                external = {"engine": "external", "external": {"url": f"http://127.0.0.1:{port}/v1", "model": "m"}}
                _put(plane, key, "elsewhere", external)
                report = {"external": _pairs(port, plane, key, "elsewhere", given.requests)}
        if given.without_node:
            return report
        with _control_plane(folder, port) as (plane, key), _node(folder, plane):
            wanted = {"engine": "llamacpp", "source": MODEL, "args": {"parallel": 2, "threads": 1}}
            _put(plane, key, "near", {**wanted, "context_tokens": 1024})
            _await(lambda: _is_ready(plane, key, "near"), "the deployment", folder / "node.log")
            report["tunnel"] = _pairs(_server_port(folder), plane, key, "near", given.requests)
    return report


class _Caller:
    """One kept connection."""

    def __init__(self, port: int, path: str, key: str, model: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._path = path
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        self._body = {**_ASKED, "model": model}

    def whole(self) -> float:
        """Seconds of one answer."""
        begun = time.perf_counter()
        self._send(self._body).read()
        return time.perf_counter() - begun

    def first(self) -> float:
        """Seconds to the first event of a stream."""
        self.connect()
        begun = time.perf_counter()
        answer = self._send({**self._body, "stream": True})
        while not answer.readline().startswith(b"data:"):
            pass
        taken = time.perf_counter() - begun
        answer.read()
        return taken

    def connect(self) -> None:
        """A fresh connection: llama.cpp's server closes one after each stream."""
        self._connection.close()
        self._connection.connect()

    def _send(self, body: dict[str, Any]) -> http.client.HTTPResponse:
        self._connection.request("POST", self._path, json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {answer.read()[:500]!r}")
        return answer


def _pairs(port: int, plane: int, key: str, model: str, count: int) -> dict[str, Any]:
    bare = _Caller(port, "/v1/chat/completions", "", "m")
    through = _Caller(plane, "/openai/v1/chat/completions", key, model)
    report: dict[str, Any] = {}
    for name, one in (("whole", _Caller.whole), ("first_token", _Caller.first)):
        for _ in range(20):
            one(bare), one(through)
        pairs = [(one(bare), one(through)) for _ in range(count)]
        added = [with_it - without for without, with_it in pairs]
        report[name] = {
            "bare": summary([without for without, _ in pairs]),
            "gateway": summary([with_it for _, with_it in pairs]),
            "added_ms": {f"p{share}": round(percentile(added, share / 100) * 1000, 3) for share in (50, 95, 99)},
        }
    return report


@contextmanager
def _process(command: list[str], log: Path, variables: dict[str, str] | None = None) -> Iterator[None]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **(variables or {})}
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _control_plane(folder: Path, server_port: int) -> Iterator[tuple[int, str]]:
    port, policy = _free_port(), folder / "policy"
    policy.mkdir(exist_ok=True)
    tables = {"egress": {"127.0.0.1": [server_port]}}
    (policy / "data.json").write_text(json.dumps({"tenants": {"default": tables}}))
    variables = {
        "STOCKADE_STATE_DIR": str(folder / "control"),
        "STOCKADE_PORT": str(port),
        "STOCKADE_POLICY_DIR": str(policy),
        "STOCKADE_PRIVATE_HOSTS": f"127.0.0.1:{server_port}",
    }
    with _process([sys.executable, "-m", "controlplane"], folder / "control.log", variables):
        _await(lambda: _status(port, "/readyz") == 200, "the control plane", folder / "control.log")
        yield port, (folder / "control" / "admin.key").read_text().strip()


@contextmanager
def _node(folder: Path, plane: int) -> Iterator[None]:
    command = [sys.executable, "-m", "stockade.cli.main", "node", "--url", f"http://127.0.0.1:{plane}"]
    token = folder / "control" / "join.token"
    command += ["--state-dir", str(folder / "node"), "--join-token-file", str(token), "--drain-seconds", "1"]
    with _process(command, folder / "node.log"):
        yield


def _server_port(folder: Path) -> int:
    """Where the node's model server listens: it is marked with the node's state folder."""
    for one in psutil.process_iter():
        try:
            if one.environ().get("STOCKADE_MODEL_SERVER", "").startswith(str(folder)):
                listening = [at for at in one.net_connections("tcp") if at.status == psutil.CONN_LISTEN]
                if listening:
                    return int(listening[0].laddr.port)
        except psutil.Error:
            continue
    raise RuntimeError("the node's model server does not listen")


def _put(plane: int, key: str, name: str, body: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", plane, timeout=30)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("PUT", f"/v1/model-deployments/{name}", json.dumps(body), headers)
    answer = connection.getresponse()
    if answer.status not in (200, 201):
        raise RuntimeError(f"HTTP {answer.status}: {answer.read()!r}")


def _is_ready(plane: int, key: str, name: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", plane, timeout=30)
    connection.request("GET", f"/v1/model-deployments/{name}", headers={"Authorization": f"Bearer {key}"})
    return bool(json.loads(connection.getresponse().read())["status"]["ready"])


def _status(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", urlsplit(path).path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def _await(condition: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} is not ready:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
