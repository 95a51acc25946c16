"""What this machine offers."""

from __future__ import annotations

import os

from dataplane.config import NodeConfig
from dataplane.protocol import Capacity, ImageState
from sandboxes.driver import Driver

SLOTS_PER_CPU = 32
"""Tool calls wait for the network and cost little: the slots bound tasks, CPU and memory bound sandboxes."""
MEMORY_SHARE = 0.8


def capacity(config: NodeConfig) -> Capacity:
    """Totals: what is configured, else what the machine has (memory less a share for the system)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Capacity(
        cpu_milli=config.cpu_milli if config.cpu_milli is not None else cpus * 1000,
        memory_bytes=(
            config.memory_bytes
            if config.memory_bytes is not None
            else int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE)
        ),
        slots=config.slots if config.slots is not None else cpus * SLOTS_PER_CPU,
        gpu=config.gpu,
        gpu_memory_bytes=config.gpu_memory_bytes,
    )


def images(drivers: list[Driver]) -> list[ImageState]:
    """Every image of every tier here, ready or in preparation."""
    return [
        ImageState(tier=driver.tier, image=status.image, ready=status.ready, detail=status.detail)
        for driver in drivers
        for status in driver.images()
    ]
