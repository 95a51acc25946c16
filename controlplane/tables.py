"""Every table, in one place because keys are one decision: run-scoped rows are ``(tenant, partition, run, …)``.

``partition`` is the first byte of sha256(run id); ``v`` is the version of the stored value; ``labels`` are its
data-flow labels (JSON). Times are integer nanoseconds of the database host. JSON is stored as canonical text.
Columns that later work needs (``partition``, ``branch``, ``v``, ``labels``, call states) are here from migration 0.
"""

from __future__ import annotations

import hashlib

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Text
from sqlmodel import Field, SQLModel


def partition_of(run: str) -> int:
    """0..255, the shard a run's rows live in."""
    return hashlib.sha256(run.encode()).digest()[0]


def _text(nullable: bool = False) -> Column[str]:
    return Column(Text, nullable=nullable)


def _ns(nullable: bool = False) -> Column[int]:
    return Column(BigInteger, nullable=nullable)


class RunRow(SQLModel, table=True):
    """A run's head. The immutable part (definition, input) is in ``RunDefinitionRow``; this row stays small."""

    __tablename__ = "run"
    tenant: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    id: str = Field(primary_key=True)
    seq: int
    v: int = 1
    status: str  # pending, running, waiting, cancelling, completed, failed, cancelled
    workflow_name: str
    workflow_version: str
    workflow_digest: str
    principal: str
    priority: int = 0
    output: str | None = Field(default=None, sa_column=_text(True))
    error: str | None = Field(default=None, sa_column=_text(True))
    labels: str = Field(default="{}", sa_column=_text())
    decisions: int = 0
    denied: int = 0
    created_ns: int = Field(sa_column=_ns())
    updated_ns: int = Field(sa_column=_ns())
    finished_ns: int | None = Field(default=None, sa_column=_ns(True))
    __table_args__ = (Index("run_by_time", "tenant", "created_ns"), Index("run_open", "status"))


class RunDefinitionRow(SQLModel, table=True):
    """The snapshot a run keeps: its definition and input, never changed."""

    __tablename__ = "run_definition"
    tenant: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    run: str = Field(primary_key=True)
    v: int = 1
    definition: str = Field(sa_column=_text())
    input: str = Field(sa_column=_text())
    labels: str = Field(default="{}", sa_column=_text())
    tools: str = Field(default="{}", sa_column=_text())  # tool name -> digest pinned at admission


class StepRow(SQLModel, table=True):
    """One step instance; its path is its identity. ``attempt`` and ``fence`` are of the current dispatch."""

    __tablename__ = "step"
    tenant: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    run: str = Field(primary_key=True)
    path: str = Field(primary_key=True)
    branch: int = Field(default=0, primary_key=True)
    v: int = 1
    verb: str
    status: str  # pending, ready, running, waiting, completed, failed, skipped, cancelled
    number: int = 0  # dispatches so far
    failures: int = 0  # the guest's own, counted against retry.max
    attempt: str | None = None
    fence: int = 0
    node: str | None = None
    tier: str | None = None
    decision: str | None = None
    due_ns: int | None = Field(default=None, sa_column=_ns(True))  # timer: wait, retry, timeout, approval expiry
    output: str | None = Field(default=None, sa_column=_text(True))
    error: str | None = Field(default=None, sa_column=_text(True))
    # detail is verb specific: resolved args, gates, waiting reasons
    detail: str | None = Field(default=None, sa_column=_text(True))
    placement: str | None = Field(default=None, sa_column=_text(True))  # the scheduler's explanation
    report: str | None = Field(default=None, sa_column=_text(True))  # tails, artifacts, exit of the last attempt
    labels: str = Field(default="{}", sa_column=_text())
    started_ns: int | None = Field(default=None, sa_column=_ns(True))
    finished_ns: int | None = Field(default=None, sa_column=_ns(True))


class EventRow(SQLModel, table=True):
    """The journal as a person reads it; ``seq`` is the run's own, without gaps, and the SSE id."""

    __tablename__ = "event"
    tenant: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    run: str = Field(primary_key=True)
    seq: int = Field(primary_key=True)
    v: int = 1
    type: str
    path: str = ""
    at_ns: int = Field(sa_column=_ns())
    data: str = Field(default="{}", sa_column=_text())


class CallRow(SQLModel, table=True):
    """An effect: intended → authorized → performed → recorded. ``key`` is the same on every attempt."""

    __tablename__ = "call"
    tenant: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    run: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    v: int = 1
    path: str
    branch: int = 0
    attempt: str
    number: int  # the node's number of the call within the attempt
    tool: str
    tool_digest: str
    effect: str  # none, stageable, immediate
    state: str  # intended, authorized, performed, recorded, refused
    args: str = Field(sa_column=_text())
    decision: str | None = None
    ok: bool | None = None
    result: str | None = Field(default=None, sa_column=_text(True))
    labels: str = Field(default="{}", sa_column=_text())
    created_ns: int = Field(sa_column=_ns())
    recorded_ns: int | None = Field(default=None, sa_column=_ns(True))


class DecisionRow(SQLModel, table=True):
    """The decision log, written in the commit of what the decision allowed or refused. ``input`` is masked."""

    __tablename__ = "decision"
    tenant: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    id: str = Field(primary_key=True)
    v: int = 1
    run: str | None = Field(default=None, index=True)
    path: str = ""
    entry: str
    allow: bool
    reasons: str = Field(sa_column=_text())
    obligations: str = Field(sa_column=_text())
    revision: str
    engine: str
    input_digest: str
    input: str = Field(sa_column=_text())
    failure: str = ""
    at_ns: int = Field(sa_column=_ns())


