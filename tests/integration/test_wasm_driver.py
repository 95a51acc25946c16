"""The wasm driver beyond the conformance suite: warm claims, fuel, leftovers."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, Exited, ExitReason
from sandboxes.frames import job_frame
from sandboxes.hostfiles import remove_tree
from sandboxes.registry import discover
from sandboxes.spec import Limits, SandboxSpec, Tier
from sandboxes.wasm.driver import WasmDriver
from sandboxes.wasm.images import ModuleCache
from sandboxes.wasm.launch import Walls, spawn


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="stockade-wasm-"))
    made.chmod(0o755)
    yield made
    remove_tree(made)


@pytest.fixture
async def driver(folder: Path) -> AsyncIterator[WasmDriver]:
    made = WasmDriver(cache_dir=folder / "cache", state_dir=folder / "state", pool_size=2)
    await made.prepare("python")
    yield made
    await made.close()


async def _run(driver: WasmDriver, source: str, limits: Limits | None = None) -> Exited:
    spec = SandboxSpec(tier=Tier.WASM, limits=limits or Limits())
    async with driver.open(spec, "test") as sandbox:
        events = [event async for event in sandbox.execute(Command(language="python", source=source))]
    assert isinstance(events[-1], Exited)
    return events[-1]


@pytest.mark.anyio
async def test_a_warm_claim_takes_milliseconds(driver: WasmDriver) -> None:
    seconds = []
    for _ in range(5):
        await driver.prepare("python")
        started = time.perf_counter()
        async with driver.open(SandboxSpec(tier=Tier.WASM), "warm"):
            seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.05  # the benchmark holds it to 5 ms; here only against a cold start


@pytest.mark.anyio
async def test_fuel_ends_a_loop_whatever_the_clock_says(driver: WasmDriver) -> None:
    assert (await _run(driver, "while True: pass", Limits(fuel=500_000_000))).reason is ExitReason.FUEL


@pytest.mark.anyio
async def test_files_deleted_while_open_still_count(driver: WasmDriver) -> None:
    source = "import os\nf = open('/tmp/x', 'wb')\nos.unlink('/tmp/x')\nwhile True: f.write(b'x' * (1 << 20))"
    end = await _run(driver, source, Limits(disk_bytes=32 << 20))
    assert end.reason is ExitReason.DISK or end.code == 1


@pytest.mark.anyio
async def test_two_guests_hash_differently(driver: WasmDriver) -> None:
    assert (await _run(driver, "hash('x')")).result != (await _run(driver, "hash('x')")).result


@pytest.mark.anyio
async def test_another_driver_reaps_what_a_first_left(driver: WasmDriver, folder: Path) -> None:
    other = WasmDriver(cache_dir=folder / "cache", state_dir=folder / "state", pool_size=0)
    async with driver.open(SandboxSpec(tier=Tier.WASM), "lost"), driver.open(SandboxSpec(tier=Tier.WASM), "kept"):
        assert await other.reap({"kept"}) == ("lost",)
        assert await other.reap({"kept"}) == ()


@pytest.mark.anyio
async def test_what_a_crash_leaves_before_the_worker_runs_is_reaped(
    driver: WasmDriver, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = await ModuleCache(folder / "cache" / "wasm").prepare("python", fuel=False)
    state = folder / "crashed"
    other = WasmDriver(cache_dir=folder / "cache", state_dir=state, pool_size=0)
    walls = Walls(bubblewrap=None, hierarchy=None, own_uid=False)

    def crash(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr("sandboxes.wasm.launch.socket.socketpair", crash)
        spawn(state / "wasm", module, None, fuel=False, walls=walls)
    (left,) = (state / "wasm").iterdir()
    await other.reap(())
    assert left.is_dir(), "its maker lives and may be about to start it"
    record = left / "record.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"owner_start": 0}))
    await other.reap(())
    assert not left.exists()


@pytest.mark.anyio
async def test_the_tiers_of_a_node_reap_only_what_is_theirs(folder: Path) -> None:
    state = folder / "node"
    drivers, _ = discover(folder / "cache", state, 0)
    if Tier.JAIL not in drivers:
        pytest.skip("this host has no jail")
    for tier in drivers:
        others = [one for one in drivers.values() if one.tier is not tier]
        async with drivers[tier].open(SandboxSpec(tier=tier), "mine") as sandbox:
            for other in others:
                assert await other.reap(()) == ()
            events = [event async for event in sandbox.execute(Command(language="python", source="6 * 7"))]
        assert isinstance(events[-1], Exited)
        assert events[-1].result == 42


@pytest.mark.parametrize("source", ["import time; time.sleep(1000)", "while True: pass"], ids=["asleep", "busy"])
@pytest.mark.anyio
async def test_a_worker_ends_its_guest_even_if_its_driver_hangs(folder: Path, source: str) -> None:
    module = await ModuleCache(folder / "cache" / "wasm").prepare("python", fuel=False)
    state = folder / "hung"
    state.mkdir(exist_ok=True)
    walls = Walls(bubblewrap=None, hierarchy=None, own_uid=False)
    worker = await anyio.to_thread.run_sync(lambda: spawn(state, module, None, fuel=False, walls=walls))
    bounds = {"memory_bytes": 1 << 30, "file_bytes": 1 << 20, "disk_bytes": 1 << 20, "open_files": 64, "fuel": None}
    try:
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(worker.control, 64) == b"ready\n"
        await loop.sock_sendall(worker.control, json.dumps({**bounds, "wall_seconds": 0.1}).encode() + b"\n")
        await loop.sock_sendall(worker.channel, job_frame(Command(language="python", source=source), {}))
        with anyio.fail_after(30):
            assert json.loads(await loop.sock_recv(worker.control, 4096))["trap"] == "interrupt"
    finally:
        await anyio.to_thread.run_sync(worker.destroy)


@pytest.mark.anyio
async def test_an_unknown_image_is_refused(driver: WasmDriver) -> None:
    with pytest.raises(DriverFailed, match="python-data"):
        async with driver.open(SandboxSpec(tier=Tier.WASM, image="ubuntu"), "x"):
            pass
