"""A node as a real process: SIGTERM drains it, a second one ends it now."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest
from aiohttp import web

from dataplane.protocol import Assignment, BuiltinCall, HttpCall, Performance
from dataplane.testing import ControlPlaneDouble
from tests.acceptance.cluster import free_port

pytestmark = pytest.mark.anyio

PROGRAM = """
import sys
from pathlib import Path
import anyio
from dataplane.cli import configure_logs, serve
from dataplane.config import NodeConfig
from dataplane.daemon import NodeDaemon

async def main():
    config = NodeConfig(
        url=sys.argv[1], state_dir=Path(sys.argv[2]), join_token="join", drain_seconds=float(sys.argv[3])
    )
    await serve(NodeDaemon(config, {}))

configure_logs()
anyio.run(main)
print("ended", [name for name in ("fastapi", "sqlmodel", "pydantic", "controlplane") if name in sys.modules])
"""


@asynccontextmanager
async def process(double: ControlPlaneDouble, folder: Path, drain: float = 30) -> AsyncIterator[anyio.abc.Process]:
    command = [sys.executable, "-c", PROGRAM, double.url, str(folder), str(drain)]
    async with await anyio.open_process(command, stdout=subprocess.PIPE, stderr=None) as running:
        try:
            await double.until(lambda: bool(double.heartbeats), 30)
            yield running
        finally:
            if running.returncode is None:
                running.kill()


class Service:
    """Answers each request when told to."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.answer = anyio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.set()
        await self.answer.wait()
        return web.json_response("done")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
        finally:
            self.answer.set()
            await runner.cleanup()


def slow_call(url: str) -> Assignment:
    work = Performance(key="k", http=HttpCall(method="GET", url=url, private_allowed=True))
    return Assignment(attempt="slow", fence=1, run="r", path="p", number=1, wall_seconds=60, call=work)


async def ended(running: anyio.abc.Process) -> str:
    assert running.stdout is not None
    text = b""
    with anyio.fail_after(20):
        async for part in running.stdout:
            text += part
        await running.wait()
    return text.decode()


async def test_sigterm_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    outside = Service()
    async with outside.serving() as url, ControlPlaneDouble().serving() as double, process(double, tmp_path) as running:
        assert int((tmp_path / "node.pid").read_text()) == running.pid
        double.assign(slow_call(url))
        with anyio.fail_after(10):
            await outside.asked.wait()
        running.send_signal(signal.SIGTERM)
        await double.until(lambda: double.heartbeats[-1].draining)
        outside.answer.set()
        text = await ended(running)
    assert double.reports["slow"].result == "done"
    assert running.returncode == 0
    assert text.strip() == "ended []"
    assert not (tmp_path / "node.pid").exists()


async def test_what_outlasts_the_drain_is_reported_lost(tmp_path: Path) -> None:
    outside = Service()
    async with (
        outside.serving() as url,
        ControlPlaneDouble().serving() as double,
        process(double, tmp_path, drain=0.1) as running,
    ):
        double.assign(slow_call(url))
        with anyio.fail_after(10):
            await outside.asked.wait()
        running.send_signal(signal.SIGINT)
        await ended(running)
    assert double.reports["slow"].platform_error == "lost"
    assert running.returncode == 0


async def test_a_second_signal_ends_now(tmp_path: Path) -> None:
    outside = Service()
    async with outside.serving() as url, ControlPlaneDouble().serving() as double, process(double, tmp_path) as running:
        double.assign(slow_call(url))
        with anyio.fail_after(10):
            await outside.asked.wait()
        running.send_signal(signal.SIGTERM)
        await double.until(lambda: double.heartbeats[-1].draining)
        running.send_signal(signal.SIGTERM)
        await ended(running)
    assert "slow" not in double.reports
    assert running.returncode == 0


async def test_a_stopped_node_loses_its_lease_and_goes_on_when_it_is_renewed(tmp_path: Path) -> None:
    double = ControlPlaneDouble(heartbeat_seconds=0.05, lease_seconds=0.3)
    async with double.serving(), process(double, tmp_path) as running:
        running.send_signal(signal.SIGSTOP)
        seen = len(double.heartbeats)
        running.send_signal(signal.SIGCONT)
        await double.until(lambda: len(double.heartbeats) > seen)
        work = Performance(key="k", builtin=BuiltinCall(name="artifact.write", args={"name": "n", "text": "x"}))
        double.assign(Assignment(attempt="a", fence=1, run="r", path="p", number=1, wall_seconds=60, call=work))
        assert (await double.report_of("a")).error is None


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
async def test_a_node_that_cannot_register_ends_when_told_to(tmp_path: Path, signal_: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, f"http://127.0.0.1:{free_port()}", str(tmp_path), "30"]
    async with await anyio.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            assert running.stderr is not None
            with anyio.fail_after(30):
                said = b""
                while b"not registered" not in said:
                    said += await running.stderr.receive()
                running.send_signal(signal_)
                assert await running.wait() == 0
        finally:
            if running.returncode is None:
                running.kill()
