"""How long a sandbox takes: warm claim and one-liner in ``wasm``, cold start in ``jail``, beside bare bubblewrap.

``claim`` is ``open`` alone; ``first_result`` is open, a Python one-liner (or ``/bin/true``), and the guest's end.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import host, summary
from sandboxes.driver import Driver
from sandboxes.execution import Command, Exited
from sandboxes.registry import discover
from sandboxes.spec import SandboxSpec, Tier

PYTHON = Command(language="python", source="1 + 1")
TRUE = Command(language="argv", argv=("/bin/true",))


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; ``--count`` sandboxes of each kind, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sandboxes", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="sandboxes of each kind")
    parser.add_argument("--cache", default="~/.cache/stockade/images", help="where prepared images are")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as folder:
        state = Path(folder)
        state.chmod(0o755)  # the sandboxes' own users pass through it
        drivers, absent = discover(Path(options.cache).expanduser(), state, 4)
        found = asyncio.run(_measure(drivers, absent, options.count))
    return {"host": host(), **found, "peer": _peers(options.count)}


async def _measure(drivers: dict[Tier, Driver], absent: dict[Tier, str], count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tier, driver in drivers.items():
        reason = await driver.probe()
        if reason is not None:
            absent[tier] = reason
            continue
        await driver.prepare("python")
        try:
            found[tier.value] = await _tier(driver, count)
        finally:
            await driver.close()
    return {**found, "absent": {tier.value: why for tier, why in absent.items()}}


async def _tier(driver: Driver, count: int) -> dict[str, Any]:
    kinds = {"python": PYTHON} if driver.tier is Tier.WASM else {"python": PYTHON, "true": TRUE}
    measured: dict[str, Any] = {"strength": driver.strength.value}
    for name, command in kinds.items():
        claims, results = [], []
        for number in range(count):
            began = time.perf_counter()
            async with driver.open(SandboxSpec(tier=driver.tier), f"bench-{name}-{number}") as sandbox:
                claims.append(time.perf_counter() - began)
                async for event in sandbox.execute(command):
                    if isinstance(event, Exited):
                        assert event.code == 0, event
                results.append(time.perf_counter() - began)
            # A warm pool refills between claims; back to back it would be measured empty.
            await asyncio.sleep(0.2 if driver.tier is Tier.WASM else 0)
        measured[name] = {"claim": summary(claims), "first_result": summary(results)}
    return measured


def _peers(count: int) -> dict[str, Any]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return {"bubblewrap": "not installed"}
    binds = ["--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"]
    took = []
    for _ in range(count):
        began = time.perf_counter()
        subprocess.run([bwrap, "--unshare-all", *binds, "--proc", "/proc", "/usr/bin/true"], check=True)
        took.append(time.perf_counter() - began)
    return {"bubblewrap alone, /usr/bin/true": summary(took)}
