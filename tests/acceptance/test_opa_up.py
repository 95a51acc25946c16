"""``stockade up --policy-engine opa``: a real OPA decides, and while it cannot nothing executes and steps park."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from stockade.cli import opa_child
from stockade.client import Client
from tests.acceptance.cluster import REPOSITORY, free_port, wait_for
from tests.acceptance.standalone import Standalone
from tests.acceptance.test_policy_down import ASKED, PROMISED_SECONDS, SLACK_SECONDS
from tests.opa_server import TOKEN, opa_program

PARKS = {
    "stockade": "1",
    "name": "parks",
    "steps": [{"id": "pause", "wait": "1s"}, {"id": "work", "tool": "builtin.noop", "args": {"n": 1}}],
}


def with_opa(folder: Path, image_cache: Path, *options: str) -> Standalone:
    up = Standalone(folder, image_cache, arguments=("--policy-engine", "opa", *options))
    up.environment["PATH"] = f"{opa_program().parent}{os.pathsep}{os.environ['PATH']}"
    return up


def client_of(up: Standalone) -> Client:
    return Client(up.url, api_key=(up.folder / "state" / "control" / "admin.key").read_text().strip())


def servers(up: Standalone) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(up.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "opa" in Path(one.cmdline()[0]).name:
                found.append(one)
    return found


@contextmanager
def opa_down(up: Standalone, how: signal.Signals) -> Iterator[None]:
    """Kill or stop OPA, and every one that replaces it, for as long as the context lasts."""
    struck, over = threading.Event(), threading.Event()

    def work() -> None:
        while not over.is_set():
            for one in servers(up):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(how)
            struck.set()
            over.wait(0.005)

    thread = threading.Thread(target=work)
    thread.start()
    struck.wait()  # the server of this moment is gone
    try:
        yield
    finally:
        over.set()
        thread.join()
        for one in servers(up):
            one.send_signal(signal.SIGCONT)


def refused_in(up: Standalone) -> float:
    """Seconds until a submit was refused. Not through the client: that waits and tries again, as it should."""
    key = (up.folder / "state" / "control" / "admin.key").read_text().strip()
    headers = {"Authorization": f"Bearer {key}"}
    began = time.monotonic()
    refused = httpx2.post(f"{up.url}/v1/runs", json={"workflow": PARKS}, headers=headers, trust_env=False)
    seconds = time.monotonic() - began
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/policy-unavailable")
    return seconds


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_while_opa_is_down_nothing_executes_and_the_step_goes_on_later(
    tmp_path: Path, image_cache: Path, how: signal.Signals
) -> None:
    with with_opa(tmp_path, image_cache) as up, client_of(up) as client:
        run = client.submit(PARKS)
        with opa_down(up, how):
            assert min(refused_in(up) for _ in range(ASKED)) < PROMISED_SECONDS + SLACK_SECONDS
            wait_for(
                lambda: ("work", "waiting") in [(s.path, s.status) for s in client.steps(run.id)], "the step parking"
            )
            step = client.step(run.id, "work")
            assert ([reason.code for reason in step.waiting], step.number) == (["policy_unavailable"], 0)
            assert httpx2.get(f"{up.url}/readyz").status_code == 503
        ended = client.wait(run.id)
        assert (ended.status, ended.output["work"]) == ("completed", {"n": 1})
        assert client.step(run.id, "work").number == 1


def test_code_runs_and_every_decision_is_opas(tmp_path: Path, image_cache: Path) -> None:
    with with_opa(tmp_path, image_cache) as up:
        done = up.command("run", str(REPOSITORY / "examples" / "hello.json"), "--wait")
        assert done.returncode == 0, done.stdout + done.stderr
        listed = up.command("policy", "decisions", "-o", "json")
        decisions = json.loads(listed.stdout)
        assert decisions, listed.stderr
        assert {one["engine"] for one in decisions} == {"opa"}
        assert len({one["revision"] for one in decisions}) == 1
        (server,) = servers(up)
        kept = server.environ()
        assert not {"HOME", "PATH", "STOCKADE_API_KEY"} & kept.keys()
        assert kept["STOCKADE_OPA_TOKEN"] not in " ".join(server.cmdline())
        for name in ("up", "control", "opa"):
            assert kept["STOCKADE_OPA_TOKEN"] not in up.log(name)
        bundle = f"{up.url}/policy/v1/bundle.tar.gz"
        assert httpx2.get(bundle).status_code == 401
        assert httpx2.get(bundle, headers={"Authorization": "Bearer " + "0" * 64}).status_code == 401
        token = {"Authorization": f"Bearer {kept['STOCKADE_OPA_TOKEN']}"}
        assert httpx2.get(bundle, headers=token).status_code == 200


def test_kill_9_of_up_ends_opa(tmp_path: Path, image_cache: Path) -> None:
    with with_opa(tmp_path, image_cache, "--no-node") as up:
        (server,) = servers(up)
        up.kill()
        wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "OPA ending with up", 5)


def test_an_opa_of_ones_own_is_used_by_url(tmp_path: Path, image_cache: Path) -> None:
    """It was there before, and fetches the bundle when the control plane comes."""
    port, listens, token = free_port(), tmp_path / "own.sock", tmp_path / "token"
    token.write_text(TOKEN)
    with (tmp_path / "own.log").open("wb") as log:
        own = subprocess.Popen(
            opa_child.command(opa_program(), listens), env=opa_child.environment(f"http://127.0.0.1:{port}", TOKEN),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        where = ("--opa-url", f"unix://{listens}", "--opa-token-file", str(token))
        with with_opa(tmp_path, image_cache, "--port", str(port), *where) as up, client_of(up) as client:
            assert servers(up) == []
            ended = client.wait(client.submit(PARKS).id)
            assert ended.status == "completed"
        assert own.poll() is None
    finally:
        own.kill()
        own.wait()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy-engine", "opa"], "make components-opa"),
        (["--opa-url", "https://opa.example"], "--policy-engine opa"),
        (["--policy-engine", "opa", "--opa-url", "https://opa.example"], "openssl rand"),
    ],
)
def test_up_says_what_is_missing_for_opa(tmp_path: Path, image_cache: Path, options: list[str], said: str) -> None:
    up = Standalone(tmp_path, image_cache)
    up.environment["PATH"] = "/nonexistent"
    done = up.command("up", "--port", "0", *options)
    assert done.returncode in (2, 3)
    assert said in done.stderr


def test_without_a_policy_engine_of_opa_there_is_no_bundle(client: Client) -> None:
    assert httpx2.get(f"{client.url}/policy/v1/bundle.tar.gz").status_code == 404
