"""From a ready step to what is asked of policy, of the scheduler and of a node. Renders expressions; no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from controlplane.authorization.values import Question
from controlplane.runs import labels, questions
from controlplane.runs.state import RunState, StepState, error_value
from controlplane.store import canonical
from controlplane.tools.registry import Tool, ToolRegistry, check_args, resolve_http
from controlplane.tools.requests import ArgumentsRefused
from controlplane.workflows.expressions import ExpressionFailed
from controlplane.workflows.spec import Verb
from dataplane.protocol import BuiltinCall, CodeWork, HttpCall, InputGrant, Performance, SandboxRequest
from scheduler.demand import DataNeed, Demand

STARVING_NS = 5_000_000_000


class WorkRefused(Exception):
    """The step cannot be dispatched as it is; ``error`` is the value it fails with."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


@dataclass(kw_only=True)
class ToolCall:
    """One call, ready to be authorized: what it is and what performing it would take (secrets are added later)."""

    tool: Tool
    args: dict[str, Any]
    key: str
    labels: dict[str, Any]
    http: HttpCall | None
    questions: list[Question]

    def performance(self, http: HttpCall | None) -> Performance:
        """The order to the node."""
        builtin = None if http is not None else BuiltinCall(name=self.tool.builtin_name, args=self.args)
        return Performance(key=self.key, http=http, builtin=builtin)


@dataclass(kw_only=True)
class Prepared:
    """A dispatch before its decisions. Exactly one of ``call`` and ``code`` is set."""

    run: RunState
    step: StepState
    demand: Demand
    questions: list[Question]
    call: ToolCall | None = None
    code: CodeWork | None = None
    wall_seconds: float = 60.0
    data_names: tuple[str, ...] = field(default=())


def call_key(run: str, path: str, tool: str, args: str, occurrence: int) -> str:
    """The idempotency key of a call: the same on every attempt of the step (branch 0)."""
    return hashlib.sha256(canonical([run, path, 0, tool, args, occurrence]).encode()).hexdigest()


def starving(step: StepState, now_ns: int) -> bool:
    """Whether the step has gone without a place for so long that others must leave it one."""
    return step.unplaced_ns is not None and now_ns - step.unplaced_ns > STARVING_NS


def prepare(run: RunState, step: StepState, pinned: Mapping[str, str], tools: ToolRegistry, now_ns: int) -> Prepared:
    """What dispatching the step takes. Raises: WorkRefused."""
    try:
        if step.spec.verb is Verb.TOOL:
            return _prepare_tool(run, step, pinned, tools, now_ns)
        return _prepare_code(run, step, now_ns)
    except ExpressionFailed as failed:
        raise WorkRefused(error_value("schema", str(failed))) from failed


def _prepare_tool(
    run: RunState, step: StepState, pinned: Mapping[str, str], tools: ToolRegistry, now_ns: int
) -> Prepared:
    spec, scope = step.spec, step.frame.scope
    name = spec.spec.tool or ""
    args = spec.fields["args"].render(scope) if "args" in spec.fields else {}
    if not isinstance(args, dict):
        raise WorkRefused(error_value("schema", f"`args` of {step.path} is not an object"))
    own_key = str(spec.key.render(scope)) if spec.key is not None else None
    call = tool_call(
        run,
        step,
        name,
        args,
        pinned=pinned,
        tools=tools,
        occurrence=0,
        via="step",
        granted=[name],
        own_key=own_key,
        arg_labels=labels.of_templates(step.frame, spec.fields.values()),
        now_ns=now_ns,
    )
    wall = spec.timeout_seconds or 60.0
    if call.http is not None:
        call.http.timeout_seconds = min(call.http.timeout_seconds, wall)
    demand = Demand(
        id=f"{run.id}/{step.path}",
        labels=spec.resources.labels,
        near=_near(step),
        starving=starving(step, now_ns),
        tenant=run.tenant,
    )
    return Prepared(run=run, step=step, demand=demand, questions=call.questions, call=call, wall_seconds=wall)


