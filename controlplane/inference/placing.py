"""Where a replica goes: a node that has the engine, the model and room for it, and if possible no replica of it yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from controlplane.inference.spec import DeploymentSpec
from controlplane.nodes.inventory import Node
from scheduler.cluster import Snapshot
from scheduler.demand import Demand
from scheduler.planner import plan


@dataclass(frozen=True, kw_only=True)
class Unplaced:
    """Why a replica waits: a reason for programs, a message for people, and the nearest fix."""

    reason: str
    message: str
    fix: str


def demand(spec: DeploymentSpec, replica: str) -> Demand:
    """What one replica takes of its node."""
    return Demand(
        id=replica,
        cpu_milli=spec.cpu_milli,
        memory_bytes=spec.memory_bytes or spec.usual_memory_bytes,
        gpu=spec.gpus,
        gpu_memory_bytes=spec.gpu_memory_bytes,
        labels=spec.labels,
    )


def place(spec: DeploymentSpec, replica: str, nodes: Sequence[Node], having: Collection[str]) -> str | Unplaced:
    """The node to run it on. ``having`` are nodes that run a replica of it: taken only where no other will do."""
    able = _able(spec, nodes)
    if isinstance(able, Unplaced):
        return able
    wanted = demand(spec, replica)
    for some in ([node for node in able if node.id not in having], able):
        found = plan(Snapshot(nodes=tuple(node.view(sandboxes=False) for node in some)), [wanted])
        if found.placements:
            return found.placements[0].node
    reasons = found.waiting[0].reasons
    return Unplaced(reason="NoRoom", message="; ".join(one.message for one in reasons), fix=reasons[0].fix)


def _able(spec: DeploymentSpec, nodes: Sequence[Node]) -> list[Node] | Unplaced:
    """Nodes that have the engine and the model."""
    here = [node for node in nodes if node.status != "lost"]
    if not here:
        return Unplaced(reason="NoNode", message="no node has joined", fix="stockade node join-token")
    engine, source = spec.engine, spec.source
    having = [node for node in here if engine in node.models.engines and not node.models.engines[engine].absent]
    if not having:
        whys = {node.models.engines[engine].absent for node in here if engine in node.models.engines}
        why = "; ".join(sorted(whys)[:3]) or "none has said what it has yet"
        fix = f"make components-{engine} on a node's machine; a running node notices within half a minute"
        return Unplaced(reason="NoEngine", message=f"no node has {engine}: {why}", fix=fix)
    holding = [node for node in having if source in node.models.files]
    if not holding:
        known = sorted({one.name for node in having for one in node.models.files.values() if one.engine == engine})
        fix = f"put it into a node's models folder, or name one that is there: {', '.join(known[:10]) or 'none is'}"
        return Unplaced(reason="NoModel", message=f"no node with {engine} has the model {source}", fix=fix)
    return holding
