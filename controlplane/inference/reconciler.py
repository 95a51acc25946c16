"""Makes what serves models what the deployments ask for: places, moves, changes one at a time, ends.

Nodes do the rest: each keeps the replicas it is told to, and says how they are. What is written first is the row that
a replica is on a node, so that a restart of this process finds it where it is.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
import structlog

from controlplane.ids import new_id
from controlplane.inference.deployment import Deployment, PlacedReplica
from controlplane.inference.deployments import Deployments
from controlplane.inference.placing import Unplaced, demand, place
from controlplane.nodes.inventory import Inventory, Node
from controlplane.runs.journal import Journal, JournalFailed
from controlplane.store import Write, insert, upsert
from controlplane.tables import ModelReplicaRow
from dataplane.protocol import Directive

LOOK_SECONDS = 0.5
log = structlog.get_logger(__name__)


class Reconciler:
    """One per control plane; ``run`` is its loop."""

    def __init__(self, deployments: Deployments, inventory: Inventory, journal: Journal) -> None:
        self._deployments = deployments
        self._inventory = inventory
        self._journal = journal

    async def run(self) -> None:
        """Look again when something was asked for, and every half second at what nodes say."""
        while True:
            try:
                await self.once()
            except JournalFailed as error:
                log.warning("model replicas were not stored; it is tried again", error=str(error))
            except Exception:  # a defect of ours must not end the loop
                log.exception("reconciling model deployments failed")
            try:
                await asyncio.wait_for(self._deployments.changed.wait(), LOOK_SECONDS)
            except TimeoutError:
                continue
            self._deployments.changed.clear()

    async def once(self) -> None:
        """One pass over all of them."""
        for placed in list(self._deployments.placed.values()):
            asked = self._deployments.known.get((placed.tenant, placed.deployment))
            if asked is None or asked.spec.external is not None or not self._stays(placed):
                await self._drop(placed)
        for deployment in list(self._deployments.known.values()):
            if deployment.spec.external is not None:
                continue
            try:
                await self._reconcile(deployment)
            except JournalFailed:
                raise
            except Exception:  # of ours: the other deployments must not wait for it
                log.exception("a model deployment was not reconciled", deployment=deployment.name)

    def _stays(self, placed: PlacedReplica) -> bool:
        """Whether its node can go on serving it: one that is lost, leaving or forgotten cannot."""
        node = self._inventory.nodes.get(placed.node)
        return node is not None and not node.lost and not node.draining

    async def _reconcile(self, deployment: Deployment) -> None:
        generation, spec = deployment.generation, deployment.spec
        replicas = self._deployments.placed_of(deployment)
        misplaced = [one for one in replicas if one.needs != deployment.needs]
        for one in (misplaced if self._may_change(deployment, misplaced) else [])[:1]:
            await self._drop(one)
        replicas = self._deployments.placed_of(deployment)
        worst_first = sorted(replicas, key=lambda one: (self._deployments.is_ready(one), -one.created_ns))
        for one in worst_first[: max(0, len(replicas) - spec.replicas)]:
            await self._drop(one)
        replicas = self._deployments.placed_of(deployment)
        outdated = [one for one in replicas if one.wanted.spec != deployment.digest and one not in misplaced]
        if self._may_change(deployment, outdated):
            await self._change(deployment, outdated[0])
        unplaced: Unplaced | None = None
        while len(replicas) < spec.replicas and unplaced is None:
            unplaced = await self._place(deployment, {one.node for one in replicas})
            replicas = self._deployments.placed_of(deployment)
        self._explain(deployment, replicas, unplaced)
        deployment.observed_generation = generation

    def _may_change(self, deployment: Deployment, outdated: list[PlacedReplica]) -> bool:
        """One at a time: the first may go if it does not serve, or if all the others do."""
        if not outdated:
            return False
        others = [one for one in self._deployments.placed_of(deployment) if one is not outdated[0]]
        return not self._deployments.is_ready(outdated[0]) or all(self._deployments.is_ready(one) for one in others)

    async def _place(self, deployment: Deployment, having: set[str]) -> Unplaced | None:
        spec, replica = deployment.spec, new_id("rep")
        nodes = [node for node in self._inventory.nodes.values() if node.tenant == deployment.tenant]
        found = place(spec, replica, nodes, having)
        if isinstance(found, Unplaced):
            return found
        node = self._inventory.nodes[found]
        gpus = self._inventory.take_devices(node.id, replica, spec.gpus, spec.gpu_memory_bytes) if spec.gpus else ()
        if gpus is None:
            return Unplaced(reason="NoRoom", message="its GPUs were taken meanwhile", fix="wait")
        needs = demand(spec, replica)
        placed = PlacedReplica(
            tenant=deployment.tenant,
            deployment=deployment.name,
            node=node.id,
            needs=deployment.needs,
            wanted=deployment.wish(replica, list(gpus)),
            cpu_milli=needs.cpu_milli,
            memory_bytes=needs.memory_bytes,
            created_ns=time.time_ns(),
        )
        row = placed.to_row()
        # Taken before it is stored: nothing else may have its room meanwhile.
        self._deployments.placed[replica] = placed
        node.models.reserved[replica] = placed.cpu_milli, placed.memory_bytes
        try:
            await self._journal.write([insert(ModelReplicaRow, row)])
        except JournalFailed:
            del self._deployments.placed[replica]
            node.models.reserved.pop(replica, None)
            self._inventory.release_devices(node.id, replica)
            raise
        log.info("model replica placed", deployment=deployment.name, replica=replica, node=node.name)
        self._tell(placed)
        return None

    async def _change(self, deployment: Deployment, placed: PlacedReplica) -> None:
        """The same place, started otherwise."""
        placed.wanted = deployment.wish(placed.id, placed.wanted.gpus)
        await self._journal.write([upsert(ModelReplicaRow, placed.to_row())])
        self._tell(placed)

    async def _drop(self, placed: PlacedReplica) -> None:
        """Not wanted there any more. Its room stays taken until the node says that it is gone."""
        row = (placed.tenant, placed.id)
        await self._journal.write([Write("DELETE FROM model_replica WHERE tenant=? AND id=?", row)])
        self._deployments.placed.pop(placed.id, None)
        node = self._inventory.nodes.get(placed.node)
        if node is not None:
            node.models.wanted.pop(placed.id, None)
            _wake(node)
        log.info("model replica dropped", deployment=placed.deployment, replica=placed.id, node=placed.node)

    def _tell(self, placed: PlacedReplica) -> None:
        # Looked up after the last await: the node may have registered anew.
        node = self._inventory.nodes.get(placed.node)
        if node is not None and placed.id in self._deployments.placed:
            node.models.wanted[placed.id] = msgspec.structs.replace(placed.wanted)
            node.models.reserved[placed.id] = placed.cpu_milli, placed.memory_bytes
            _wake(node)

    def _explain(self, deployment: Deployment, replicas: list[PlacedReplica], unplaced: Unplaced | None) -> None:
        spec = deployment.spec
        ready = [one for one in replicas if self._deployments.is_ready(one)]
        if unplaced is None:
            deployment.condition("Placed", holds=True, reason="Placed")
        else:
            waits = f"{spec.replicas - len(replicas)} of {spec.replicas} replicas wait: {unplaced.message}"
            deployment.condition("Placed", holds=False, reason=unplaced.reason, message=waits, fix=unplaced.fix)
        serving = [one for one in self._deployments.of(deployment.tenant, deployment.name) if one.ready]
        if serving or not spec.replicas:
            deployment.condition("Available", holds=bool(serving), reason="Ready" if serving else "NoneWanted")
        else:
            states = [self._deployments.state_of(one) for one in replicas]
            failed = next((one for one in states if one is not None and one.state == "failed"), None)
            why = ("Failed", failed.detail) if failed else ("Starting", "no replica is ready yet")
            if unplaced is not None and not replicas:
                why = unplaced.reason, unplaced.message
            fix = f"stockade model logs {deployment.name}" if failed else ""
            deployment.condition("Available", holds=False, reason=why[0], message=why[1], fix=fix)
        current = [one for one in ready if one.wanted.spec == deployment.digest]
        is_done = len(current) == spec.replicas == len(replicas)
        said = f"{len(current)} of {spec.replicas} replicas are ready as specified"
        deployment.condition("Reconciled", holds=is_done, reason="AsSpecified" if is_done else "Changing", message=said)


def _wake(node: Node) -> None:
    """Have the node ask what it is to serve."""
    if "models" in node.declared.features and not any(one.kind == "models" for one in node.directives):
        node.direct(Directive(kind="models"))
