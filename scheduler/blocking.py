"""Why a demand fits nowhere, and the nearest fix, in words.

Busy now and never fits are told apart: the first ends by itself, the second needs a change (``Reason.permanent``).
"""

from __future__ import annotations

import numpy as np

from scheduler.cluster import IMAGE_PREPARING, Rows, Snapshot
from scheduler.demand import GPU_TIERS, Demand
from scheduler.explanation import CODES, NUMBER, Reason, ReasonCode
from scheduler.feasibility import CAPACITY
from scheduler.ledger import Columns, Hold, Ledger, Needs, shortage
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
    for code in reversed(CODES[1:]):
        rows = np.flatnonzero(board.blocked == NUMBER[code])
        if rows.size:
            capacity = code in CAPACITY and not _gpu_too_small(snapshot, board.needs, rows, code)
            describe = _capacity if capacity else _other
            reasons.append(describe(snapshot, ledger, demand, board, code, rows))
    return tuple(reasons)


def _gpu_too_small(snapshot: Snapshot, needs: Needs, rows: Rows, code: ReasonCode) -> bool:
    """Whether these have GPUs, and none with the memory asked for."""
    if code is not ReasonCode.GPU or not needs.gpu_memory_bytes:
        return False
    enough = snapshot.gpus_of(needs.gpu_memory_bytes, free=False)[rows] >= needs.gpu
    return not enough.any() and bool((snapshot.gpu_total[rows] >= needs.gpu).any())


def _capacity(
    snapshot: Snapshot, ledger: Ledger, demand: Demand, board: Scoreboard, code: ReasonCode, rows: Rows
) -> Reason:
    needs, excluded = board.needs, len(rows)
    totals, left = snapshot.totals(needs.gpu_memory_bytes), ledger.columns(needs)
    lacking = shortage(needs, totals, rows)
    busy = rows[lacking == 0.0]
    asked = _asked(needs, code)
    if busy.size:
        nearest = int(busy[shortage(needs, left, busy).argmin()])
        name, lacks = snapshot.nodes[nearest].name, " and ".join(_lacks(needs, left, nearest))
        has = f"node {name} has {_free(needs, left, totals, code, nearest)}"
        return Reason(
            code=code,
            message=f"it needs {asked}; {_nodes(busy)} could take it but {_lack(busy)} {_WORDS[code]} now: {has}",
            fix=f"wait: it would fit on node {name} with {lacks} more free; or ask for less",
            nodes=excluded,
            permanent=False,
        )
    nearest = int(rows[lacking.argmin()])
    name, lacks = snapshot.nodes[nearest].name, " and ".join(_lacks(needs, totals, nearest))
    has = f"node {name} has {_free(needs, left, totals, code, nearest)}"
    return Reason(
        code=code,
        message=f"it needs {asked}, which exceeds what {_nodes(rows)} {_has(rows)} in total: {has}",
        fix=f"ask for less or join a larger node: it would fit on node {name} with {lacks} more",
        nodes=excluded,
        permanent=True,
    )


def _lacks(needs: Needs, columns: Columns, row: int) -> list[str]:
    words = _gpus, _cpus, _memory, _slots
    short = [need - int(column[row]) for need, column in zip(needs.amounts(), columns, strict=True)]
    return [say(lack) for lack, say in zip(short, words, strict=True) if lack > 0]


