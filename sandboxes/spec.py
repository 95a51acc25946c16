"""What a sandbox is asked to be. Values only; units are in the names."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

MIB = 1024 * 1024
FAKE_GPU = "fake-gpu-"
"""How the id of a GPU begins that somebody declared and nobody has."""


class Tier(StrEnum):
    """Isolation tiers, cheapest first. This release drives ``wasm``, ``jail`` and ``container``."""

    WASM = "wasm"
    JAIL = "jail"
    CONTAINER = "container"


class Strength(StrEnum):
    """How much of the host's help the walls have: ``full`` needs root, ``user`` does not."""

    USER = "user"
    FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one sandbox. Every one is enforced from outside the guest."""

    memory_bytes: int = 512 * MIB
    wall_seconds: float = 60.0
    cpu: float = 1.0
    pids: int = 64
    open_files: int = 256
    file_bytes: int = 256 * MIB
    disk_bytes: int = 512 * MIB
    inodes: int = 20_000
    output_bytes: int = 8 * MIB
    fuel: int | None = None
    """Deterministic instruction limit, ``wasm`` only; ``None`` leaves wall time as the only bound."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A host file the guest sees read-only at ``/inputs/<name>``. ``source`` is never a guest-chosen path.

    A folder needs ``Feature.FOLDER_INPUTS``, and must be open to the sandbox's uid: it is not copied.
    """

    name: str
    source: Path


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """One sandbox. ``image`` is the tier's own name for what is inside (``python``, ``python-data``).

    ``network``: the guest finds an HTTP proxy at 127.0.0.1:3128, and whoever executes says who serves what connects
    there; there is no other way out with it than without. Where ``Feature.NETWORK`` is missing it is refused.

    ``gpus``: ids of the host's devices, as its inventory names them. Those that begin with ``FAKE_GPU`` are declared,
    for tests: nothing is handed to the guest for them but their names. Where ``Feature.GPU`` is missing, any other is
    refused.
    """

    tier: Tier
    image: str = "python"
    limits: Limits = field(default_factory=Limits)
    mounts: tuple[Mount, ...] = ()
    network: bool = False
    gpus: tuple[str, ...] = ()
