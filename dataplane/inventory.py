"""What this machine offers, and how much of it the control plane has been told already."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

import anyio
import anyio.to_thread

from dataplane.artifact_cache import ArtifactCache
from dataplane.attempts import Attempt, free
from dataplane.config import NodeConfig
from dataplane.data_roots import DataRoots
from dataplane.gpus import fake_gpus, find_gpus, told
from dataplane.models.supervisor import ModelSupervisor
from dataplane.protocol import FEATURES, VERSION, Capacity, DataRoot, GpuDevice, Heartbeat, ImageState, Register
from sandboxes.driver import Driver
from sandboxes.spec import Tier

SLOTS_PER_CPU = 32
"""Tool calls wait for the network and cost little: the slots bound tasks, CPU and memory bound sandboxes."""
MEMORY_SHARE = 0.8
DATA_REFRESH_SECONDS = 60.0
GPU_REFRESH_SECONDS = 15.0


def capacity(config: NodeConfig, gpus: Sequence[GpuDevice]) -> Capacity:
    """Totals: what is configured, else what the machine has (memory less a share for the system)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = config.memory_bytes
    if memory is None:
        memory = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE)
    return Capacity(
        cpu_milli=config.cpu_milli if config.cpu_milli is not None else cpus * 1000,
        memory_bytes=memory,
        slots=config.slots if config.slots is not None else cpus * SLOTS_PER_CPU,
        gpu=len(gpus),
        gpu_memory_bytes=min((one.memory_bytes for one in gpus), default=0),
    )


class Inventory:
    """Makes registrations (everything) and heartbeats (what changed since the last acknowledged one)."""

    def __init__(
        self,
        config: NodeConfig,
        drivers: Mapping[Tier, Driver],
        absent: Mapping[Tier, str],
        roots: DataRoots,
        cache: ArtifactCache,
        models: ModelSupervisor,
    ) -> None:
        self._config = config
        self._drivers = drivers
        self._absent = absent
        self._roots = roots
        self._cache = cache
        self._gpus: tuple[GpuDevice, ...] = fake_gpus(config.fake_gpus) if config.fake_gpus else ()
        self._gpus_absent = ""
        self._told_gpus: list[GpuDevice] = []
        self._total = capacity(config, self._gpus)
        self._models = models
        self._data: list[DataRoot] = []
        self._told_data: list[DataRoot] = []
        self._told_images: list[ImageState] = []

    def registration(self, identity: str, proof: str, boot_id: str) -> Register:
        """All there is; from here on heartbeats tell the changes."""
        self._told_images, self._told_data = self._images(), self._data
        self._told_gpus = told(self._gpus)
        self._cache.tell_all()
        self._models.tell_all()
        return Register(
            identity=identity,
            boot_id=boot_id,
            proof=proof,
            version=VERSION,
            features=sorted(FEATURES),
            capacity=self._total,
            tiers={str(tier): str(driver.strength) for tier, driver in self._drivers.items()},
            absent={str(tier): why for tier, why in self._absent.items()},
            images=self._told_images,
            labels=dict(self._config.labels),
            data=self._data,
            gpus=self._told_gpus,
            gpus_absent=self._gpus_absent,
            address="" if self._config.listen is None else self._config.listen.address,
        )

    def heartbeat(
        self, attempts: Collection[Attempt], unreported: Collection[tuple[str, int]], *, draining: bool
    ) -> Heartbeat:
        images = self._images()
        gpus = told(self._gpus)
        added, removed = self._cache.changes()
        return Heartbeat(
            free=free(self._total, attempts),
            attempts=[*(attempt.key for attempt in attempts), *unreported],
            images=None if images == self._told_images else images,
            data=None if self._data == self._told_data else self._data,
            gpus=None if gpus == self._told_gpus else gpus,
            cached_added=added,
            cached_removed=removed,
            draining=draining,
            models=self._models.report(),
        )

    def told(self, heartbeat: Heartbeat) -> None:
        """``heartbeat`` was acknowledged."""
        if heartbeat.images is not None:
            self._told_images = heartbeat.images
        if heartbeat.data is not None:
            self._told_data = heartbeat.data
        if heartbeat.gpus is not None:
            self._told_gpus = heartbeat.gpus
        if heartbeat.models is not None:
            self._models.heard(heartbeat.models)
        self._cache.settle(heartbeat.cached_added, heartbeat.cached_removed)

    async def find_gpus(self) -> None:
        """Look at the GPUs, before the first registration and later; declared ones stay as they are."""
        if self._config.fake_gpus:
            return
        self._gpus, self._gpus_absent = await anyio.to_thread.run_sync(find_gpus)
        self._total = capacity(self._config, self._gpus)

    async def refresh_gpus(self) -> None:
        """Look at the GPUs again and again until cancelled, if there were any at the start."""
        watched = bool(self._gpus) and not self._config.fake_gpus
        while watched:
            await anyio.sleep(GPU_REFRESH_SECONDS)
            await self.find_gpus()

    async def refresh_data(self) -> None:
        """Look at the data roots again and again until cancelled."""
        while self._config.data:
            self._data = await anyio.to_thread.run_sync(self._roots.describe)
            await anyio.sleep(DATA_REFRESH_SECONDS)

    def _images(self) -> list[ImageState]:
        return [
            ImageState(tier=str(tier), image=status.image, ready=status.ready, detail=status.detail)
            for tier, driver in self._drivers.items()
            for status in driver.images()
        ]
