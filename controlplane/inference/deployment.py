"""One model deployment in memory, its replicas on nodes, and how both are shown."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from controlplane.inference.spec import DeploymentSpec
from controlplane.inference.values import Replica
from controlplane.store import canonical
from controlplane.tables import ModelReplicaRow
from controlplane.times import rfc3339
from dataplane.model_wire import ModelReplica, NodeEngine


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

    @property
    def needs(self) -> str:
        """Digest of what decides where a replica can be: another one has to be placed anew."""
        spec = self.spec
        room = [spec.gpus, spec.gpu_memory_bytes, spec.cpu_milli, spec.memory_bytes, spec.labels]
        return _digest([spec.engine, spec.source, *room])

    @property
    def digest(self) -> str:
        """Digest of what a server is started with."""
        spec = self.spec
        return _digest([self.needs, spec.args, spec.context_tokens, sorted(spec.modalities)])

    def wish(self, replica: str, gpus: list[str]) -> ModelReplica:
        """What a node is told of one replica."""
        spec = self.spec
        return ModelReplica(
            replica=replica,
            deployment=self.name,
            spec=self.digest,
            engine=cast(NodeEngine, spec.engine),
            source=spec.source or "",
            served_name=self.name,
            gpus=gpus,
            args=dict(spec.args),
            context_tokens=spec.context_tokens,
            modalities=list(spec.modalities),
        )

    def condition(self, kind: str, *, holds: bool, reason: str, message: str = "", fix: str = "") -> None:
        """Say how it stands; the time of the last change stays while it stands so."""
        known = self.conditions.get(kind)
        since = known["since"] if known is not None and known["status"] == holds else rfc3339(time.time_ns())
        told = {"type": kind, "status": holds, "reason": reason, "message": message, "fix": fix, "since": since}
        self.conditions[kind] = told


@dataclass(kw_only=True, eq=False)
class PlacedReplica:
    """A replica and the node it is on. ``needs`` and the amounts are those it was placed with."""

    tenant: str
    deployment: str
    node: str
    needs: str
    wanted: ModelReplica
    cpu_milli: int
    memory_bytes: int
    created_ns: int

    @property
    def id(self) -> str:
        return self.wanted.replica

    def to_row(self) -> dict[str, Any]:
        """As ``ModelReplicaRow`` keeps it."""
        return {
            "tenant": self.tenant,
            "id": self.id,
            "v": 1,
            "deployment": self.deployment,
            "node": self.node,
            "needs": self.needs,
            "wanted": msgspec.json.encode(self.wanted).decode(),
            "cpu_milli": self.cpu_milli,
            "memory_bytes": self.memory_bytes,
            "created_ns": self.created_ns,
        }

    @classmethod
    def of_row(cls, row: ModelReplicaRow) -> PlacedReplica:
        """The other way."""
        return cls(
            tenant=row.tenant,
            deployment=row.deployment,
            node=row.node,
            needs=row.needs,
            wanted=msgspec.json.decode(row.wanted, type=ModelReplica),
            cpu_milli=row.cpu_milli,
            memory_bytes=row.memory_bytes,
            created_ns=row.created_ns,
        )


def external_replica(deployment: Deployment) -> Replica | None:
    """The one replica of another service's model; ``None`` for a deployment on nodes."""
    spec = deployment.spec
    if spec.external is None:
        return None
    return Replica(
        id=f"external-{deployment.name}",
        tenant=deployment.tenant,
        deployment=deployment.name,
        kind="external",
        served_name=spec.external.model,
        ready=True,
        url=spec.external.url.rstrip("/"),
        secret=spec.external.secret,
        slots=spec.external.slots,
        context_tokens=spec.context_tokens,
        modalities=frozenset(spec.modalities),
    )


def to_json(deployment: Deployment, replicas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As the API shows it."""
    spec = deployment.spec
    return {
        "name": deployment.name,
        "generation": deployment.generation,
        "spec": spec.shown(),
        "status": {
            "replicas": list(replicas),
            "desired": 1 if spec.external is not None else spec.replicas,
            "ready": sum(bool(one["ready"]) for one in replicas),
        },
        "conditions": list(deployment.conditions.values()),
        "observed_generation": deployment.observed_generation,
        "created_at": rfc3339(deployment.created_ns),
        "updated_at": rfc3339(deployment.updated_ns),
    }


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:32]
