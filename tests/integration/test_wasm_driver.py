"""The wasm driver beyond the conformance suite: warm claims, fuel, leftovers."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, Exited, ExitReason
from sandboxes.hostfiles import remove_tree
from sandboxes.spec import Limits, SandboxSpec, Tier
from sandboxes.wasm.driver import WasmDriver


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
async def test_an_unknown_image_is_refused(driver: WasmDriver) -> None:
    with pytest.raises(DriverFailed, match="python-data"):
        async with driver.open(SandboxSpec(tier=Tier.WASM, image="ubuntu"), "x"):
            pass
