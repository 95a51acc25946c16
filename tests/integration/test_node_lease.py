"""What the daemon does when its lease lapses, when the hold is over, and when it drains."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from aiohttp import web

from dataplane.leases import Lease
from dataplane.protocol import (
    HttpCall,
    Performance,
)
from dataplane.testing import ControlPlaneDouble
from sandboxes.execution import ExitReason
from tests.integration.scripted_node import Clock, ScriptedDriver, call, code, node, noop, service

pytestmark = pytest.mark.anyio


async def test_lapsed_lease_freezes_and_renewal_thaws(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    double = ControlPlaneDouble(heartbeat_seconds=0.05, lease_seconds=0.2)
    async with double.serving(), node(double, tmp_path, driver):
        double.assign(code("a", "sleep"))
        with anyio.fail_after(5):
            await driver.started.wait()
        sandbox = driver.live["a"]
        double.broken = True
        await driver.until(lambda: sandbox.frozen)
        double.broken = False
        await driver.until(lambda: not sandbox.frozen)
        assert "a" in driver.live


@pytest.mark.parametrize("frozen", [True, False])
async def test_wall_time_that_ran_out_while_frozen_is_not_the_guests_fault(tmp_path: Path, frozen: bool) -> None:
    driver = ScriptedDriver()
    double = ControlPlaneDouble(heartbeat_seconds=0.05, lease_seconds=0.2)
    async with double.serving(), node(double, tmp_path, driver):
        double.assign(code("a", "sleep"))
        with anyio.fail_after(5):
            await driver.started.wait()
        sandbox = driver.live["a"]
        if frozen:
            double.broken = True
            await driver.until(lambda: sandbox.frozen)
            double.broken = False
            await driver.until(lambda: not sandbox.frozen)
        sandbox.ended_by = ExitReason.TIMEOUT
        await sandbox.cancel()
        report = await double.report_of("a")
    assert (report.platform_error, report.reason) == (("frozen" if frozen else None), "timeout")


async def test_hold_over_kills_and_reports_frozen(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    double = ControlPlaneDouble(heartbeat_seconds=0.05, lease_seconds=0.1, hold_seconds=0.1)
    async with double.serving(), node(double, tmp_path, driver):
        double.assign(code("a", "sleep"))
        with anyio.fail_after(5):
            await driver.started.wait()
        double.broken = True
        await driver.until(lambda: not driver.live)
        double.broken = False
        assert (await double.report_of("a")).platform_error == "frozen"


async def test_no_call_is_performed_while_the_lease_is_lapsed(tmp_path: Path) -> None:
    hits: list[str] = []

    async def hit(request: web.Request) -> web.Response:
        hits.append(request.path)
        return web.json_response(1)

    clock = Clock()
    async with (
        service(hit) as url,
        ControlPlaneDouble().serving() as double,
        node(double, tmp_path, lease=Lease(clock)) as daemon,
    ):
        clock.now += 100  # the node was stopped as a whole: nobody told it anything
        performing = Performance(key="k", http=HttpCall(method="GET", url=url, private_allowed=True))
        double.assign(call("a", performing), noop("b"))
        await double.report_of("b")
        assert not hits
        daemon.lease.renew(clock.now)
        assert (await double.report_of("a")).result == 1
    assert len(hits) == 1


async def test_drain_ends_what_does_not_finish_and_reports_it_lost(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, driver) as daemon:
        double.assign(code("a", "sleep"))
        with anyio.fail_after(5):
            await driver.started.wait()
            await daemon.drain(0.05)
    assert double.reports["a"].platform_error == "lost"
    assert any(heartbeat.draining for heartbeat in double.heartbeats)
