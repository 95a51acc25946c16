"""What a node says of an attempt, judged: the guest's failure, the platform's, or a stale word.

Everything in a report is hostile input except the attempt and fence it came with. Text in it is shown, never believed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from controlplane.nodes.inventory import Inventory
from controlplane.runs import calls, labels
from controlplane.runs.controller import Controller
from controlplane.runs.state import RunState, StepState, error_value
from controlplane.runs.transitions import Machine
from controlplane.store import Write, canonical
from controlplane.tools.mcp_calls import LISTING
from controlplane.tools.registry import ToolRegistry, check_output
from dataplane.protocol import Ack, Report

RESULT_MOST = 16 * 1024 * 1024
TAIL_MOST = 4096
TEXT_MOST = 2000
PLATFORM_DELAY_MOST = 30.0
PLATFORM_FAILURES_MOST = 30
"""A quarter of an hour of attempts: what fails that often will not mend itself."""
_SOURCE_LINE = re.compile(r'File "step\.py", line (\d{1,6})')
_REASON = re.compile(r"[a-z_]{1,64}\Z")
TOOL_ERRORS = frozenset({"tool", "timeout", "rate_limited", "schema"})
Answer = Callable[[Ack], None]


def take(controller: Controller, tools: ToolRegistry, node_id: str, report: Report, answer: Answer) -> None:
    """Apply one report; ``answer`` is called when it is durable, or found stale."""
    if controller.is_parked(report.attempt):
        answer(Ack(ok=False, message="not stored, send it again"))
        return
    found = controller.current(report.attempt, report.fence)
    if found is not None and found[1].node == node_id and report.platform_error is None and not found[1].cancelling:
        _measure(controller.inventory, found[1], node_id, report)
    controller.inventory.release(node_id, report.attempt)
    if found is None or found[1].node != node_id:
        answer(Ack(ok=False, stale=True, message="the fence is not current"))
        return
    run, step = found
    writes: list[Write] = []

    def act(machine: Machine) -> None:
        step.report = _shown(report)
        if report.platform_error is not None:
            platform_failed(machine, step, report)
        elif step.cancelling:
            machine.fail(step, error_value("cancelled", step.detail.get("cancelling", "cancelled")))
        elif step.spec.verb == "tool":
            _tool(machine, run, step, tools, report, writes)
        else:
            _code(machine, step, report)
        machine.more.extend(writes)

    def done(error: BaseException | None) -> None:
        answer(Ack(ok=error is None, message="" if error is None else "not stored, send it again"))

    controller.attempts.pop(report.attempt, None)
    controller.apply(run, act, done=done)


def _measure(inventory: Inventory, step: StepState, node_id: str, report: Report) -> None:
    inventory.ended(node_id, report.attempt, report.cached)
    if report.start_seconds is not None and step.tier is not None:
        inventory.starts.record(node_id, step.tier, step.spec.sandbox.image, report.start_seconds)


def platform_failed(machine: Machine, step: StepState, report: Report) -> None:
    """The platform, not the guest, failed this attempt: try again after a while, and not for ever."""
    kind = "node_lost" if report.platform_error == "lost" else str(report.platform_error)[:64]
    failures = int(step.detail.get("platform_failures", 0)) + 1
    step.detail["platform_failures"] = failures
    if failures >= PLATFORM_FAILURES_MOST and not step.cancelling:
        message = f"the platform failed {failures} attempts, the last: {report.message[:TEXT_MOST]}"
        machine.fail(step, error_value("node_lost", message), guest=False)
        return
    machine.lost(step, kind, report.message[:TEXT_MOST])
    if step.status == "ready":
        machine.delay(step, min(PLATFORM_DELAY_MOST, 0.25 * 2.0 ** min(failures, 8)))


def _tool(
    machine: Machine, run: RunState, step: StepState, tools: ToolRegistry, report: Report, writes: list[Write]
) -> None:
    state = next((one for one in step.calls.values() if one.attempt == report.attempt), None)
    name = step.spec.spec.tool or ""
    error = tool_error(report.error) if report.error is not None else None
    tool = tools.get(run.tenant, name)
    if error is None and tool is not None:
        problems = check_output(tool, report.result)
        if problems:
            message = f"{name} answered with something else than it declares: {problems[0].message}"
            error = error_value("schema", message)
    if error is None and name == LISTING and state is not None:
        try:
            writes += tools.servers.listed(run.tenant, json.loads(state.args)["server"], report.result)
        except ValueError as wrong:
            error = error_value("schema", str(wrong))
    if state is not None:
        writes.append(calls.recorded(run, step, state, error is None, report.result if error is None else error))
    step.labels = labels.of_step(step)
    step.labels = labels.join(step.labels, labels.of_result(tool))
    if error is None:
        machine.complete(step, report.result)
    else:
        machine.fail(step, error)


def _code(machine: Machine, step: StepState, report: Report) -> None:
    error = _code_error(report)
    step.labels = labels.join(labels.of_step(step), step.labels)
    if error is None:
        machine.complete(step, report.result if report.has_result else None)
    else:
        machine.fail(step, error)


def _code_error(report: Report) -> dict[str, Any] | None:
    message = report.message[:TEXT_MOST]
    if report.reason == "exited" and report.code == 0:
        if report.schema_error is not None:
            return error_value("schema", f"the result is not strict JSON: {report.schema_error[:TEXT_MOST]}")
        if report.has_result and len(canonical(report.result)) > RESULT_MOST:
            return error_value("schema", "the result is larger than 16 MiB")
        return None
    if report.reason == "exited":
        last = report.stderr_tail.strip().splitlines()[-1:] or [""]
        said = f": {last[0][:300]}" if last[0] else ""
        if lines := _SOURCE_LINE.findall(report.stderr_tail):
            said += f" (line {lines[-1]} of its source)"
        return error_value("sandbox_exit", f"exited with code {report.code}{said}")
    if report.reason == "input":
        return error_value("schema", message or "an input is not there")
    if report.reason in ("timeout", "fuel"):
        return error_value("timeout", message or f"stopped at its limit ({report.reason})", retryable=True)
    if report.reason == "oom":
        return error_value("sandbox_oom", message or "ran out of memory; raise sandbox.memory")
    return error_value("sandbox_exit", message or f"ended by {report.reason}")


def tool_error(error: dict[str, Any]) -> dict[str, Any]:
    """A tool's error as a step's: only known types, bounded text."""
    kind = str(error.get("type", "tool"))
    message = str(error.get("message", "the tool failed"))[:TEXT_MOST]
    value = error_value(kind if kind in TOOL_ERRORS else "tool", message, retryable=bool(error.get("retryable")))
    if isinstance(error.get("status"), int):
        value["status"] = error["status"]
    if isinstance(error.get("reason"), str) and _REASON.match(error["reason"]):
        value["reason"] = error["reason"]
    return value


def _shown(report: Report) -> dict[str, Any]:
    return {
        "code": report.code,
        "reason": report.reason[:64],
        "stdout_tail": report.stdout_tail[-TAIL_MOST:],
        "stderr_tail": report.stderr_tail[-TAIL_MOST:],
        "stdout_bytes": report.stdout_bytes,
        "stderr_bytes": report.stderr_bytes,
        "output_truncated": report.output_truncated,
        "artifacts": [
            {
                "id": one.id,
                "name": one.name[:255],
                "digest": one.digest,
                "size_bytes": one.size_bytes,
                "media_type": one.media_type[:128],
            }
            for one in report.artifacts[:1000]
        ],
        "wall_seconds": report.wall_seconds,
        "memory_peak_bytes": report.memory_peak_bytes,
    }
