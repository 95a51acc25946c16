"""What a guest leaves in /outputs, on its way to the control plane: in pieces, and never the platform's failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from dataplane.config import NodeConfig
from dataplane.daemon import NodeDaemon
from dataplane.protocol import Assignment, CodeWork, Report, SandboxRequest
from dataplane.testing import ControlPlaneDouble
from sandboxes.spec import MIB, Tier
from sandboxes.testing import FakeDriver, FakeSandbox, Play

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def node(double: ControlPlaneDouble, folder: Path, play: Play) -> AsyncIterator[None]:
    config = NodeConfig(url=double.url, state_dir=folder / "state", join_token="join", name="n")
    daemon = NodeDaemon(config, {Tier.JAIL: FakeDriver({"go": play})})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(daemon.run)
        yield
        daemon.stop()


async def outcome(double: ControlPlaneDouble) -> Report:
    sandbox = SandboxRequest(tier="jail", image="python", memory_bytes=2**28, wall_seconds=20)
    work = CodeWork(language="python", source="go", sandbox=sandbox)
    double.assign(Assignment(attempt="a", fence=1, run="r", path="p", number=1, wall_seconds=30, code=work))
    return await double.report_of("a")


async def test_a_file_is_sent_again_from_its_beginning(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(files={"big.png": data})):
        double.cut_after.append("artifacts")
        report = await outcome(double)
        assert [stored for _, stored in double.artifacts.values()] == [data, data]
    assert (report.reason, report.platform_error) == ("exited", None)
    assert [(one.name, one.size_bytes, one.media_type) for one in report.artifacts] == [
        ("big.png", len(data), "image/png")
    ]


async def test_no_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole(_: FakeSandbox, path: str) -> bytes:
        raise AssertionError(path)

    async def pieces(_: FakeSandbox, path: str) -> AsyncIterator[bytes]:
        for number in range(5):
            yield b"%d" % number

    monkeypatch.setattr(FakeSandbox, "read_output", whole)
    monkeypatch.setattr(FakeSandbox, "stream_output", pieces)
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(files={"f": b"01234"})):
        report = await outcome(double)
        assert [stored for _, stored in double.artifacts.values()] == [b"01234"]
    assert report.platform_error is None


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_file_that_will_not_be_stored_is_the_guests_failure(tmp_path: Path, status: int) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(files={"f": b"1"})):
        double.upload_refused = status
        report = await outcome(double)
    assert (report.reason, report.platform_error, report.has_result) == ("disk", None, False)
    assert "'f'" in report.message


async def test_an_upload_refused_for_its_fence_is_not(tmp_path: Path) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(files={"f": b"1"})):
        double.upload_refused = 409
        report = await outcome(double)
    assert report.platform_error == "driver_failed"


async def test_a_file_that_cannot_be_read_is_the_guests_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreadable(_: FakeSandbox, path: str) -> AsyncIterator[bytes]:
        if path:
            raise FileNotFoundError(path)
        yield b""

    monkeypatch.setattr(FakeSandbox, "stream_output", unreadable)
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(files={"f": b"1"})):
        report = await outcome(double)
    assert (report.reason, report.platform_error) == ("disk", None)


@pytest.mark.parametrize("name", ["data:a\n/b,x", "data:text/html,x", "x.\ud7ff", "a.tar.gz", "noending."])
async def test_no_name_chooses_a_media_type_of_its_own(tmp_path: Path, name: str) -> None:
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(files={name: b"1"})):
        report = await outcome(double)
    assert [one.name for one in report.artifacts] == [name]
    assert report.artifacts[0].media_type == "application/octet-stream"


async def test_more_than_the_disk_limit_is_never_uploaded(tmp_path: Path) -> None:
    files = {f"f{number}": bytes(180 * MIB) for number in range(3)}
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(files=files)):
        report = await outcome(double)
        assert not double.artifacts
    assert (report.reason, report.platform_error) == ("disk", None)


async def test_a_large_result_arrives_as_it_was(tmp_path: Path) -> None:
    value = {"rows": [[number, "żółw"] for number in range(20_000)]}
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(result=value, has_result=True)):
        report = await outcome(double)
    assert (report.has_result, report.result) == (True, value)


async def test_a_result_too_deep_for_the_control_plane_is_a_schema_error(tmp_path: Path) -> None:
    deep: object = 1
    for _ in range(101):
        deep = [deep]
    async with ControlPlaneDouble().serving() as double, node(double, tmp_path, Play(result=deep, has_result=True)):
        report = await outcome(double)
    assert not report.has_result
    assert report.schema_error is not None
    assert "100 levels" in report.schema_error
