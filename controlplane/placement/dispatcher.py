"""Takes ready steps to nodes: plan, ask policy about what found a place, assign.

A batch at a time: one plan, one trip to the policy engine, one journal entry a step. Policy is asked last, so that
every decision is as old as the commit it stands in. A step without a place or without an answer waits and says why.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import structlog

from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.values import Decision, PolicyUnavailable
from controlplane.ids import new_id
from controlplane.nodes.inventory import Inventory, Node, Reservation
from controlplane.placement.catalogue import Catalogue
from controlplane.placement.deferral import Deferrals
from controlplane.runs import calls
from controlplane.runs.controller import Controller, decision_write
from controlplane.runs.state import RunState, StepState, error_value
from controlplane.runs.transitions import Machine
from controlplane.runs.work import Leased, Prepared, ToolCall, WorkRefused, prepare, starving
from controlplane.secrets.broker import SecretBroker, SecretUnavailable
from controlplane.store import Write
from controlplane.tools.registry import ToolRegistry
from dataplane.protocol import SecretLease
from scheduler.explanation import Explanation, ReasonCode
from scheduler.planner import Placement, Plan, Waiting, plan

log = structlog.get_logger(__name__)
BATCH = 512
RETRIED = 64
STARVING_MOST = 4
STARVED_NS = 500_000_000
"""How long a list of starving steps is good: it is made from all that wait."""
POLICY_RETRY_SECONDS = 0.5
POLICY_RETRY_MOST_SECONDS = 10.0


class Dispatcher:
    """One per control plane; ``run`` is its loop."""

    def __init__(
        self,
        controller: Controller,
        enforcer: Enforcer,
        tools: ToolRegistry,
        broker: SecretBroker,
        private_hosts: frozenset[str],
        catalogue: Catalogue,
    ) -> None:
        self.controller = controller
        self.enforcer = enforcer
        self.tools = tools
        self.broker = broker
        self.private_hosts = private_hosts
        self.catalogue = catalogue
        self.inventory: Inventory = controller.inventory
        self.waiting: dict[tuple[str, str], tuple[RunState, StepState]] = {}
        self.deferrals = Deferrals(controller)
        self._starved: list[tuple[RunState, StepState]] = []
        self._starved_ns = 0

    async def run(self) -> None:
        """Dispatch for ever."""
        controller = self.controller
        while True:
            await controller.ready_event.wait()
            controller.ready_event.clear()
            while controller.ready:
                batch, controller.ready = controller.ready[:BATCH], controller.ready[BATCH:]
                await self._dispatch(batch)

    async def retry_waiting(self) -> None:
        """When capacity changed, let some waiting steps try again, in turn."""
        while True:
            await self.inventory.changed.wait()
            self.inventory.changed.clear()
            for key in list(itertools.islice(self.waiting, RETRIED)):
                run, step = self.waiting.pop(key)
                self.controller.dispatch(run, [step])

    def _starving(self, now_ns: int) -> list[tuple[RunState, StepState]]:
        """The longest waiting steps are part of every plan, or those that came later would take each free place."""
        if now_ns - self._starved_ns > STARVED_NS:
            starved = [
                pair
                for pair in self.waiting.values()
                if starving(pair[1], now_ns) and self._open(*pair) and _passing(pair[1])
            ]
            self._starved = heapq.nsmallest(STARVING_MOST, starved, key=lambda pair: pair[1].unplaced_ns or 0)
            self._starved_ns = now_ns
            # Steps of runs that ended meanwhile wait for nothing.
            self.waiting = {key: pair for key, pair in self.waiting.items() if self._open(*pair)}
        return self._starved

    async def _dispatch(self, batch: Sequence[tuple[RunState, StepState]]) -> None:
        prepared: list[Prepared] = []
        now_ns = time.time_ns()
        seen: set[int] = set()
        for run, step in [*self._starving(now_ns), *self.deferrals.pairs(), *batch]:
            if not self._open(run, step) or id(step) in seen:
                self.deferrals.stop(run, step)
                continue
            seen.add(id(step))
            try:
                prepared.append(prepare(run, step, self.controller.pinned.get(run.id, {}), self.tools, now_ns))
            except WorkRefused as refused:
                self._fail(run, step, refused.error)
            except Exception as defect:  # of ours: it must cost this step only
                log.exception("a step could not be prepared", run=run.id, path=step.path)
                self._fail(run, step, error_value("tool", f"the control plane could not prepare it: {defect!r}"[:500]))
        if prepared:
            await self.catalogue.locate(prepared)
            for one in prepared:
                if one.demand.local:
                    self._expect(one)
            placed = self._place([one for one in prepared if self._open(one.run, one.step)])
            await self._authorize(placed)

    def _expect(self, one: Prepared) -> None:
        """How long the step will run, as far as known, and how long it may wait for a better node."""
        one.demand = replace(
            one.demand,
            expected_seconds=self.inventory.durations.expected(one.work),
            patience_seconds=self.deferrals.patience(one.step),
        )

    def _open(self, run: RunState, step: StepState) -> bool:
        return (
            run.parked is None
            and step.attempt is None
            and step.status in ("ready", "waiting")
            and not step.detail.get("resting")
        )

    def _place(self, prepared: list[Prepared]) -> list[tuple[Prepared, Placement]]:
        by_id = {one.demand.id: one for one in prepared}
        placements: list[Placement] = []
        waiting: list[Waiting] = []
        for sandboxes in (False, True):
            demands = [one.demand for one in prepared if (one.code is not None) == sandboxes]
            if demands:
                releases = any(one.local for one in demands)
                found: Plan = plan(self.inventory.snapshot(sandboxes=sandboxes, releases=releases), demands)
                placements += found.placements
                waiting += found.waiting
        for blocked in waiting:
            one = by_id[blocked.demand]
            if any(reason.code is ReasonCode.IMAGE_NOT_READY for reason in blocked.reasons) and one.demand.image:
                holding = frozenset(need.key for need in one.demand.inputs if need.pinned)
                self.inventory.prepare(one.demand.tier_options(), one.demand.image, holding)
            if blocked.better_seconds is not None:
                self.deferrals.wait(one.run, one.step, blocked.better_seconds)
            else:
                self.deferrals.stop(one.run, one.step)
                one.step.unplaced_ns = one.step.unplaced_ns or time.time_ns()
            reasons = [reason.to_json() for reason in blocked.reasons]
            self._wait(one.run, one.step, reasons, self._explained(one, blocked.explanation))
            self.waiting[one.run.id, one.step.path] = (one.run, one.step)
        return [(by_id[placement.demand], placement) for placement in placements]

    def _explained(self, one: Prepared, why: Explanation) -> msgspec.Raw:
        """The decision as the step keeps it, with what people should know of its data."""
        notes = self.catalogue.notes(one.demand)
        return msgspec.Raw((replace(why, notes=notes) if notes else why).text)

    async def _authorize(self, placed: list[tuple[Prepared, Placement]]) -> None:
        questions = [question for one, _placement in placed for question in one.questions]
        answers = await self.enforcer.ask_many(questions) if questions else []
        position = 0
        for one, placement in placed:
            own = answers[position : position + len(one.questions)]
            position += len(one.questions)
            if self._open(one.run, one.step):
                await self._settle(one, placement, own)

    async def _settle(
        self, one: Prepared, placement: Placement, answers: Sequence[Decision | PolicyUnavailable]
    ) -> None:
        run, step = one.run, one.step
        unavailable = next((answer for answer in answers if isinstance(answer, PolicyUnavailable)), None)
        if unavailable is not None:
            park(self.controller, run, step, unavailable)
            return
        decisions = [answer for answer in answers if isinstance(answer, Decision)]
        refused = next((decision for decision in decisions if not decision.allow), None)
        if refused is not None:
            self._fail(run, step, denial(refused), self._log(run, step, decisions))
            return
        try:
            leased = await self.lease(run.tenant, one.call)
        except SecretUnavailable as missing:
            self._fail(run, step, error_value("policy_denied", str(missing)), self._log(run, step, decisions))
            return
        one.grant_network(decisions, self.private_hosts)
        # Looked up after the last await: the node may have gone or registered anew since the plan.
        node = self.inventory.nodes.get(placement.node)
        if node is None or node.lost:
            self.controller.dispatch(run, [step])
        elif self._open(run, step):
            self._assign(one, placement, node, leased, decisions)

    def _assign(
        self,
        one: Prepared,
        placement: Placement,
        node: Node,
        leased: Leased,
        decisions: Sequence[Decision],
    ) -> None:
        run, step = one.run, one.step
        attempt, gpus = new_id("att"), [gpu.id for gpu in placement.gpus]
        if not node.devices.hold(attempt, gpus):
            # A model server took one since the plan.
            self.controller.dispatch(run, [step])
            return
        self.waiting.pop((run.id, step.path), None)
        self.deferrals.placed(run, step)
        step.unplaced_ns = None
        step.detail.pop("gpus", None)
        if gpus:
            step.detail["gpus"] = gpus
        writes = self._log(run, step, decisions)
        step.detail.pop("policy_retries", None)
        step.decision = decisions[0].id if decisions else None
        if one.call is not None:
            writes.append(calls.authorized(run, step, one.call, attempt, 0, step.decision or ""))
        if one.code is not None and placement.tier is not None:
            one.code.sandbox.tier, one.code.sandbox.gpus = placement.tier, gpus
        step.placement = self._explained(one, placement.explanation)
        assignment = one.assignment(step, attempt, step.fence + 1, step.number + 1, leased)
        demand = one.demand
        node.assign(
            Reservation(
                assignment=assignment,
                cpu_milli=demand.cpu_milli,
                memory_bytes=demand.memory_bytes,
                gpus=tuple(gpus),
                work=one.work,
            )
        )
        self.controller.attempts[attempt] = (run, step)

        def assigned(machine: Machine) -> None:
            machine.assigned(step, node=node.id, node_name=node.name, attempt=attempt, tier=placement.tier)

        def done(error: BaseException | None) -> None:
            if error is None:
                node.publish(assignment)
            else:
                self.controller.attempts.pop(attempt, None)
                self.inventory.release(node.id, attempt)

        self.controller.apply(run, assigned, writes=writes, done=done)

    async def lease(self, tenant: str, call: ToolCall | None) -> Leased:
        """What the call sends with its secrets in it, for the node's memory only. Raises: SecretUnavailable."""
        if call is None:
            return None
        mcp = None if call.order is None else call.order.call
        request = call.http or (None if mcp is None else mcp.endpoint)
        if request is None:
            return mcp
        request.secrets = []
        for binding in call.bindings:
            value = await self.broker.lease(tenant, binding.name)
            request.secrets.append(
                SecretLease(name=binding.name, header=binding.header, format=binding.format, value=value)
            )
        destination = next(
            (question.input["destination"] for question in call.questions if "destination" in question.input), None
        )
        if destination is not None:
            request.private_allowed = f"{destination['host']}:{destination['port']}" in self.private_hosts
        return call.http or mcp

    def _log(self, run: RunState, step: StepState, decisions: Sequence[Decision]) -> list[Write]:
        now_ns = time.time_ns()
        run.decisions += len(decisions)
        run.denied += sum(1 for decision in decisions if not decision.allow)
        return [decision_write(run.tenant, one, run.id, step.path, run.partition, now_ns) for one in decisions]

    def _wait(
        self, run: RunState, step: StepState, reasons: list[dict[str, Any]], placement: msgspec.Raw | None
    ) -> None:
        self.controller.apply(run, lambda machine: machine.wait_for(step, reasons, placement))

    def _fail(self, run: RunState, step: StepState, error: dict[str, Any], writes: Sequence[Write] = ()) -> None:
        self.waiting.pop((run.id, step.path), None)
        self.deferrals.placed(run, step)
        self.controller.apply(run, lambda machine: machine.fail(step, error), writes=writes)


