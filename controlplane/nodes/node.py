"""One node as the control plane sees it: registration, reservations, what it holds, and what waits to be pulled.

Capacity is what a node declared less what is reserved here: a node's own word never makes room for more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from controlplane.nodes.devices import DeviceLedger
from controlplane.nodes.served_models import ServedModels
from controlplane.placement.history import Durations, Work
from controlplane.times import rfc3339
from dataplane.protocol import Assignment, Directive, Heartbeat, Register
from scheduler.cluster import GpuView, NodeView, Release, Unschedulable

CACHE_LISTED = 20_000
CALLS_MOST = 4096
"""Tool calls in flight on one node."""
GPUS_MOST = 64
BYTES_PER_SECOND = 125_000_000.0
MEASURED_BYTES = 1024 * 1024
"""Less says more of the delay than of the bandwidth."""
MEASURED_SHARE = 0.3
"""What the newest measurement counts for."""


@dataclass(kw_only=True, eq=False)
class Reservation:
    """What one attempt takes of its node. ``sent`` counts heartbeats since the assignment was pulled.

    ``began`` is of the monotonic clock; ``work`` is the kind of work that its duration counts for.
    """

    assignment: Assignment
    cpu_milli: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()
    work: Work | None = None
    began: float = field(default_factory=time.monotonic)
    seen: bool = False
    sent: int | None = None


@dataclass(kw_only=True, eq=False)
class Node:
    """One registered node."""

    id: str
    tenant: str
    declared: Register
    token_hash: str
    proof_hash: str
    last_seen: float
    seen_ns: int
    lost: bool = False
    cordoned: bool = False
    draining: bool = False
    silent_since_start: bool = False
    reservations: dict[str, Reservation] = field(default_factory=dict)
    outbox: deque[Assignment] = field(default_factory=deque)
    directives: deque[Directive] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    replaced: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has registered again, or was removed: this object is of the past."""
    cached: set[str] = field(default_factory=set)
    preparing: dict[tuple[str, str], float] = field(default_factory=dict)
    devices: DeviceLedger = field(default_factory=DeviceLedger)
    incoming: dict[str, frozenset[str]] = field(default_factory=dict)
    """Artifacts on their way here, by the attempt that fetches them."""
    bytes_per_second: float | None = None
    """Measured; ``None`` before enough was moved."""
    models: ServedModels = field(default_factory=ServedModels)
    _holds: frozenset[str] | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return self.declared.identity

    @property
    def status(self) -> str:
        """What the scheduler takes it for. A node that has not called since this process started counts as lost."""
        if self.lost or self.silent_since_start:
            return "lost"
        if self.draining:
            return "draining"
        return "cordoned" if self.cordoned else "ready"

    def free(self) -> tuple[int, int, int, int]:
        """(cpu_milli, memory_bytes, slots, GPUs) not reserved."""
        total, taken = self.declared.capacity, self.reservations.values()
        models = self.models.reserved.values()
        sandboxes = sum(1 for one in taken if one.assignment.code is not None)
        return (
            total.cpu_milli - sum(one.cpu_milli for one in taken) - sum(cpu for cpu, _ in models),
            total.memory_bytes - sum(one.memory_bytes for one in taken) - sum(memory for _, memory in models),
            total.slots - sandboxes,
            sum(1 for one in self.declared.gpus if self.devices.holder(one.uuid) is None),
        )

    def holds(self) -> frozenset[str]:
        """Data roots it exports, artifacts it has cached or is fetching, and itself, by key.

        Every plan asks: made again only on a change.
        """
        if self._holds is None:
            names = [f"node:{self.id}", *(f"data://{root.name}" for root in self.declared.data)]
            self._holds = frozenset(names).union(self.cached, *self.incoming.values())
        return self._holds

    def caches(self, digests: Iterable[str]) -> None:
        """It keeps these, as it will tell with its next heartbeat."""
        fresh = [one for one in digests if one not in self.cached][: max(0, CACHE_LISTED - len(self.cached))]
        if fresh:
            self.cached.update(fresh)
            self._holds = None

    def moved(self, size_bytes: int, seconds: float) -> None:
        """So much went to it in so long: what moving the next bytes is expected to take."""
        if size_bytes < MEASURED_BYTES or seconds <= 0:
            return
        rate, known = size_bytes / seconds, self.bytes_per_second
        self.bytes_per_second = rate if known is None else known + MEASURED_SHARE * (rate - known)

    def take_over(self, known: Node) -> None:
        """The same boot registered again: what it holds and is owed stays, shared with who still has the old object."""
        self.reservations, self.outbox, self.directives = known.reservations, known.outbox, known.directives
        self.cached, self.preparing, self.wake = known.cached, known.preparing, known.wake
        self.cordoned, self.draining, self.devices = known.cordoned, known.draining, known.devices
        self.incoming, self.bytes_per_second, self.models = known.incoming, known.bytes_per_second, known.models

    def releases(self, *, sandboxes: bool, durations: Durations) -> tuple[Release, ...]:
        """When what runs here is expected to end, and what that frees."""
        now, memory = time.monotonic(), {one.uuid: one.memory_bytes for one in self.declared.gpus}
        found = []
        for one in self.reservations.values():
            if one.work is None:
                continue
            elapsed = max(0.0, now - one.began)
            most = one.assignment.wall_seconds - elapsed
            found.append(
                Release(
                    seconds=durations.remaining(one.work, self.id, elapsed, most),
                    cpu_milli=one.cpu_milli,
                    memory_bytes=one.memory_bytes,
                    slots=int((one.assignment.code is not None) == sandboxes),
                    gpu_memory=tuple(memory.get(device, 0) for device in one.gpus),
                )
            )
        return tuple(found)

    def view(
        self, *, sandboxes: bool, bytes_per_second: float = BYTES_PER_SECOND, durations: Durations | None = None
    ) -> NodeView:
        """As the scheduler sees it. Slots are of sandboxes; a tool call takes none of them, but has a bound too.

        With ``durations`` it says when what runs there ends.
        """
        cpu, memory, slots, _gpus = self.free()
        declared, total = self.declared, self.declared.capacity
        most = total.slots if sandboxes else CALLS_MOST
        if not sandboxes:
            slots = CALLS_MOST - sum(1 for one in self.reservations.values() if one.assignment.call is not None)
        tiers: dict[str, dict[str, bool]] = {tier: {} for tier in declared.tiers}
        warm: dict[tuple[str, str | None], int] = {}
        for image in declared.images:
            tiers.setdefault(image.tier, {})[image.image] = image.ready
            warm[(image.tier, image.image)] = image.warm
        why = None
        if self.lost or self.silent_since_start:
            why = Unschedulable.LOST
        elif self.draining:
            why = Unschedulable.DRAINING
        elif self.cordoned:
            why = Unschedulable.CORDONED
        return NodeView(
            id=self.id,
            name=self.name,
            tiers=tiers,
            cpu_milli_free=cpu,
            cpu_milli_total=total.cpu_milli,
            memory_free=memory,
            memory_total=total.memory_bytes,
            slots_free=slots,
            slots_total=most,
            gpus=tuple(
                GpuView(one.uuid, one.memory_bytes, self.devices.holder(one.uuid) is None, one.fake)
                for one in declared.gpus
            ),
            labels=declared.labels,
            holds=self.holds(),
            schedulable=why is None,
            unschedulable=why,
            warm=warm,
            tiers_absent=declared.absent,
            bandwidth_bytes_per_second=self.bytes_per_second or bytes_per_second,
            releases=() if durations is None else self.releases(sandboxes=sandboxes, durations=durations),
            models=self.models.serving(),
        )

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        cpu, memory, slots, gpu = self.free()
        declared = self.declared
        tiers: dict[str, Any] = {name: {"strength": how, "images": []} for name, how in declared.tiers.items()}
        for image in declared.images:
            shown = {"image": image.image, "ready": image.ready, "warm": image.warm, "detail": image.detail}
            tiers.setdefault(image.tier, {"strength": "", "images": []})["images"].append(shown)
        return {
            "id": self.id,
            "name": self.name,
            "status": self.status,
            "tiers": tiers,
            "absent": declared.absent,
            "capacity": msgspec.to_builtins(declared.capacity),
            "free": {"cpu_milli": cpu, "memory_bytes": memory, "slots": slots, "gpu": gpu},
            "labels": declared.labels,
            "gpus": [{**msgspec.structs.asdict(one), "holder": self.devices.holder(one.uuid)} for one in declared.gpus],
            "gpus_absent": declared.gpus_absent,
            "data": [msgspec.to_builtins(root) for root in declared.data],
            "cached": len(self.cached),
            "bytes_per_second": self.bytes_per_second,
            "models": sorted(self.models.serving()),
            "attempts": len(self.reservations),
            "last_seen_at": rfc3339(self.seen_ns),
            "boot_id": declared.boot_id,
        }

    def assign(self, reservation: Reservation) -> bool:
        """Hold capacity; the assignment is given out by ``publish`` after its commit.

        ``False``, and nothing held, where another has one of its GPUs.
        """
        attempt = reservation.assignment.attempt
        if not self.devices.hold(attempt, reservation.gpus):
            return False
        self.reservations[attempt] = reservation
        code = reservation.assignment.code
        fetched = frozenset(one.digest for one in code.inputs if one.digest) - self.cached if code is not None else ()
        if fetched:
            self.incoming[attempt] = frozenset(fetched)
            self._holds = None
        return True

    def end(self, attempt: str) -> Reservation | None:
        """An attempt is over: what it took is free."""
        if self.incoming.pop(attempt, None) is not None:
            self._holds = None
        return self.reservations.pop(attempt, None)

    def end_all(self) -> None:
        """Its attempts are over for us. GPUs stay with them until the node, or its next boot, says that they ended."""
        self.devices.leave(self.reservations)
        self.incoming.clear()
        self._holds = None
        self.reservations.clear()
        self.outbox.clear()

    def publish(self, assignment: Assignment) -> None:
        """The assignment is durable: let the node pull it."""
        if assignment.attempt in self.reservations:
            self.outbox.append(assignment)
            self.wake.set()

    def direct(self, directive: Directive) -> None:
        """Tell the node something at its next pull."""
        self.directives.append(directive)
        self.wake.set()

    def take(self, most: int) -> list[Assignment]:
        """Assignments to send now."""
        taken: list[Assignment] = []
        while self.outbox and len(taken) < most:
            assignment = self.outbox.popleft()
            reservation = self.reservations.get(assignment.attempt)
            if reservation is not None:
                reservation.sent = 0
                taken.append(assignment)
        return taken

    def heard(self, heartbeat: Heartbeat) -> bool:
        """Take in a heartbeat; an assignment the node does not hold two heartbeats after it was sent is sent again.

        ``True`` if what the node declared has changed.
        """
        self.draining = heartbeat.draining
        if heartbeat.images is not None:
            self.declared.images = heartbeat.images
        if heartbeat.data is not None:
            self.declared.data = heartbeat.data
        if heartbeat.gpus is not None:
            self.declared.gpus = heartbeat.gpus[:GPUS_MOST]
        if heartbeat.data is not None or heartbeat.cached_removed or heartbeat.cached_added:
            self._holds = None
        self.cached.difference_update(heartbeat.cached_removed)
        self.cached.update(heartbeat.cached_added[: max(0, CACHE_LISTED - len(self.cached))])
        if heartbeat.models is not None:
            for gone in self.models.heard(heartbeat.models):
                self.devices.release(gone)
        held = {attempt for attempt, _fence in heartbeat.attempts}
        self.devices.left(held)
        for attempt, reservation in self.reservations.items():
            if attempt in held:
                reservation.seen = True
            elif reservation.sent is not None and not reservation.seen:
                reservation.sent += 1
                if reservation.sent > 2:
                    reservation.sent = None
                    self.publish(reservation.assignment)
        return not (heartbeat.images is None and heartbeat.data is None and heartbeat.gpus is None)
