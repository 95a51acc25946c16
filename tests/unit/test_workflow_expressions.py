"""Templates: types, interpolation, escapes, scopes and the bounds on evaluation."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest

from controlplane.workflows.expressions import ExpressionFailed, Names, Scope, Template, compile_template
from controlplane.workflows.problem_values import Problem

NAMES = Names(steps=frozenset({"a", "b"}), items=("shard",))
INPUT = {"n": 3, "f": 1.5, "list": list(range(200)), "text": "é", "null": None}
SCOPE = (
    Scope.root(INPUT, {"id": "run_1", "workflow": "t", "version": "1"})
    .with_step("a", {"v": 2, "none": None, "l": [{"x": 1}]}, None, "completed")
    .with_step("b", None, {"message": "no"}, "failed")
    .with_item("shard", "data://x/y", 7)
)


def template(value: Any, *, source: bool = False) -> Template:
    problems: list[Problem] = []
    compiled = compile_template(value, pointer="/x", names=NAMES, problems=problems, source=source)
    assert problems == []
    return compiled


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("${input.n}", 3),
        ("${input.n + 1}", 4),
        ("${input.f + 1.0}", 2.5),
        ("${double(input.n) + 0.5}", 3.5),
        ("${steps.a.output.v + input.n}", 5),
        ("${steps.a.output.l[0].x}", 1),
        ("${steps.a.output['v']}", 2),
        ("${steps\n . a.output.v + 1}", 3),
        ("${steps.b.error.message}: ${steps.b.status}", "no: failed"),
        ("${steps.a.output.none}", None),
        ("${[steps.a.output.none, 1.5, true, {'k': null}]}", [None, 1.5, True, {"k": None}]),
        ("${shard}", "data://x/y"),
        ("${index * 2}", 14),
        ("${run.id}", "run_1"),
        ("n=${input.n} l=${steps.a.output.l} t=${input.text}", 'n=3 l=[{"x":1}] t=é'),
        ("$${input.n}", "${input.n}"),
        ("a $${b} ${input.n}", "a ${b} 3"),
        ("${'}' + \"{\"}", "}{"),
        ("${input.list.filter(x, x > 197)}", [198, 199]),
        ("${has(steps.a.output.zz) ? 1 : 2}", 2),
        ("${{1: 'a', 2: 'b'}}", {"1": "a", "2": "b"}),
        ({"k": ["${input.n}", {"d": "x${index}"}], "l": 1}, {"k": [3, {"d": "x7"}], "l": 1}),
        (5, 5),
    ],
)
def test_renders(value: Any, expected: Any) -> None:
    rendered = template(value).render(SCOPE)
    assert rendered == expected
    assert type(rendered) is type(expected)


@pytest.mark.parametrize("text", ["echo ${HOME} $${x}", "${a}${b}", "x = f'{y}'", "${unclosed"])
def test_source_text_is_left_exactly_as_written(text: str) -> None:
    compiled = template(text, source=True)
    assert compiled.is_literal
    assert compiled.render(SCOPE) == text


def test_source_that_is_one_whole_expression_is_evaluated() -> None:
    assert template("${input.text}", source=True).render(SCOPE) == "é"


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("${input.missing}", "missing"),
        ("${input.missing + 1}", "missing"),
        ("${input.list[900]}", "900"),
        ("${steps.b.output.x}", "null"),
        ("${1 / 0 + index}", "divide"),
        ("${input.f + 1}", "double"),
        ("${timestamp('2020-01-01T00:00:00Z')}", "timestamp"),
        ("${b'x'}", "byte string"),
        ("${input.list.map(x, input.list.map(y, x))}", "10,000"),
    ],
)
def test_failures_say_why_and_where(value: str, cause: str) -> None:
    with pytest.raises(ExpressionFailed) as failed:
        template(value).render(SCOPE)
    assert cause in failed.value.message
    assert failed.value.pointer == "/x"


def test_growing_text_inside_a_macro_is_refused() -> None:
    scope = Scope.root({"l": ["x"] * 10_000, "s": "y" * 100_000}, {})
    with pytest.raises(ExpressionFailed, match="too large"):
        template("${input.l.map(x, x + input.s)}").render(scope)


def test_variables_name_what_is_read() -> None:
    compiled = template({"a": "${input.n + index}", "b": "${steps.a.output.v} ${shard}"})
    assert compiled.variables == {"input", "index", "steps.a.output", "shard"}


def test_scopes_that_share_a_past_do_not_see_each_others_steps() -> None:
    root = Scope.root(1, {})
    first = root.with_step("a", "first", None, "completed")
    second = root.with_step("a", "second", None, "completed")
    third = first.with_step("b", "b", None, "completed")
    fourth = first.with_step("b", "other", None, "completed")
    assert (first.lookup("steps.a.output"), second.lookup("steps.a.output")) == ("first", "second")
    assert (third.lookup("steps.b.output"), fourth.lookup("steps.b.output")) == ("b", "other")
    for scope, name in ((root, "steps.a.output"), (first, "steps.b.output"), (second, "steps.b.output")):
        with pytest.raises(LookupError):
            scope.lookup(name)


def test_nulls_from_cel_do_not_wear_out_none() -> None:
    """The library gives None away unowned; without care the process aborts after some hundred evaluations."""
    compiled = template("${[steps.a.output.none, {'k': steps.a.output.none}]}")
    compiled.render(SCOPE)
    gc.collect()
    before = sys.getrefcount(None)
    for _ in range(2000):
        compiled.render(SCOPE)
    assert sys.getrefcount(None) > before - 1000
