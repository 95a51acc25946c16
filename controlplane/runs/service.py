"""What people do to runs: submit, validate, cancel, approve. Every change is durable when it returns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.values import Decision, PolicyUnavailable, Question
from controlplane.errors import conflict, forbidden, invalid_input, invalid_workflow, not_found, policy_denied
from controlplane.errors import policy_unavailable as unavailable
from controlplane.identity import Principal
from controlplane.nodes.inventory import Inventory
from controlplane.placement.catalogue import Catalogue
from controlplane.runs import questions
from controlplane.runs.controller import Controller, decision_write
from controlplane.runs.hub import Hub
from controlplane.runs.nearness import literal_near
from controlplane.runs.state import RunState
from controlplane.runs.transitions import Machine, event_write
from controlplane.runs.work import beside_server, demand_of
from controlplane.secrets.broker import SecretBroker
from controlplane.store import Write, canonical, insert
from controlplane.tables import RunDefinitionRow, RunRow, partition_of
from controlplane.tools.mcp_calls import ServerRefused, order
from controlplane.tools.registry import ToolRegistry, check_args, match
from controlplane.workflows.expressions import Scope
from controlplane.workflows.graph import CompiledStep, CompiledWorkflow, compile_workflow
from controlplane.workflows.problem_values import Problem, WorkflowInvalid
from controlplane.workflows.spec import Verb
from scheduler.demand import DataNeed, Demand
from scheduler.planner import plan


class RunService:
    """Commands on runs."""

    def __init__(
        self,
        controller: Controller,
        enforcer: Enforcer,
        tools: ToolRegistry,
        inventory: Inventory,
        hub: Hub,
        broker: SecretBroker,
        catalogue: Catalogue,
    ) -> None:
        self.catalogue = catalogue
        self.controller = controller
        self.enforcer = enforcer
        self.tools = tools
        self.inventory = inventory
        self.hub = hub
        self.broker = broker

    async def submit(
        self,
        principal: Principal,
        run_id: str,
        compiled: CompiledWorkflow,
        definition: dict[str, Any],
        input: Any,
        labels: Any,
    ) -> None:
        """Admit a run under this new id.

        Raises: ApiError invalid-workflow, invalid-input, policy-denied, policy-unavailable.
        """
        await self._check(principal, compiled, input)
        decision = await self._admit(principal, compiled, run_id)
        if not decision.allow:
            await self._log_refusal(principal.tenant, decision)
            raise policy_denied(decision)
        pinned = self._pin(principal.tenant, compiled)
        now = time.time_ns()
        run = RunState(
            tenant=principal.tenant,
            id=run_id,
            workflow=compiled,
            input=input,
            principal=principal.to_json(),
            created_ns=now,
            labels=dict(labels or {}),
            decisions=1,
        )
        writes = self._birth(run, definition, pinned, now)
        writes.append(decision_write(run.tenant, decision, run_id, "", run.partition, now))
        await self.controller.begin(run, pinned, writes)

    def _birth(self, run: RunState, definition: dict[str, Any], pinned: Mapping[str, str], now: int) -> list[Write]:
        run.events = 1
        key = {"tenant": run.tenant, "partition": run.partition}
        named = run.workflow.definition
        head = {
            **key,
            "id": run.id,
            "seq": run.seq,
            "v": 1,
            "status": run.status,
            "workflow_name": named.name,
            "workflow_version": named.version,
            "workflow_digest": run.workflow.digest,
            "principal": run.principal["id"],
            "priority": 0,
            "labels": canonical(run.labels),
            "decisions": run.decisions,
            "denied": run.denied,
            "created_ns": now,
            "updated_ns": now,
        }
        fixed = {
            **key,
            "run": run.id,
            "v": 1,
            "definition": canonical(definition),
            "input": canonical(run.input),
            "labels": "{}",
            "tools": canonical(dict(pinned)),
        }
        created = {"seq": 1, "type": "run.created", "path": "", "at_ns": now, "data": {"workflow": named.name}}
        return [insert(RunRow, head), insert(RunDefinitionRow, fixed), event_write(run, created)]

    async def validate(self, principal: Principal, document: dict[str, Any], input: Any) -> dict[str, Any]:
        """What would happen; nothing does: problems, the policy's verdict, and where each step would go now."""
        try:
            compiled = compile_workflow(document)
        except WorkflowInvalid as invalid:
            return {"valid": False, "problems": [_problem(one) for one in invalid.problems]}
        problems = [*await self._missing(principal.tenant, compiled), *compiled.check_input(input)]
        answer = (await self.enforcer.ask_many([self._question(principal, compiled, None)]))[0]
        if isinstance(answer, PolicyUnavailable):
            raise unavailable()
        shown = answer.to_json()
        decision = {"allow": answer.allow, "reasons": shown["reasons"], "revision": answer.revision}
        return {
            "valid": not problems and answer.allow,
            "digest": compiled.digest,
            "problems": [_problem(one) for one in problems],
            "decision": decision,
            "placements": await self._placements(principal.tenant, compiled),
        }

    def _demand(self, tenant: str, step: CompiledStep) -> Demand:
        demand = demand_of(step, _written_inputs(step), literal_near(step))
        tool = self.tools.get(tenant, step.spec.tool or "")
        if tool is None or tool.mcp is None:
            return demand
        try:
            return beside_server(demand, order(self.tools.servers.get(tenant, tool.mcp.server), "", tool.mcp, {}))
        except ServerRefused:  # the run will say it
            return demand

    async def _placements(self, tenant: str, compiled: CompiledWorkflow) -> list[dict[str, Any]]:
        shown = []
        for step in questions.walk(compiled.root):
            if step.verb not in (Verb.CODE, Verb.TOOL):
                continue
            demand = await self.catalogue.known(tenant, self._demand(tenant, step))
            snapshot = self.inventory.snapshot(sandboxes=step.verb is Verb.CODE, releases=demand.local)
            found = plan(snapshot, [demand])
            notes = self.catalogue.notes(demand)
            one: dict[str, Any] = {"path": step.pointer, "id": step.id, "tier": None, "node": None, "waiting": []}
            for placed in found.placements:
                one |= {
                    "tier": placed.tier,
                    "node": placed.node,
                    "explanation": replace(placed.explanation, notes=notes).to_json(),
                }
            for blocked in found.waiting:
                one |= {
                    "waiting": [reason.to_json() for reason in blocked.reasons],
                    "explanation": replace(blocked.explanation, notes=notes).to_json(),
                }
            shown.append(one)
        return shown

    async def cancel(self, principal: Principal, run_id: str, reason: str) -> bool:
        """Begin to cancel; ``False`` if the run is not in memory: at its end, or being read from the database again."""
        run = self.controller.runs.get(run_id)
        if run is None or run.tenant != principal.tenant:
            return False
        await self.controller.applied(run, lambda machine: machine.cancel(reason or f"by {principal.name}"))
        return True

    async def decide_approval(self, principal: Principal, run_id: str, path: str, approve: bool, comment: str) -> None:
        """Answer a waiting approval. Raises: ApiError forbidden, conflict, not-found."""
        run = self.controller.runs.get(run_id)
        if run is None or run.tenant != principal.tenant:
            raise conflict("The run is at its end; there is nothing to approve.")
        step = run.steps.get(path)
        if step is None or step.spec.verb is not Verb.APPROVE:
            raise not_found("approval", path)
        if principal.kind != "person" or "approve" not in principal.scopes:
            raise forbidden("approve")
        by = step.detail.get("by") or []
        own = {f"user:{principal.name}", f"user:{principal.id}", *(f"group:{one}" for one in principal.groups)}
        if by and not own & set(by):
            raise forbidden("approve", f"This approval is for {', '.join(by)}.")
        decided = step.detail.get("decided")
        if decided is not None and decided["approved"] == approve:
            await self.controller.applied(run, lambda machine: None)  # durable, too, when this answers
            return
        if step.status != "waiting":
            raise conflict(f"The approval is {step.status}; it cannot be decided any more.")
        fresh: list[bool] = []

        def act(machine: Machine) -> None:
            fresh.append(machine.decide_approval(step, approve=approve, by=principal.name, comment=comment))

        await self.controller.applied(run, act)
        if fresh == [False]:
            raise conflict("What you approved has changed since it was shown. Look again and approve again.")

    async def _check(self, principal: Principal, compiled: CompiledWorkflow, input: Any) -> None:
        problems = await self._missing(principal.tenant, compiled)
        if problems:
            raise invalid_workflow(problems)
        wrong = compiled.check_input(input)
        if wrong:
            raise invalid_input(wrong)

    async def _missing(self, tenant: str, compiled: CompiledWorkflow) -> list[Problem]:
        """Tools and secrets that steps name and nobody made. Grants of code (``server.*``) may match nothing yet."""
        problems: list[Problem] = []
        known = await self.broker.names(tenant) if compiled.uses_secrets else frozenset()
        for step in questions.walk(compiled.root):
            name = step.spec.tool
            tool = None if name is None else self.tools.get(tenant, name)
            template = step.fields.get("args")
            if tool is not None and (template is None or template.is_literal):
                args = {} if template is None else template.render(Scope.root(None, {}))
                problems += [
                    replace(one, pointer=f"{step.pointer}/args{one.pointer}") for one in check_args(tool, args)[:10]
                ]
            if name is not None and tool is None:
                message, hint = self.tools.missing(tenant, name)
                where = f"{step.pointer}/tool"
                problems.append(Problem(pointer=where, message=message, hint=hint, type="unknown_tool"))
            problems += self._missing_grants(tenant, step)
            for index, secret in enumerate(step.spec.secrets or ()):
                if secret not in known:
                    hint = f"set it: stockade secret set {secret}"
                    where = f"{step.pointer}/secrets/{index}"
                    problems.append(
                        Problem(
                            pointer=where, message=f"there is no secret {secret!r}", hint=hint, type="missing_secret"
                        )
                    )
        return problems

    def _missing_grants(self, tenant: str, step: CompiledStep) -> list[Problem]:
        """Tools that an agent is given by name and nobody made: its model would be told nothing of them."""
        agent = step.spec.agent
        problems = []
        for index, name in enumerate((agent.tools if agent is not None else None) or ()):
            if not name.endswith(".*") and self.tools.get(tenant, name) is None:
                message, hint = self.tools.missing(tenant, name)
                where = f"{step.pointer}/agent/tools/{index}"
                problems.append(Problem(pointer=where, message=message, hint=hint, type="unknown_tool"))
        return problems

    def _pin(self, tenant: str, compiled: CompiledWorkflow) -> dict[str, str]:
        return {tool.name: tool.digest for tool in self.tools.list(tenant) if match(compiled.uses_tools, tool.name)}

    def _question(self, principal: Principal, compiled: CompiledWorkflow, run: str | None) -> Question:
        return questions.admission(principal.tenant, principal.to_json(), compiled, run, time.time_ns())

    async def _admit(self, principal: Principal, compiled: CompiledWorkflow, run: str) -> Decision:
        (answer,) = await self.enforcer.ask_many([self._question(principal, compiled, run)])
        if isinstance(answer, PolicyUnavailable):
            raise unavailable()
        return answer

    async def _log_refusal(self, tenant: str, decision: Decision) -> None:
        write = decision_write(tenant, decision, None, "", partition_of(decision.id), time.time_ns())
        await self.controller.journal.write([write])


def _written_inputs(step: CompiledStep) -> tuple[DataNeed, ...]:
    """What literal inputs name."""
    template = step.fields.get("inputs")
    if template is None or not template.is_literal:
        return ()
    value = template.render(Scope.root(None, {}))
    found = value.values() if isinstance(value, dict) else []
    addresses = dict.fromkeys(one for one in found if isinstance(one, str))
    return tuple(DataNeed(key=one, pinned=one.startswith("data://")) for one in addresses)


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "pointer": problem.pointer,
        "message": problem.message,
        "hint": problem.hint,
        "type": problem.type,
        "line": problem.line,
        "column": problem.column,
        "excerpt": problem.excerpt,
    }
