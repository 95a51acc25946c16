"""What a JSON Schema may cost per value; the hostile ones took minutes to hours before they were counted."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.tools.schema_cost import COST_MOST, SchemaTooCostly, check_cost
from controlplane.tools.schemas import Schema, SchemaInvalid
from controlplane.workflows.graph import compile_workflow
from controlplane.workflows.problem_values import WorkflowInvalid

SELF = {"$ref": "#"}


def _ladder(rungs: int, of: Any) -> dict[str, Any]:
    """Each definition leads to the next in two ways."""
    defs = {f"a{index}": of({"$ref": f"#/$defs/a{index + 1}"}) for index in range(rungs)}
    return {"type": "object", "$ref": "#/$defs/a0", "$defs": defs | {f"a{rungs}": {"type": "object"}}}


def _alternatives(then: Any) -> Any:
    return {"anyOf": [{"allOf": [then, {"minProperties": 99}]}, {"allOf": [then, {"minProperties": 98}]}]}


@pytest.mark.parametrize(
    "of",
    [
        _alternatives,
        lambda then: {"not": then, "if": then},
        lambda then: {"oneOf": [then, then]},
        lambda then: {"properties": {"x": then}, "patternProperties": {"^x": then}},
        lambda then: {"anyOf": [{"items": then}, {"items": then}]},
        lambda then: {"dependentSchemas": {"x": then, "y": then}},
        lambda then: {"unevaluatedProperties": False, "allOf": [then]},
    ],
)
def test_what_doubles_with_each_step_is_refused_before_it_is_compiled(of: Any) -> None:
    check_cost(_ladder(3, of))
    with pytest.raises(SchemaInvalid, match=rf"/\$defs/a\d+.*at most {COST_MOST}; "):
        Schema(_ladder(20, of))


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (SELF, "no end"),
        ({"anyOf": [{"not": SELF}]}, "no end"),
        ({"properties": {"x": SELF}, "patternProperties": {"^x": SELF}}, "more than once"),
        ({"properties": {"x": SELF}, "patternProperties": {"^x": SELF}, "additionalProperties": False}, "more than"),
        ({"anyOf": [{"properties": {"x": SELF}}, {"properties": {"x": SELF}}]}, "more than once"),
        ({"anyOf": [{"items": SELF}, {"prefixItems": [SELF]}]}, "more than once"),
        ({"items": SELF, "contains": SELF}, "more than once"),
        ({"properties": {"x": SELF}, "unevaluatedProperties": SELF}, "more than once"),
        ({"$dynamicRef": "#x"}, "cannot be counted"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "leave the document"),
        ({"properties": {"x": {"$id": "https://a.test/", "$ref": "#"}}}, "changes what references mean"),
        ({"$ref": "#/$defs/a/b", "$defs": {"a": {"$id": "x:y", "b": {}}}}, "changes what references mean"),
        ({"$ref": "#nowhere"}, "no \\$anchor"),
        ({"$ref": "#/$defs/gone"}, "nothing is at"),
    ],
)
def test_what_has_no_bound_is_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(SchemaTooCostly, match=why):
        check_cost(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"left": SELF, "right": SELF, "n": {"type": "integer"}}, "additionalProperties": SELF},
        {"anyOf": [{"type": "null"}, {"type": "array", "items": SELF}, {"additionalProperties": SELF}]},
        {"properties": {"next": {"anyOf": [SELF, {"type": "null"}]}}},
        {"prefixItems": [SELF, SELF], "items": SELF},
        {"$id": "https://a.test/s", "properties": {"id": {"type": "string"}, "x": {"$ref": "https://a.test/s"}}},
        {"properties": {"x": {"$ref": "#n"}}, "$defs": {"a": {"$anchor": "n", "type": "integer"}}},
        {"properties": {str(index): {"anyOf": [{"type": "string"}, {"type": "null"}]} for index in range(1000)}},
    ],
)
def test_ordinary_schemas_pass(schema: dict[str, Any]) -> None:
    assert check_cost(schema) <= COST_MOST
    assert Schema(schema).check({}) == []


def test_a_long_way_through_references_is_refused() -> None:
    with pytest.raises(SchemaTooCostly, match="more than 300"):
        check_cost(_ladder(1000, lambda then: {"allOf": [then]}))


def test_a_recursion_that_follows_a_recursion_costs_for_each_level() -> None:
    defs = {f"a{index}": {"additionalProperties": {"$ref": f"#/$defs/a{index}"}} for index in range(4)}
    for index in range(3):
        defs[f"a{index}"]["not"] = {"additionalProperties": {"$ref": f"#/$defs/a{index + 1}"}}
    with pytest.raises(SchemaTooCostly, match="subschemas"):
        check_cost({"$ref": "#/$defs/a0", "$defs": defs})


def _workflow(**more: Any) -> dict[str, Any]:
    return {"stockade": "1", "name": "w", "version": "1", "steps": [{"id": "a", "tool": "builtin.noop"}], **more}


def test_a_workflow_names_the_place_in_its_input_or_in_an_answer() -> None:
    compile_workflow(_workflow(input=_ladder(3, _alternatives)))
    with pytest.raises(WorkflowInvalid) as refused:
        compile_workflow(_workflow(input=_ladder(20, _alternatives)))
    assert refused.value.problems[0].pointer.startswith("/input/$defs/a")
    answer = {"model": "m", "prompt": "x", "output": _ladder(20, _alternatives)}
    with pytest.raises(WorkflowInvalid, match=f"at most {COST_MOST}"):
        compile_workflow(_workflow(steps=[{"id": "a", "llm": answer}]))
