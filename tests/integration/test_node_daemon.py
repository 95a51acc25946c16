"""The daemon against the control plane's double over real HTTP, with a driver whose guests are scripts."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from aiohttp import web

from dataplane.config import ConfigError, NodeConfig
from dataplane.daemon import NodeDaemon
from dataplane.protocol import (
    AuthorizeAnswer,
    BuiltinCall,
    Directive,
    HttpCall,
    InputGrant,
    Performance,
    SecretLease,
)
from dataplane.testing import ControlPlaneDouble
from tests.integration.scripted_node import ScriptedDriver, call, code, node, noop, service

pytestmark = pytest.mark.anyio


async def test_registers_and_answers_noop_calls(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, ScriptedDriver()):
        double.assign(*[noop(f"a{i}", n=i) for i in range(600)])
        await double.until(lambda: len(double.reports) == 600)
    assert len(double.deliveries) == 600
    assert double.reports["a599"].result == {"n": 599}
    registered = double.registered[0]
    assert registered.tiers == {"wasm": "user"}
    assert registered.absent == {"jail": "no bubblewrap"}
    assert registered.identity == (tmp_path / "state" / "identity").read_text().strip()
    assert (tmp_path / "state" / "node.token").stat().st_mode & 0o777 == 0o600


async def test_code_runs_streams_and_uploads(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    driver.files = {"plot.json": b"{}", "output.json": b'"hello"'}
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, driver):
        double.assign(code("a", "print hello"))
        report = await double.report_of("a")
        assert double.output_of("a") == b"hello"
        assert double.output_of("a", "stderr") == b"warned"
    assert (report.reason, report.result, report.stdout_tail, report.stdout_bytes) == ("exited", "hello", "hello", 5)
    assert [item.name for item in report.artifacts] == ["plot.json"]
    assert report.artifacts[0].media_type == "application/json"
    assert driver.specs[0].limits.wall_seconds == 20
    assert not driver.live


async def test_report_survives_a_connection_cut_before_its_acknowledgement(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path):

        def cut(_: object) -> None:
            double.on_reports = None
            double.cut_after.append("pull")

        double.on_reports = cut
        double.assign(noop("a"))
        await double.until(lambda: len(double.deliveries) == 2)
    assert {(report.attempt, report.fence) for report in double.deliveries} == {("a", 1)}


async def test_reports_wait_for_a_control_plane_that_is_away(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, driver):
        double.assign(code("a", "sleep"))
        with anyio.fail_after(5):
            await driver.started.wait()
        double.broken = True
        await driver.live["a"].cancel()
        await driver.until(lambda: not driver.live)
        assert not double.deliveries
        double.broken = False
        assert (await double.report_of("a")).reason == "cancelled"


async def test_unknown_token_registers_again_under_the_same_boot(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path):
        double.token = "forgotten"
        double.assign(noop("a"))
        double.direct(Directive(kind="rejoin"))
        await double.report_of("a")
    assert len(double.registered) >= 2
    assert len({(one.identity, one.boot_id) for one in double.registered}) == 1


async def test_a_refused_join_token_says_what_to_do(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double:
        config = NodeConfig(url=double.url, state_dir=tmp_path, join_token="wrong")
        with pytest.raises(ConfigError, match="stockade node join-token"):
            await NodeDaemon(config, {}).run()


async def test_cancel_directive_ends_the_sandbox_and_reports(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, driver):
        double.assign(code("a", "sleep"))
        with anyio.fail_after(5):
            await driver.started.wait()
        double.direct(Directive(kind="cancel", attempt="a", fence=1, reason="the user asked"))
        report = await double.report_of("a", seconds=2)
    assert (report.reason, report.message, report.platform_error) == ("cancelled", "the user asked", None)


async def test_stale_acknowledgement_drops_the_report(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path) as daemon:
        double.stale.add("a")
        double.assign(noop("a"), noop("b"))
        await double.report_of("b")
        with anyio.fail_after(10):
            await daemon.drain()
    assert len([report for report in double.deliveries if report.attempt == "a"]) == 1


async def test_a_newer_fence_of_the_same_attempt_ends_the_older(tmp_path: Path) -> None:
    driver = ScriptedDriver()
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, driver):
        double.assign(code("a", "sleep"))
        with anyio.fail_after(5):
            await driver.started.wait()
        double.assign(code("a", "print new", fence=2))
        await double.until(lambda: len(double.deliveries) == 2)
    assert {(report.fence, str(report.reason)) for report in double.deliveries} == {(1, "cancelled"), (2, "exited")}


async def test_driver_failure_is_the_platforms(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, ScriptedDriver()):
        double.assign(code("a", "break"))
        report = await double.report_of("a")
    assert (report.platform_error, report.message) == ("driver_failed", "no memory cgroup here")


async def test_an_unknown_requirement_is_refused_with_the_remedy(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path):
        assignment = noop("a")
        assignment.requires = ["quantum"]
        double.assign(assignment)
        report = await double.report_of("a")
    assert report.platform_error == "driver_failed"
    assert report.message == "this node lacks quantum: update it"


async def test_inputs_come_from_artifacts_and_data_roots(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "x.txt").write_text("from the root")
    async with (
        ControlPlaneDouble().serving() as double,
        node(double, tmp_path, ScriptedDriver(), data={"d": data}),
    ):
        digest = double.add_artifact("one", b"from the store").digest
        grants = [InputGrant(name="a", artifact="one", digest=digest), InputGrant(name="b", data="d/x.txt")]
        double.assign(code("a", "read", inputs=grants))
        good = await double.report_of("a")
        double.assign(code("b", "read", inputs=[InputGrant(name="a", artifact="one", digest="sha256:" + "0" * 64)]))
        altered = await double.report_of("b")
        double.assign(code("c", "read", inputs=[InputGrant(name="a", data="d/../secret")]))
        outside = await double.report_of("c")
    assert good.result == {"a": "from the store", "b": "from the root"}
    assert altered.platform_error == "fetch_failed"
    assert (outside.platform_error, outside.reason) == (None, "input")
    assert "altered" in altered.message


async def test_guest_call_is_authorized_performed_recorded_and_scrubbed(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def echo(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.json_response({"you sent": request.headers["Authorization"]})

    async with (
        service(echo) as url,
        ControlPlaneDouble().serving() as double,
        node(double, tmp_path, ScriptedDriver()),
    ):
        secret = SecretLease(name="s", header="Authorization", format="Bearer {}", value="hunter2-hunter2")
        perform = Performance(
            key="key-1", http=HttpCall(method="GET", url=url + "/x", secrets=[secret], private_allowed=True)
        )
        answers = iter(
            [AuthorizeAnswer(call=1, unavailable=True), AuthorizeAnswer(call=1, allow=True, perform=perform)]
        )
        double.authorize = lambda request: next(answers)
        double.assign(code("a", "call web.get", tools=["web.*"]))
        report = await double.report_of("a")
    assert seen[0]["Authorization"] == "Bearer hunter2-hunter2"
    assert seen[0]["Idempotency-Key"] == "key-1"
    assert report.result == {"value": {"you sent": "Bearer ***"}, "error": None}
    assert [(one.key, one.value) for one in double.results] == [("key-1", {"you sent": "Bearer ***"})]
    assert [(one.tool, one.call) for one in double.asked] == [("web.get", 1)] * 2


async def test_guest_call_not_granted_is_decided_by_the_control_plane(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, ScriptedDriver()):
        double.authorize = lambda request: AuthorizeAnswer(call=request.call, error={"type": "policy_denied"})
        double.assign(code("a", "call shell.run", tools=["web.*"]))
        report = await double.report_of("a")
    assert report.result["error"]["type"] == "policy_denied"
    assert [request.tool for request in double.asked] == ["shell.run"]


async def test_recorded_answers_are_not_performed_again(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, ScriptedDriver()):
        double.authorize = lambda request: AuthorizeAnswer(call=request.call, recorded=True, value=42)
        double.assign(code("a", "call web.get", tools=["web.get"]))
        assert (await double.report_of("a")).result == {"value": 42, "error": None}
        assert not double.results


async def test_artifact_builtins(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path):
        write = BuiltinCall(name="artifact.write", args={"name": "note", "text": "hello"})
        double.assign(call("w", Performance(key="w", builtin=write)))
        written = await double.report_of("w")
        read = BuiltinCall(name="artifact.read", args={"artifact": written.result["id"]})
        double.assign(call("r", Performance(key="r", builtin=read)))
        assert (await double.report_of("r")).result == {"text": "hello", "truncated": False}
    assert written.artifacts[0].media_type == "text/plain"
