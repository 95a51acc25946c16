"""One expression bound to the names of its place: undefined names are found here, with line and caret.

Plain paths (``input.logs[0]``, ``steps.plan.output.code``) are most of what people write; they are followed in
Python, without copying data into CEL, with CEL's meaning. Everything else is a CEL program over flat variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.workflows.cel import FUNCTIONS, CelFailed, CelRejected, Program, compile_cel, slot_name
from controlplane.workflows.problem_values import Problem, caret, did_you_mean
from controlplane.workflows.scope import RUN_FIELDS, STEP_FIELDS, Names, Scope
from controlplane.workflows.tokens import NameUse, Survey, Token, plain_path, survey

MAX_EXPRESSION_BYTES = 4096
MAX_MACRO_DEPTH = 2

_RESERVED_LOCALS = frozenset({"input", "steps", "run", "index", "last"})


@dataclass(frozen=True, slots=True)
class Binding:
    """An expression ready to evaluate: a plain path, or a program and what it reads.

    ``reads`` has for each variable its name to CEL and the members it needs of it (``None``: all).
    """

    variables: frozenset[str]
    returns: str
    variable: str = ""
    path: tuple[str | int, ...] = ()
    program: Program | None = None
    reads: tuple[tuple[str, str, frozenset[str] | None], ...] = ()

    def evaluate(self, scope: Scope) -> Any:
        """The JSON value. Raises ``CelFailed`` or ``UnknownName``."""
        if self.program is None:
            return _follow(scope.lookup(self.variable), self.path)
        return self.program.evaluate({slot: _pruned(scope.lookup(name), members) for name, slot, members in self.reads})


class _Rejected(Exception):
    def __init__(self, message: str, hint: str, kind: str, offset: int) -> None:
        super().__init__(message)
        self.message, self.hint, self.kind, self.offset = message, hint, kind, offset


def bind(
    text: str,
    start: int,
    end: int,
    tokens: list[Token],
    pointer: str,
    names: Names,
    problems: list[Problem],
    source: bool,
) -> Binding | None:
    """Binds ``text[start:end]`` (whose ``tokens`` have offsets in ``text``), or adds a problem and returns ``None``."""
    try:
        return _bind(text[start:end], start, tokens, names)
    except _Rejected as rejected:
        line, column, excerpt = caret(text, rejected.offset)
        hint = rejected.hint
        if source:
            hint += "; if you mean source text and not an expression, put it in quotes or add a newline"
        problems.append(
            Problem(
                pointer=pointer,
                message=rejected.message,
                hint=hint,
                type=rejected.kind,
                line=line,
                column=column,
                excerpt=excerpt,
            )
        )
        return None


def _bind(expression: str, start: int, tokens: list[Token], names: Names) -> Binding:
    if not tokens:
        raise _Rejected("this expression is empty", "write an expression between ${ and }", "expression", start)
    if len(expression.encode("utf-8", "surrogatepass")) > MAX_EXPRESSION_BYTES:
        raise _Rejected("an expression may have at most 4 KiB", "compute it in a code step", "limit", start)
    surveyed = survey(tokens)
    _check_macros(surveyed, names, start)
    members: dict[str, frozenset[str] | None] = {}
    bound: list[tuple[NameUse, str, int]] = []
    for use in surveyed.uses:
        variable, length = _resolve(use, names)
        bound.append((use, variable, length))
        first = frozenset({use.parts[length]}) if len(use.parts) > length else None
        known = members.get(variable, frozenset())
        members[variable] = None if first is None or known is None else known | first
    variables = frozenset(members)
    path = plain_path(tokens)
    if path is not None and bound:
        _, variable, length = bound[0]
        return Binding(variables=variables, returns="DYN", variable=variable, path=path[length:])
    stepwise = [variable for variable in members if variable.startswith("steps.")]
    slots = {variable: slot_name(slot) for slot, variable in enumerate(stepwise)}
    plain = frozenset({"input", "run", "index", *names.items})
    try:
        program = compile_cel(_slotted(expression, start, bound, slots), plain, len(slots), surveyed.macro_depth)
    except CelRejected as rejected:
        offset = start + _offset(expression, rejected.line, rejected.column)
        raise _Rejected(rejected.message, _hint(rejected.message, names), "expression", offset) from None
    reads = tuple((variable, slots.get(variable, variable), wanted) for variable, wanted in members.items())
    return Binding(variables=variables, returns=program.returns, program=program, reads=reads)


def _slotted(expression: str, start: int, bound: list[tuple[NameUse, str, int]], slots: Mapping[str, str]) -> str:
    """The text with each ``steps.ID.field`` written as its slot, padded so that columns stay what they were."""
    pieces: list[str] = []
    position = 0
    for use, variable, length in bound:
        if variable in slots:
            begin, end = use.offset - start, use.ends[length - 1] - start
            rest = expression[begin + len(slots[variable]) : end]
            pieces += [expression[position:begin], slots[variable]]
            pieces.append("".join("\n" if character == "\n" else " " for character in rest))
            position = end
    return "".join(pieces) + expression[position:]


def _check_macros(surveyed: Survey, names: Names, start: int) -> None:
    if surveyed.macro_depth > MAX_MACRO_DEPTH:
        raise _Rejected(
            f"map, filter, all and exists may nest at most {MAX_MACRO_DEPTH} deep",
            "use a map step or compute it in a code step", "limit", start,
        )  # fmt: skip
    for variable in surveyed.macro_variables:
        if variable.text in _RESERVED_LOCALS or variable.text in names.items or variable.text.startswith("_"):
            raise _Rejected(
                f"the macro's variable {variable.text!r} may not hide a name or start with _",
                "call it x",
                "expression",
                variable.offset,
            )


def _resolve(use: NameUse, names: Names) -> tuple[str, int]:
    """The flat variable of a name, and how many of its parts it takes."""
    root = use.parts[0]
    if root == "steps":
        return _resolve_step(use, names)
    if root == "last":
        raise _Rejected("'last' belongs to loop, which is not there yet", "use a map step", "not_yet", use.offset)
    if root == "run":
        if len(use.parts) < 2 or use.parts[1] not in RUN_FIELDS:
            wrong = use.parts[1] if len(use.parts) > 1 else ""
            hint = f"{did_you_mean(wrong, RUN_FIELDS)}run has {', '.join(RUN_FIELDS)}"
            raise _Rejected(
                f"run has no {wrong!r}" if wrong else "run is not a value", hint, "undefined_name", use.offset
            )
        return "run", 1
    if root == "input" or root in names.items or (root == "index" and names.items):
        return root, 1
    if root in ("item", "index"):
        hint = f"inside this map the element is {names.items[-1]!r}" if names.items else "only a map's body has it"
        raise _Rejected(f"{root!r} is not defined here", hint, "undefined_name", use.offset)
    if root in names.steps:
        hint = f"write steps.{root}.output"
    else:
        hint = f"{did_you_mean(root, names.roots())}names here: {', '.join(names.roots())}"
    raise _Rejected(f"{root!r} is not defined", hint, "undefined_name", use.offset)


def _resolve_step(use: NameUse, names: Names) -> tuple[str, int]:
    if use.indexed:
        raise _Rejected(
            "steps[…] is refused: which step is read must be known before anything runs",
            "write steps.ID.output", "expression", use.offset,
        )  # fmt: skip
    if len(use.parts) == 1:
        raise _Rejected("steps is not a value", "write steps.ID.output", "expression", use.offset)
    identifier = use.parts[1]
    if identifier not in names.steps:
        if identifier in names.hidden:
            raise _Rejected(
                f"step {identifier!r} is not visible here: {names.hidden[identifier]}",
                "a step sees earlier siblings (in a list with needs: what it needs) and those of its parents",
                "undefined_name",
                use.offset,
            )
        seen = (
            f"steps visible here: {', '.join(sorted(names.steps)[:20])}" if names.steps else "no step is visible here"
        )
        hint = did_you_mean(identifier, [*names.steps, *names.hidden]) + seen
        raise _Rejected(f"there is no step {identifier!r}", hint, "undefined_name", use.offset)
    member = use.parts[2] if len(use.parts) > 2 else ""
    if member not in STEP_FIELDS:
        hint = f"{did_you_mean(member, STEP_FIELDS)}a step has output, error and status"
        if member:
            hint += f"; did you mean steps.{identifier}.output.{member}?"
        message = f"a step has no {member!r}" if member else f"steps.{identifier} is not a value"
        raise _Rejected(message, hint, "undefined_name", use.offset)
    return f"steps.{identifier}.{member}", 3


def _hint(message: str, names: Names) -> str:
    if message.startswith("undeclared reference to"):
        name = message.split("'")[1]
        known = [*FUNCTIONS, *names.roots()]
        return f"{did_you_mean(name, known)}functions are those of CEL's standard library"
    if "no matching overload" in message:
        return "CEL does not mix types: convert with string(…), int(…) or double(…)"
    return "see the CEL language: strings in quotes, && || ! for logic, ? : for choice"


def _offset(text: str, line: int, column: int) -> int:
    position = 0
    for _ in range(line - 1):
        position = text.find("\n", position) + 1
    return min(position + column - 1, max(0, len(text) - 1)) if text else 0


def _pruned(value: Any, members: frozenset[str] | None) -> Any:
    if members is None or not isinstance(value, dict):
        return value
    return {member: value[member] for member in members if member in value}


def _follow(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        if isinstance(value, dict):
            if not isinstance(step, str) or step not in value:
                raise CelFailed(f"Key not found in map : {step!r}")
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int):
            if step >= len(value):
                raise CelFailed(f"Index error: index={step} size={len(value)}")
            value = value[step]
        else:
            what = "null (the output of a skipped step is null)" if value is None else f"a {type(value).__name__}"
            raise CelFailed(f"member {step!r} is read from {what}")
    return value
