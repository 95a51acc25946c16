"""``compile_workflow``: everything that can be known of a workflow before it runs, in one pure pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema_rs
from pydantic import ValidationError

from controlplane.tools.schema_cost import SchemaTooCostly, check_cost
from controlplane.tools.schemas import Schema, SchemaInvalid
from controlplane.workflows.canonical import digest
from controlplane.workflows.compiled import (
    Block,
    CompiledStep,
    CompiledWorkflow,
    Resources,
    Retry,
    SandboxRequest,
)
from controlplane.workflows.documents import MAX_JSON_DEPTH, check_values, parse_document
from controlplane.workflows.expressions import compile_template
from controlplane.workflows.fields import Fields, check_modifiers, verb_of
from controlplane.workflows.ordering import Ordering, order
from controlplane.workflows.problem_values import Problem, WorkflowInvalid, child
from controlplane.workflows.refusals import problems_of, schema_problems
from controlplane.workflows.scope import Names
from controlplane.workflows.settings import merged, models_of, resources_of, retry_of, sandbox_of
from controlplane.workflows.spec import Sampling, Step, Verb, Workflow

__all__ = [
    "Block",
    "CompiledStep",
    "CompiledWorkflow",
    "Resources",
    "Retry",
    "SandboxRequest",
    "compile_workflow",
    "parse_document",
]

MAX_STEPS = 1000
MAX_NESTING = 16
MAX_PROBLEMS = 100


def compile_workflow(document: Mapping[str, Any]) -> CompiledWorkflow:
    """The checked workflow of a parsed document (``parse_document``).

    Raises:
        WorkflowInvalid: with every problem found (at most 100). Shape comes first: expressions and references
            are looked at once the shape is right.
    """
    plain = dict(document)
    _refuse_bulk(plain)
    try:
        workflow = Workflow.model_validate(plain)
    except ValidationError as error:
        raise WorkflowInvalid(problems_of(error, plain)[:MAX_PROBLEMS]) from None
    compiler = _Compiler(workflow)
    root = compiler.block(workflow.steps, "/steps", Names(), {}, together=False)
    hidden = {identifier: "it is inside another step" for identifier in compiler.ids - root.by_id.keys()}
    names = Names(steps=frozenset(root.by_id), hidden=hidden)
    output = None
    if workflow.output is not None:
        output = compile_template(workflow.output, pointer="/output", names=names, problems=compiler.problems)
    validator = _input_validator(workflow.input, compiler.problems)
    if compiler.problems:
        raise WorkflowInvalid(compiler.problems[:MAX_PROBLEMS])
    return CompiledWorkflow(
        definition=workflow,
        digest=digest(plain),
        root=root,
        output=output,
        uses_tools=frozenset(compiler.tools),
        uses_secrets=frozenset(compiler.secrets),
        literal_data_uris=tuple(dict.fromkeys(_data_uris(plain))),
        names=names,
        input_validator=validator,
    )


class _Compiler:
    """One pass over the steps, collecting problems and what is used."""

    def __init__(self, workflow: Workflow) -> None:
        self.defaults = workflow.defaults
        self.problems: list[Problem] = []
        self.tools: set[str] = set()
        self.secrets: set[str] = set()
        self.ids: set[str] = set()

    def block(
        self,
        steps: Sequence[Step],
        pointer: str,
        outer: Names,
        taken: Mapping[str, str],
        *,
        together: bool,
        beside: Sequence[Step] = (),
    ) -> Block:
        """``taken`` are the ids of outer lists and where they are; ``beside`` the other branch of an ``if``."""
        self._check_ids(steps, pointer, taken, beside)
        ordering = order(steps, pointer, together=together, problems=self.problems)
        inner = {**taken, **{step.id: child(pointer, index) for index, step in enumerate(steps)}}
        hidden = {**outer.hidden, **dict.fromkeys((step.id for step in steps), ordering.why_hidden)}
        compiled: list[CompiledStep] = []
        for index, step in enumerate(steps):
            visible = ordering.before[index]
            names = Names(steps=outer.steps | visible, items=outer.items, hidden=hidden)
            one = self._step(step, child(pointer, index), names, inner, ordering, index, steps)
            if one is not None:
                compiled.append(one)
        return Block(steps=tuple(compiled), by_id={step.id: index for index, step in enumerate(compiled)})

    def _step(
        self,
        step: Step,
        pointer: str,
        names: Names,
        taken: Mapping[str, str],
        ordering: Ordering,
        index: int,
        siblings: Sequence[Step],
    ) -> CompiledStep | None:
        verb = verb_of(step, pointer, self.problems)
        if verb is None:
            return None
        check_modifiers(step, verb, pointer, self.problems)
        step = merged(step, verb, self.defaults)
        fields = Fields(step, pointer, names, self.problems)
        self._use(step)
        sandbox = sandbox_of(step)
        if step.code is not None and step.code.shell is not None and sandbox.tier == "wasm":
            fields.problem(
                "wasm has no shell", "use the tier jail, container or auto, or write python", "sandbox", "tier"
            )
        if sandbox.network and sandbox.tier == "wasm":
            fields.problem("wasm has no sockets", "use the tier jail, container or auto", "sandbox", "tier")
        body, otherwise = self._children(step, verb, pointer, names, taken)
        near = [step.near] if isinstance(step.near, str) else step.near or []
        return CompiledStep(
            id=step.id,
            verb=verb,
            spec=step,
            pointer=pointer,
            needs=ordering.needs[index],
            when=fields.condition(step.when, "when") if step.when is not None else None,
            key=fields.template(step.key, "key") if step.key is not None else None,
            near=tuple(
                fields.address(one, "near", *(() if isinstance(step.near, str) else (place,)))
                for place, one in enumerate(near)
            ),
            fields=fields.compile(verb),
            body=body,
            otherwise=otherwise,
            as_name=step.map.as_ if step.map is not None else None,
            # An agent's turns are tried again one by one, never the whole of it.
            retry=Retry() if verb is Verb.AGENT else retry_of(step),
            timeout_seconds=step.timeout,
            on_error=step.on_error,
            sandbox=sandbox,
            resources=resources_of(step, verb, sandbox, fields),
            gates=ordering.gates(index, siblings, fields) if verb is Verb.APPROVE else (),
            models=models_of(step.llm or step.agent, fields, verb),
            answer=self._answer(step.llm or step.agent, child(pointer, verb, "output")),
        )

    def _answer(self, given: Sampling | None, pointer: str) -> Schema | None:
        """The compiled schema of a model's answer."""
        if given is None or given.output is None:
            return None
        outside = schema_problems(given.output, pointer)
        self.problems.extend(outside)
        if outside:
            return None
        try:
            return Schema(given.output)
        except SchemaInvalid as invalid:
            hint = "output is a JSON Schema 2020-12; check it"
            self.problems.append(Problem(pointer=pointer, message=str(invalid), hint=hint, type="schema"))
            return None

    def _children(
        self, step: Step, verb: Verb, pointer: str, names: Names, taken: Mapping[str, str]
    ) -> tuple[Block | None, Block | None]:
        if verb not in (Verb.IF, Verb.MAP, Verb.PARALLEL):
            return None, None
        inside = names
        if step.map is not None:
            self._check_as(step.map.as_, child(pointer, "map", "as"), names)
            inside = Names(steps=names.steps, items=(*names.items, step.map.as_), hidden=names.hidden)
        body = otherwise = None
        together = verb is Verb.PARALLEL
        if step.do is not None:
            body = self.block(step.do, child(pointer, "do"), inside, taken, together=together)
        if step.else_ is not None:
            beside = step.do or ()
            otherwise = self.block(step.else_, child(pointer, "else"), inside, taken, together=False, beside=beside)
        return body, otherwise

    def _check_ids(self, steps: Sequence[Step], pointer: str, taken: Mapping[str, str], beside: Sequence[Step]) -> None:
        seen: dict[str, str] = {step.id: f"{pointer.removesuffix('/else')}/do" for step in beside}
        for index, step in enumerate(steps):
            where = child(pointer, index, "id")
            self.ids.add(step.id)
            if step.id in ("in", "true", "false", "null"):
                message, hint = f"{step.id!r} is a word of the expression language", "choose another id"
                self.problems.append(Problem(pointer=where, message=message, hint=hint, type="schema"))
            elif step.id in seen or step.id in taken:
                other = seen.get(step.id) or taken[step.id]
                message = f"the id {step.id!r} is already used at {other}"
                hint = "ids are unique among siblings (both branches of an if are siblings) and hide no outer id"
                self.problems.append(Problem(pointer=where, message=message, hint=hint, type="duplicate_id"))
            seen.setdefault(step.id, child(pointer, index))

    def _check_as(self, name: str, pointer: str, names: Names) -> None:
        reserved = ("input", "run", "steps", "index", "last", "in", "true", "false", "null")
        if name in names.items:
            message, hint = f"{name!r} is already the element of an outer map", "give this map another 'as'"
        elif name in reserved or name in _CEL_RESERVED:
            message, hint = f"{name!r} already means something in expressions", "choose another 'as'"
        else:
            return
        self.problems.append(Problem(pointer=pointer, message=message, hint=hint, type="duplicate_id"))

    def _use(self, step: Step) -> None:
        if step.tool is not None:
            self.tools.add(step.tool)
        for given in (step.code, step.agent):
            self.tools.update(given.tools or () if given is not None else ())
        self.secrets.update(step.secrets or ())


