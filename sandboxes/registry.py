"""Tier -> driver on this host, and why a tier is absent. Nothing falls back from one tier to a weaker one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from sandboxes.container import presence
from sandboxes.driver import Driver
from sandboxes.errors import DriverFailed
from sandboxes.spec import Tier


def discover(
    cache_dir: Path, state_dir: Path, pool_size: int, container_runtime: Literal["runc", "runsc"] | None = None
) -> tuple[dict[Tier, Driver], dict[Tier, str]]:
    """Drivers that can be made here, and for every other tier the reason with its fix.

    Making one tries the host's walls (milliseconds) and starts no guest: ``Driver.probe`` does that. Blocks.
    """
    makers: dict[Tier, tuple[str, str, dict[str, Any]]] = {
        Tier.WASM: (
            "sandboxes.wasm.driver",
            "WasmDriver",
            {"cache_dir": cache_dir, "state_dir": state_dir, "pool_size": pool_size},
        ),
        # A folder of its own: reaping, it takes all that is in there for jails.
        Tier.JAIL: ("sandboxes.jail.driver", "JailDriver", {"state_dir": state_dir / "jail"}),
        Tier.CONTAINER: (
            "sandboxes.container.driver",
            "ContainerDriver",
            {"state_dir": state_dir / "containers", "runtime": container_runtime, "pool_size": pool_size},
        ),
    }
    drivers: dict[Tier, Driver] = {}
    absent: dict[Tier, str] = {}
    if (why := presence.absent()) is not None:  # before its package is imported: that costs 20 MB
        absent[Tier.CONTAINER] = why
        del makers[Tier.CONTAINER]
    for tier, (module, name, arguments) in makers.items():
        try:
            drivers[tier] = getattr(importlib.import_module(module), name)(**arguments)
        except ImportError as error:
            absent[tier] = f"tier {tier} needs the package {error.name}; run: uv sync --extra node"
        except (DriverFailed, OSError) as error:
            absent[tier] = str(error)
    return drivers, absent
