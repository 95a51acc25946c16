"""The OPA server that ``stockade up --policy-engine opa`` starts beside the control plane, on a socket of its own.

Only the standard library, as the supervisor that uses it.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
from pathlib import Path

from stockade.cli import places
from stockade.cli.exits import Exit, Refusal

LONGEST_SOCKET_PATH = 100
"""What the kernel takes is 107 bytes."""
_TRY_SECONDS = 20.0
# Its heap is small, so collecting it rarely costs little and saves a third of a decision.
_MEMORY_FOR_TIME = {"GOGC": "800", "GOMEMLIMIT": "512MiB"}


def program() -> Path:
    """The ``opa`` to start. Raises: Refusal if there is none."""
    found = places.component("opa")
    if found is None:
        fix = "make components-opa, or put an opa 1.x on PATH"
        raise Refusal(Exit.NOT_FOUND, "there is no OPA to start", where="--policy-engine opa", fix=fix)
    return found


def version(opa: Path) -> str:
    """Such as ``1.22.0``; "" if it does not run."""
    try:
        done = subprocess.run(
            [opa, "version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TRY_SECONDS,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    first = done.stdout.partition("\n")[0]
    return first.removeprefix("Version: ").strip() if done.returncode == 0 and first.startswith("Version: ") else ""


def socket(folder: Path) -> Path:
    """Where it listens: a folder that only its owner enters. Raises: Refusal where such a path is too long."""
    path = folder / "opa.sock"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        why = f"a socket's path has at most {LONGEST_SOCKET_PATH} bytes"
        raise Refusal(
            Exit.USAGE, "the state folder's path is too long", where=str(path), why=why, fix="--state-dir DIR"
        )
    return path


def ensure_token(path: Path) -> str:
    """The shared secret, made at the first start with mode 0600."""
    if not path.exists():
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        fresh.replace(path)
    return path.read_text().strip()


def command(opa: Path, listens: Path) -> list[str]:
    """The command line: the configuration and authorization that any OPA server for Stockade has."""
    spec = importlib.util.find_spec("controlplane")
    if spec is None or not spec.submodule_search_locations:
        raise Refusal(Exit.FAILED, "the control plane is not installed", fix="pip install 'stockade[server]'")
    server = Path(next(iter(spec.submodule_search_locations)), "authorization", "opa", "server")
    return [
        *(str(opa), "run", "--server", "--addr", f"unix://{listens}"),
        *("--authentication", "token", "--authorization", "basic"),
        *("--skip-version-check", "--log-level", "error", "--shutdown-grace-period", "1"),
        *("--config-file", str(server / "config.yaml"), str(server / "authz.rego")),
    ]


def environment(url: str, token: str) -> dict[str, str]:
    """All that it gets: rules could read more if there were more."""
    return {"STOCKADE_URL": url, "STOCKADE_OPA_TOKEN": token, **_MEMORY_FOR_TIME}
