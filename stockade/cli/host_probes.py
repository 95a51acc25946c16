"""What ``stockade doctor`` tries of the host itself. Nothing here changes anything or lasts longer than seconds."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from stockade import __version__
from stockade.cli import opa_child, places
from stockade.cli.exits import install
from stockade.cli.output import size

MIN_DISK_BYTES = 2 * 1024**3
MIN_SQLITE = (3, 35, 0)
TRY_SECONDS = 10.0
_UNSHARE = "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); failed = libc.unshare(0x10000000);"
_UNSHARE += "sys.exit(os.strerror(ctypes.get_errno()) if failed else 0)"
_SWITCHES = (
    ("user.max_user_namespaces", "0", "10000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)
"""A sysctl, the value that closes user namespaces, and one that opens them."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing tried. ``needed`` things must hold for anything to work; the others add a tier or a strength."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = False


def version() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(
        name="python", ok=(3, 11) <= sys.version_info[:2] < (3, 14), detail=f"{found}, stockade {__version__}",
        fix="install Python 3.11, 3.12 or 3.13", needed=True,
    )  # fmt: skip


def bubblewrap() -> Finding:
    path = shutil.which("bwrap")
    return Finding(
        name="bubblewrap", ok=path is not None, detail=path or "no bwrap program: no jail tier, wasm in strength user",
        fix="apt-get install bubblewrap",
    )  # fmt: skip


def namespaces() -> Finding:
    """Whether walls can be made, by making some."""
    program = shutil.which("bwrap")
    walls = [program, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--", "/bin/true"] if program else None
    what = "bwrap makes its walls" if walls else "a user namespace can be made"
    try:
        tried = subprocess.run(
            walls or [sys.executable, "-I", "-c", _UNSHARE], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=TRY_SECONDS, check=False,
        )  # fmt: skip
        failed = "" if tried.returncode == 0 else (tried.stderr.strip() or f"exit {tried.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    return Finding(name="namespaces", ok=not failed, detail=failed or what, fix=_open_namespaces())


def _open_namespaces() -> str:
    closed = [f"{name}={opened}" for name, shut, opened in _SWITCHES if _sysctl(name) == shut]
    if closed:
        return f"sysctl -w {' '.join(closed)}"
    return (
        "the kernel's switches are open, so a container's limits or seccomp profile forbid it: "
        "run outside, or let the container make user namespaces"
    )


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return ""


def cgroups() -> Finding:
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    v1 = Path("/sys/fs/cgroup/memory").is_dir()
    place = Path("/sys/fs/cgroup/memory") if v1 else Path("/sys/fs/cgroup")
    writable = os.geteuid() == 0 and (v1 or v2) and os.access(place, os.W_OK)
    kind = "v2" if v2 else "v1" if v1 else "none"
    return Finding(
        name="cgroups", ok=writable, detail=f"{kind}, {'writable' if writable else 'not ours: strength user'}",
        fix="run the node as root for strength full; strength user works without",
    )  # fmt: skip


def opa() -> Finding:
    """An OPA server that could be started, by asking it; the embedded engine needs none."""
    program = places.component("opa")
    version = opa_child.version(program) if program else ""
    if program is None:
        detail = "no opa program: only the embedded policy engine"
    else:
        detail = f"{version} at {program}" if version else f"{program} does not run"
    is_new = version.partition(".")[0].isdigit() and int(version.partition(".")[0]) >= 1
    if version and not is_new:
        detail += ", and rules need 1.0 or newer"
    return Finding(name="opa", ok=is_new, detail=detail, fix="make components-opa, or put an opa 1.x on PATH")


def gpus() -> Finding:
    """What a node on this host would report, by asking the driver; declared GPUs are said to be none."""
    try:
        from dataplane.config import ConfigError
        from dataplane.gpus import fake_gpus, find_gpus
    except ImportError as error:
        return Finding(name="gpus", ok=False, detail=f"the node's parts are missing: {error}", fix=install("node"))
    declared = os.environ.get("STOCKADE_FAKE_GPUS")
    if declared:
        try:
            devices, why = fake_gpus(declared), ""
        except ConfigError as error:
            fix = "set STOCKADE_FAKE_GPUS to COUNTxMEMORY, such as 4x80Gi, or unset it"
            return Finding(name="gpus", ok=False, detail=str(error), fix=fix)
    else:
        devices, why = find_gpus()
    shown = ", ".join(f"{one.name} {size(one.memory_bytes)}{' (fake)' if one.fake else ''}" for one in devices)
    fix = "install NVIDIA's driver where this host has a GPU; steps without resources.gpu need none"
    return Finding(name="gpus", ok=bool(devices), detail=shown or why, fix=fix)


def model_engines() -> list[Finding]:
    """Engines of model servers that a node of this machine would start."""
    try:
        from dataplane.models.engines import engines
    except ImportError as error:
        why = f"the node's parts are missing: {error}"
        return [Finding(name=name, ok=False, detail=why, fix=install("node")) for name in ("sglang", "llamacpp")]
    found = []
    # Nothing is kept: looking for a version asks no program for its flags.
    for name, engine in engines(places.components(), Path(os.devnull)).items():
        state = engine.state()
        here, _, fix = state.absent.rpartition(": ")
        found.append(
            Finding(
                name=name, ok=not state.absent, detail=here or f"{state.version}, models of nodes can be served",
                fix=fix or f"make components-{name}",
            )
        )  # fmt: skip
    return found


def disk(state_dir: Path | None) -> Finding:
    place = places.state_dir(state_dir)
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    return Finding(
        name="disk", ok=free >= MIN_DISK_BYTES and writable, needed=True,
        detail=f"{size(free)} free at {place}" + ("" if writable else ", where this user may not write"),
        fix=f"free {size(MIN_DISK_BYTES)} there, or choose another place with --state-dir",
    )  # fmt: skip


def sqlite() -> Finding:
    return Finding(
        name="sqlite", ok=sqlite3.sqlite_version_info >= MIN_SQLITE, detail=sqlite3.sqlite_version,
        fix="use a Python built with SQLite 3.35 or newer", needed=True,
    )  # fmt: skip
