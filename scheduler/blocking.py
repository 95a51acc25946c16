"""Why a demand fits nowhere, and the nearest fix, in words.

Busy now and never fits are told apart: the first ends by itself, the second needs a change (``Reason.permanent``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scheduler.cluster import IMAGE_PREPARING, Snapshot
from scheduler.demand import Demand
from scheduler.explanation import CODES, NUMBER, Reason, ReasonCode
from scheduler.feasibility import CAPACITY
from scheduler.ledger import Ledger, Needs
from scheduler.scoreboard import Scoreboard

MIB = 1024 * 1024


def reasons_for(snapshot: Snapshot, ledger: Ledger, demand: Demand, board: Scoreboard) -> tuple[Reason, ...]:
    """One reason per filter that excluded nodes, the last filter (nearest to fitting) first; at least one."""
    if not snapshot.nodes:
        return (
            Reason(
                code=ReasonCode.NO_NODES,
                message="no node has joined",
                fix="start one with `stockade node`",
                nodes=0,
                permanent=True,
            ),
        )
    reasons = []
    for code in reversed(CODES):
        rows = np.flatnonzero(board.blocked == NUMBER[code]).tolist() if code is not ReasonCode.NO_NODES else []
        if rows:
            capacity = code in CAPACITY and not _gpu_too_small(snapshot, board.needs, rows, code)
            describe = _capacity if capacity else _other
            reasons.append(describe(snapshot, ledger, demand, board, code, rows))
    return tuple(reasons)


def _gpu_too_small(snapshot: Snapshot, needs: Needs, rows: list[int], code: ReasonCode) -> bool:
    memory = snapshot.gpu_memory
    return code is ReasonCode.GPU and all(memory[row] < needs.gpu_memory_bytes for row in rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shortage:
    """What one node lacks, against its free capacity or against its total; ``share`` of the needs, to compare."""

    row: int
    lacks: tuple[str, ...]
    share: float


def _capacity(
    snapshot: Snapshot, ledger: Ledger, demand: Demand, board: Scoreboard, code: ReasonCode, rows: list[int]
) -> Reason:
    needs, excluded = board.needs, len(rows)
    if needs.gpu and needs.gpu_memory_bytes:
        rows = [row for row in rows if snapshot.gpu_memory[row] >= needs.gpu_memory_bytes]
    too_small = {row: short for row in rows if (short := _shortage(snapshot, ledger, needs, row, total=True)).lacks}
    busy = [_shortage(snapshot, ledger, needs, row, total=False) for row in rows if row not in too_small]
    asked = _asked(needs, code)
    if busy:
        nearest = min(busy, key=lambda short: short.share)
        name = snapshot.nodes[nearest.row].name
        return Reason(
            code=code,
            message=f"{_nodes(busy)} could take it but lack {_WORDS[code]} now (it asks for {asked})",
            fix=f"wait: it would fit on node {name} with {' and '.join(nearest.lacks)} more free; or ask for less",
            nodes=excluded,
            permanent=False,
        )
    nearest = min(too_small.values(), key=lambda short: short.share)
    name = snapshot.nodes[nearest.row].name
    return Reason(
        code=code,
        message=f"{_nodes(rows)} can never take it: it asks for {asked}, which exceeds what they have in total",
        fix=f"ask for less or join a larger node: it would fit on node {name} with {' and '.join(nearest.lacks)} more",
        nodes=excluded,
        permanent=True,
    )


def _shortage(snapshot: Snapshot, ledger: Ledger, needs: Needs, row: int, *, total: bool) -> _Shortage:
    columns: tuple[tuple[int, int, Callable[[int], str]], ...] = (
        (needs.gpu, int((snapshot.gpu_total if total else ledger.gpu)[row]), _gpus),
        (needs.cpu_milli, int((snapshot.cpu_total if total else ledger.cpu)[row]), _cpus),
        (needs.memory_bytes, int((snapshot.memory_total if total else ledger.memory)[row]), _memory),
        (1, int((snapshot.slots_total if total else ledger.slots)[row]), _slots),
    )
    short = [(need - has, need, words) for need, has, words in columns if need > has]
    return _Shortage(
        row=row,
        lacks=tuple(words(lack) for lack, _, words in short),
        share=sum(lack / need for lack, need, _ in short),
    )


def _other(
    snapshot: Snapshot, ledger: Ledger, demand: Demand, board: Scoreboard, code: ReasonCode, rows: list[int]
) -> Reason:
    some, permanent = _nodes(rows), True
    first = snapshot.nodes[rows[0]]
    match code:
        case ReasonCode.CORDONED:
            message, fix = f"{some} cordoned", f"uncordon a node, such as {first.name}"
        case ReasonCode.DRAINING:
            message, fix = f"{some} draining", "start another node, or restart the one that drains"
        case ReasonCode.LOST:
            message, fix = f"{some} lost: no heartbeat", f"bring node {first.name} back, or start another"
            permanent = False
        case ReasonCode.LABELS:
            wanted = ", ".join(f"{label}={value}" for label, value in sorted(demand.labels.items()))
            message, fix = f"{some} without the labels {wanted}", "drop a label, or join a node that has them all"
        case ReasonCode.TIER_UNAVAILABLE:
            message, fix = _tier_words(snapshot, demand, rows, some)
        case ReasonCode.IMAGE_NOT_READY:
            preparing = [row for row in rows if board.readiness[row] == IMAGE_PREPARING]
            permanent = not preparing
            if preparing:
                message = f"image {demand.image!r} is still being prepared on {_nodes(preparing)}"
                fix = f"wait until node {snapshot.nodes[preparing[0]].name} has it"
            else:
                message = f"{some} without image {demand.image!r}"
                fix = "use an image that a node has, or prepare this one on a node"
        case ReasonCode.DATA_NOT_EXPORTED:
            keys = sorted({need.key for need in demand.inputs if need.pinned})
            message = f"{some} without all of {', '.join(keys)}"
            fix = "export it there with `stockade node --data NAME=PATH`"
            if len(keys) > 1:
                fix += "; one node must hold all of a step's data"
        case _:
            most = max(int(snapshot.gpu_memory[row]) for row in rows)
            message = f"{some} whose GPUs have less than {_memory(board.needs.gpu_memory_bytes)} each"
            fix = f"ask for at most {_memory(most)} per GPU, or join a node with larger ones"
    return Reason(code=code, message=message, fix=fix, nodes=len(rows), permanent=permanent)


def _tier_words(snapshot: Snapshot, demand: Demand, rows: list[int], some: str) -> tuple[str, str]:
    options = demand.tier_options()
    if not options:
        allowed = ", ".join(demand.tiers_allowed)
        return f"tier {demand.tier!r} is not among the allowed tiers ({allowed})", f"use one of {allowed}"
    wanted = " or ".join(options)
    why = next((absent[t] for row in rows for t in options if t in (absent := snapshot.nodes[row].tiers_absent)), "")
    message = f"{some} without tier {wanted}" + (f": {why}" if why else "")
    return message, "run `stockade doctor` on a node to see what the tier needs, or ask for another tier"


_WORDS = {ReasonCode.GPU: "GPUs", ReasonCode.CPU: "CPU", ReasonCode.MEMORY: "memory", ReasonCode.SLOTS: "a slot"}


def _asked(needs: Needs, code: ReasonCode) -> str:
    match code:
        case ReasonCode.GPU:
            return _gpus(needs.gpu)
        case ReasonCode.CPU:
            return _cpus(needs.cpu_milli)
        case ReasonCode.MEMORY:
            return _memory(needs.memory_bytes)
        case _:
            return _slots(1)


def _nodes(rows: list[int] | list[_Shortage]) -> str:
    return "1 node" if len(rows) == 1 else f"{len(rows)} nodes"


def _gpus(count: int) -> str:
    return f"{count} GPU" + ("" if count == 1 else "s")


def _cpus(milli: int) -> str:
    return f"{milli / 1000:g} CPU"


def _slots(count: int) -> str:
    return f"{count} slot" + ("" if count == 1 else "s")


def _memory(amount: int) -> str:
    for unit, size in (("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount} B"
