"""From a ready step to what is asked of policy, of the scheduler and of a node. Renders expressions; no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from controlplane.authorization.values import Decision, EntryPoint, Question
from controlplane.placement.history import Work
from controlplane.runs import labels, questions
from controlplane.runs.nearness import Near, near_of
from controlplane.runs.state import RunState, StepState, error_value
from controlplane.store import canonical
from controlplane.tools.mcp_calls import LISTING, McpOrder, ServerRefused, order
from controlplane.tools.registry import Tool, ToolRegistry, check_args, match, resolve_http
from controlplane.tools.requests import ArgumentsRefused
from controlplane.tools.spec import SecretBinding
from controlplane.workflows.addresses import refuse_address
from controlplane.workflows.compiled import CompiledStep
from controlplane.workflows.expressions import ExpressionFailed
from controlplane.workflows.spec import Verb
from dataplane.protocol import (
    Assignment,
    BuiltinCall,
    CodeWork,
    HttpCall,
    InputGrant,
    McpCall,
    NetworkHost,
    Performance,
    SandboxRequest,
)
from scheduler.demand import NETWORK_TIERS, SHELL_TIERS, DataNeed, Demand

STARVING_NS = 5_000_000_000


class WorkRefused(Exception):
    """The step cannot be dispatched as it is; ``error`` is the value it fails with."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


Leased = HttpCall | McpCall | None
"""What a node sends for a call, secrets included; ``None`` for a builtin."""


@dataclass(kw_only=True)
class ToolCall:
    """One call, ready to be authorized: what it is and what performing it would take (secrets are added later)."""

    tool: Tool
    args: dict[str, Any]
    key: str
    labels: dict[str, Any]
    http: HttpCall | None
    order: McpOrder | None
    questions: list[Question]

    @property
    def bindings(self) -> list[SecretBinding]:
        """The secrets that its requests carry."""
        return _bindings(self.tool, self.order)

    def performance(self, leased: Leased) -> Performance:
        """The order to the node; ``leased`` is what it sends, with its secrets in it."""
        if isinstance(leased, HttpCall):
            return Performance(key=self.key, http=leased)
        if isinstance(leased, McpCall):
            return Performance(key=self.key, mcp=leased)
        return Performance(key=self.key, builtin=BuiltinCall(name=self.tool.builtin_name, args=self.args))


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

    @property
    def work(self) -> Work:
        """What kind of work it is, for how long such work takes."""
        return Work(self.run.tenant, self.run.workflow.definition.name, self.step.spec.pointer)

    def assignment(self, step: StepState, attempt: str, fence: int, number: int, leased: Leased) -> Assignment:
        """The order to a node for one attempt; ``leased`` is what its call sends, with its secrets in it."""
        return Assignment(
            attempt=attempt,
            fence=fence,
            run=self.run.id,
            path=step.path,
            number=number,
            wall_seconds=self.wall_seconds,
            code=self.code,
            call=self.call.performance(leased) if self.call is not None else None,
            requires=["mcp"] if isinstance(leased, McpCall) else self._requires(),
        )

    def _requires(self) -> list[str]:
        """What the node must be able to do, or it refuses the assignment."""
        if self.code is None:
            return []
        return ["freeze", "tool_gateway", *(["egress"] if self.code.network else [])]

    def grant_network(self, decisions: Sequence[Decision], private_hosts: Collection[str]) -> None:
        """Let the code reach what was asked about and allowed. ``decisions`` answer ``questions``, in order."""
        if self.code is None:
            return
        self.code.network = [
            NetworkHost(
                host=to["host"],
                port=to["port"],
                decision=decision.id,
                private_allowed=f"{to['host']}:{to['port']}" in private_hosts,
            )
            for question, decision in zip(self.questions, decisions, strict=True)
            if question.entry is EntryPoint.EGRESS and decision.allow and (to := question.input["destination"])
        ]


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
        return _prepare_code(run, step, tools, now_ns)
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
    owner = step.frame.owner
    agent = None if owner is None else owner.spec.spec.agent
    call = tool_call(
        run,
        step,
        name,
        args,
        pinned=pinned,
        tools=tools,
        occurrence=0,
        via="step" if agent is None else "agent",
        granted=[name] if agent is None else list(agent.tools or ()),
        own_key=own_key,
        arg_labels=labels.of_given(step),
        now_ns=now_ns,
    )
    wall = spec.timeout_seconds or 60.0
    if call.http is not None:
        call.http.timeout_seconds = min(call.http.timeout_seconds, wall)
    demand = _demand(run, step, now_ns, ())
    if call.order is not None:
        # The time of its first start is the platform's, so the server's own limit is the inner one.
        call.order.call.timeout_seconds = min(call.order.call.timeout_seconds, wall)
        demand = beside_server(demand, call.order)
    return Prepared(run=run, step=step, demand=demand, questions=call.questions, call=call, wall_seconds=wall)


def beside_server(demand: Demand, mcp: McpOrder) -> Demand:
    """The demand of a call, on a node that can start its server; a remote one is reached from anywhere."""
    process = mcp.call.process
    if process is None:
        return demand
    needs = tuple(DataNeed(key=f"data://{root}", pinned=True) for root in mcp.roots)
    return replace(demand, tier=process.tier, image=process.image, inputs=needs, memory_bytes=process.memory_bytes)


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
        raise WorkRefused(error_value("tool", "; ".join(tools.missing(run.tenant, name))))
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
    mcp = _mcp_order(run, tool, args, tools)
    if mcp is not None and mcp.destination is not None:
        destination = mcp.destination.to_json()
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
        attaches=[binding.name for binding in _bindings(tool, mcp)],
        roots=() if mcp is None else mcp.roots,
        asks_as=name if mcp is None else mcp.asks_as,
        now_ns=now_ns,
    )
    return ToolCall(tool=tool, args=args, key=key, labels=arg_labels, http=http, order=mcp, questions=asked)


