"""Each verb's own rules and templates. The names of the templates, per verb:

code     source, args, inputs        approve  ask, show
tool     args                        wait     duration or until
llm      system, prompt or messages  map      over
agent    instructions, prompt, inputs
set      value                       parallel (none)
if       cond
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from controlplane.workflows.addresses import refuse_address, refuse_near
from controlplane.workflows.expressions import Template, compile_template
from controlplane.workflows.problem_values import Problem, child
from controlplane.workflows.quantities import parse_duration, parse_instant
from controlplane.workflows.scope import Names
from controlplane.workflows.spec import WORK, Step, Verb

_RETRIED = WORK | {Verb.AGENT}
_ON_NODES = frozenset({Verb.CODE, Verb.TOOL})
_APPLIES: Mapping[str, frozenset[Verb]] = {
    "args": frozenset({Verb.TOOL}),
    "do": frozenset({Verb.IF, Verb.MAP, Verb.PARALLEL}),
    "else_": frozenset({Verb.IF}),
    "retry": _RETRIED,
    "timeout": _RETRIED,
    "near": _ON_NODES,
    "resources": _ON_NODES,
    "secrets": _ON_NODES | {Verb.AGENT},
    "key": _ON_NODES,
    "sandbox": frozenset({Verb.CODE, Verb.AGENT}),
}


def aliased(name: str) -> str:
    """The document's key of a model's field."""
    return name.removesuffix("_")


def verb_of(step: Step, pointer: str, problems: list[Problem]) -> Verb | None:
    """The step's one verb; none or several are a problem."""
    given = [verb for verb in Verb if (verb if verb != Verb.IF else "if_") in step.model_fields_set]
    if len(given) == 1:
        verb = given[0]
        if verb is not Verb.SET and getattr(step, "if_" if verb is Verb.IF else verb.value) is None:
            problems.append(
                Problem(
                    pointer=child(pointer, verb),
                    message=f"{verb.value!r} is null",
                    type="schema",
                    hint="say what to do, or leave the step out",
                )
            )
            return None
        return verb
    if not given:
        message, hint = "a step has exactly one verb; this one has none", f"add one of {', '.join(Verb)}"
    else:
        message = f"a step has exactly one verb; this one has {' and '.join(given)}"
        hint = "split it into steps, in order"
    problems.append(Problem(pointer=pointer, message=message, hint=hint, type="schema"))
    return None


def check_modifiers(step: Step, verb: Verb, pointer: str, problems: list[Problem]) -> None:
    """Members that this verb does not have."""
    for name, verbs in _APPLIES.items():
        if name in step.model_fields_set and verb not in verbs:
            inside = "; put it on the steps in `do`" if verb in _APPLIES["do"] and Verb.CODE in verbs else ""
            problems.append(
                Problem(
                    pointer=child(pointer, aliased(name)),
                    message=f"{aliased(name)!r} does not apply to {verb.value!r}",
                    hint=f"only {', '.join(sorted(verbs))} have it{inside}",
                    type="schema",
                )
            )
    if verb in _APPLIES["do"] and step.do is None:
        problems.append(
            Problem(pointer=pointer, message=f"{verb.value!r} needs 'do'", hint="add a list of steps", type="schema")
        )


