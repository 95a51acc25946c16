"""The questions a run puts to policy: who asks and for what is filled in here, never by a node or a guest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from controlplane.authorization.values import EntryPoint, Question
from controlplane.runs.state import RunState
from controlplane.tools.registry import Tool
from controlplane.workflows.graph import Block, CompiledStep, CompiledWorkflow


def asker(
    *,
    tenant: str,
    principal: Mapping[str, Any],
    workflow: CompiledWorkflow,
    run: str | None,
    step: str | None,
    now_ns: int,
) -> dict[str, Any]:
    """The part every question has."""
    definition = workflow.definition
    return {
        "tenant": tenant,
        "subject": {"id": principal["id"], "kind": principal["kind"], "scopes": list(principal["scopes"])},
        "now_ns": now_ns,
        "run": run,
        "workflow": {"name": definition.name, "version": definition.version, "digest": workflow.digest},
        "step": step,
    }


def _of_run(run: RunState, step: str, now_ns: int) -> dict[str, Any]:
    return asker(
        tenant=run.tenant, principal=run.principal, workflow=run.workflow, run=run.id, step=step, now_ns=now_ns
    )


def walk(block: Block) -> Iterable[CompiledStep]:
    """Every step of a definition, outer before inner."""
    for step in block.steps:
        yield step
        for below in (step.body, step.otherwise):
            if below is not None:
                yield from walk(below)


def admission(
    tenant: str, principal: Mapping[str, Any], workflow: CompiledWorkflow, run: str | None, now_ns: int
) -> Question:
    """``runtime.workflow``: may this definition run at all?"""
    steps = list(walk(workflow.root))
    agents = [step for step in steps if step.spec.agent is not None and step.spec.agent.code]
    tiers = {step.sandbox.tier for step in (*agents, *steps) if step.verb in ("code", "agent")}
    most = {
        "cpu": max((step.resources.cpu_milli / 1000 for step in steps), default=0),
        "memory_bytes": max((step.resources.memory_bytes or 0 for step in steps), default=0),
        "gpu": max((step.resources.gpu for step in steps), default=0),
        "gpu_memory_bytes": max((step.resources.gpu_memory_bytes or 0 for step in steps), default=0),
    }
    definition = {
        "verbs": sorted({step.verb.value for step in steps}),
        "tools": sorted(workflow.uses_tools),
        "secrets": sorted(workflow.uses_secrets),
        "tiers": sorted(tiers),
        "data": sorted(workflow.literal_data_uris),
        "steps": len(steps),
        "resources": most,
    }
    who = asker(tenant=tenant, principal=principal, workflow=workflow, run=run, step=None, now_ns=now_ns)
    return Question(entry=EntryPoint.WORKFLOW, input={**who, "definition": definition})


def data_question(run: RunState, step: str, uri: str, purpose: str, now_ns: int) -> Question:
    """``runtime.data``: may this resolved address be mounted?"""
    who = _of_run(run, step, now_ns)
    return Question(
        entry=EntryPoint.DATA, input={**who, "uri": uri, "data_name": urlsplit(uri).netloc, "purpose": purpose}
    )


def network_questions(run: RunState, step: str, hosts: Iterable[tuple[str, int]], now_ns: int) -> list[Question]:
    """``runtime.egress`` for each host and port that code asks to reach by itself: no tool stands between."""
    who = _of_run(run, step, now_ns)
    wanted = list(hosts)
    declared = sorted({host for host, _port in wanted})
    return [
        Question(
            entry=EntryPoint.EGRESS,
            input={
                **who,
                "destination": {"scheme": "any", "host": host, "port": port, "method": "*", "path": "*"},
                "tool": None,
                "declared_hosts": declared,
            },
        )
        for host, port in wanted
    ]


def _critical(tool: Tool, args: Mapping[str, Any]) -> list[str]:
    """Arguments that untrusted content may not decide: those the tool names, or all of one that has an effect."""
    return sorted(args if tool.critical_args is None else tool.critical_args)


def tool_questions(
    run: RunState,
    step: str,
    tool: Tool,
    args: Mapping[str, Any],
    *,
    labels: Mapping[str, Any],
    granted: Iterable[str],
    via: str,
    tier: str | None,
    secrets: Iterable[str],
    destination: Mapping[str, Any] | None,
    attaches: Iterable[str],
    roots: Iterable[str],
    asks_as: str,
    now_ns: int,
) -> list[Question]:
    """``runtime.tool``; for one with a destination ``runtime.egress``, and ``runtime.secret`` for each it ``attaches``.

    ``roots`` are data roots that its MCP server mounts: ``runtime.data`` for each. ``asks_as`` names the tool to egress
    and secret rules.
    """
    who = _of_run(run, step, now_ns)
    named = sorted(secrets)
    described = {
        "name": tool.name,
        "server": tool.name.partition(".")[0],
        "kind": tool.kind,
        "digest": tool.digest,
        "effect": tool.effect,
        "critical_args": _critical(tool, args),
    }
    question = {
        **who,
        "tool": described,
        "args": {name: {"value": value, "labels": dict(labels)} for name, value in args.items()},
        "granted": sorted(granted),
        "via": via,
        "sandbox": None if tier is None else {"tier": tier},
        "secrets": named,
    }
    questions = [Question(entry=EntryPoint.TOOL, input=question)]
    if destination is not None:
        there = dict(destination)
        hosts = {"declared_hosts": [there["host"]]}
        questions.append(
            Question(entry=EntryPoint.EGRESS, input={**who, "destination": there, "tool": asks_as, **hosts})
        )
        questions += [
            Question(
                entry=EntryPoint.SECRET,
                input={
                    **who,
                    "secret": secret,
                    "tool": asks_as,
                    "destination": there,
                    "step_secrets": named,
                },
            )
            for secret in attaches
        ]
    return [*questions, *(data_question(run, step, f"data://{root}", "mount", now_ns) for root in roots)]
