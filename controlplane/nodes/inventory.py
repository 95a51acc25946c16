"""The live view of every node: who there is, who has what, and what the scheduler looks at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from controlplane.nodes.node import BYTES_PER_SECOND, Node, Reservation
from controlplane.placement.history import Durations, Starts
from dataplane.protocol import DataRoot, Directive
from scheduler.cluster import Snapshot

__all__ = ["Inventory", "Node", "Reservation"]

PREPARE_AGAIN_SECONDS = 300.0


class Inventory:
    """All nodes of this control plane. ``bytes_per_second`` is assumed of a node until something was moved to it."""

    def __init__(self, bytes_per_second: float = BYTES_PER_SECOND) -> None:
        self.bytes_per_second = bytes_per_second
        self.durations, self.starts = Durations(), Starts()
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
            node.replaced.set()

    def data(self, name: str) -> list[tuple[Node, DataRoot]]:
        """Who exports this root, of the nodes that are there, and what they say of it."""
        return [
            (node, root)
            for node in self.nodes.values()
            if node.status != "lost"
            for root in node.declared.data
            if root.name == name
        ]

    def by_token(self, token_hash: str) -> Node | None:
        """Whose bearer this is."""
        return self._by_token.get(token_hash)

    def address(self, node_id: str) -> str | None:
        """Where the node listens itself, if it does."""
        node = self.nodes.get(node_id)
        return (node.declared.address or None) if node is not None else None

    def by_name(self, tenant: str, name: str) -> Node | None:
        """The node that registered under this name."""
        return next((node for node in self.nodes.values() if (node.tenant, node.name) == (tenant, name)), None)

    def ended(self, node_id: str, attempt: str, cached: Iterable[str]) -> None:
        """An attempt came to its own end: what it fetched and made is there, and how long it took tells of others."""
        node = self.nodes.get(node_id)
        if node is None:
            return
        node.caches([*node.incoming.get(attempt, ()), *cached])
        reservation = node.reservations.get(attempt)
        if reservation is not None and reservation.work is not None:
            self.durations.record(reservation.work, node_id, time.monotonic() - reservation.began)

    def release(self, node_id: str | None, attempt: str | None) -> None:
        """An attempt is over: its capacity is free."""
        node = self.nodes.get(node_id or "")
        if node is None or attempt is None:
            return
        freed = node.devices.release(attempt)
        if node.end(attempt) is not None or freed:
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

    def snapshot(self, *, sandboxes: bool, releases: bool = False) -> Snapshot:
        """What ``scheduler.plan`` looks at, for steps that need a sandbox or for tool calls.

        ``releases``: with when running work ends, which only demands look at for which places differ.
        """
        durations, assumed = self.durations if releases else None, self.bytes_per_second
        views = [
            node.view(sandboxes=sandboxes, bytes_per_second=assumed, durations=durations)
            for node in self.nodes.values()
        ]
        return Snapshot(nodes=tuple(views), starts=self.starts.means() if sandboxes else {})

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
