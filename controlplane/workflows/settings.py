"""Defaults merged into a step, and the resolved values the engine and the scheduler use."""

from __future__ import annotations

from typing import TypeVar

from controlplane.workflows.compiled import Resources, Retry, SandboxRequest
from controlplane.workflows.fields import Fields
from controlplane.workflows.spec import WORK, Defaults, Model, Sampling, Step, Verb

CODE_CPU_MILLI = 500
"""What a code step reserves unless it says otherwise: half a core, so that two share one."""

_Settings = TypeVar("_Settings", bound=Model)


def merged(step: Step, verb: Verb, defaults: Defaults) -> Step:
    """The step with the workflow's defaults under its own modifiers. Control steps take none."""
    if verb not in (*WORK, Verb.AGENT):
        return step
    update: dict[str, object] = {"retry": _over(defaults.retry, step.retry)}
    # The time of an attempt; an agent's is that of all its turns together.
    if step.timeout is None and verb is not Verb.AGENT:
        update["timeout"] = defaults.timeout
    if verb in (Verb.CODE, Verb.TOOL):
        update["resources"] = _over(defaults.resources, step.resources)
    if step.llm is not None and step.llm.model is None:
        update["llm"] = step.llm.model_copy(update={"model": defaults.model})
    if step.agent is not None and step.agent.model is None:
        update["agent"] = step.agent.model_copy(update={"model": defaults.model})
    if verb is Verb.CODE or (step.agent is not None and step.agent.code):
        update["sandbox"] = _over(defaults.sandbox, step.sandbox)
    changed = {name: value for name, value in update.items() if value is not getattr(step, name)}
    return step.model_copy(update=changed) if changed else step


def _over(below: _Settings | None, above: _Settings | None) -> _Settings | None:
    """Member by member, what ``above`` says or else ``below``."""
    if below is None or above is None:
        return above if below is None else below
    return below.model_copy(update={name: getattr(above, name) for name in above.model_fields_set})


def retry_of(step: Step) -> Retry:
    """How often the step is tried again; never, unless it says so."""
    if step.retry is None:
        return Retry()
    low, high = step.retry.backoff
    on = Retry().on if step.retry.on is None else frozenset(step.retry.on)
    return Retry(max=step.retry.max, backoff_min_seconds=low, backoff_max_seconds=high, on=on)


def models_of(given: Sampling | None, fields: Fields, verb: Verb) -> tuple[str, ...]:
    """The models a step asks, the preferred first; naming none is a problem."""
    if given is None:
        return ()
    names = [given.model] if isinstance(given.model, str) else given.model or []
    if not names:
        hint = "name a deployment or an alias here, or for the whole workflow in defaults.model"
        fields.problem(f"{verb.value!r} names no model", hint, verb.value)
    return tuple(dict.fromkeys(names))


def sandbox_of(step: Step) -> SandboxRequest:
    """The walls, complete."""
    standard, given = SandboxRequest(), step.sandbox
    if given is None:
        return standard
    return SandboxRequest(
        tier=given.tier or standard.tier,
        image=given.image or standard.image,
        memory_bytes=given.memory or standard.memory_bytes,
        wall_seconds=given.wall or standard.wall_seconds,
        network=tuple(dict.fromkeys((one.host, port) for one in given.network or () for port in one.ports)),
    )


def resources_of(step: Step, verb: Verb, sandbox: SandboxRequest, fields: Fields) -> Resources:
    """What is reserved; a reservation smaller than the sandbox it is for is a problem."""
    code = verb is Verb.CODE
    given = step.resources
    floor = sandbox.memory_bytes if code else 0
    if given is None:
        return Resources(cpu_milli=CODE_CPU_MILLI if code else 0, memory_bytes=floor)
    if given.memory is not None and given.memory < floor:
        fields.problem(
            "reserves less memory than its sandbox may use", "raise resources.memory or lower sandbox.memory",
            "resources", "memory", kind="resources",
        )  # fmt: skip
    if given.gpu_memory is not None and not given.gpu:
        fields.problem("gpu_memory without a gpu", "add gpu: 1", "resources", "gpu_memory", kind="resources")
    return Resources(
        cpu_milli=(CODE_CPU_MILLI if code else 0) if given.cpu is None else round(given.cpu * 1000),
        memory_bytes=floor if given.memory is None else given.memory,
        gpu=given.gpu or 0,
        gpu_memory_bytes=given.gpu_memory or 0,
        labels=dict(given.labels or {}),
    )
