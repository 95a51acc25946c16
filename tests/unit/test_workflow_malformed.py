"""Malformed workflows: each is refused with the pointer, the cause and the remedy a person needs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.workflows.graph import compile_workflow, parse_document
from controlplane.workflows.problem_values import WorkflowInvalid
from tests.unit import malformed_models, malformed_workflows
from tests.unit.malformed_workflows import A, code, workflow

CASES = [*malformed_workflows.CASES, *malformed_models.CASES]


@pytest.mark.parametrize(
    ("document", "pointer", "kind", "cause", "fix"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_is_refused_with_place_cause_and_fix(
    document: dict[str, Any], pointer: str, kind: str, cause: str, fix: str
) -> None:
    with pytest.raises(WorkflowInvalid) as refused:
        compile_workflow(document)
    problem = refused.value.problems[0]
    assert problem.pointer == pointer or (pointer == "" and problem.pointer.endswith("/do"))
    assert (problem.type, cause in problem.message, fix in problem.hint) == (kind, True, True), str(problem)
    assert problem.hint
    if kind == "undefined_name" and "${" in json.dumps(document, ensure_ascii=False):
        assert problem.excerpt is None or problem.excerpt.endswith("^")


NOT_YET = [
    *((f"/steps/0/{verb}", {"id": "a", verb: {}}) for verb in ("flow", "loop", "expand")),
    *((f"/steps/0/{name}", code(**{name: 1})) for name in ("gang", "undo", "stream", "budget", "priority")),
    *((f"/steps/0/code/{name}", {"id": "a", "code": {name: "x"}}) for name in ("javascript", "wasm", "command")),
    *((f"/steps/0/sandbox/{name}", code(sandbox={name: "x"})) for name in ("session", "checkpoint", "template")),
    *(("/steps/0/sandbox/tier", code(sandbox={"tier": tier})) for tier in ("gvisor", "microvm")),
    ("/steps/0/wait/event", {"id": "a", "wait": {"event": "x"}}),
    ("/steps/0/set", {"id": "a", "set": "${last.x}"}),
]


@pytest.mark.parametrize(("pointer", "step"), NOT_YET, ids=[f"{p}-{i}" for i, (p, _) in enumerate(NOT_YET)])
def test_a_planned_feature_is_refused_as_not_yet(pointer: str, step: dict[str, Any]) -> None:
    with pytest.raises(WorkflowInvalid) as refused:
        compile_workflow(workflow(step))
    found = [problem for problem in refused.value.problems if problem.pointer == pointer]
    assert [problem.type for problem in found] == ["not_yet"]
    assert "not there yet" in found[0].message
    assert found[0].hint


@pytest.mark.parametrize(("member", "value"), [("budget", {"usd": 1}), ("defaults", {"secrets": ["a"]})])
def test_a_planned_top_level_member_is_refused_as_not_yet(member: str, value: Any) -> None:
    with pytest.raises(WorkflowInvalid) as refused:
        compile_workflow(workflow(A, **{member: value}))
    assert refused.value.problems[0].type == "not_yet"


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "not JSON"),
        (b"[]", "object"),
        (b"\xff", "UTF-8"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b"[" * 100_000, "deeper"),
        (b'"' + b"x" * 10_000_000 + b'"', "1 MiB"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1e999}', "finite"),
    ],
)
def test_a_body_that_is_not_a_strict_json_object_is_refused(raw: bytes, cause: str) -> None:
    with pytest.raises(WorkflowInvalid) as refused:
        parse_document(raw)
    assert cause in refused.value.problems[0].message
    assert refused.value.problems[0].hint


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(WorkflowInvalid) as refused:
        compile_workflow(workflow({"id": "a", "set": "${x}"}, {"id": "a", "set": ["${1 +}"]}, output="${y}"))
    assert {problem.pointer for problem in refused.value.problems} == {
        "/steps/0/set", "/steps/1/id", "/steps/1/set/0", "/output",
    }  # fmt: skip


def test_a_caret_points_at_the_name_in_a_later_line() -> None:
    with pytest.raises(WorkflowInvalid) as refused:
        compile_workflow(workflow({"id": "a", "set": "first\nxé ${1 + nme}"}))
    problem = refused.value.problems[0]
    assert (problem.line, problem.column) == (2, 10)
    assert problem.excerpt == "xé ${1 + nme}\n         ^"