def _bindings(tool: Tool, mcp: McpOrder | None) -> list[SecretBinding]:
    if mcp is not None:
        return mcp.server.spec.secrets
    return tool.http.secrets if tool.http is not None else []


def _mcp_order(run: RunState, tool: Tool, args: dict[str, Any], tools: ToolRegistry) -> McpOrder | None:
    """What a call of an MCP server is. Raises: WorkRefused."""
    try:
        if tool.mcp is not None:
            return order(tools.servers.get(run.tenant, tool.mcp.server), tool.mcp.server, tool.mcp, args)
        if tool.name == LISTING:
            return order(tools.servers.get(run.tenant, args["server"]), args["server"], None, {})
    except ServerRefused as refused:
        raise WorkRefused(error_value("policy_denied", str(refused))) from refused
    return None


def _server_roots(run: RunState, granted: list[str], tools: ToolRegistry) -> list[DataNeed]:
    """Data that the MCP servers of these tools mount: a guest's calls are made by the node the guest is on."""
    servers = {tool.mcp.server for tool in tools.list(run.tenant) if tool.mcp is not None and match(granted, tool.name)}
    found = [tools.servers.get(run.tenant, name) for name in sorted(servers)]
    addresses = [at for one in found if one and one.spec.process for at in one.spec.process.mounts.values()]
    return [DataNeed(key=address, pinned=True) for address in addresses]


def _prepare_code(run: RunState, step: StepState, tools: ToolRegistry, now_ns: int) -> Prepared:
    spec, scope = step.spec, step.frame.scope
    code = spec.spec.code
    assert code is not None  # noqa: S101 - the verb is code
    source = spec.fields["source"].render(scope)
    if not isinstance(source, str):
        raise WorkRefused(error_value("schema", f"the source of {step.path} is not text"))
    args = spec.fields["args"].render(scope) if "args" in spec.fields else []
    rendered = spec.fields["inputs"].render(scope) if "inputs" in spec.fields else {}
    inputs, needs, asked = _inputs(run, step, rendered, now_ns)
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
    needs = tuple(dict.fromkeys([*needs, *_server_roots(run, work.tools, tools)]))
    asked += questions.network_questions(run, step.path, spec.sandbox.network, now_ns)
    demand = _demand(run, step, now_ns, needs)
    return Prepared(run=run, step=step, demand=demand, questions=asked, code=work, wall_seconds=wall)


def _demand(run: RunState, step: StepState, now_ns: int, needs: tuple[DataNeed, ...]) -> Demand:
    own = demand_of(step.spec, needs, near_of(step))
    return replace(own, id=f"{run.id}/{step.path}", tenant=run.tenant, starving=starving(step, now_ns))


def demand_of(spec: CompiledStep, inputs: tuple[DataNeed, ...], near: Near) -> Demand:
    """What a step of this definition asks of a node, also to tell beforehand where it would go."""
    wanted, code = spec.resources, spec.spec.code
    return Demand(
        id=spec.pointer,
        tier=None if code is None else spec.sandbox.tier,
        image=None if code is None else spec.sandbox.image,
        cpu_milli=wanted.cpu_milli,
        memory_bytes=wanted.memory_bytes,
        gpu=wanted.gpu,
        gpu_memory_bytes=wanted.gpu_memory_bytes,
        labels=wanted.labels,
        inputs=inputs,
        near=near.data,
        near_models=near.models,
        tiers_allowed=_tiers(spec),
    )


def _tiers(spec: CompiledStep) -> tuple[str, ...]:
    """The tiers that can serve the step; empty if any can."""
    code = spec.spec.code
    if code is not None and code.shell is not None:
        return SHELL_TIERS
    return NETWORK_TIERS if spec.sandbox.network else ()


def _inputs(
    run: RunState, step: StepState, rendered: Any, now_ns: int
) -> tuple[list[InputGrant], tuple[DataNeed, ...], list[Question]]:
    grants: list[InputGrant] = []
    needs: list[DataNeed] = []
    asked: list[Question] = []
    if not isinstance(rendered, dict):
        raise WorkRefused(error_value("schema", f"`inputs` of {step.path} is not an object"))
    for name, value in rendered.items():
        address = _address(f"input {name!r}", value)
        scheme, _, rest = address.partition("://")
        if scheme == "artifact":
            grants.append(InputGrant(name=name, artifact=rest))
            needs.append(DataNeed(key=address))
            continue
        root, _, path = rest.partition("/")
        if not path:
            raise WorkRefused(error_value("schema", f"input {name!r}: {address} names a root; name a file beneath it"))
        grants.append(InputGrant(name=name, data=f"{root}/{unquote(path)}"))
        needs.append(DataNeed(key=f"data://{root}", pinned=True))
        asked.append(questions.data_question(run, step.path, address, "mount", now_ns))
    return grants, tuple(dict.fromkeys(needs)), asked


def _address(what: str, value: Any) -> str:
    """A computed address, held to the rules of a written one. Raises: WorkRefused."""
    if not isinstance(value, str):
        raise WorkRefused(error_value("schema", f"{what} is {type(value).__name__}, not an address"))
    refused = refuse_address(value)
    if refused is not None:
        raise WorkRefused(error_value("schema", f"{what}: {refused[0]}; {refused[1]}"))
    return value
