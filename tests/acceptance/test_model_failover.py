"""The OpenAI routes over real nodes with real servers: through tunnels and directly, through ``kill -9`` under load."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai import OpenAI

from tests import model_engines
from tests.acceptance.cluster import Cluster, free_port, wait_for
from tests.acceptance.test_model_deployments import Api, Make, api, servers

HELLO: Any = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def client() -> Iterator[Callable[[Cluster], OpenAI]]:
    made: list[OpenAI] = []

    def make(cluster: Cluster) -> OpenAI:
        # No retries: a failure of a server that a client sees is one of ours.
        base = f"{cluster.url}/openai/v1"
        made.append(OpenAI(base_url=base, api_key=cluster.api_key, max_retries=0, timeout=120))
        return made[-1]

    yield make
    for one in made:
        one.close()


def deployed(cluster: Cluster, *, replicas: int) -> Api:
    model_engines.require("llamacpp")
    models = api(cluster)
    models.put("small", "llamacpp", replicas=replicas, args={"parallel": 2, "threads": 1}, context_tokens=512)
    models.ready("small", "llamacpp", count=replicas)
    return models


def server_pids(state: Path) -> list[int]:
    """Of the servers themselves, whose keepers are their parents."""
    found = servers(state)
    return [pid for pid, one in found.items() if one.ppid() in found]


def test_a_killed_server_is_no_clients_failure(make_cluster: Make, client: Callable[[Cluster], OpenAI]) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    deployed(cluster, replicas=2)
    ask = client(cluster)
    asked = threading.Event()
    seen: set[str] = set()

    def one(number: int) -> str:
        raw = ask.chat.completions.with_raw_response.create(
            model="small", messages=[{"role": "user", "content": f"Count from {number}."}], max_tokens=24
        )
        seen.add(raw.headers["x-stockade-replica"])
        if number == 8:
            asked.set()
        return str(raw.parse().choices[0].message.role)

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(one, number) for number in range(60)]
        assert asked.wait(60)
        os.kill(server_pids(cluster.folder / "node-a")[0], signal.SIGKILL)
        assert [answer.result(120) for answer in answers] == ["assistant"] * 60
    assert len(seen) == 2


def test_a_killed_daemon_leaves_the_other_nodes_replica(
    make_cluster: Make, client: Callable[[Cluster], OpenAI]
) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node("node-a")
    cluster.start_node("node-b")
    deployed(cluster, replicas=2)
    ask = client(cluster)
    for number in range(12):
        if number == 4:
            cluster.kill_node("node-a")
        answer = ask.chat.completions.create(model="small", messages=HELLO, max_tokens=4)
        assert answer.choices[0].message.role == "assistant"


def test_streams_come_through_the_tunnel_and_end_with_their_caller(
    make_cluster: Make, client: Callable[[Cluster], OpenAI]
) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    deployed(cluster, replicas=1)
    ask = client(cluster)
    chunks = list(ask.chat.completions.create(model="small", messages=HELLO, max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    stream = ask.chat.completions.create(
        model="small", messages=HELLO, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    (pid,) = server_pids(cluster.folder / "node-a")
    wait_for(lambda: psutil.Process(pid).cpu_percent(0.2) < 20, "the server resting", 20)


def test_a_node_that_listens_is_reached_directly(
    make_cluster: Make, client: Callable[[Cluster], OpenAI], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    port = free_port()
    cluster.start_node(arguments=["--listen", f"127.0.0.1:{port}"])
    deployed(cluster, replicas=1)
    connections = psutil.Process(cluster.pid("control")).net_connections
    answer = client(cluster).chat.completions.create(model="small", messages=HELLO, max_tokens=4)
    assert answer.choices
    assert any(one.raddr and one.raddr.port == port for one in connections("tcp"))


def test_a_control_plane_that_comes_back_is_dialled_again(
    make_cluster: Make, client: Callable[[Cluster], OpenAI]
) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    models = deployed(cluster, replicas=1)
    cluster.kill_control_plane()
    cluster.start_control_plane()
    models.ready("small", "llamacpp")

    def answers() -> bool:
        try:
            return bool(client(cluster).chat.completions.create(model="small", messages=HELLO, max_tokens=4).choices)
        except openai.InternalServerError as error:
            assert error.status_code in (502, 503), json.dumps(error.body)
            return False

    wait_for(answers, "an answer through the new tunnel", 60)
