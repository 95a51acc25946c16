"""Model deployments in memory: desired state and what serves it now. The ``model_deployment`` table is what a restart
reads.

deployments.of(tenant, "small")         # replicas, as the port ``Replicas`` says
deployments.resolve(tenant, "gpt-4o")   # the deployment with this name or alias
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import select

from controlplane.errors import ApiError, Slug, field_problem, invalid_request, not_found
from controlplane.inference.spec import DeploymentSpec
from controlplane.inference.values import Replica
from controlplane.runs.journal import Journal
from controlplane.secrets.broker import SecretBroker
from controlplane.store import Store, Write, canonical, upsert
from controlplane.tables import ModelDeploymentRow
from controlplane.times import rfc3339
from controlplane.workflows.problem_values import Problem


@dataclass(kw_only=True, eq=False)
class Deployment:
    """One deployment. ``generation`` counts changes of its spec; ``tag`` names this state of it."""

    tenant: str
    name: str
    spec: DeploymentSpec
    generation: int
    created_ns: int
    updated_ns: int
    observed_generation: int = 0
    conditions: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return f'"{self.created_ns:x}-{self.generation}"'

    def condition(self, kind: str, *, holds: bool, reason: str, message: str = "", fix: str = "") -> None:
        """Say how it stands; the time of the last change stays while it stands so."""
        known = self.conditions.get(kind)
        changed = known is None or known["status"] != holds
        since = rfc3339(time.time_ns()) if changed or known is None else known["since"]
        told = {"type": kind, "status": holds, "reason": reason, "message": message, "fix": fix, "since": since}
        self.conditions[kind] = told


class Deployments:
    """Reads are from memory; ``load`` once before serving. ``put`` and ``delete`` are durable on return."""

    def __init__(self, store: Store, journal: Journal, broker: SecretBroker, private_hosts: frozenset[str]) -> None:
        self._store = store
        self._journal = journal
        self._broker = broker
        self._private_hosts = private_hosts
        self._changing = asyncio.Lock()
        self.known: dict[tuple[str, str], Deployment] = {}

    async def load(self) -> None:
        """Read the table."""
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

    # --- the port Replicas

    def of(self, tenant: str, deployment: str) -> list[Replica]:
        """Every replica of a deployment, also those that are not ready."""
        found = self.known.get((tenant, deployment))
        return [] if found is None else [_external(found)]

    def deployments(self, tenant: str) -> list[str]:
        """Names of the tenant's deployments, sorted."""
        return sorted(name for owner, name in self.known if owner == tenant)

    def resolve(self, tenant: str, name: str) -> str | None:
        """The deployment that has this name or alias."""
        if (tenant, name) in self.known:
            return name
        return next((one.name for one in self.all(tenant) if name in one.spec.aliases), None)

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
            return made, known is None

    async def delete(self, tenant: str, name: str, if_match: str | None) -> None:
        """Forget it; what serves it is stopped. Raises: ApiError not-found, precondition-failed."""
        async with self._changing:
            _expect(self.get(tenant, name), name, if_match)
            await self._journal.write([Write("DELETE FROM model_deployment WHERE tenant=? AND name=?", (tenant, name))])
            self.known.pop((tenant, name), None)

    def _keep(self, deployment: Deployment) -> None:
        self.known[deployment.tenant, deployment.name] = deployment
        message = "another service's; it is not tried before it is called"
        deployment.condition("Available", holds=True, reason="External", message=message)
        deployment.observed_generation = deployment.generation

    async def _clashes(self, tenant: str, name: str, spec: DeploymentSpec) -> list[Problem]:
        """What is wrong with it beside the other deployments, the secrets and the settings there are."""
        problems = []
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
        if why := spec.external.refusal(self._private_hosts):
            fix = f"use a public https address, or start with --private-host {spec.external.host_and_port}"
            problems.append(field_problem("/external/url", why, fix))
        secret = spec.external.secret
        if secret is not None and secret not in await self._broker.names(tenant):
            said, fix = f"there is no secret {secret!r}", f"stockade secret set {secret}"
            problems.append(field_problem("/external/secret", said, fix))
        return problems


def to_json(deployment: Deployment, replicas: list[Replica]) -> dict[str, Any]:
    """As the API shows it."""
    return {
        "name": deployment.name,
        "generation": deployment.generation,
        "spec": deployment.spec.model_dump(mode="json"),
        "status": {
            "replicas": [
                {"id": one.id, "node": one.node, "url": one.url, "ready": one.ready, "slots": one.slots}
                for one in replicas
            ],
            "desired": 1,
            "ready": sum(one.ready for one in replicas),
        },
        "conditions": list(deployment.conditions.values()),
        "observed_generation": deployment.observed_generation,
        "created_at": rfc3339(deployment.created_ns),
        "updated_at": rfc3339(deployment.updated_ns),
    }


def _external(deployment: Deployment) -> Replica:
    spec = deployment.spec
    return Replica(
        id=f"external-{deployment.name}",
        tenant=deployment.tenant,
        deployment=deployment.name,
        kind=spec.kind,
        served_name=spec.external.model,
        ready=True,
        url=spec.external.url.rstrip("/"),
        secret=spec.external.secret,
        slots=spec.external.slots,
        context_tokens=spec.context_tokens,
        modalities=frozenset(spec.modalities),
    )


def _expect(known: Deployment | None, name: str, if_match: str | None) -> None:
    """Raises: ApiError precondition-failed unless this is the state the caller saw."""
    if if_match is None or (known is not None and if_match in ("*", known.tag)):
        return
    is_now = "there is none" if known is None else f"it is now at {known.tag}"
    raise ApiError(Slug.PRECONDITION_FAILED, f"The deployment {name!r} is not what you saw: {is_now}. Read it again.")