def _other(
    snapshot: Snapshot, ledger: Ledger, demand: Demand, board: Scoreboard, code: ReasonCode, rows: Rows
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
            preparing = rows[board.readiness[rows] == IMAGE_PREPARING]
            permanent = not preparing.size
            if preparing.size:
                message = f"image {demand.image!r} is still being prepared on {_nodes(preparing)}"
                fix = f"wait until node {snapshot.nodes[preparing[0]].name} has it"
            else:
                message = f"{some} without image {demand.image!r}"
                fix = "use an image that a node has, or prepare this one on a node"
                if demand.tier == "container":
                    fix = f"make it on a node: stockade image build {demand.image}, or import an archive"
        case ReasonCode.GPU_TIER:
            reach = " or ".join(GPU_TIERS)
            message = f"{some} with GPUs that no guest of tier {demand.tier} reaches"
            fix = f"ask for them in sandbox.tier {reach}"
        case ReasonCode.DATA_NOT_EXPORTED:
            keys = sorted({need.key for need in demand.inputs if need.pinned})
            message = f"{some} without all of {', '.join(keys)}"
            fix = "export it there with `stockade node --data NAME=PATH`"
            if len(keys) > 1:
                fix += "; one node must hold all of a step's data"
        case ReasonCode.HELD if ledger.held is not None:
            message, fix = _held_words(snapshot, ledger.held, demand)
            permanent = False
        case _:
            count, least = board.needs.gpu, _memory(board.needs.gpu_memory_bytes)
            most = max(_largest(snapshot, row, count) for row in rows)
            message = f"{some} without {_gpus(count)} of at least {least}"
            fix = f"ask for at most {_memory(most)} per GPU, or join a node with larger ones"
    return Reason(code=code, message=message, fix=fix, nodes=len(rows), permanent=permanent)


def _tier_words(snapshot: Snapshot, demand: Demand, rows: Rows, some: str) -> tuple[str, str]:
    options = demand.tier_options()
    if not options:
        allowed = ", ".join(demand.tiers_allowed)
        return f"tier {demand.tier!r} is not among the allowed tiers ({allowed})", f"use one of {allowed}"
    wanted = " or ".join(options)
    why = next((absent[t] for row in rows for t in options if t in (absent := snapshot.nodes[row].tiers_absent)), "")
    message = f"{some} without tier {wanted}" + (f": {why}" if why else "")
    return message, "run `stockade doctor` on a node to see what the tier needs, or ask for another tier"


def _held_words(snapshot: Snapshot, held: Hold, demand: Demand) -> tuple[str, str]:
    name = snapshot.nodes[held.row].name
    whose = held.demand.id if held.demand.tenant == demand.tenant else "a step of another tenant"
    message = f"node {name} is held for {whose}, which has waited longer and needs more than is free there"
    return message, "wait until that step has its place, ask for less, or join another node"


def _free(needs: Needs, left: Columns, totals: Columns, code: ReasonCode, row: int) -> str:
    """What a node has of the resource: ``1 free of 2``."""
    place = CAPACITY.index(code)
    free, total = int(left[place][row]), int(totals[place][row])
    if code is ReasonCode.GPU:
        least = f" of at least {_memory(needs.gpu_memory_bytes)}" if needs.gpu_memory_bytes else ""
        return f"{free} GPU{'' if free == 1 else 's'} free of {total}{least}"
    say = {ReasonCode.CPU: _cpus, ReasonCode.MEMORY: _memory}.get(code, _slots)
    return f"{say(free)} free of {say(total)}"


def _largest(snapshot: Snapshot, row: int, count: int) -> int:
    """The most memory that each of so many GPUs of a node has; 0 where it has fewer."""
    found = sorted((gpu.memory_bytes for gpu in snapshot.nodes[row].gpus), reverse=True)
    return found[count - 1] if len(found) >= count else 0


def _lack(rows: Rows) -> str:
    return "lacks" if len(rows) == 1 else "lack"


def _has(rows: Rows) -> str:
    return "has" if len(rows) == 1 else "have"


_WORDS = {ReasonCode.GPU: "GPUs", ReasonCode.CPU: "CPU", ReasonCode.MEMORY: "memory", ReasonCode.SLOTS: "a slot"}


def _asked(needs: Needs, code: ReasonCode) -> str:
    match code:
        case ReasonCode.GPU:
            least = f" of at least {_memory(needs.gpu_memory_bytes)}" if needs.gpu_memory_bytes else ""
            return _gpus(needs.gpu) + least
        case ReasonCode.CPU:
            return _cpus(needs.cpu_milli)
        case ReasonCode.MEMORY:
            return f"{_memory(needs.memory_bytes)} of memory"
        case _:
            return _slots(1)


def _nodes(rows: Rows) -> str:
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
