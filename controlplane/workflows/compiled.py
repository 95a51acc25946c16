"""A checked workflow, ready for the engine. Values only; templates are the one thing with behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from controlplane.tools.schemas import Schema
from controlplane.workflows.expressions import Template
from controlplane.workflows.problem_values import Problem, child
from controlplane.workflows.scope import Names
from controlplane.workflows.spec import Step, Verb, Workflow

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Retry:
    """``max`` tries after the first failure, for the error types in ``on``, backing off between the two bounds."""

    max: int = 0
    backoff_min_seconds: float = 1.0
    backoff_max_seconds: float = 30.0
    on: frozenset[str] = frozenset({"timeout", "rate_limited", "sandbox_exit", "tool", "model"})


@dataclass(frozen=True, kw_only=True)
class SandboxRequest:
    """The walls of a code step, resolved. ``network``: hosts and ports that its code asks to reach."""

    tier: Literal["auto", "wasm", "jail", "container"] = "auto"
    image: str = "python"
    memory_bytes: int = 512 * MIB
    wall_seconds: float = 60.0
    network: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a step reserves on its node. A code step reserves its sandbox's memory unless it says more."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpu: int = 0
    gpu_memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """One step with defaults merged. ``fields`` holds the verb's own templates, see ``fields.py`` for their names.

    ``models`` are asked in this order, and ``answer`` is what their answer must be; text when there is none.
    """

    id: str
    verb: Verb
    spec: Step
    pointer: str
    needs: tuple[str, ...]
    when: Template | None
    key: Template | None
    near: tuple[Template, ...]
    fields: Mapping[str, Template]
    body: Block | None
    otherwise: Block | None
    as_name: str | None
    retry: Retry
    timeout_seconds: float | None
    on_error: Literal["fail", "continue"]
    sandbox: SandboxRequest
    resources: Resources
    gates: tuple[str, ...]
    models: tuple[str, ...] = ()
    answer: Schema | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """A list of steps that share a parent."""

    steps: tuple[CompiledStep, ...]
    by_id: Mapping[str, int]

    @cached_property
    def dependents(self) -> Mapping[str, tuple[str, ...]]:
        """Who may become free when a step ends: id -> ids that need it."""
        found: dict[str, list[str]] = {step.id: [] for step in self.steps}
        for step in self.steps:
            for need in step.needs:
                found[need].append(step.id)
        return {need: tuple(ids) for need, ids in found.items()}

    @cached_property
    def approvals(self) -> Mapping[str, tuple[str, ...]]:
        """Which approvals hold a step back: gated id -> approve ids."""
        found: dict[str, list[str]] = {}
        for step in self.steps:
            for gate in step.gates:
                found.setdefault(gate, []).append(step.id)
        return {gate: tuple(ids) for gate, ids in found.items()}


@dataclass(frozen=True, kw_only=True)
class CompiledWorkflow:
    """The whole. ``digest`` is the SHA-256 of the definition's canonical JSON, lower-case hex."""

    definition: Workflow
    digest: str
    root: Block
    output: Template | None
    uses_tools: frozenset[str]
    uses_secrets: frozenset[str]
    literal_data_uris: tuple[str, ...]
    names: Names
    input_validator: Any

    def check_input(self, value: Any) -> tuple[Problem, ...]:
        """What is wrong with a run's input; pointers are into the input. At most 50 problems."""
        if self.input_validator is None or self.input_validator.is_valid(value):
            return ()
        problems: list[Problem] = []
        for error in self.input_validator.iter_errors(value):
            place = child("", *error.schema_path)
            problems.append(
                Problem(
                    pointer=child("", *error.instance_path),
                    message=str(error.message)[:500],
                    type="input",
                    hint=f"the workflow's input schema asks for this at {place or '/'}",
                )
            )
            if len(problems) == 50:
                break
        return tuple(problems)
