"""A step reaches the hosts it was granted, through its node, and nothing else; the journal says what it reached."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stockade.client import Client
from stockade.client.models import Run
from tests import container_engine
from tests.acceptance.cluster import Cluster, wait_for

HOST = "127.0.0.2"
"""Loopback, and not among what a client keeps away from its proxy."""
FETCH = """
import urllib.error, urllib.request

def fetch(urls):
    found = []
    for url in urls:
        try:
            found.append(urllib.request.urlopen(url, timeout=20).read().decode())
        except urllib.error.HTTPError as error:
            found.append([error.code, error.read().decode()])
        except OSError as error:
            found.append(str(error))
    return found
"""
STREAM = """
import urllib.request
answer = urllib.request.urlopen(URL, timeout=60)
print("first", answer.read(5), flush=True)
answer.read()
print("over", flush=True)
"""


class Service:
    """Says ``hello``; ``/stream`` goes on until the other side goes."""

    def __init__(self) -> None:
        self.gone, self.stopping = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"hello")
                if self.path != "/stream":
                    return
                try:
                    while not outer.stopping.wait(0.05):
                        self.wfile.write(b"x")
                except OSError:
                    outer.gone.set()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def url(self, path: str = "/") -> str:
        return f"http://{HOST}:{self.port}{path}"

    def close(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def service() -> Iterator[Service]:
    started = Service()
    yield started
    started.close()


@pytest.fixture
def started(make_cluster: Callable[..., Cluster], tmp_path: Path, service: Service) -> Cluster:
    """A cluster whose policy lets code reach the service, and whose operator lists its private address."""
    policy = tmp_path / "policy"
    policy.mkdir()
    granted = {"network": {HOST: [service.port]}}
    (policy / "data.json").write_text(json.dumps({"tenants": {"default": granted}}))
    settings = {"STOCKADE_POLICY_DIR": str(policy), "STOCKADE_PRIVATE_HOSTS": f"{HOST}:{service.port}"}
    cluster = make_cluster(settings=settings)
    cluster.start_control_plane()
    cluster.start_node()
    return cluster


def fetching(client: Client, urls: list[str], sandbox: dict[str, Any]) -> Run:
    step = {"id": "get", "code": {"python": FETCH, "call": "fetch", "args": [urls]}, "sandbox": sandbox}
    return client.wait(client.submit({"stockade": "1", "name": "network", "steps": [step]}).id)


@pytest.mark.parametrize("tier", ["auto", "container"])
def test_code_reaches_the_granted_host_and_nothing_else(tier: str, started: Cluster, service: Service) -> None:
    if tier == "container":
        container_engine.require()
    sandbox = {"tier": tier, "network": [{"host": HOST, "ports": [service.port]}]}
    with started.client() as client:
        ended = fetching(client, [service.url(), "http://192.0.2.1/"], sandbox)
        assert ended.status == "completed", ended.error
        hello, (code, refused) = ended.output["get"]
        assert hello == "hello" and code == 403
        told = json.loads(refused)
        assert told["code"] == "host_not_granted" and "192.0.2.1" in told["fix"]
        (step,) = client.steps(ended.id)
        assert step.tier == ("jail" if tier == "auto" else tier), "wasm has no sockets"
        flows = [event.data for event in client.events(ended.id) if event.type == "egress.flow"]
        assert [(one["host"], one["port"], one["address"], one["ended"]) for one in flows] == [
            (HOST, service.port, HOST, ""),
            ("192.0.2.1", 80, "", "host_not_granted"),
        ]
        assert flows[0]["received_bytes"] > 5 and flows[0]["decision"]
        decision = client.decision(flows[0]["decision"])
        assert decision.allow and decision.entry == "runtime.egress" and decision.input["tool"] is None


def test_a_host_that_policy_does_not_list_is_refused_with_what_to_add(started: Cluster, service: Service) -> None:
    with started.client() as client:
        ended = fetching(client, [], {"network": [{"host": "api.example.com"}]})
        denied = [one for one in client.decisions(ended.id) if not one.allow]
    assert ended.status == "failed" and ended.error is not None and ended.error.type == "policy_denied"
    assert [reason.code for reason in denied[0].reasons] == ["egress_not_listed"]
    assert '{"network": {"api.example.com": [443]}}' in denied[0].reasons[0].remedy


def test_a_step_without_a_grant_finds_no_proxy(started: Cluster, service: Service) -> None:
    with started.client() as client:
        ended = fetching(client, [service.url()], {"tier": "jail"})
    assert ended.status == "completed" and "hello" not in str(ended.output)


def test_flows_end_with_the_nodes_lease(started: Cluster, service: Service) -> None:
    sandbox = {"network": [{"host": HOST, "ports": [service.port]}], "wall": "5m"}
    step = {"id": "get", "code": {"python": STREAM.replace("URL", repr(service.url("/stream")))}, "sandbox": sandbox}
    with started.client() as client:
        run = client.submit({"stockade": "1", "name": "network", "steps": [step]})
        wait_for(lambda: "first" in client.logs(run.id, "get"), "the first bytes")
    assert not service.gone.is_set()
    started.kill_control_plane()
    wait_for(service.gone.is_set, "the end of the flow", started.lease_seconds + 10)