class Fields:
    """Compiles the templates of one step."""

    def __init__(self, step: Step, pointer: str, names: Names, problems: list[Problem]) -> None:
        self.step, self.pointer, self.names, self.problems = step, pointer, names, problems

    def compile(self, verb: Verb) -> dict[str, Template]:
        """The verb's templates by name."""
        compilers: dict[Verb, Callable[[], dict[str, Template]]] = {
            Verb.CODE: self._code, Verb.MAP: self._map, Verb.APPROVE: self._approve, Verb.WAIT: self._wait,
            Verb.LLM: self._llm, Verb.AGENT: self._agent,
            Verb.TOOL: lambda: {"args": self.template(self.step.args or {}, "args")},
            Verb.SET: lambda: {"value": self.template(self.step.set, "set")},
            Verb.IF: lambda: {"cond": self.condition(self.step.if_, "if")},
            Verb.PARALLEL: dict,
        }  # fmt: skip
        return compilers[verb]()

    def template(self, value: Any, *path: str | int, source: bool = False) -> Template:
        """A template at ``path`` beneath the step."""
        return compile_template(
            value, pointer=child(self.pointer, *path), names=self.names, problems=self.problems, source=source
        )

    def condition(self, value: str | bool | None, *path: str) -> Template:
        """A template that must give a boolean: one whole ``${…}`` (or true, false)."""
        if value is None:
            self.problem("must be a condition", "write one whole ${…} that gives true or false", *path)
        template = self.template(value, *path)
        whole = isinstance(value, bool) or (isinstance(value, str) and value.startswith("${") and _is_whole(template))
        if not self._known_bad(*path) and value is not None and (not whole or template.returns not in ("BOOL", "DYN")):
            self.problem("must be a condition", "write one whole ${…} that gives true or false", *path)
        return template

    def address(self, value: str, *path: str | int) -> Template:
        """A template that must give an address of data; a literal is checked now."""
        template = self.template(value, *path)
        near = path[0] == "near"
        refused = None
        if template.is_literal and not self._known_bad(*path) and not (near and value in self.names.steps):
            refused = refuse_near(value) if near else refuse_address(value)
        if refused:
            self.problem(*refused, *path, kind="address")
        elif not template.is_literal and value.lower().startswith(("file:", "/")):
            self.problem(*(refuse_address("file://") or ("", "")), *path, kind="address")
        return template

    def problem(self, message: str, hint: str, *path: str | int, kind: str = "schema") -> None:
        """Adds a problem at ``path`` beneath the step."""
        self.problems.append(Problem(pointer=child(self.pointer, *path), message=message, hint=hint, type=kind))

    def _known_bad(self, *path: str | int) -> bool:
        pointer = child(self.pointer, *path)
        return any(problem.pointer == pointer for problem in self.problems)

    def _code(self) -> dict[str, Template]:
        code = self.step.code
        languages = [name for name in ("python", "shell") if code is not None and getattr(code, name) is not None]
        if code is None or len(languages) != 1:
            found = " and ".join(languages) or "none"
            self.problem(f"code has exactly one language; this has {found}", "write python or shell", "code")
            return {}
        language = languages[0]
        if language == "shell" and (code.call is not None or code.args is not None):
            self.problem("call and args belong to python", "pass values to shell as inputs or in files", "code")
        if code.args is not None and code.call is None:
            self.problem("args without call", "name the function with call", "code", "args")
        return {
            "source": self.template(getattr(code, language), "code", language, source=True),
            "args": self.template(code.args or [], "code", "args"),
            "inputs": self._inputs(Verb.CODE, code.inputs or {}),
        }

    def _inputs(self, verb: Verb, inputs: Mapping[str, str]) -> Template:
        for name, value in inputs.items():
            self.address(value, verb, "inputs", name)
        return compile_template(
            dict(inputs), pointer=child(self.pointer, verb, "inputs"), names=self.names, problems=[]
        )

    def _llm(self) -> dict[str, Template]:
        llm = self.step.llm
        if llm is None or (llm.prompt is None) == (llm.messages is None):
            self.problem("llm has exactly one of prompt and messages", 'write {"prompt": "…"}', "llm")
            return {}
        if llm.messages is None:
            texts = {"system": llm.system, "prompt": llm.prompt}
            return {name: self.template(text, "llm", name) for name, text in texts.items() if text is not None}
        if llm.system is not None:
            self.problem("system goes with prompt", "make it the first of messages", "llm", "system")
        given = llm.messages
        plain: Any = given if isinstance(given, str) else [one.model_dump(mode="json") for one in given]
        template = self.template(plain, "llm", "messages")
        if isinstance(plain, str) and not _is_whole(template) and not self._known_bad("llm", "messages"):
            self.problem("messages must be a list", "write a list or one whole ${…} that gives one", "llm", "messages")
        return {"messages": template}

    def _agent(self) -> dict[str, Template]:
        agent = self.step.agent
        if agent is None:
            return {}
        if agent.inputs is not None and not agent.code:
            self.problem("inputs are for the code of an agent", "add code: true", "agent", "inputs")
        if self.step.sandbox is not None and not agent.code:
            self.problem("a sandbox is for the code of an agent", "add code: true under agent", "sandbox")
        templates = {"prompt": self.template(agent.prompt, "agent", "prompt")}
        if agent.instructions is not None:
            templates["instructions"] = self.template(agent.instructions, "agent", "instructions")
        if agent.inputs is not None:
            templates["inputs"] = self._inputs(Verb.AGENT, agent.inputs)
        return templates

    def _map(self) -> dict[str, Template]:
        over = self.step.map.over if self.step.map is not None else None
        template = self.template(over, "map", "over")
        whole = isinstance(over, list) or _is_whole(template)
        if not self._known_bad("map", "over") and (not whole or template.returns not in ("LIST", "DYN")):
            self.problem("over must give a list", "write a list or one whole ${…} that gives one", "map", "over")
        return {"over": template}

    def _approve(self) -> dict[str, Template]:
        approve = self.step.approve
        if approve is None:
            self.problem("approve needs an object", 'write {"ask": "…"}', "approve")
            return {}
        return {
            "ask": self.template(approve.ask, "approve", "ask"),
            "show": self.template(approve.show or {}, "approve", "show"),
        }

    def _wait(self) -> dict[str, Template]:
        wait = self.step.wait
        if wait is None or (wait.duration is None) == (wait.until is None):
            self.problem("wait has exactly one of duration and until", 'write "wait": "30s"', "wait")
            return {}
        name = "until" if wait.duration is None else "duration"
        value = wait.until if wait.duration is None else wait.duration
        template = self.template(value, "wait", name)
        if template.is_literal and not self._known_bad("wait", name):
            try:
                parse_instant(str(value)) if name == "until" else parse_duration(value)
            except ValueError as error:
                self.problem(str(error), "write a duration such as '30s'" if name == "duration" else
                             "write an instant such as '2027-01-31T08:00:00Z'", "wait", name)  # fmt: skip
        return {name: template}


def _is_whole(template: Template) -> bool:
    return not template.is_literal and template.returns != "STRING"
