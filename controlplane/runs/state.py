"""A run in memory: a tree of frames (instances of a block of steps) and the step instances in them.

    RunState ─ root Frame ─ StepState "scan" (map) ─ Frame scan[0]/ ─ StepState scan[0]/probe …

It is rebuilt from rows after a restart (``recovery``), so everything that cannot be computed again is in a column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from controlplane.store import Write, encoded, upsert
from controlplane.tables import StepRow, partition_of
from controlplane.workflows.expressions import Scope
from controlplane.workflows.graph import Block, CompiledStep, CompiledWorkflow
from scheduler.delay import Patience

TERMINAL = frozenset({"completed", "failed", "skipped", "cancelled"})
_ARTIFACT_ID = re.compile(r"art_[0-9a-z]{26}")
RUN_TERMINAL = frozenset({"completed", "failed", "cancelled"})


@dataclass(kw_only=True, eq=False)
class CallState:
    """One effect of a step, as far as it got. ``key`` is stable across attempts."""

    key: str
    tool: str
    tool_digest: str
    effect: str
    args: str
    attempt: str
    number: int
    state: str
    decision: str | None = None
    ok: bool | None = None
    result: Any = None


@dataclass(kw_only=True, eq=False)
class StepState:
    """One step instance."""

    path: str
    spec: CompiledStep
    frame: Frame
    status: str = "pending"
    number: int = 0
    failures: int = 0
    attempt: str | None = None
    fence: int = 0
    node: str | None = None
    tier: str | None = None
    decision: str | None = None
    due_ns: int | None = None
    output: Any = None
    output_text: str | None = None
    error: dict[str, Any] | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    placement: msgspec.Raw | None = None
    report: dict[str, Any] | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    started_ns: int | None = None
    finished_ns: int | None = None
    cancelling: bool = False
    # Since when it has had no place on any node; lost with the process, which only makes it wait longer.
    unplaced_ns: int | None = None
    # How long it may wait for a node that is better placed than a free one; lost with the process as well.
    patience: Patience | None = None
    # Calls of this process' time that were refused: asking again and again must not fill the journal.
    refused_calls: int = 0
    # Records of flows of the current attempt that are stored, as (attempt, number), in this process' time.
    flows: set[tuple[str, int]] = field(default_factory=set)
    # Control verbs: the frames below, by index (-1: the only one), and for a map what it iterates over.
    frames: dict[int, Frame] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    next_item: int = 0
    failed_items: int = 0
    calls: dict[str, CallState] = field(default_factory=dict)
    # Agents: what was said after the prompt, and the model's latest words; made anew from the turns' rows.
    conversation: list[dict[str, Any]] = field(default_factory=list)
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL


@dataclass(kw_only=True, eq=False)
class Frame:
    """One instance of a block. ``scope`` grows as its steps finish; ``failure`` is set once and ends it."""

    block: Block
    prefix: str
    owner: StepState | None
    index: int
    scope: Scope
    steps: dict[str, StepState] = field(default_factory=dict)
    unfinished: int = 0
    failure: dict[str, Any] | None = None
    cancelled: bool = False

    def outputs(self) -> dict[str, Any]:
        """``{child id: output}``, what a control step gives for this frame."""
        return {name: step.output for name, step in self.steps.items()}


@dataclass(kw_only=True, eq=False)
class RunState:
    """One open run."""

    tenant: str
    id: str
    workflow: CompiledWorkflow
    input: Any
    principal: dict[str, Any]
    created_ns: int
    seq: int = 0
    events: int = 0
    status: str = "pending"
    output: Any = None
    error: dict[str, Any] | None = None
    labels: dict[str, Any] = field(default_factory=dict)
    decisions: int = 0
    denied: int = 0
    finished_ns: int | None = None
    output_bytes: int = 0
    cancel_reason: str | None = None
    root: Frame = field(init=False)
    steps: dict[str, StepState] = field(default_factory=dict)
    partition: int = field(init=False)
    parked: str | None = None

    @cached_property
    def named_artifacts(self) -> frozenset[str]:
        """Artifacts that whoever submitted the run named, in its definition or its input."""
        said = encoded([self.workflow.definition.model_dump(mode="json"), self.input])
        return frozenset(_ARTIFACT_ID.findall(said))

    def __post_init__(self) -> None:
        self.partition = partition_of(self.id)
        definition = self.workflow.definition
        scope = Scope.root(self.input, {"id": self.id, "workflow": definition.name, "version": definition.version})
        self.root = Frame(block=self.workflow.root, prefix="", owner=None, index=-1, scope=scope)

    @property
    def terminal(self) -> bool:
        return self.status in RUN_TERMINAL


def error_value(kind: str, message: str, **more: Any) -> dict[str, Any]:
    """A failure as a value: ``{type, message, attempt, node, retryable, cause}`` (workflow format)."""
    value = {"type": kind, "message": message, "attempt": None, "node": None, "retryable": False, "cause": None}
    value.update(more)
    return value


def step_write(run: RunState, step: StepState) -> Write:
    """The step's row as it stands."""

    def text(value: Any) -> str | None:
        return None if value is None else encoded(value)

    return upsert(
        StepRow,
        {
            "tenant": run.tenant,
            "partition": run.partition,
            "run": run.id,
            "path": step.path,
            "branch": 0,
            "v": 1,
            "verb": step.spec.verb.value,
            "status": step.status,
            "number": step.number,
            "failures": step.failures,
            "attempt": step.attempt,
            "fence": step.fence,
            "node": step.node,
            "tier": step.tier,
            "decision": step.decision,
            "due_ns": step.due_ns,
            "output": step.output_text,
            "error": text(step.error),
            "detail": text(step.detail) if step.detail else None,
            "placement": text(step.placement),
            "report": text(step.report),
            "labels": encoded(step.labels) if step.labels else "{}",
            "started_ns": step.started_ns,
            "finished_ns": step.finished_ns,
        },
    )
