"""``plan``: where work goes, as a pure function of the cluster and the demands.

    queue order → filter → score → wait for a better node, or reserve

Demands are taken by priority, within one the starving ones first, then in the order given. Each placement uses up
capacity before the next demand is looked at. One that fits nowhere waits, with reasons, and holds up those behind it
only if it starves: then they leave it one node (``scheduler.holding``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from scheduler.blocking import reasons_for
from scheduler.cluster import GpuView, Snapshot
from scheduler.delay import WORTH_SECONDS, Busy, Delay
from scheduler.demand import Demand, Shape, shape_of
from scheduler.explanation import Explanation, Reason, ReasonCode
from scheduler.holding import hold_for, with_hold
from scheduler.ledger import Ledger
from scheduler.quick import NODES_MOST, alike_and_plain, quick
from scheduler.scoreboard import Scoreboard


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A demand has a node. ``tier`` is never ``"auto"``; it and ``image`` are ``None`` for a tool step.

    ``gpus`` are the devices that are its own.
    """

    demand: str
    node: str
    tier: str | None
    image: str | None
    explanation: Explanation
    gpus: tuple[GpuView, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A demand that has no place now; ``reasons`` has at least one, the nearest to fitting first.

    ``better_seconds`` is how long it is expected to wait, where it fits on a node and waits for a better one.
    """

    demand: str
    reasons: tuple[Reason, ...]
    explanation: Explanation
    better_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Each demand is in exactly one of the two, both in queue order.

    ``held`` is the demand that a node is held for, which is among ``waiting``, and that node.
    """

    placements: tuple[Placement, ...]
    waiting: tuple[Waiting, ...]
    held: tuple[str, str] | None = None


def plan(snapshot: Snapshot, demands: Sequence[Demand]) -> Plan:
    """Place what fits. Deterministic; changes neither argument; asking costs nothing, so ``validate`` asks too."""
    if demands and 0 < len(snapshot) <= NODES_MOST and alike_and_plain(demands):
        chunks = quick(snapshot.nodes, demands[0], len(demands))
        if chunks is not None:
            return _all_placed(snapshot, demands, chunks)
    return by_boards(snapshot, demands)


def by_boards(snapshot: Snapshot, demands: Sequence[Demand]) -> Plan:
    """``plan`` for every cluster and every queue, on columns."""
    ledger = Ledger(snapshot)
    delay = Delay(snapshot, ledger)
    boards: dict[Shape, Scoreboard] = {}
    told: dict[tuple[Shape, str | None], tuple[tuple[Reason, ...], Explanation]] = {}
    placements: list[Placement] = []
    waiting: list[Waiting] = []
    for shape, batch in _batches(demands):
        board = boards.get(shape)
        if board is None:
            board = boards[shape] = Scoreboard(snapshot, ledger, batch[0])
        while batch and (row := board.cheapest()) >= 0:
            busy = delay.busy(board, row) if batch[0].local else []
            if busy and _worth_waiting(busy[0], board, row, batch[0]):
                waiting.append(_wait_for(snapshot, busy, board, row, batch[0]))
                delay.claim(busy[0].row, board.needs, busy[0].wait_seconds, batch[0].expected_seconds)
                batch = batch[1:]
                continue
            count = 1 if busy else min(len(batch), board.uniform_room(row))
            why = board.explanation([one.candidate for one in busy])
            tier = board.tier_at(row)
            image = None if tier is None else batch[0].image
            devices = ledger.reserve(row, board.needs, count, tier, image)
            placements += [
                Placement(demand=one.id, node=snapshot.nodes[row].id, tier=tier, image=image, explanation=why, gpus=own)
                for one, own in zip(batch[:count], devices, strict=True)
            ]
            delay.placed(row, board.needs, count, batch[0].expected_seconds)
            batch = batch[count:]
        if batch and batch[0].starving and ledger.held is None:
            reasons, why = reasons_for(snapshot, ledger, batch[0], board), board.explanation()
            hold = hold_for(snapshot, ledger, batch[0], board)
            if hold is not None:
                reasons = with_hold(reasons, snapshot, hold, board)
                waiting.append(Waiting(demand=batch[0].id, reasons=reasons, explanation=why))
                batch = batch[1:]
        for demand in batch:
            # Reasons are alike for a shape, but name the holder to its own tenant only.
            key = shape, None if ledger.held is None else demand.tenant
            if key not in told:
                told[key] = reasons_for(snapshot, ledger, demand, board), board.explanation()
            waiting.append(Waiting(demand=demand.id, reasons=told[key][0], explanation=told[key][1]))
    held = None if ledger.held is None else (ledger.held.demand.id, snapshot.nodes[ledger.held.row].id)
    return Plan(placements=tuple(placements), waiting=tuple(waiting), held=held)


def _worth_waiting(busy: Busy, board: Scoreboard, free: int, demand: Demand) -> bool:
    cheaper = busy.candidate.cost_seconds < board.cost_at(free) - WORTH_SECONDS
    return cheaper and busy.wait_seconds <= demand.patience_seconds


def _wait_for(snapshot: Snapshot, busy: Sequence[Busy], board: Scoreboard, free: int, demand: Demand) -> Waiting:
    why = board.explanation([one.candidate for one in busy])
    better, name = busy[0], snapshot.nodes[busy[0].row].name
    reason = Reason(
        code=ReasonCode.WAITING_FOR_BETTER_NODE,
        message=(
            f"node {name} has room in about {better.wait_seconds:.1f} s and costs "
            f"{better.candidate.cost_seconds:.1f} s with that wait; the cheapest that is free, node "
            f"{snapshot.nodes[free].name}, costs {board.cost_at(free):.1f} s"
        ),
        fix="nothing to do: it goes there, or elsewhere when that takes longer; without `near` it goes at once",
        nodes=why.candidates - sum(why.filtered.values()),
        permanent=False,
    )
    return Waiting(demand=demand.id, reasons=(reason,), explanation=why, better_seconds=better.wait_seconds)


def _all_placed(snapshot: Snapshot, demands: Sequence[Demand], chunks: list[tuple[int, int, Explanation]]) -> Plan:
    queue = iter(demands)
    placements = [
        Placement(demand=demand.id, node=snapshot.nodes[row].id, tier=None, image=None, explanation=why)
        for row, count, why in chunks
        for demand in islice(queue, count)
    ]
    return Plan(placements=tuple(placements), waiting=())


def _batches(demands: Sequence[Demand]) -> list[tuple[Shape, list[Demand]]]:
    """Queue order, cut into runs of one shape.

    Placing such a run node by node equals placing it one by one: a reservation makes its node fuller, hence cheaper,
    so the best node stays the best until it is full or its warm sandboxes are used up.
    """
    queue = sorted(demands, key=lambda demand: -2 * demand.priority - demand.starving)
    batches: list[tuple[Shape, list[Demand]]] = []
    last: Shape | None = None
    for demand in queue:
        shape = shape_of(demand)
        if shape != last:
            batches.append((shape, []))
            last = shape
        batches[-1][1].append(demand)
    return batches
