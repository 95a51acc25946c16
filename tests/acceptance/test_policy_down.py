"""While policy cannot answer nothing executes; what waited for it goes on by itself when it is back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.cluster import Cluster, wait_for

PROMISED_SECONDS = 0.25
"""From the question to ``policy_unavailable``: the design's promise, of the engine. tests/security/test_policy_failures
holds the engine itself to it; here the whole answer over HTTP is timed."""
SLACK_SECONDS = 0.1
"""What the rest of one POST may take: a fresh connection, authentication, compiling the workflow, the answer."""
ASKED = 5
"""The best of so many answers is held to the promise: what else runs on the machine can only make an answer slower,
and a deadline that is set too long makes every answer slow. The others only have to refuse."""


def policy_workers(control: int) -> list[int]:
    """The control plane's evaluating processes: one that it started, and those forked from that one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"authorization/worker.py" in command:
            parents[int(entry.name)] = parent
    return [pid for pid, parent in parents.items() if control in (parent, parents.get(parent))]


@contextmanager
def policy_down(control: int, how: signal.Signals) -> Iterator[None]:
    """Kill or stop every worker, and every replacement, for as long as the context lasts."""
    over, swept = threading.Event(), threading.Event()

    def work() -> None:
        while not over.is_set():
            for pid in policy_workers(control):
                try:
                    os.kill(pid, how)
                except ProcessLookupError:
                    continue
            swept.set()
            over.wait(0.002)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert swept.wait(10), "no worker was found"
        yield
    finally:
        over.set()
        thread.join()
        for pid in policy_workers(control):
            os.kill(pid, signal.SIGCONT)


def refused_in(cluster: Cluster, workflow: dict[str, Any]) -> float:
    """Seconds until a submit was refused. Not through the client: that waits and tries again, as it should."""
    headers = {"Authorization": f"Bearer {cluster.api_key}"}
    began = time.monotonic()
    refused = httpx2.post(f"{cluster.url}/v1/runs", json={"workflow": workflow}, headers=headers, trust_env=False)
    seconds = time.monotonic() - began
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/policy-unavailable")
    return seconds


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_nothing_executes_and_the_step_goes_on_later(how: signal.Signals, make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster()
    cluster.start_control_plane()
    cluster.start_node()
    body = [{"id": "pause", "wait": "1s"}, {"id": "work", "tool": "builtin.noop", "args": {"n": 1}}]
    workflow = {"stockade": "1", "name": "parks", "steps": body}
    with cluster.client() as client:
        run = client.submit(workflow)
        assert policy_workers(cluster.pid("control"))
        with policy_down(cluster.pid("control"), how):
            assert min(refused_in(cluster, workflow) for _ in range(ASKED)) < PROMISED_SECONDS + SLACK_SECONDS
            wait_for(
                lambda: ("work", "waiting") in [(s.path, s.status) for s in client.steps(run.id)], "the step parking"
            )
            step = client.step(run.id, "work")
            assert [reason.code for reason in step.waiting] == ["policy_unavailable"]
            assert step.number == 0
        ended = client.wait(run.id)
        assert (ended.status, ended.output["work"]) == ("completed", {"n": 1})
        assert client.step(run.id, "work").number == 1
