"""What a good workflow compiles to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from controlplane.workflows.graph import compile_workflow, parse_document
from controlplane.workflows.schema import schema_text, workflow_schema
from controlplane.workflows.spec import Verb

DOCS = Path(__file__).parents[2] / "docs"


def workflow(*steps: Any, **members: Any) -> dict[str, Any]:
    return {"stockade": "1", "name": "t", "steps": list(steps), **members}


def step(identifier: str, **members: Any) -> dict[str, Any]:
    return {"id": identifier, **(members if set(members) & set(Verb) else {"set": 1, **members})}


def test_the_published_schema_is_up_to_date() -> None:
    assert (DOCS / "workflow.schema.json").read_text("utf-8") == schema_text(), (
        "run python -m controlplane.workflows.schema > docs/workflow.schema.json"
    )


def test_the_documented_example_compiles_and_fits_the_schema() -> None:
    text = (DOCS / "workflow.md").read_text("utf-8").split("```json\n")[1].split("```")[0]
    document = parse_document(text.encode())
    compiled = compile_workflow(document)
    jsonschema_rs.validator_for(workflow_schema()).validate(document)
    assert compiled.root.steps[1].gates == ("report",)
    assert compiled.check_input({"logs": []}) == ()
    (problem,) = compiled.check_input({"logs": [1]})
    assert (problem.pointer, problem.type) == ("/logs/0", "input")


def test_a_list_without_needs_runs_from_top_to_bottom() -> None:
    compiled = compile_workflow(workflow(step("a"), step("b"), step("c")))
    assert [one.needs for one in compiled.root.steps] == [(), ("a",), ("b",)]


def test_needs_make_a_list_a_graph_with_transitive_sight() -> None:
    compiled = compile_workflow(
        workflow(step("a"), step("b", needs=["a"]), step("c", needs=["b"], when="${steps.a.output == 1}"), step("d"))
    )
    assert [one.needs for one in compiled.root.steps] == [(), ("a",), ("b",), ()]


def test_parallel_children_wait_for_nothing() -> None:
    compiled = compile_workflow(workflow(step("p", parallel={}, do=[step("a"), step("b")])))
    body = compiled.root.steps[0].body
    assert body is not None
    assert [one.needs for one in body.steps] == [(), ()]


def test_defaults_lie_under_a_steps_own_settings() -> None:
    compiled = compile_workflow(
        workflow(
            step("a", code={"python": "1"}, sandbox={"wall": "5s"}, retry={"on": ["timeout"]}),
            step("b", tool="builtin.noop"),
            step("c"),
            defaults={
                "sandbox": {"memory": "64Mi", "wall": "9s"},
                "retry": {"max": 2, "backoff": "2s"},
                "timeout": "1m",
            },
        )
    )
    code, tool, data = compiled.root.steps
    assert (code.sandbox.memory_bytes, code.sandbox.wall_seconds) == (64 * 1024**2, 5.0)
    assert (code.retry.max, code.retry.backoff_min_seconds, code.retry.on) == (2, 2.0, {"timeout"})
    assert (code.resources.cpu_milli, code.resources.memory_bytes) == (500, 64 * 1024**2)
    assert (tool.timeout_seconds, tool.resources.cpu_milli, tool.resources.memory_bytes) == (60.0, 0, 0)
    assert (data.timeout_seconds, data.retry.max) == (None, 0)


def test_what_is_used_is_listed_for_policy() -> None:
    compiled = compile_workflow(
        workflow(
            step("a", code={"python": "1", "inputs": {"x": "data://d/x"}, "tools": ["web.*"]}, near=["data://d/y"]),
            step("b", tool="builtin.noop", secrets=["token"]),
        )
    )
    assert compiled.uses_tools == {"web.*", "builtin.noop"}
    assert compiled.uses_secrets == {"token"}
    assert set(compiled.literal_data_uris) == {"data://d/x", "data://d/y"}


def test_each_verb_has_its_templates() -> None:
    compiled = compile_workflow(
        workflow(
            step("a", code={"shell": "ls"}),
            step("b", tool="x.y", args={"k": 1}),
            {"id": "c", "set": None},
            {"id": "d", "if": "${true}", "do": [step("d1")], "else": [step("d2")]},
            step("e", map={"over": [1], "as": "one"}, do=[step("e1", set="${one + index}")]),
            step("f", approve={"ask": "?"}),
            step("g", wait=1.5),
            step("h", wait={"until": "2027-01-31T08:00:00Z"}),
        )
    )
    fields = [sorted(one.fields) for one in compiled.root.steps]
    assert fields == [
        ["args", "inputs", "source"], ["args"], ["value"], ["cond"], ["over"], ["ask", "show"], ["duration"], ["until"],
    ]  # fmt: skip
    assert compiled.root.steps[3].otherwise is not None
    assert compiled.root.steps[4].as_name == "one"


def test_the_digest_is_of_the_meaning_not_of_the_spelling() -> None:
    first = compile_workflow(parse_document(b'{"stockade":"1","name":"t","steps":[{"id":"a","set":1}]}'))
    second = compile_workflow(parse_document(b'{"name":"t", "steps":[{"set":1,"id":"a"}], "stockade":"1"}'))
    assert first.digest == second.digest
    assert len(first.digest) == 64


@pytest.mark.parametrize("verb", list(Verb))
def test_a_verb_of_the_wrong_type_never_crashes(verb: Verb) -> None:
    for value in (None, 1, "x", [], {}, True, {"x": 1}, "${input"):
        try:
            compile_workflow(workflow({"id": "a", verb.value: value}))
        except Exception as error:
            assert type(error).__name__ == "WorkflowInvalid", (value, error)
