"""Whatever is sent, the answer is a compiled workflow or problems; literals survive, spliced text never runs."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.workflows.expressions import Names, Scope, compile_template
from controlplane.workflows.graph import compile_workflow, parse_document
from controlplane.workflows.problem_values import Problem, WorkflowInvalid

STEP_WORDS = "id set if do else map tool code when needs retry near sandbox approve wait parallel secrets"
INNER_WORDS = "over as concurrency python shell call args inputs ask gates until duration a b"
EXPRESSIONS = "${input} ${item} ${steps.a.output} ${"
WORDS = st.sampled_from(f"{STEP_WORDS} {INNER_WORDS} {EXPRESSIONS}".split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(WORDS, JSON, max_size=5), max_size=4), JSON)
def test_any_json_is_compiled_or_refused_with_pointers(steps: list[Any], output: Any) -> None:
    for index, step in enumerate(steps):
        step["id"] = f"s{index}"
    try:
        compile_workflow({"stockade": "1", "name": "t", "steps": steps, "output": output})
    except WorkflowInvalid as refused:
        assert refused.problems
        assert all(problem.hint and problem.message and problem.type for problem in refused.problems)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    try:
        assert isinstance(parse_document(raw), dict)
    except WorkflowInvalid as refused:
        assert refused.problems


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(list("${}'\"\\\n+. a")), max_size=30).map("".join))
def test_source_text_is_itself_or_one_whole_expression(text: str) -> None:
    problems: list[Problem] = []
    template = compile_template(text, pointer="/x", names=Names(), problems=problems, source=True)
    whole = text.startswith("${") and text.endswith("}")
    if not whole:
        assert problems == []
        assert template.render(Scope.root(None, {})) == text


@settings(max_examples=200, deadline=None)
@given(JSON.filter(lambda value: "${" not in json.dumps(value)))
def test_json_without_expressions_renders_as_itself(value: Any) -> None:
    problems: list[Problem] = []
    template = compile_template(value, pointer="", names=Names(), problems=problems)
    assert template.is_literal
    assert template.render(Scope.root(None, {})) is value


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_data_is_never_read_as_an_expression(text: str) -> None:
    problems: list[Problem] = []
    template = compile_template(["${input}", "${[input]}", "x${input}"], pointer="", names=Names(), problems=problems)
    data = "${1 + 1}" + text.replace("\x00", "")
    assert template.render(Scope.root(data, {})) == [data, [data], "x" + data]
