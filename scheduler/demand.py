"""What one step asks of the cluster. Values only; the control plane makes them from a ready step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

AUTO_TIERS = ("wasm", "jail")
"""What ``tier="auto"`` chooses from on each node, cheapest first."""
SHELL_TIERS = ("jail", "container")
"""Those with a shell inside."""
NETWORK_TIERS = ("jail", "container")
"""Those whose guests have sockets, so that a network can be granted to them."""

GPU_TIERS = ("container",)
"""Those whose guests reach a GPU. Declared ones, which nobody reaches, are given out in any tier."""

NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class DataNeed:
    """One input, or something to be near: ``key`` is ``data://NAME``, an artifact's digest or ``node:ID``.

    ``pinned`` data cannot be moved: only a node that holds it can serve it. ``size_bytes`` is ``None`` when unknown.
    """

    key: str
    size_bytes: int | None = None
    pinned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """One step's needs. Every demand takes one slot of its node.

    ``tier`` is ``None`` for a tool step, which needs no sandbox; ``"auto"`` takes on each node the first of
    ``AUTO_TIERS`` whose image is ready there. A non-empty ``tiers_allowed`` narrows either. ``image=None`` accepts a
    tier whatever its images. ``near`` and ``near_models`` change the cost and never the feasibility. A higher
    ``priority`` goes first.

    ``patience_seconds`` bounds how long it waits for a full node that is better placed rather than take a free one
    (``scheduler.delay``); ``expected_seconds`` is how long it will run, if that is known.

    ``starving`` says that it has waited too long: it goes before others of its priority, and the first such demand
    that only busy nodes could take has one of them held for it (``scheduler.holding``). ``tenant`` decides nothing; a
    demand of another tenant is not named in what a demand is told.

    Raises ``ValueError`` for a negative amount, which would otherwise *add* capacity to a node.
    """

    id: str
    tier: str | None = None
    image: str | None = None
    cpu_milli: int = 0
    memory_bytes: int = 0
    gpu: int = 0
    gpu_memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    inputs: tuple[DataNeed, ...] = ()
    near: tuple[DataNeed, ...] = ()
    near_models: tuple[str, ...] = ()
    priority: int = 0
    tiers_allowed: tuple[str, ...] = ()
    starving: bool = False
    tenant: str = ""
    patience_seconds: float = 0.0
    expected_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.cpu_milli < 0 or self.memory_bytes < 0 or self.gpu < 0 or self.gpu_memory_bytes < 0:
            raise ValueError(f"demand {self.id!r} asks for a negative amount")

    @property
    def local(self) -> bool:
        """Whether places differ for it by what is there, so that one may be worth waiting for."""
        return bool(self.near or self.near_models) or any(not need.pinned for need in self.inputs)

    def tier_options(self) -> tuple[str, ...]:
        """The tiers that may serve this demand, in order of preference; empty for a tool step or when none may."""
        if self.tier is None:
            return ()
        options = AUTO_TIERS if self.tier == "auto" else (self.tier,)
        if self.tiers_allowed:
            return tuple(tier for tier in options if tier in self.tiers_allowed)
        return options


Shape = tuple[object, ...]


def shape_of(demand: Demand) -> Shape:
    """All that placement looks at besides queue order: demands of one shape are interchangeable."""
    return (
        demand.cpu_milli,
        demand.memory_bytes,
        demand.tier,
        demand.image,
        demand.gpu,
        demand.gpu_memory_bytes,
        tuple(sorted(demand.labels.items())) if demand.labels else (),
        demand.inputs,
        demand.near,
        demand.near_models,
        demand.tiers_allowed,
    )