class ArtifactRow(SQLModel, table=True):
    """A reference to bytes by digest. Authorization and labels live here; a digest alone opens nothing."""

    __tablename__ = "artifact"
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    v: int = 1
    digest: str = Field(index=True)
    size_bytes: int = Field(sa_column=_ns())
    media_type: str
    name: str
    run: str | None = Field(default=None, index=True)
    path: str = ""
    labels: str = Field(default="{}", sa_column=_text())
    created_ns: int = Field(sa_column=_ns())


class NodeRow(SQLModel, table=True):
    """A node's registration: what it is and declared. Liveness is in memory; ``seen_ns`` is batched, for people."""

    __tablename__ = "node"
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    identity: str
    boot_id: str
    token_hash: str
    proof_hash: str
    status: str  # ready, draining, cordoned, lost
    fence: int = 0  # the last fence given to any attempt on it
    declared: str = Field(sa_column=_text())  # the Register message
    seen_ns: int = Field(sa_column=_ns())
    registered_ns: int = Field(sa_column=_ns())


class PrincipalRow(SQLModel, table=True):
    """Who can call: a person or a service, by API key (hashed; the prefix names it in lists)."""

    __tablename__ = "principal"
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    kind: str  # person, service
    name: str
    key_prefix: str
    key_hash: str = Field(index=True)
    scopes: str = Field(sa_column=_text())  # JSON list
    groups: str = Field(default="[]", sa_column=_text())
    created_ns: int = Field(sa_column=_ns())
    expires_ns: int | None = Field(default=None, sa_column=_ns(True))
    revoked_ns: int | None = Field(default=None, sa_column=_ns(True))


class JoinTokenRow(SQLModel, table=True):
    """What lets a node register; hashed."""

    __tablename__ = "join_token"
    tenant: str = Field(primary_key=True)
    token_hash: str = Field(primary_key=True)
    created_ns: int = Field(sa_column=_ns())
    expires_ns: int | None = Field(default=None, sa_column=_ns(True))


class SecretRow(SQLModel, table=True):
    """Write-only; sealed under a key that is not in the database."""

    __tablename__ = "secret"
    tenant: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    v: int = 1
    key_id: str
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_ns: int = Field(sa_column=_ns())
    updated_ns: int = Field(sa_column=_ns())


class ToolRow(SQLModel, table=True):
    """A registered tool, pinned by digest; a new spec is a new digest."""

    __tablename__ = "tool"
    tenant: str = Field(primary_key=True)
    name: str = Field(primary_key=True)  # server.operation
    digest: str
    spec: str = Field(sa_column=_text())
    created_ns: int = Field(sa_column=_ns())


class McpServerRow(SQLModel, table=True):
    """A registered MCP server. ``offered`` is what a node found it to offer: read by nobody until a review."""

    __tablename__ = "mcp_server"
    tenant: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    digest: str
    spec: str = Field(sa_column=_text())
    offered: str | None = Field(default=None, sa_column=_text(True))
    offered_ns: int | None = Field(default=None, sa_column=_ns(True))
    created_ns: int = Field(sa_column=_ns())


class WorkflowRow(SQLModel, table=True):
    """A published definition; ``name@version`` never changes."""

    __tablename__ = "workflow"
    tenant: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    digest: str
    definition: str = Field(sa_column=_text())
    created_ns: int = Field(sa_column=_ns())


class ModelDeploymentRow(SQLModel, table=True):
    """A model deployment as it was asked for; ``generation`` counts the changes of its spec."""

    __tablename__ = "model_deployment"
    tenant: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    v: int = 1
    generation: int
    spec: str = Field(sa_column=_text())
    created_ns: int = Field(sa_column=_ns())
    updated_ns: int = Field(sa_column=_ns())


class ModelReplicaRow(SQLModel, table=True):
    """A replica of a deployment and the node it is on; how it is, its node says."""

    __tablename__ = "model_replica"
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    v: int = 1
    deployment: str
    node: str
    needs: str
    wanted: str = Field(sa_column=_text())  # what the node is told
    cpu_milli: int
    memory_bytes: int = Field(sa_column=_ns())
    created_ns: int = Field(sa_column=_ns())


class IdempotencyRow(SQLModel, table=True):
    """The answer given to a POST under its ``Idempotency-Key``; ``status`` 0 while in flight."""

    __tablename__ = "idempotency"
    tenant: str = Field(primary_key=True)
    principal: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_digest: str
    status: int
    body: str = Field(default="", sa_column=_text())
    created_ns: int = Field(sa_column=_ns())


class ModelUsageRow(SQLModel, table=True):
    """Tokens used, summed by day (since 1970), principal, run ("" outside runs) and model deployment."""

    __tablename__ = "model_usage"
    tenant: str = Field(primary_key=True)
    day: int = Field(primary_key=True)
    principal: str = Field(primary_key=True)
    run: str = Field(default="", primary_key=True)
    model: str = Field(primary_key=True)
    v: int = 1
    calls: int = Field(sa_column=_ns())
    failed: int = Field(sa_column=_ns())
    prompt_tokens: int = Field(sa_column=_ns())
    completion_tokens: int = Field(sa_column=_ns())
    milliseconds: int = Field(sa_column=_ns())
