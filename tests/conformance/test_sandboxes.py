"""The public suite over the fake, the jail and wasm in both strengths (wasm as user without bubblewrap), and containers
in both, with spares, and on both runtimes.

A tier this host has not is skipped with its probe's reason; if STOCKADE_REQUIRE names it it fails: ``wasm``, ``jail``,
``container``, and ``runsc`` for containers on gVisor.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from sandboxes.conformance import CHECKS, Check, absent, plays, run_check
from sandboxes.container.driver import ContainerDriver, ContainerSandbox
from sandboxes.container.options import Runtime
from sandboxes.driver import Driver, Feature
from sandboxes.errors import DriverFailed, TierUnavailable
from sandboxes.jail.driver import JailDriver
from sandboxes.spec import SandboxSpec, Strength
from sandboxes.testing import FakeDriver, program_key
from sandboxes.wasm.driver import WasmDriver
from tests import required


def _wasm(strength: Strength, folder: Path) -> Driver:
    # One cache for both: the module is the same, and compiling it takes seconds.
    return WasmDriver(cache_dir=folder.parent / "cache", state_dir=folder, pool_size=0, strength=strength)


def _wasm_user(folder: Path) -> Driver:
    """Without bubblewrap, whether or not the host has it: the driver looks for it when it is made."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sandboxes.wasm.driver.find_bubblewrap", lambda: None)
        return _wasm(Strength.USER, folder)


def _container(folder: Path, runtime: Runtime, strength: Strength) -> Driver:
    return ContainerDriver(folder, runtime=runtime, strength=strength)


class WarmContainerDriver(ContainerDriver):
    """Has a spare for each sandbox that may have one."""

    @asynccontextmanager
    async def open(self, spec: SandboxSpec, label: str) -> AsyncIterator[ContainerSandbox]:
        if not spec.mounts:
            await self.warm(spec)
        async with super().open(spec, label) as sandbox:
            yield sandbox


DRIVERS: dict[str, tuple[str, Callable[[Path], Driver]]] = {
    "fake": ("fake", lambda _: FakeDriver(plays())),
    "jail-user": ("jail", lambda folder: JailDriver(folder, Strength.USER)),
    "jail-full": ("jail", lambda folder: JailDriver(folder, Strength.FULL)),
    "wasm-user": ("wasm", _wasm_user),
    "wasm-full": ("wasm", partial(_wasm, Strength.FULL)),
    "container-runc-user": ("container", lambda folder: _container(folder, "runc", Strength.USER)),
    "container-runc-full": ("container", lambda folder: _container(folder, "runc", Strength.FULL)),
    "container-warm-full": ("container", lambda folder: WarmContainerDriver(folder, runtime="runc", pool_size=1)),
    "container-runsc-full": ("runsc", lambda folder: _container(folder, "runsc", Strength.FULL)),
}


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    """A folder that guests' uids may pass, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="stockade-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def _reason(make: Callable[[Path], Driver], folder: Path) -> str | None:
    try:
        made = make(folder)
    except DriverFailed as error:  # a strength that cannot be had
        return str(error)
    try:
        if reason := await made.probe():
            return reason
        return None if made.images() else "the engine has no image yet; run `make image`"
    finally:
        await made.close()


@pytest.fixture(scope="module", params=DRIVERS)
def tier(request: pytest.FixtureRequest, state_dir: Path) -> Callable[[], Driver]:
    """Makes one tier's driver; probed once, since each test's event loop wants a driver of its own."""
    component, make = DRIVERS[request.param]
    folder = state_dir / request.param
    if reason := anyio.run(_reason, make, folder):
        if request.param.endswith("-full") and os.geteuid() != 0:
            pytest.skip(f"{request.param}: needs root: {reason}")
        required.absent(component, f"{request.param}: {reason}")
    return lambda: make(folder)


@pytest.fixture
async def driver(tier: Callable[[], Driver]) -> AsyncIterator[Driver]:
    made = tier()
    yield made
    await made.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
@pytest.mark.anyio
async def test_conformance(driver: Driver, check: Check) -> None:
    reasons = {missing.name: reason for missing, reason in absent(driver)}
    if check.name in reasons:
        pytest.skip(reasons[check.name])
    await run_check(driver, check)


@pytest.mark.anyio
async def test_a_tier_that_hands_out_no_gpu_refuses_a_real_one_and_takes_declared_ones_as_names(driver: Driver) -> None:
    if Feature.GPU in driver.features:
        pytest.skip(f"{driver.tier} hands GPUs to its guests: tests/security/test_container_walls.py")
    for gpus in (("GPU-1",), ("fake-gpu-0", "GPU-1")):
        with pytest.raises(TierUnavailable, match="hands no GPU to its guests; use container"):
            async with driver.open(SandboxSpec(tier=driver.tier, gpus=gpus), "real"):
                pytest.fail("it was opened")
    async with driver.open(SandboxSpec(tier=driver.tier, gpus=("fake-gpu-0",)), "declared"):
        pass


def test_there_are_enough_checks_with_names_of_their_own() -> None:
    assert len(CHECKS) >= 40
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_one_program_has_one_play() -> None:
    seen: dict[str, object] = {}
    for part in (part for check in CHECKS for part in check.programs):
        assert seen.setdefault(program_key(part.command), part.play) == part.play


def test_absent_features_are_listed_with_their_reason() -> None:
    driver = FakeDriver(features=frozenset({Feature.PYTHON}))
    missing = {check.name: reason for check, reason in absent(driver)}
    assert missing["fork_bomb"] == "jail has one process and no fork or signals"
    assert "memory_bomb" not in missing
