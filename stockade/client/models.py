"""What the API answers. Unknown members are ignored, so that an older client reads a newer server."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RunStatus = Literal["pending", "running", "waiting", "cancelling", "completed", "failed", "cancelled"]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
TERMINAL_EVENTS: frozenset[str] = frozenset({"run.completed", "run.failed", "run.cancelled"})


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Problem(Answer):
    """One fault of a document: where (JSON pointer, and line, column and caret where known), what, and what to do."""

    pointer: str = ""
    message: str = ""
    hint: str = ""
    line: int | None = None
    column: int | None = None
    excerpt: str | None = None


class Reason(Answer):
    """Why policy said what it said; ``rule`` is file:line of the bundle."""

    code: str = ""
    message: str = ""
    rule: str | None = None
    remedy: str | None = None


class Waiting(Answer):
    """Why a step does not run yet."""

    code: str = ""
    message: str = ""
    fix: str | None = None


class RunError(Answer):
    type: str
    message: str = ""
    attempt: int | None = None
    node: str | None = None
    retryable: bool = False
    cause: Any = None
    path: str | None = None
    reason: str | None = None


class WorkflowRef(Answer):
    name: str
    version: str
    digest: str = ""


class StepCounts(Answer):
    total: int = 0
    by_status: dict[str, int] = Field(default_factory=dict)


class DecisionCounts(Answer):
    total: int = 0
    denied: int = 0


class Run(Answer):
    id: str
    status: RunStatus
    workflow: WorkflowRef
    principal: Any = None
    input: Any = None
    output: Any = None
    error: RunError | None = None
    labels: dict[str, Any] = Field(default_factory=dict)
    steps: StepCounts = StepCounts()
    decisions: DecisionCounts = DecisionCounts()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in TERMINAL


class Artifact(Answer):
    id: str
    name: str
    digest: str = ""
    size_bytes: int = 0
    media_type: str = "application/octet-stream"
    run: str | None = None
    path: str | None = None
    created_at: datetime | None = None


class StepReport(Answer):
    """How the last attempt ended, as its node told."""

    code: int | None = None
    reason: str | None = None
    stdout_tail: str = ""
    stderr_tail: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    artifacts: list[Artifact] = Field(default_factory=list)
    wall_seconds: float | None = None
    memory_peak_bytes: int | None = None


class Step(Answer):
    path: str
    verb: str = ""
    status: str
    number: int = 0
    failures: int = 0
    attempt: str | None = None
    node: str | None = None
    tier: str | None = None
    decision_id: str | None = None
    output: Any = None
    error: RunError | None = None
    waiting: list[Waiting] | None = None
    placement: dict[str, Any] | None = None
    report: StepReport | None = None
    detail: Any = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Event(Answer):
    seq: int
    type: str
    run: str = ""
    path: str = ""
    at: datetime | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class ImageState(Answer):
    image: str
    ready: bool = False
    warm: int = 0
    detail: str = ""


class TierState(Answer):
    strength: str = ""
    images: list[ImageState] = Field(default_factory=list)


class DataRoot(Answer):
    name: str
    size_bytes: int = 0
    files: int = 0
    digest: str = ""


class Gpu(Answer):
    """``holder`` is the attempt or the model server whose own it is; ``fake`` ones are declared and do not exist."""

    uuid: str
    index: int = 0
    name: str = ""
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    fake: bool = False
    holder: str | None = None


class Node(Answer):
    id: str
    name: str = ""
    status: str = ""
    tiers: dict[str, TierState] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)
    capacity: dict[str, Any] = Field(default_factory=dict)
    free: dict[str, Any] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    data: list[DataRoot] = Field(default_factory=list)
    gpus: list[Gpu] = Field(default_factory=list)
    gpus_absent: str = ""
    cached: int = 0
    attempts: int = 0
    last_seen_at: datetime | None = None
    boot_id: str = ""

    def ready_images(self, image: str) -> list[str]:
        """The tiers that can open ``image`` here now."""
        return [
            tier for tier, state in self.tiers.items() if any(one.image == image and one.ready for one in state.images)
        ]


class JoinToken(Answer):
    token: str
    expires_at: datetime | None = None


class Decision(Answer):
    id: str
    entry: str = ""
    run: str | None = None
    path: str | None = None
    allow: bool = False
    reasons: list[Reason] = Field(default_factory=list)
    obligations: list[Any] = Field(default_factory=list)
    revision: str = ""
    engine: str = ""
    failure: str | None = None
    input_digest: str = ""
    input: Any = None
    at: datetime | None = None


class Placement(Answer):
    """Where a step would run now, or why nowhere."""

    path: str = ""
    id: str = ""
    tier: str | None = None
    node: str | None = None
    explanation: Any = None
    waiting: list[Waiting] | None = None


class ValidationDecision(Answer):
    id: str | None = None
    allow: bool = False
    reasons: list[Reason] = Field(default_factory=list)


class Validation(Answer):
    valid: bool
    problems: list[Problem] = Field(default_factory=list)
    decision: ValidationDecision | None = None
    placements: list[Placement] = Field(default_factory=list)
    digest: str | None = None


class Secret(Answer):
    """A name; values never come back."""

    name: str
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Tool(Answer):
    name: str
    digest: str = ""
    kind: str = ""
    description: str = ""
    effect: str = ""
    input: Any = None
    secrets: list[dict[str, Any]] = []


class McpTool(Answer):
    """One tool an MCP server offers. ``state``: ``unreviewed``, ``reviewed``, ``changed`` or ``missing``.

    ``definition`` is what the server says of it, which nobody need believe; ``reviewed`` what was accepted.
    """

    name: str
    tool: str
    state: str
    digest: str | None = None
    definition: dict[str, Any] | None = None
    reviewed: dict[str, Any] | None = None
    difference: str = ""


class McpServer(Answer):
    """A registered MCP server; ``listed_at`` is when a node last asked it for its tools."""

    name: str
    digest: str = ""
    process: dict[str, Any] | None = None
    endpoint: dict[str, Any] | None = None
    secrets: list[dict[str, Any]] = []
    created_at: datetime | None = None
    listed_at: datetime | None = None
    tools: list[McpTool] = []
    left_out: list[dict[str, str]] = []


class Workflow(Answer):
    name: str
    version: str
    digest: str = ""
    definition: dict[str, Any] | None = None
    created_at: datetime | None = None


class Condition(Answer):
    """How one side of a declared thing stands: ``status`` says whether it holds, ``fix`` what to do where not."""

    type: str
    status: bool = False
    reason: str = ""
    message: str = ""
    fix: str = ""


class ModelReplica(Answer):
    """One server of a deployment; ``current``: started as is asked for now."""

    id: str
    node: str | None = None
    node_name: str = ""
    state: str = ""
    detail: str = ""
    ready: bool = False
    current: bool = True
    slots: int = 0
    running: int = 0
    waiting: int = 0
    token_usage: float | None = None
    restarts: int = 0
    url: str | None = None


class ModelStatus(Answer):
    replicas: list[ModelReplica] = Field(default_factory=list)
    desired: int = 0
    ready: int = 0


class ModelDeployment(Answer):
    """A model under a name: what is asked for, and how far it is."""

    name: str
    generation: int = 0
    spec: dict[str, Any] = Field(default_factory=dict)
    status: ModelStatus = Field(default_factory=ModelStatus)
    conditions: list[Condition] = Field(default_factory=list)
    observed_generation: int = 0
    updated_at: datetime | None = None

    @property
    def is_done(self) -> bool:
        """Whether everything is as it is asked for, and ready. One without replicas asks for none to be ready."""
        told = {one.type: one.status for one in self.conditions}
        return self.observed_generation >= self.generation and told.get("Reconciled", told.get("Available", False))

    @property
    def unmet(self) -> Condition | None:
        """What does not hold, the most telling first."""
        order = {"Placed": 0, "Available": 1}
        unmet = [one for one in self.conditions if not one.status]
        return min(unmet, key=lambda one: order.get(one.type, 2), default=None)


class ModelLog(Answer):
    """The end of what a replica's server wrote; ``offset`` is where in all of it ``text`` begins."""

    replica: str
    node: str = ""
    offset: int = 0
    text: str = ""
