"""``stockade doctor``: what this host can do, found by trying; every ✗ has a FIX line."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stockade import __version__
from stockade.cli import places
from stockade.cli.exits import Exit, visible
from stockade.cli.output import Format, show_value, size

MIN_DISK_BYTES = 2 * 1024**3
MIN_SQLITE = (3, 35, 0)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing tried. ``needed`` things must hold for anything to work; the others add a tier."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = False


def examine(form: Format, state_dir: Path | None) -> int:
    """Print findings. 0 if everything needed holds and at least one tier runs guests here."""
    tiers = _tiers(state_dir)
    findings = [_version(), *tiers, _bubblewrap(), _namespaces(), _cgroups(), _disk(state_dir), _sqlite()]
    if form in (Format.TABLE, Format.WIDE, Format.NAME):
        for one in findings:
            print(f"{'✓' if one.ok else '✗'} {one.name:<16} {visible(one.detail)}")
            if not one.ok:
                print(f"  FIX {visible(one.fix)}")
        print("– docker, KVM      not needed by this version")
    else:
        show_value([vars(one) for one in findings], form)
    broken = any(one.needed and not one.ok for one in findings) or not any(one.ok for one in tiers)
    return int(Exit.FAILED if broken else Exit.OK)


def _version() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(
        name="python", ok=(3, 11) <= sys.version_info[:2] < (3, 14), detail=f"{found}, stockade {__version__}",
        fix="install Python 3.11, 3.12 or 3.13", needed=True,
    )  # fmt: skip


def _tiers(state_dir: Path | None) -> list[Finding]:
    """Every tier, tried with a real guest."""
    try:
        import anyio
        import anyio.to_thread

        from sandboxes.driver import Driver
        from sandboxes.registry import discover
    except ImportError as error:
        fix = "pip install 'stockade[node]'"
        return [Finding(name="tiers", ok=False, detail=f"the node's parts are missing: {error}", fix=fix)]

    async def probe() -> list[Finding]:
        with tempfile.TemporaryDirectory(prefix="stockade-doctor-") as scratch:
            drivers, absent = await anyio.to_thread.run_sync(discover, places.image_cache(None), Path(scratch), 0)
            try:
                found = [_absent(tier, why) for tier, why in absent.items()]
                for driver in drivers.values():
                    why = await driver.probe()
                    found.append(_present(driver) if why is None else _absent(driver.tier, why))
                return found
            finally:
                for driver in drivers.values():
                    await driver.close()

    def _present(driver: Driver) -> Finding:
        images = ", ".join(
            f"{one.image} {'ready' if one.ready else f'{one.fraction:.0%} prepared'}" for one in driver.images()
        )
        return Finding(name=driver.tier.value, ok=True, detail=f"strength {driver.strength.value}; {images}")

    def _absent(tier: str, why: str) -> Finding:
        return Finding(name=str(tier), ok=False, detail=why, fix=_FIXES.get(str(tier), "see the reason above"))

    return anyio.run(probe)


_FIXES = {
    "jail": "apt-get install bubblewrap, and allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)",
    "wasm": "pip install 'stockade[node]'",
}


def _bubblewrap() -> Finding:
    path = shutil.which("bwrap")
    return Finding(
        name="bubblewrap", ok=path is not None, detail=path or "no bwrap program: no jail tier, wasm in strength user",
        fix="apt-get install bubblewrap",
    )  # fmt: skip


def _namespaces() -> Finding:
    if os.geteuid() == 0:
        return Finding(name="user namespaces", ok=True, detail="root: not needed")
    limit = Path("/proc/sys/user/max_user_namespaces")
    clone = Path("/proc/sys/kernel/unprivileged_userns_clone")
    closed = (limit.exists() and limit.read_text().strip() == "0") or (
        clone.exists() and clone.read_text().strip() == "0"
    )
    return Finding(
        name="user namespaces", ok=not closed and sys.platform == "linux", detail="closed" if closed else "open",
        fix="sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1",
    )  # fmt: skip


def _cgroups() -> Finding:
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    v1 = Path("/sys/fs/cgroup/memory").is_dir()
    writable = os.geteuid() == 0 and (v1 or v2)
    kind = "v2" if v2 else "v1" if v1 else "none"
    return Finding(
        name="cgroups", ok=writable, detail=f"{kind}, {'writable' if writable else 'not ours: strength user'}",
        fix="run the node as root for strength full; strength user works without",
    )  # fmt: skip


def _disk(state_dir: Path | None) -> Finding:
    place = places.state_dir(state_dir)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Finding(
        name="disk", ok=free >= MIN_DISK_BYTES and os.access(place, os.W_OK), detail=f"{size(free)} free at {place}",
        fix=f"free {size(MIN_DISK_BYTES)}, or choose another place with --state-dir", needed=True,
    )  # fmt: skip


def _sqlite() -> Finding:
    return Finding(
        name="sqlite", ok=sqlite3.sqlite_version_info >= MIN_SQLITE, detail=sqlite3.sqlite_version,
        fix="use a Python built with SQLite 3.35 or newer", needed=True,
    )  # fmt: skip
