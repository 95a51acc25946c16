"""The live view of every node: registration, lease, reservations, and the assignments waiting to be pulled.

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
from controlplane.times import rfc3339
from dataplane.protocol import Assignment, Directive, Heartbeat, Register
from scheduler.cluster import GpuView, NodeView, Snapshot, Unschedulable

CACHE_LISTED = 20_000
CALLS_MOST = 4096
"""Tool calls in flight on one node."""
PREPARE_AGAIN_SECONDS = 300.0
GPUS_MOST = 64


@dataclass(kw_only=True, eq=False)
class Reservation:
    """What one attempt takes of its node. ``sent`` counts heartbeats since the assignment was pulled."""

    assignment: Assignment
    cpu_milli: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()
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
    cached: set[str] = field(default_factory=set)
    preparing: dict[tuple[str, str], float] = field(default_factory=dict)
    devices: DeviceLedger = field(default_factory=DeviceLedger)
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
        """Data roots it exports and artifacts it has cached, by key. Every plan asks: made again only on a change."""
        if self._holds is None:
            self._holds = frozenset(f"data://{root.name}" for root in self.declared.data) | self.cached
        return self._holds

    def take_over(self, known: Node) -> None:
        """The same boot registered again: what it holds and is owed stays, shared with who still has the old object."""
        self.reservations, self.outbox, self.directives = known.reservations, known.outbox, known.directives
        self.cached, self.preparing, self.wake = known.cached, known.preparing, known.wake
        self.cordoned, self.draining, self.devices = known.cordoned, known.draining, known.devices
        self.models = known.models

    def view(self, *, sandboxes: bool) -> NodeView:
        """As the scheduler sees it. Slots are of sandboxes; a tool call takes none of them, but has a bound too."""
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
        return True

    def end_all(self) -> None:
        """Its attempts are over for us. GPUs stay with them until the node, or its next boot, says that they ended."""
        self.devices.leave(self.reservations)
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


class Inventory:
    """All nodes of this control plane."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.joining = asyncio.Lock()
        """Held while a registration is stored or removed, so that a name has one node."""
        self._by_token: dict[str, Node] = {}
        self.changed = asyncio.Event()
        self.closing = False

    def close(self) -> None:
        """End parked polls: the process stops."""
        self.closing = True
        for node in self.nodes.values():
            node.wake.set()

    def add(self, node: Node) -> None:
        """A node registered (again): its earlier bearer ends, and so does a poll parked under it."""
        self.remove(node.id)
        self.nodes[node.id] = node
        self._by_token[node.token_hash] = node
        self.changed.set()

    def remove(self, node_id: str) -> None:
        """Forget a node; its bearer is no longer known."""
        node = self.nodes.pop(node_id, None)
        if node is not None:
            self._by_token.pop(node.token_hash, None)
            node.wake.set()

    def by_token(self, token_hash: str) -> Node | None:
        """Whose bearer this is."""
        return self._by_token.get(token_hash)

    def by_name(self, tenant: str, name: str) -> Node | None:
        """The node that registered under this name."""
        return next((node for node in self.nodes.values() if (node.tenant, node.name) == (tenant, name)), None)

    def release(self, node_id: str | None, attempt: str | None) -> None:
        """An attempt has ended: its capacity is free."""
        node = self.nodes.get(node_id or "")
        if node is None or attempt is None:
            return
        freed = node.devices.release(attempt)
        if node.reservations.pop(attempt, None) is not None or freed:
            self.changed.set()

    def take_devices(self, node_id: str, holder: str, count: int, memory_bytes: int = 0) -> tuple[str, ...] | None:
        """Reserve GPUs of a node for a model server, until ``release_devices``; their ids, or ``None``: too few free.

        ``holder`` is a name that no attempt has, and the same one each time for one server.
        """
        node = self.nodes.get(node_id)
        if node is None:
            return None
        return node.devices.held_by(holder) or node.devices.take(holder, node.declared.gpus, count, memory_bytes)

    def hold_devices(self, node_id: str, holder: str, devices: Iterable[str]) -> bool:
        """After a restart: these GPUs are the model server's still. ``False`` where another has one of them."""
        node = self.nodes.get(node_id)
        return node is not None and node.devices.hold(holder, devices)

    def release_devices(self, node_id: str, holder: str) -> None:
        """The model server has ended."""
        node = self.nodes.get(node_id)
        if node is not None and node.devices.release(holder):
            self.changed.set()

    def prepare(self, tiers: Iterable[str], image: str, holding: frozenset[str]) -> None:
        """Have one node make an image ready, unless one is at it: a node that holds the step's data if there is one."""
        able: list[tuple[bool, str, Node]] = []
        for tier in tiers:
            for node in self.nodes.values():
                state = next((one for one in node.declared.images if (one.tier, one.image) == (tier, image)), None)
                if state is None or node.status != "ready" or state.ready:
                    continue
                if time.monotonic() - node.preparing.get((tier, image), -PREPARE_AGAIN_SECONDS) < PREPARE_AGAIN_SECONDS:
                    return
                able.append((holding <= node.holds(), tier, node))
        if able:
            _, tier, node = max(able, key=lambda one: one[0])
            node.preparing[tier, image] = time.monotonic()
            node.direct(Directive(kind="prepare", tier=tier, image=image))

    def snapshot(self, *, sandboxes: bool) -> Snapshot:
        """What ``scheduler.plan`` looks at, for steps that need a sandbox or for tool calls."""
        return Snapshot(nodes=tuple(node.view(sandboxes=sandboxes) for node in self.nodes.values()))

    def view(self) -> list[dict[str, Any]]:
        """Every known node as ``GET /v1/nodes`` shows it."""
        return [node.to_json() for node in self.nodes.values()]

    def expired(self, lease_seconds: float, hold_seconds: float) -> Iterable[Node]:
        """Nodes whose lease is over. After a restart of this process a silent node has one hold, not one lease."""
        now = time.monotonic()
        for node in self.nodes.values():
            bound = hold_seconds if node.silent_since_start else lease_seconds
            if not node.lost and now - node.last_seen > bound:
                yield node
