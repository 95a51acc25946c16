"""Templates: JSON with ``${…}`` in its strings, compiled once and rendered against a ``Scope``.

A string that is one whole ``${…}`` gives the expression's value with its type. Any other string is text: each
``${…}`` is replaced (a string as itself, the rest as canonical JSON) and ``$${`` stands for ``${``. Source text
(``source=True``) is an expression only if it is one whole ``${…}``; otherwise it is left exactly as written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from controlplane.workflows.bindings import Binding, bind
from controlplane.workflows.canonical import canonical_json
from controlplane.workflows.cel import CelFailed
from controlplane.workflows.problem_values import Problem, caret, child
from controlplane.workflows.scope import Names, Scope, UnknownName
from controlplane.workflows.tokens import scan

__all__ = ["ExpressionFailed", "Names", "Scope", "Template", "UnknownName", "compile_template", "literal"]

MAX_TEXT = 16 * 1024 * 1024


class ExpressionFailed(Exception):
    """An expression had no value. ``pointer`` is its place in the workflow document."""

    def __init__(self, message: str, pointer: str) -> None:
        super().__init__(f"{pointer}: {message}")
        self.message, self.pointer = message, pointer


class Template(ABC):
    """JSON that may hold expressions. Literals render as themselves, shared: never change what you get."""

    is_literal: bool = False
    variables: frozenset[str] = frozenset()
    """Flat names it reads: ``input``, ``run``, ``index``, a map's ``as`` name, ``steps.ID.output|error|status``."""
    returns: str = "DYN"
    """CEL's name of the type, ``DYN`` where only the data can tell."""

    @abstractmethod
    def render(self, scope: Scope) -> Any:
        """The JSON value. Raises ``ExpressionFailed``."""


class _Literal(Template):
    is_literal = True

    def __init__(self, value: Any) -> None:
        self.value = value

    def render(self, scope: Scope) -> Any:
        return self.value


class _Expression(Template):
    def __init__(self, binding: Binding, pointer: str) -> None:
        self.binding, self.pointer = binding, pointer
        self.variables, self.returns = binding.variables, binding.returns

    def render(self, scope: Scope) -> Any:
        try:
            return self.binding.evaluate(scope)
        except CelFailed as error:
            raise ExpressionFailed(str(error), self.pointer) from None
        except UnknownName as error:
            raise ExpressionFailed(f"{error} has no value yet", self.pointer) from None


class _Text(Template):
    returns = "STRING"

    def __init__(self, parts: list[str | _Expression], pointer: str) -> None:
        self.parts, self.pointer = parts, pointer
        self.variables = _union(part.variables for part in parts if isinstance(part, Template))

    def render(self, scope: Scope) -> str:
        pieces: list[str] = []
        length = 0
        for part in self.parts:
            value = part if isinstance(part, str) else part.render(scope)
            pieces.append(value if isinstance(value, str) else canonical_json(value))
            length += len(pieces[-1])
            if length > MAX_TEXT:
                raise ExpressionFailed("the text is longer than 16 Mi characters; pass data by address", self.pointer)
        return "".join(pieces)


class _List(Template):
    returns = "LIST"

    def __init__(self, items: list[Template]) -> None:
        self.items = items
        self.variables = _union(item.variables for item in items)

    def render(self, scope: Scope) -> list[Any]:
        return [item.render(scope) for item in self.items]


class _Object(Template):
    returns = "MAP"

    def __init__(self, members: dict[str, Template]) -> None:
        self.members = members
        self.variables = _union(member.variables for member in members.values())

    def render(self, scope: Scope) -> dict[str, Any]:
        return {key: member.render(scope) for key, member in self.members.items()}


def literal(value: Any) -> Template:
    """A template that is this value; text in it that looks like an expression is text."""
    return _Literal(value)


def compile_template(
    value: Any, *, pointer: str, names: Names, problems: list[Problem], source: bool = False
) -> Template:
    """The template of a JSON value at ``pointer``. Adds what is wrong to ``problems`` (and returns a literal)."""
    if isinstance(value, str):
        return _compile_text(value, pointer, names, problems, source)
    if isinstance(value, list):
        items = [
            compile_template(item, pointer=child(pointer, index), names=names, problems=problems)
            for index, item in enumerate(value)
        ]
        return _Literal(value) if _unchanged(value, items) else _List(items)
    if isinstance(value, dict):
        members = {
            key: compile_template(item, pointer=child(pointer, key), names=names, problems=problems)
            for key, item in value.items()
        }
        return _Literal(value) if _unchanged(value.values(), members.values()) else _Object(members)
    return _Literal(value)


def _compile_text(text: str, pointer: str, names: Names, problems: list[Problem], source: bool) -> Template:
    if "${" not in text:
        return _Literal(text)
    if text.startswith("${"):
        tokens, end = scan(text, 2, stop_at_brace=True)
        if end == len(text) - 1:
            binding = bind(text, 2, end, tokens, pointer, names, problems, source)
            return _Expression(binding, pointer) if binding is not None else _Literal(None)
    if source:
        return _Literal(text)
    parts: list[str | _Expression] = []
    position = 0
    while (start := text.find("${", position)) >= 0:
        if start > position and text[start - 1] == "$":
            parts.append(text[position : start - 1] + "${")
            position = start + 2
            continue
        if start > position:
            parts.append(text[position:start])
        tokens, end = scan(text, start + 2, stop_at_brace=True)
        if end < 0:
            problems.append(_unclosed(text, start, pointer))
            return _Literal(None)
        binding = bind(text, start + 2, end, tokens, pointer, names, problems, source)
        if binding is not None:
            parts.append(_Expression(binding, pointer))
        position = end + 1
    parts.append(text[position:])
    if all(isinstance(part, str) for part in parts):
        return _Literal("".join(part for part in parts if isinstance(part, str)))
    return _Text([part for part in parts if part != ""], pointer)


def _unclosed(text: str, offset: int, pointer: str) -> Problem:
    line, column, excerpt = caret(text, offset)
    return Problem(
        pointer=pointer, message="this ${ is never closed", type="expression", line=line, column=column,
        hint="close it with }, or write $${ for the characters themselves", excerpt=excerpt,
    )  # fmt: skip


def _unchanged(values: Iterable[Any], templates: Iterable[Template]) -> bool:
    return all(
        isinstance(template, _Literal) and template.value is value
        for value, template in zip(values, templates, strict=True)
    )


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)
