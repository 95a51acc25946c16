"""The control plane's side of a guest's tool calls: authorize, then record.

The guest sees a result only after it is durable. Its calls are counted here, so the same call at the same place of a
later attempt has the same key; a success of a tool with an effect is then answered from the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from controlplane.authorization.values import Decision, PolicyUnavailable
from controlplane.placement.dispatcher import Dispatcher, denial
from controlplane.runs import calls, labels
from controlplane.runs.bounds import TooMuch, bounded
from controlplane.runs.controller import Controller, decision_write
from controlplane.runs.journal import JournalFailed
from controlplane.runs.reports import tool_error
from controlplane.runs.state import RunState, StepState
from controlplane.runs.transitions import Machine
from controlplane.runs.work import ToolCall, WorkRefused, call_key, tool_call
from controlplane.secrets.broker import SecretUnavailable
from controlplane.store import Write, canonical
from controlplane.tools.registry import check_output
from dataplane.protocol import Ack, AuthorizeAnswer, AuthorizeRequest, CallResult

RETRY_SECONDS = 0.5
CALLS_MOST = 10_000
REFUSED_MOST = 200


class Gateway:
    """Answers ``/node/v1/authorize`` and ``/node/v1/results``."""

    def __init__(self, controller: Controller, dispatcher: Dispatcher) -> None:
        self._controller = controller
        self._dispatcher = dispatcher

    async def authorize(self, node: str, requests: list[AuthorizeRequest]) -> list[AuthorizeAnswer]:
        """One answer a request, in order. Elements of one attempt are decided one after the other."""
        lanes: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            lanes.setdefault(request.attempt, []).append(index)
        answers: dict[int, AuthorizeAnswer] = {}

        async def lane(indexes: list[int]) -> None:
            for index in indexes:
                request = requests[index]
                try:
                    answers[index] = await self._authorize(node, request)
                except JournalFailed:  # one run's: the other attempts of the node have their answers
                    answers[index] = AuthorizeAnswer(call=request.call, unavailable=True, retry_seconds=RETRY_SECONDS)

        async with asyncio.TaskGroup() as group:
            for indexes in lanes.values():
                group.create_task(lane(indexes))
        return [answers[index] for index in range(len(requests))]

    async def _authorize(self, node: str, request: AuthorizeRequest) -> AuthorizeAnswer:
        if self._controller.is_parked(request.attempt):
            return AuthorizeAnswer(call=request.call, unavailable=True, retry_seconds=RETRY_SECONDS)
        if not self._may_call(node, request):
            return AuthorizeAnswer(call=request.call, stale=True)
        run, step = self._controller.attempts[request.attempt]
        if len(step.calls) >= CALLS_MOST:
            return _refused(request, "budget", f"a step may make {CALLS_MOST} calls")
        if step.refused_calls >= REFUSED_MOST:
            return _refused(request, "budget", f"{REFUSED_MOST} calls of this step were refused; no more are asked for")
        try:
            bounded(request.args)
            call = self._call(run, step, request)
        except WorkRefused as refused:
            return AuthorizeAnswer(call=request.call, error=refused.error)
        except TooMuch as much:
            return _refused(request, much.error_type, str(much))
        known = step.calls.get(call.key)
        if known is not None and known.state == "recorded" and known.ok and known.effect != "none":
            reuse = calls.reused(run, step, known, request.attempt, request.call)
            await self._controller.applied(run, lambda machine: None, [reuse])
            if not self._may_call(node, request):
                return AuthorizeAnswer(call=request.call, stale=True)
            return AuthorizeAnswer(call=request.call, recorded=True, value=known.result)
        answers = await self._dispatcher.enforcer.ask_many(call.questions)
        if any(isinstance(answer, PolicyUnavailable) for answer in answers):
            return AuthorizeAnswer(call=request.call, unavailable=True, retry_seconds=RETRY_SECONDS)
        decisions = [answer for answer in answers if isinstance(answer, Decision)]
        if not self._may_call(node, request):
            return AuthorizeAnswer(call=request.call, stale=True)
        return await self._decided(node, run, step, request, call, decisions)

    def _may_call(self, node: str, request: AuthorizeRequest) -> bool:
        """Whether the attempt is current, on this node, and goes on. Asked again after every await."""
        found = self._controller.current(request.attempt, request.fence)
        return found is not None and found[1].node == node and not found[1].cancelling

    def _call(self, run: RunState, step: StepState, request: AuthorizeRequest) -> ToolCall:
        code = step.spec.spec.code
        args = canonical(request.args)
        # The same call number again is the node asking again, not the guest calling again.
        own = next(
            (one for one in step.calls.values() if one.attempt == request.attempt and one.number == request.call), None
        )
        occurrence = sum(
            1
            for one in step.calls.values()
            if one.attempt == request.attempt and one.tool == request.tool and one.args == args and one is not own
        )
        key = own.key if own is not None and own.tool == request.tool and own.args == args else None
        return tool_call(
            run,
            step,
            request.tool,
            request.args,
            pinned=self._controller.pinned.get(run.id, {}),
            tools=self._dispatcher.tools,
            occurrence=occurrence,
            via="guest",
            granted=list((code.tools if code is not None else None) or ()),
            own_key=key or call_key(run.id, step.path, request.tool, args, occurrence),
            arg_labels=labels.join(labels.of_step(step), step.labels),
            now_ns=time.time_ns(),
        )

    async def _decided(
        self,
        node: str,
        run: RunState,
        step: StepState,
        request: AuthorizeRequest,
        call: ToolCall,
        decisions: list[Decision],
    ) -> AuthorizeAnswer:
        refused = next((one for one in decisions if not one.allow), None)
        if refused is not None:
            error = denial(refused)
            step.refused_calls += 1
            shown = {"tool": call.tool.name, "decision": refused.id, "reasons": error["reasons"]}
            writes = _log(run, step, decisions)
            await self._controller.applied(run, lambda m: m.event("call.refused", step, shown), writes)
            return AuthorizeAnswer(call=request.call, error=error)
        try:
            leased = await self._dispatcher.lease(run.tenant, call)
        except SecretUnavailable as missing:
            if self._may_call(node, request):
                await self._controller.applied(run, lambda machine: None, _log(run, step, decisions))
            return _refused(request, "policy_denied", str(missing))
        if not self._may_call(node, request):
            return AuthorizeAnswer(call=request.call, stale=True)
        writes = _log(run, step, decisions)
        writes.append(calls.authorized(run, step, call, request.attempt, request.call, decisions[0].id))
        await self._controller.applied(run, lambda machine: None, writes)
        return AuthorizeAnswer(call=request.call, allow=True, perform=call.performance(leased))

    async def record(self, node: str, results: list[CallResult]) -> list[Ack]:
        """One ack a result, in order; each is durable when it is acknowledged."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._record(node, result)) for result in results]
        return [task.result() for task in tasks]

    async def _record(self, node: str, result: CallResult) -> Ack:
        if self._controller.is_parked(result.attempt):
            return Ack(ok=False, message="not stored, send it again")
        found = self._controller.current(result.attempt, result.fence)
        if found is None or found[1].node != node:
            return Ack(ok=False, stale=True, message="the fence is not current")
        run, step = found
        state = step.calls.get(result.key)
        if state is None or state.attempt != result.attempt:
            return Ack(ok=False, message="no such call was authorized for this attempt")
        if state.state == "recorded":
            return await self._stored(run, lambda machine: None, [])
        ok, value = result.ok, result.value
        tool = self._dispatcher.tools.get(run.tenant, state.tool)
        if not ok:
            value = tool_error(result.error or {})
        elif tool is not None and (problems := check_output(tool, value)):
            return Ack(ok=False, message=f"{state.tool} answered with something else than it declares: {problems[0]}")
        try:
            bounded(value)
        except TooMuch as much:
            ok, value = False, tool_error({"type": much.error_type, "message": str(much)})
        step.labels = labels.join(step.labels, labels.of_result(tool))
        shown: dict[str, Any] = {"tool": state.tool, "ok": ok, "decision": state.decision}
        write = calls.recorded(run, step, state, ok, value)

        def act(machine: Machine) -> None:
            machine.event("call.recorded", step, shown)

        return await self._stored(run, act, [write])

    async def _stored(self, run: RunState, act: Callable[[Machine], None], writes: list[Write]) -> Ack:
        """Acknowledge once the outcome is durable, also when it is another message that stores it."""
        try:
            await self._controller.applied(run, act, writes)
        except JournalFailed:
            return Ack(ok=False, message="not stored, send it again")
        if run.parked is not None:
            return Ack(ok=False, message="not stored, send it again")
        return Ack(ok=True)


def _log(run: RunState, step: StepState, decisions: list[Decision]) -> list[Write]:
    """The decisions' rows; they count as soon as they are queued to be stored."""
    now_ns = time.time_ns()
    run.decisions += len(decisions)
    run.denied += sum(1 for one in decisions if not one.allow)
    return [decision_write(run.tenant, one, run.id, step.path, run.partition, now_ns) for one in decisions]


def _refused(request: AuthorizeRequest, kind: str, message: str) -> AuthorizeAnswer:
    return AuthorizeAnswer(call=request.call, error={"type": kind, "message": message})
