"""The port of a kind of model server: whether this machine has it, how one is started, how it is asked.

The server itself is hostile input: what it answers is bounded and read as numbers, what it writes goes to a log.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dataplane.model_wire import EngineState, ModelReplica, NodeEngine
from dataplane.protocol import FAKE_GPU

LOOPBACK = "127.0.0.1"
"""Where servers listen: their health and metrics know no key, so nobody else reaches them but through the node."""
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES")

Ask = Callable[[str, float], Awaitable[bytes]]
"""``GET`` of a path within seconds; the body of a 200. Raises: ServerSilent."""


class ServerSilent(Exception):
    """It does not answer, or not with what it should."""


class LaunchRefused(Exception):
    """It is not started as asked; the message says why and what to change."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A command line, and all of its environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a server says of itself. ``token_usage`` is the share of its cache in use, where it says."""

    slots: int = 0
    running: int = 0
    waiting: int = 0
    token_usage: float | None = None


class ModelServer(Protocol):
    """One engine on this machine. ``state`` and ``launch`` block; a probe or the first launch may take seconds."""

    name: NodeEngine
    ready_path: str
    """What answers 200 once it serves."""

    def state(self) -> EngineState:
        """The version that would be started, or why there is none."""

    def launch(self, replica: ModelReplica, source: Path, port: int) -> Launch:
        """How to start it. Raises: LaunchRefused."""

    async def load(self, ask: Ask) -> Load:
        """Ask a running one; that it answers shows that it lives. Raises: ServerSilent."""


def program(name: str, components: Path | None) -> Path | None:
    """A program that ``make components`` installed, or else one on PATH."""
    found = (shutil.which(name, path=components / "bin") if components else None) or shutil.which(name)
    return Path(found).absolute() if found else None


def environment(replica: ModelReplica, more: Mapping[str, str]) -> dict[str, str]:
    """What a server gets of ours, and that it does not fetch anything. No key, no token, no setting of ours."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(devices_of(replica))}
    return {**kept, **offline, **devices, **more}


def devices_of(replica: ModelReplica) -> list[str]:
    """The GPUs that are there: declared ones are for tests of placement, and have nothing behind them."""
    return [one for one in replica.gpus if not one.startswith(FAKE_GPU)]


def amount(value: object) -> int:
    """A count that a server named; 0 for anything else."""
    return int(min(max(0, value), 2**31)) if isinstance(value, int | float) and value == value else 0


def share(value: object) -> float | None:
    """A share of one that a server named; ``None`` for anything else."""
    return float(min(max(0, value), 1)) if isinstance(value, int | float) and value == value else None
