"""``plan``: where work goes, as a pure function of the cluster and the demands.

    queue order → filter → score → reserve

Demands are taken by priority, then in the order given. Each placement uses up capacity before the next demand is
looked at; one that fits nowhere waits, with reasons, and does not hold up those behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from scheduler.blocking import reasons_for
from scheduler.cluster import Snapshot
from scheduler.demand import Demand, Shape, shape_of
from scheduler.explanation import Explanation, Reason
from scheduler.ledger import Ledger
from scheduler.quick import NODES_MOST, alike_and_plain, quick
from scheduler.scoreboard import Scoreboard


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """A demand has a node. ``tier`` is never ``"auto"``; it and ``image`` are ``None`` for a tool step."""

    demand: str
    node: str
    tier: str | None
    image: str | None
    explanation: Explanation


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """A demand that fits nowhere now; ``reasons`` has at least one, the nearest to fitting first."""

    demand: str
    reasons: tuple[Reason, ...]
    explanation: Explanation


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Each demand is in exactly one of the two, both in queue order."""

    placements: tuple[Placement, ...]
    waiting: tuple[Waiting, ...]


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
    boards: dict[Shape, Scoreboard] = {}
    stuck: dict[Shape, tuple[tuple[Reason, ...], Explanation]] = {}
    placements: list[Placement] = []
    waiting: list[Waiting] = []
    for shape, batch in _batches(demands):
        while batch:
            if shape in stuck:
                reasons, why = stuck[shape]
                waiting += [Waiting(demand=demand.id, reasons=reasons, explanation=why) for demand in batch]
                break
            board = boards.get(shape)
            if board is None:
                board = boards[shape] = Scoreboard(snapshot, ledger, batch[0])
            else:
                board.catch_up()
            row = board.best
            if row < 0:
                # Capacity only shrinks within a call: what does not fit now will not fit later in it.
                stuck[shape] = reasons_for(snapshot, ledger, batch[0], board), board.explanation()
                continue
            count = min(len(batch), board.uniform_room(row))
            placements += _placed(snapshot, board, row, batch[:count])
            ledger.reserve(row, board.needs, count, board.tier_at(row), batch[0].image)
            batch = batch[count:]
    return Plan(placements=tuple(placements), waiting=tuple(waiting))


def _all_placed(snapshot: Snapshot, demands: Sequence[Demand], chunks: list[tuple[int, int, Explanation]]) -> Plan:
    queue = iter(demands)
    placements = [
        Placement(demand=demand.id, node=snapshot.nodes[row].id, tier=None, image=None, explanation=why)
        for row, count, why in chunks
        for demand in islice(queue, count)
    ]
    return Plan(placements=tuple(placements), waiting=())


def _placed(snapshot: Snapshot, board: Scoreboard, row: int, demands: Sequence[Demand]) -> list[Placement]:
    node = snapshot.nodes[row].id
    tier = board.tier_at(row)
    image = None if tier is None else demands[0].image
    why = board.explanation()
    return [Placement(demand=demand.id, node=node, tier=tier, image=image, explanation=why) for demand in demands]


def _batches(demands: Sequence[Demand]) -> list[tuple[Shape, list[Demand]]]:
    """Queue order, cut into runs of one shape.

    Placing such a run node by node equals placing it one by one: a reservation makes its node fuller, hence cheaper,
    so the best node stays the best until it is full or its warm sandboxes are used up.
    """
    queue = sorted(demands, key=lambda demand: -demand.priority)
    batches: list[tuple[Shape, list[Demand]]] = []
    last: Shape | None = None
    for demand in queue:
        shape = shape_of(demand)
        if shape != last:
            batches.append((shape, []))
            last = shape
        batches[-1][1].append(demand)
    return batches
