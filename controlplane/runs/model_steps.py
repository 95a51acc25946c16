"""Calls models for ``llm`` steps and agents' turns, here and not on a node: ask policy, commit, call, commit.

The commit before the call holds the decision and the attempt; the one after it the answer, once. What was called and
not recorded when the process died is called again, under the same key.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import structlog

from controlplane.authorization.values import Decision, PolicyUnavailable
from controlplane.ids import new_id
from controlplane.inference.values import ModelAnswer, ModelCall, ModelFailed, Models
from controlplane.placement.dispatcher import denial, park
from controlplane.runs.agent_calls import turn_call
from controlplane.runs.agent_tools import calls_of, granted
from controlplane.runs.agent_turns import agent_of, is_turn
from controlplane.runs.controller import Controller, decision_write
from controlplane.runs.journal import JournalFailed
from controlplane.runs.model_calls import failure, model_call
from controlplane.runs.state import RunState, StepState, error_value
from controlplane.runs.transitions import Machine
from controlplane.runs.work import WorkRefused
from controlplane.store import Write
from controlplane.tools.registry import Tool, ToolRegistry
from controlplane.workflows.spec import Agent

log = structlog.get_logger(__name__)
CALLS_MOST = 64
"""Calls of models at one time; more steps wait in line."""


class ModelSteps:
    """One per control plane; ``run`` is its loop. Every call is a task of it and ends with it."""

    def __init__(self, controller: Controller, models: Models, tools: ToolRegistry) -> None:
        self._controller = controller
        self._tools = tools
        self._models = models
        self._slots = asyncio.Semaphore(CALLS_MOST)
        self._calls: dict[str, asyncio.Task[None]] = {}
        controller.abort = self._abort

    async def run(self) -> None:
        """Call models for ever."""
        controller = self._controller
        async with asyncio.TaskGroup() as group:
            while True:
                await controller.model_event.wait()
                controller.model_event.clear()
                ready, controller.model_ready = controller.model_ready, []
                for run, step in ready:
                    group.create_task(self._step(run, step))

    async def _step(self, run: RunState, step: StepState) -> None:
        async with self._slots:
            try:
                await self._perform(run, step)
            except JournalFailed:
                return  # the run is taken from the database again, and this step with it
            except Exception as defect:  # of ours: it must cost this step only
                log.exception("a model could not be called", run=run.id, path=step.path)
                self._fail(run, step, error_value("model", f"the control plane could not call it: {defect!r}"[:500]))

    async def _perform(self, run: RunState, step: StepState) -> None:
        if not _open(run, step):
            return
        try:
            call = self._prepare(run, step)
            decision = await self._models.decide(call)
        except WorkRefused as refused:
            self._fail(run, step, refused.error)
            return
        except PolicyUnavailable as unavailable:
            if _open(run, step):
                park(self._controller, run, step, unavailable)
            return
        except ModelFailed as failed:
            self._fail(run, step, failure(failed))
            return
        if not _open(run, step):
            return
        writes = _log(run, step, decision)
        if not decision.allow:
            self._controller.apply(run, lambda machine: machine.fail(step, denial(decision)), writes=writes)
            return
        await self._call(run, step, call, decision, writes)

    def _prepare(self, run: RunState, step: StepState) -> ModelCall:
        now_ns = time.time_ns()
        if is_turn(step):
            return turn_call(run, step, self._offered(run, step)[1], now_ns)
        return model_call(run, step, now_ns)

    def _offered(self, run: RunState, step: StepState) -> tuple[Agent, list[Tool]]:
        """What the agent of this turn may use."""
        agent = agent_of(step.spec)
        pinned = self._controller.pinned.get(run.id, {})
        return agent, granted(agent, self._tools, run.tenant, pinned)

    async def _call(
        self, run: RunState, step: StepState, call: ModelCall, decision: Decision, writes: list[Write]
    ) -> None:
        controller = self._controller
        attempt, fence = new_id("att"), step.fence + 1
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine of one
        controller.attempts[attempt] = (run, step)
        self._calls[attempt] = task
        try:
            begin = partial(_calling, step, attempt, decision)
            await controller.applied(run, begin, writes)
            answer = await self._answer(call)
        except asyncio.CancelledError:
            if controller.current(attempt, fence) is None or not step.cancelling:
                raise
            answer = ModelFailed("cancelled", str(step.detail.get("cancelling", "cancelled")))
        finally:
            del self._calls[attempt]
        if controller.current(attempt, fence) is None:
            return
        calls: list[dict[str, Any]] = []
        if is_turn(step) and isinstance(answer, ModelAnswer):
            try:
                calls = calls_of(answer.message, *self._offered(run, step))
            except (RecursionError, TypeError, ValueError) as error:
                answer = ModelFailed("model", f"its answer cannot be read: {error}"[:500])
        del controller.attempts[attempt]

        def ended(machine: Machine) -> None:
            if isinstance(answer, ModelFailed):
                machine.fail(step, failure(answer))
            elif step.cancelling:
                machine.fail(step, error_value("cancelled", "the answer came after the step was cancelled"))
            elif is_turn(step):
                machine.turn_answered(step, answer, calls)
            else:
                machine.answered(step, answer)

        controller.apply(run, ended)

    async def _answer(self, call: ModelCall) -> ModelAnswer | ModelFailed:
        try:
            async with asyncio.timeout(call.deadline_seconds):
                return await self._models.complete(call)
        except TimeoutError:
            message = f"the model did not answer within {call.deadline_seconds:g} s; raise the step's timeout"
            return ModelFailed("timeout", message, retryable=True)
        except ModelFailed as failed:
            return failed

    def _abort(self, attempt: str) -> None:
        task = self._calls.get(attempt)
        if task is not None:
            task.cancel()

    def _fail(self, run: RunState, step: StepState, error: dict[str, object]) -> None:
        if _open(run, step):
            self._controller.apply(run, lambda machine: machine.fail(step, error))


def _open(run: RunState, step: StepState) -> bool:
    """Whether the step still waits for its call."""
    return (
        run.parked is None
        and step.attempt is None
        and step.status in ("ready", "waiting")
        and not step.detail.get("resting")
    )


def _calling(step: StepState, attempt: str, decision: Decision, machine: Machine) -> None:
    machine.calling(step, attempt=attempt, decision=decision.id)


def _log(run: RunState, step: StepState, decision: Decision) -> list[Write]:
    run.decisions += 1
    run.denied += not decision.allow
    return [decision_write(run.tenant, decision, run.id, step.path, run.partition, time.time_ns())]