_CEL_RESERVED = frozenset(
    {"as", "break", "const", "continue", "else", "for", "function", "if", "import"}
    | {"let", "loop", "package", "namespace", "return", "var", "void", "while"}
)


def _refuse_bulk(document: dict[str, Any]) -> None:
    """Limits that must hold before anything recursive looks at the document, whoever parsed it."""
    problems: list[Problem] = []
    count = 0
    stack: list[tuple[Any, str, int, int]] = [(document, "", 1, 0)]
    while stack:
        value, pointer, depth, nesting = stack.pop()
        if depth > MAX_JSON_DEPTH:
            message = f"nested deeper than {MAX_JSON_DEPTH} levels"
            raise WorkflowInvalid([Problem(pointer=pointer, message=message, hint="flatten it", type="limit")])
        if isinstance(value, dict):
            for key, member in value.items():
                is_list = isinstance(member, list) and (key in ("do", "else") or (key == "steps" and depth == 1))
                count += len(member) if is_list else 0
                if is_list and nesting + 1 > MAX_NESTING:
                    message = f"steps nest deeper than {MAX_NESTING}"
                    hint = "split the workflow; fewer control steps inside one another"
                    raise WorkflowInvalid(
                        [Problem(pointer=child(pointer, key), message=message, hint=hint, type="limit")]
                    )
                stack.append((member, child(pointer, str(key)), depth + 1, nesting + is_list))
        elif isinstance(value, list):
            stack.extend((member, child(pointer, i), depth + 1, nesting) for i, member in enumerate(value))
    if count > MAX_STEPS:
        hint = "use a map step for repeated work, or split the workflow"
        problems.append(
            Problem(pointer="/steps", message=f"{count} steps; at most {MAX_STEPS}", hint=hint, type="limit")
        )
    problems.extend(check_values(document))
    if problems:
        raise WorkflowInvalid(problems[:MAX_PROBLEMS])


def _input_validator(schema: dict[str, Any] | None, problems: list[Problem]) -> Any:
    if schema is None:
        return None
    outside = schema_problems(schema, "/input")
    problems.extend(outside)
    if outside:
        return None
    try:
        validator = jsonschema_rs.validator_for(schema, pattern_options=jsonschema_rs.RegexOptions(), offline=True)
        check_cost(schema)
        return validator
    except SchemaTooCostly as error:
        problems.append(Problem(pointer=f"/input{error.pointer}", message=error.why, hint=error.fix, type="schema"))
        return None
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        path = getattr(error, "instance_path", [])
        message = f"the input schema is not valid: {getattr(error, 'message', error)!s:.300}"
        hint = "input is a JSON Schema 2020-12; check the member at this place"
        problems.append(Problem(pointer=child("/input", *path), message=message, hint=hint, type="schema"))
        return None


def _data_uris(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.startswith("data://") and "${" not in value else []
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [uri for member in members for uri in _data_uris(member)]
