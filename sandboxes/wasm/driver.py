"""The port, for WebAssembly guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio

from sandboxes.driver import Feature, ImageStatus, Sandbox, refuse_missing
from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, Exited
from sandboxes.jail import cgroups
from sandboxes.spec import Limits, SandboxSpec, Strength, Tier
from sandboxes.wasm.images import ModuleCache
from sandboxes.wasm.launch import Walls, find_bubblewrap, spawn
from sandboxes.wasm.leftovers import leftovers
from sandboxes.wasm.pool import Pool
from sandboxes.wasm.sandbox import WasmSandbox

DEFAULT_IMAGE = "python"


class WasmDriver:
    """CPython in WebAssembly, one worker process per guest.

    ``pool_size`` workers of the default image are kept warm after its ``prepare``. ``strength=None`` takes the best
    this host gives; asking for ``FULL`` where it cannot be had raises ``DriverFailed``.
    """

    tier = Tier.WASM
    features = frozenset({Feature.PYTHON, Feature.FUEL, Feature.FREEZE})

    def __init__(
        self, *, cache_dir: Path, state_dir: Path, pool_size: int = 2, strength: Strength | None = None
    ) -> None:
        self._state_dir = state_dir.resolve() / "wasm"
        self._state_dir.mkdir(parents=True, exist_ok=True)
        self._state_dir.chmod(0o700)
        self._modules = ModuleCache(cache_dir.resolve() / "wasm")
        self._pool_size = pool_size
        self._pools: dict[tuple[str, bool], Pool] = {}
        self._live: dict[str, WasmSandbox] = {}
        self._labels: set[str] = set()
        self._walls = _walls(strength)
        self.strength = Strength.FULL if self._walls.hierarchy is not None else Strength.USER

    async def probe(self) -> str | None:
        """See the port. Runs a one-line guest."""
        try:
            async with self.open(SandboxSpec(tier=Tier.WASM), "probe") as sandbox:
                async for event in sandbox.execute(Command(language="python", source="6 * 7")):
                    if isinstance(event, Exited) and event.result != 42:
                        return f"a trial guest in tier wasm ended as {event.reason}: {event.message or event.code}"
        except DriverFailed as error:
            return str(error)
        return None

    def images(self) -> tuple[ImageStatus, ...]:
        """See the port."""
        return self._modules.statuses()

    async def prepare(self, image: str) -> None:
        """See the port. Also warms the pool of the image."""
        await self._modules.prepare(image, fuel=False)
        pool = await self._pool(image, fuel=False)
        pool.refill()
        await pool.filled()

    def warm(self, image: str = DEFAULT_IMAGE) -> int:
        """How many claims of ``image`` would be warm now."""
        pool = self._pools.get((image, False))
        return pool.ready if pool is not None else 0

    def open(self, spec: SandboxSpec, label: str) -> AbstractAsyncContextManager[Sandbox]:
        """See the port. An image that is not prepared is prepared first."""
        return self._open(spec, label)

    @asynccontextmanager
    async def _open(self, spec: SandboxSpec, label: str) -> AsyncIterator[Sandbox]:
        if spec.tier is not Tier.WASM:
            raise DriverFailed(f"the wasm driver was asked for tier {spec.tier}")
        refuse_missing(self, spec)
        if label in self._labels:
            raise DriverFailed(f"a sandbox with the label {label!r} is open; labels are unique on a host")
        self._labels.add(label)
        try:
            async with self._claimed(spec, label) as sandbox:
                yield sandbox
        finally:
            self._labels.discard(label)

    @asynccontextmanager
    async def _claimed(self, spec: SandboxSpec, label: str) -> AsyncIterator[Sandbox]:
        pool = await self._pool(spec.image, fuel=spec.limits.fuel is not None)
        sandbox = WasmSandbox(spec=spec, label=label, pool=pool)
        try:
            await sandbox.claim()
            self._live[sandbox.name] = sandbox
            yield sandbox
        finally:
            self._live.pop(sandbox.name, None)
            with anyio.CancelScope(shield=True):
                await sandbox.close()

    async def reap(self, keep: Collection[str]) -> tuple[str, ...]:
        """See the port."""
        gone = [sandbox for sandbox in self._live.values() if sandbox.label not in keep]
        labels = [sandbox.label for sandbox in gone]
        mine = set(self._live)
        for sandbox in gone:
            await sandbox.close()
        left, stay = await asyncio.to_thread(leftovers, self._state_dir, frozenset(keep), frozenset(mine))
        if stay:
            raise DriverFailed("; ".join(stay))
        return tuple(labels + left)

    async def close(self) -> None:
        """See the port."""
        for sandbox in list(self._live.values()):
            await sandbox.close()
        for pool in self._pools.values():
            await pool.close()

    async def _pool(self, image: str, *, fuel: bool) -> Pool:
        module = await self._modules.prepare(image, fuel=fuel)
        library = self._modules.library(image)
        if (image, fuel) not in self._pools:
            size = self._pool_size if not fuel else 0  # guests with fuel are rare: they start cold
            self._pools[image, fuel] = Pool(
                lambda: spawn(self._state_dir, module, library, fuel=fuel, walls=self._walls), size
            )
        return self._pools[image, fuel]


def _walls(wanted: Strength | None) -> Walls:
    """The best this host gives, each wall tried once. ``DriverFailed`` if ``wanted`` is more."""
    bubblewrap = find_bubblewrap()
    if bubblewrap is not None and (reason := _try_bubblewrap(bubblewrap)):
        missing, bubblewrap = reason, None
    else:
        missing = "" if bubblewrap is not None else "the program bwrap is missing; install the package bubblewrap"
    if wanted is not Strength.USER and not missing:
        if os.geteuid() != 0:
            missing = "strength full needs root"
        else:
            found = cgroups.find(Path("/proc/self/mounts").read_text(), Path("/proc/self/cgroup").read_text())
            if isinstance(found, str):
                missing = found
            elif not (missing := _try_group(found)):
                return Walls(bubblewrap=bubblewrap, hierarchy=found, own_uid=True)
    if wanted is Strength.FULL:
        raise DriverFailed(f"strength full cannot be had here: {missing}")
    return Walls(bubblewrap=bubblewrap, hierarchy=None, own_uid=False)


def _try_bubblewrap(program: str) -> str:
    # With a new /proc: a container whose own is masked may make user namespaces, and yet not that.
    command = [program, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run: {error}"
    return "" if done.returncode == 0 else f"bubblewrap does not run: {done.stderr.decode(errors='replace').strip()}"


def _try_group(hierarchy: cgroups.Hierarchy) -> str:
    group = cgroups.Group(hierarchy, f"stockade-wasm-probe-{os.getpid()}")
    try:
        group.create(Limits())
    except OSError as error:
        return f"control groups cannot be made: {error}"
    finally:
        with contextlib.suppress(OSError):
            group.remove()
    return ""
