"""Model deployments in memory: desired state and what serves it now. The ``model_deployment`` table is what a restart
reads.

deployments.of(tenant, "small")         # replicas, as the port ``Replicas`` says
deployments.resolve(tenant, "gpt-4o")   # the deployment with this name or alias
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import msgspec
from sqlmodel import select

from controlplane.errors import ApiError, Slug, conflict, field_problem, invalid_request, not_found
from controlplane.inference.deployment import Deployment, PlacedReplica, external_replica, to_json
from controlplane.inference.spec import DeploymentSpec, ExternalSpec
from controlplane.inference.values import Replica
from controlplane.nodes.inventory import Inventory
from controlplane.runs.journal import Journal
from controlplane.secrets.broker import SecretBroker
from controlplane.store import Store, Write, canonical, upsert
from controlplane.tables import ModelDeploymentRow, ModelReplicaRow
from controlplane.workflows.problem_values import Problem
from dataplane.model_wire import ModelState
from dataplane.protocol import Directive

LOG_SECONDS = 10.0


class Deployments:
    """Reads are from memory; ``load`` once before serving. ``put`` and ``delete`` are durable on return."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        broker: SecretBroker,
        inventory: Inventory,
        private_hosts: frozenset[str],
    ) -> None:
        self._store = store
        self._journal = journal
        self._broker = broker
        self._inventory = inventory
        self._private_hosts = private_hosts
        self._changing = asyncio.Lock()
        self.changed = asyncio.Event()
        """Something else is asked for."""
        self.known: dict[tuple[str, str], Deployment] = {}
        self.placed: dict[str, PlacedReplica] = {}

    async def load(self) -> None:
        """Read the tables; the nodes, which are known already, have what they are to serve."""
        for row in await self._store.read(lambda session: session.exec(select(ModelDeploymentRow)).all()):
            spec = DeploymentSpec.model_validate(json.loads(row.spec))
            self._keep(
                Deployment(
                    tenant=row.tenant,
                    name=row.name,
                    spec=spec,
                    generation=row.generation,
                    created_ns=row.created_ns,
                    updated_ns=row.updated_ns,
                )
            )

        for replica in await self._store.read(lambda session: session.exec(select(ModelReplicaRow)).all()):
            placed = PlacedReplica.of_row(replica)
            self.placed[placed.id] = placed
            node = self._inventory.nodes.get(placed.node)
            if node is not None:
                node.models.wanted[placed.id] = placed.wanted
                node.models.reserved[placed.id] = placed.cpu_milli, placed.memory_bytes
                self._inventory.hold_devices(node.id, placed.id, placed.wanted.gpus)

    # --- the port Replicas

    def of(self, tenant: str, deployment: str) -> list[Replica]:
        """Every replica of a deployment, also those that are not ready."""
        found = self.known.get((tenant, deployment))
        if found is None:
            return []
        external = external_replica(found)
        return [external] if external is not None else [self._view(found, one) for one in self.placed_of(found)]

    def deployments(self, tenant: str) -> list[str]:
        """Names of the tenant's deployments, sorted."""
        return sorted(name for owner, name in self.known if owner == tenant)

    def resolve(self, tenant: str, name: str) -> str | None:
        """The deployment that has this name or alias."""
        if (tenant, name) in self.known:
            return name
        return next((one.name for one in self.all(tenant) if name in one.spec.aliases), None)

    def _view(self, deployment: Deployment, placed: PlacedReplica) -> Replica:
        state, spec = self.state_of(placed), deployment.spec
        return Replica(
            id=placed.id,
            tenant=deployment.tenant,
            deployment=deployment.name,
            kind=spec.engine,
            served_name=placed.wanted.served_name,
            ready=self.is_ready(placed),
            node=placed.node,
            slots=state.slots if state is not None and state.slots else 1,
            context_tokens=spec.context_tokens,
            modalities=frozenset(spec.modalities),
        )

    # --- replicas

    def placed_of(self, deployment: Deployment) -> list[PlacedReplica]:
        """Those on nodes, the oldest first."""
        key = deployment.tenant, deployment.name
        return sorted(
            (one for one in self.placed.values() if (one.tenant, one.deployment) == key),
            key=lambda one: (one.created_ns, one.id),
        )

    def state_of(self, placed: PlacedReplica) -> ModelState | None:
        """What its node says of it; ``None`` while the node says nothing."""
        node = self._inventory.nodes.get(placed.node)
        if node is None or node.status in ("lost", "draining"):
            return None
        return node.models.states.get(placed.id)

    def is_ready(self, placed: PlacedReplica) -> bool:
        """Ready for what is wanted of it: one that is to be started otherwise is about to be drained."""
        state = self.state_of(placed)
        return state is not None and state.state == "ready" and state.spec == placed.wanted.spec

    def shown(self, deployment: Deployment) -> dict[str, Any]:
        """As the API shows it."""
        external = external_replica(deployment)
        if external is not None:
            return to_json(deployment, [{"id": external.id, "ready": True, "state": "external", "url": external.url}])
        return to_json(deployment, [self._replica_json(one) for one in self.placed_of(deployment)])

    def _replica_json(self, placed: PlacedReplica) -> dict[str, Any]:
        state, node = self.state_of(placed), self._inventory.nodes.get(placed.node)
        known = ModelState(
            replica=placed.id, deployment=placed.deployment, spec="", state="starting",
            detail="its node has not said anything of it yet",
        ) if state is None else state  # fmt: skip
        told = msgspec.structs.asdict(known)
        for inner in ("replica", "deployment", "spec"):
            del told[inner]
        return {
            "id": placed.id,
            "node": placed.node,
            "node_name": "" if node is None else node.name,
            "ready": self.is_ready(placed),
            "current": known.spec == placed.wanted.spec,
            "gpus": placed.wanted.gpus,
            **told,
        }

    async def log(self, deployment: Deployment, replica: str | None) -> dict[str, Any]:
        """The end of a replica's log. Raises: ApiError not-found; conflict where its node does not answer."""
        replicas = self.placed_of(deployment)
        found = next((one for one in replicas if replica in (None, one.id)), None)
        if found is None:
            if replica is None:
                why = "an external service keeps its own" if deployment.spec.external else "it has no replica now"
                fix = f"`stockade model get {deployment.name}` shows it."
                raise conflict(f"{deployment.name} has no log here: {why}. {fix}")
            raise not_found("replica", replica, f"`stockade model get {deployment.name}` lists them.")
        node = self._inventory.nodes.get(found.node)
        if node is None or node.status == "lost":
            raise conflict(f"The node of {found.id} does not answer.", retryable=True)
        asked = node.models.asked.get(found.id)
        if asked is None or asked.done():
            asked = node.models.asked[found.id] = asyncio.get_running_loop().create_future()
            node.direct(Directive(kind="model_log", replica=found.id))
        try:
            log = await asyncio.wait_for(asyncio.shield(asked), LOG_SECONDS)
        except TimeoutError:
            node.models.asked.pop(found.id, None)
            raise conflict(f"Node {node.name} has sent no log of {found.id}.", retryable=True) from None
        text = log.data.decode(errors="replace")
        return {"replica": found.id, "node": node.id, "offset": log.offset, "text": text}

    # --- desired state

    def all(self, tenant: str) -> list[Deployment]:
        """Sorted by name."""
        return [self.known[tenant, name] for name in self.deployments(tenant)]

    def get(self, tenant: str, name: str) -> Deployment:
        """Raises: ApiError not-found."""
        found = self.known.get((tenant, name))
        if found is None:
            raise not_found("model deployment", name, "GET /v1/model-deployments lists them.")
        return found

    async def put(self, tenant: str, name: str, spec: DeploymentSpec, if_match: str | None) -> tuple[Deployment, bool]:
        """Create or change; also says whether it is new.

        Raises: ApiError invalid-request for a spec that clashes with what else there is; precondition-failed when
        ``if_match`` names another state.
        """
        async with self._changing:
            known = self.known.get((tenant, name))
            _expect(known, name, if_match)
            if problems := await self._clashes(tenant, name, spec):
                raise invalid_request(problems, "The deployment is not one that can be.")
            if known is not None and known.spec == spec:
                return known, False
            now = time.time_ns()
            generation = 1 if known is None else known.generation + 1
            row = {
                "tenant": tenant,
                "name": name,
                "v": 1,
                "generation": generation,
                "spec": canonical(spec.model_dump(mode="json", exclude_defaults=True)),
                "created_ns": now if known is None else known.created_ns,
                "updated_ns": now,
            }
            await self._journal.write([upsert(ModelDeploymentRow, row)])
            made = known or Deployment(
                tenant=tenant, name=name, spec=spec, generation=1, created_ns=now, updated_ns=now
            )
            made.spec, made.generation, made.updated_ns = spec, generation, now
            self._keep(made)
            self.changed.set()
            return made, known is None

    async def delete(self, tenant: str, name: str, if_match: str | None) -> None:
        """Forget it; what serves it is stopped. Raises: ApiError not-found, precondition-failed."""
        async with self._changing:
            _expect(self.get(tenant, name), name, if_match)
            await self._journal.write([Write("DELETE FROM model_deployment WHERE tenant=? AND name=?", (tenant, name))])
            self.known.pop((tenant, name), None)
            self.changed.set()

    def _keep(self, deployment: Deployment) -> None:
        self.known[deployment.tenant, deployment.name] = deployment
        if deployment.spec.external is None:
            return
        deployment.conditions.clear()
        message = "another service's; it is not tried before it is called"
        deployment.condition("Available", holds=True, reason="External", message=message)
        deployment.observed_generation = deployment.generation

    async def _clashes(self, tenant: str, name: str, spec: DeploymentSpec) -> list[Problem]:
        """What is wrong with it beside the other deployments, the secrets and the settings there are."""
        problems = spec.problems()
        taken = {
            alias: one.name for one in self.all(tenant) if one.name != name for alias in (one.name, *one.spec.aliases)
        }
        for index, alias in enumerate(spec.aliases):
            if alias in taken:
                said = f"{alias!r} is a name of the deployment {taken[alias]!r}"
                problems.append(field_problem(f"/aliases/{index}", said, "choose another, or change that one first"))
        if name in taken:
            said = f"{name!r} is an alias of the deployment {taken[name]!r}"
            problems.append(field_problem("", said, "choose another name, or take the alias away first", "conflict"))
        if spec.external is not None:
            problems += await self._external_problems(tenant, spec.external)
        return problems

    async def _external_problems(self, tenant: str, external: ExternalSpec) -> list[Problem]:
        problems = []
        if why := external.refusal(self._private_hosts):
            fix = f"use a public https address, or start with --private-host {external.host_and_port}"
            problems.append(field_problem("/external/url", why, fix))
        if external.secret is not None and external.secret not in await self._broker.names(tenant):
            said, fix = f"there is no secret {external.secret!r}", f"stockade secret set {external.secret}"
            problems.append(field_problem("/external/secret", said, fix))
        return problems


def _expect(known: Deployment | None, name: str, if_match: str | None) -> None:
    """Raises: ApiError precondition-failed unless this is the state the caller saw."""
    if if_match is None or (known is not None and if_match in ("*", known.tag)):
        return
    is_now = "there is none" if known is None else f"it is now at {known.tag}"
    raise ApiError(Slug.PRECONDITION_FAILED, f"The deployment {name!r} is not what you saw: {is_now}. Read it again.")