def tool_call(
    run: RunState,
    step: StepState,
    name: str,
    args: dict[str, Any],
    *,
    pinned: Mapping[str, str],
    tools: ToolRegistry,
    occurrence: int,
    via: str,
    granted: list[str],
    own_key: str | None,
    arg_labels: dict[str, Any],
    now_ns: int,
) -> ToolCall:
    """A call of a registered, unchanged tool with fitting arguments. Raises: WorkRefused."""
    tool = tools.get(run.tenant, name)
    if tool is None:
        fix = f"register it: stockade tool add {name} SPEC.json"
        raise WorkRefused(error_value("tool", f"there is no tool {name!r}; {fix}"))
    if pinned.get(name, tool.digest) != tool.digest:
        message = f"the tool {name!r} has changed since this run was admitted; submit the workflow again"
        raise WorkRefused(error_value("policy_denied", message))
    problems = check_args(tool, args)
    if problems:
        detail = "; ".join(f"{one.pointer or '/'}: {one.message}" for one in problems[:5])
        raise WorkRefused(error_value("schema", f"arguments of {name}: {detail}"))
    http, destination = None, None
    if tool.http is not None:
        try:
            http, where = resolve_http(tool, args)
        except ArgumentsRefused as refused:
            raise WorkRefused(error_value("schema", f"arguments of {name}: {refused}")) from refused
        destination = where.to_json()
    key = own_key or call_key(run.id, step.path, name, canonical(args), occurrence)
    asked = questions.tool_questions(
        run,
        step.path,
        tool,
        args,
        labels=arg_labels,
        granted=granted,
        via=via,
        tier=step.tier,
        secrets=step.spec.spec.secrets or (),
        destination=destination,
        now_ns=now_ns,
    )
    return ToolCall(tool=tool, args=args, key=key, labels=arg_labels, http=http, questions=asked)


def _prepare_code(run: RunState, step: StepState, now_ns: int) -> Prepared:
    spec, scope = step.spec, step.frame.scope
    code = spec.spec.code
    assert code is not None  # noqa: S101 - the verb is code
    source = spec.fields["source"].render(scope)
    if not isinstance(source, str):
        raise WorkRefused(error_value("schema", f"the source of {step.path} is not text"))
    args = spec.fields["args"].render(scope) if "args" in spec.fields else []
    rendered = spec.fields["inputs"].render(scope) if "inputs" in spec.fields else {}
    inputs, needs, asked, names = _inputs(run, step, rendered, now_ns)
    wall = min(spec.sandbox.wall_seconds, spec.timeout_seconds or spec.sandbox.wall_seconds)
    shell = code.shell is not None
    sandbox = SandboxRequest(
        tier=spec.sandbox.tier,
        image=spec.sandbox.image,
        memory_bytes=spec.sandbox.memory_bytes,
        wall_seconds=wall,
        cpu_milli=spec.resources.cpu_milli or 1000,
    )
    work = CodeWork(
        language="shell" if shell else "python",
        source=source,
        sandbox=sandbox,
        call=code.call,
        args=args,
        inputs=inputs,
        tools=list(code.tools or ()),
    )
    demand = Demand(
        id=f"{run.id}/{step.path}",
        tier=spec.sandbox.tier,
        image=spec.sandbox.image,
        cpu_milli=spec.resources.cpu_milli,
        memory_bytes=spec.resources.memory_bytes,
        gpu=spec.resources.gpu,
        gpu_memory_bytes=spec.resources.gpu_memory_bytes,
        labels=spec.resources.labels,
        inputs=needs,
        near=_near(step),
        tiers_allowed=("jail",) if shell else (),
        starving=starving(step, now_ns),
        tenant=run.tenant,
    )
    return Prepared(run=run, step=step, demand=demand, questions=asked, code=work, wall_seconds=wall, data_names=names)


def _inputs(
    run: RunState, step: StepState, rendered: Any, now_ns: int
) -> tuple[list[InputGrant], tuple[DataNeed, ...], list[Question], tuple[str, ...]]:
    grants: list[InputGrant] = []
    needs: list[DataNeed] = []
    asked: list[Question] = []
    names: list[str] = []
    if not isinstance(rendered, dict):
        raise WorkRefused(error_value("schema", f"`inputs` of {step.path} is not an object"))
    for name, address in rendered.items():
        if isinstance(address, str) and address.startswith("data://"):
            parts = urlsplit(address)
            rel = unquote(parts.path).lstrip("/")
            if not parts.netloc or not rel or "\0" in rel or ".." in rel.split("/"):
                raise WorkRefused(error_value("schema", f"input {name!r}: {address!r} is not data://NAME/REL"))
            grants.append(InputGrant(name=name, data=f"{parts.netloc}/{rel}"))
            needs.append(DataNeed(key=f"data://{parts.netloc}", pinned=True))
            asked.append(questions.data_question(run, step.path, address, "mount", now_ns))
            names.append(parts.netloc)
        elif isinstance(address, str) and address.startswith("artifact://"):
            grants.append(InputGrant(name=name, artifact=address.removeprefix("artifact://")))
        else:
            fix = "use data://NAME/REL (a root a node exports) or artifact://ID"
            raise WorkRefused(error_value("schema", f"input {name!r} is not an address: {fix}"))
    return grants, tuple(dict.fromkeys(needs)), asked, tuple(dict.fromkeys(names))


def _near(step: StepState) -> tuple[str, ...]:
    found: list[str] = []
    for template in step.spec.near:
        value = template.render(step.frame.scope)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and one.startswith("data://"):
                found.append(f"data://{urlsplit(one).netloc}")
            elif isinstance(one, str):
                found.append(one)
    return tuple(found)