def park(controller: Controller, run: RunState, step: StepState, unavailable: PolicyUnavailable) -> None:
    """Policy cannot answer now: the step waits, and is dispatched again after a while, without burning an attempt."""
    tried = int(step.detail.get("policy_retries", 0))
    step.detail["policy_retries"] = tried + 1
    fix = "nothing to do: it goes on when the engine answers; `stockade doctor` shows the engine"
    reasons = [{"code": "policy_unavailable", "message": str(unavailable), "fix": fix}]
    controller.apply(run, lambda machine: machine.wait_for(step, reasons, None))
    controller.again(run, step, min(POLICY_RETRY_MOST_SECONDS, POLICY_RETRY_SECONDS * 2.0 ** min(tried, 5)))


def denial(decision: Decision) -> dict[str, Any]:
    """The failure a refused step or call has: every reason, and the decision to look up."""
    reasons = [
        {"code": one.code, "message": one.message, "rule": one.rule, "remedy": one.remedy} for one in decision.reasons
    ]
    message = "; ".join(one.message for one in decision.reasons) or f"{decision.entry.value} does not allow it"
    remedy = " ".join(one.remedy for one in decision.reasons if one.remedy)
    return error_value("policy_denied", message, decision_id=decision.id, reasons=reasons, remedy=remedy)


def _passing(step: StepState) -> bool:
    """Whether time alone may give the step a place."""
    return any(not reason.get("permanent") for reason in step.detail.get("waiting", ()))
