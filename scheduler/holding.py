"""Head-of-line reservation: a node is held for the demand that starves, so that small ones cannot overtake it for ever.

The node that lacks least is held, the first among equals. Others may use there only what the demand would leave over.
So what a held node lacks never grows, and the hold moves only to a node that lacks less or equals it further ahead:
the demand has its place at the latest when what runs on the node that is held has ended. How long work takes is
unknown, so nothing is let through for being short.

A hold lives for one ``plan`` call. Each call for the same capacity must include the starving demand, or that call
gives away what it waits for.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler.cluster import Snapshot
from scheduler.demand import Demand
from scheduler.explanation import CODES, Reason
from scheduler.ledger import Hold, Ledger, shortage
from scheduler.scoreboard import Scoreboard


def hold_for(snapshot: Snapshot, ledger: Ledger, demand: Demand, board: Scoreboard) -> Hold | None:
    """Hold a node for a demand that fits nowhere now; ``None`` when no node could ever take it."""
    rows = board.eligible
    rows = rows[shortage(board.needs, snapshot.totals(board.needs.gpu_memory_bytes), rows) == 0.0]
    if not rows.size:
        return None
    row = int(rows[shortage(board.needs, ledger.columns(board.needs), rows).argmin()])
    return ledger.hold(row, board.needs, demand)


def with_hold(reasons: tuple[Reason, ...], snapshot: Snapshot, hold: Hold, board: Scoreboard) -> tuple[Reason, ...]:
    """The reasons of the demand that a node is held for, which say so."""
    code = CODES[board.blocked[hold.row]]
    kept = f"; node {snapshot.nodes[hold.row].name} is held for it"
    return tuple(
        replace(reason, message=reason.message + kept) if reason.code is code else reason for reason in reasons
    )
