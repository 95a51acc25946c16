"""Malformed workflows: each is refused with the pointer, the cause and the remedy a person needs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.workflows.graph import compile_workflow, parse_document
from controlplane.workflows.problem_values import WorkflowInvalid

A = {"id": "a", "set": 1}
CODE = {"python": "1"}


def workflow(*steps: Any, **members: Any) -> dict[str, Any]:
    return {"stockade": "1", "name": "t", "steps": list(steps), **members}


def nested(depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"id": "leaf", "set": 1}
    for level in range(depth):
        step = {"id": f"p{level}", "parallel": {}, "do": [step]}
    return workflow(step)


def code(**members: Any) -> dict[str, Any]:
    return {"id": "c", "code": CODE, **members}


CASES: list[tuple[str, dict[str, Any], str, str, str, str]] = [
    # name, document, pointer, type, in the message, in the hint
    ("no steps", workflow(), "/steps", "schema", "at least 1", ""),
    ("steps missing", {"stockade": "1", "name": "t"}, "/steps", "schema", "required", "add"),
    ("wrong format version", workflow(A, stockade="2"), "/stockade", "schema", "'1'", "1"),
    ("misspelt verb", workflow({"id": "a", "tol": "x.y"}), "/steps/0/tol", "unknown_verb", "'tol'", "'tool'"),
    ("misspelt modifier", workflow(code(retyr={})), "/steps/0/retyr", "unknown_verb", "'retyr'", "'retry'"),
    (
        "misspelt member",
        workflow(code(sandbox={"teir": "wasm"})),
        "/steps/0/sandbox/teir",
        "unknown_member",
        "'teir'",
        "'tier'",
    ),
    (
        "member of parallel",
        workflow({"id": "a", "parallel": {"concurrency": 2}, "do": [A]}),
        "/steps/0/parallel/concurrency",
        "unknown_member",
        "'concurrency'",
        "write {}",
    ),
    ("unknown top member", workflow(A, outptu=1), "/outptu", "unknown_member", "'outptu'", "'output'"),
    (
        "llm without a model",
        workflow({"id": "a", "llm": {"prompt": "x"}}),
        "/steps/0/llm",
        "schema",
        "no model",
        "defaults",
    ),
    (
        "llm with prompt and messages",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x", "messages": "${input}"}}),
        "/steps/0/llm",
        "schema",
        "exactly one",
        "prompt",
    ),
    (
        "messages as text",
        workflow({"id": "a", "llm": {"model": "m", "messages": "say ${input}"}}),
        "/steps/0/llm/messages",
        "schema",
        "a list",
        "${…}",
    ),
    (
        "a message without content",
        workflow({"id": "a", "llm": {"model": "m", "messages": [{"role": "user"}]}}),
        "/steps/0/llm/messages/0/content",
        "schema",
        "required",
        "content",
    ),
    (
        "an unknown member of a message",
        workflow({"id": "a", "llm": {"model": "m", "messages": [{"role": "user", "content": "x", "nme": 1}]}}),
        "/steps/0/llm/messages/0/nme",
        "unknown_member",
        "a message",
        "content",
    ),
    (
        "an image elsewhere",
        workflow(
            {
                "id": "a",
                "llm": {
                    "model": "m",
                    "messages": [
                        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://inside/"}}]}
                    ],
                },
            }
        ),
        "/steps/0/llm/messages/0/content/0/image_url/url",
        "schema",
        "data:image",
        "",
    ),
    (
        "an output that is no schema",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x", "output": {"type": "objct"}}}),
        "/steps/0/llm/output",
        "schema",
        "objct",
        "JSON Schema",
    ),
    (
        "an output that refers outside",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x", "output": {"$ref": "http://inside/"}}}),
        "/steps/0/llm/output/$ref",
        "schema",
        "leave the document",
        "$defs",
    ),
    (
        "near a model call",
        workflow({"id": "a", "llm": {"model": "m", "prompt": "x"}, "near": "data://d"}),
        "/steps/0/near",
        "schema",
        "does not apply",
        "code, tool",
    ),
    (
        "an agent without a prompt",
        workflow({"id": "a", "agent": {"model": "m"}}),
        "/steps/0/agent/prompt",
        "schema",
        "required",
        "prompt",
    ),
    (
        "inputs of an agent without code mode",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x", "inputs": {"log": "data://d/log"}}}),
        "/steps/0/agent/inputs",
        "schema",
        "code of an agent",
        "code: true",
    ),
    (
        "a sandbox for an agent without code mode",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x"}, "sandbox": {"tier": "wasm"}}),
        "/steps/0/sandbox",
        "schema",
        "code of an agent",
        "code: true",
    ),
    (
        "an agent's file on the host",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x", "code": True, "inputs": {"p": "/etc/passwd"}}}),
        "/steps/0/agent/inputs/p",
        "address",
        "host paths",
        "--data",
    ),
    (
        "an unknown budget of an agent",
        workflow({"id": "a", "agent": {"model": "m", "prompt": "x", "budget": {"usd": 1}}}),
        "/steps/0/agent/budget/usd",
        "unknown_member",
        "budget",
        "tokens, steps",
    ),
    ("two verbs", workflow({"id": "a", "set": 1, "tool": "x.y"}), "/steps/0", "schema", "tool and set", "split"),
    ("no verb", workflow({"id": "a"}), "/steps/0", "schema", "none", "add one of"),
    ("wrong type", workflow(code(timeout=True)), "/steps/0/timeout", "schema", "duration", "30s"),
    ("number as text", workflow(code(retry={"max": "3"})), "/steps/0/retry/max", "schema", "integer", ""),
    ("bad id", workflow({"id": "A-1", "set": 1}), "/steps/0/id", "schema", "pattern", "lower-case"),
    ("duplicate id", workflow(A, A), "/steps/1/id", "duplicate_id", "/steps/0", "unique"),
    (
        "shadowed id",
        workflow(A, {"id": "p", "parallel": {}, "do": [A]}),
        "/steps/1/do/0/id",
        "duplicate_id",
        "/steps/0",
        "outer",
    ),
    (
        "same id in both branches",
        workflow({"id": "i", "if": True, "do": [A], "else": [A]}),
        "/steps/0/else/0/id",
        "duplicate_id",
        "/steps/0/do",
        "branches",
    ),
    (
        "cycle",
        workflow({**A, "needs": ["b"]}, {"id": "b", "set": 1, "needs": ["a"]}),
        "/steps/0/needs",
        "cycle",
        "a → b → a",
        "remove",
    ),
    ("needs itself", workflow({**A, "needs": ["a"]}), "/steps/0/needs", "cycle", "a → a", "remove"),
    (
        "unknown need",
        workflow(A, {"id": "b", "set": 1, "needs": ["aa"]}),
        "/steps/1/needs/0",
        "undefined_name",
        "'aa'",
        "'a'",
    ),
    (
        "undefined name",
        workflow({"id": "a", "set": "${inptu.x}"}),
        "/steps/0/set",
        "undefined_name",
        "'inptu'",
        "'input'",
    ),
    (
        "undefined step",
        workflow({"id": "plan", "set": 1}, {"id": "b", "set": "${steps.paln.output}"}),
        "/steps/1/set",
        "undefined_name",
        "'paln'",
        "'plan'",
    ),
    (
        "later step",
        workflow({"id": "a", "set": "${steps.b.output}"}, {"id": "b", "set": 1}),
        "/steps/0/set",
        "undefined_name",
        "later",
        "earlier",
    ),
    (
        "not needed step",
        workflow(A, {"id": "b", "set": 1}, {"id": "c", "set": "${steps.a.output}", "needs": ["b"]}),
        "/steps/2/set",
        "undefined_name",
        "not need",
        "needs",
    ),
    (
        "inner step from outside",
        workflow({"id": "p", "parallel": {}, "do": [A]}, output="${steps.a.output}"),
        "/output",
        "undefined_name",
        "inside",
        "sees",
    ),
    (
        "unknown step member",
        workflow(A, output="${steps.a.outptu}"),
        "/output",
        "undefined_name",
        "'outptu'",
        "'output'",
    ),
    (
        "indexed steps",
        workflow(A, output="${steps['a'].output}"),
        "/output",
        "expression",
        "steps[…]",
        "steps.ID.output",
    ),
    ("item outside a map", workflow({"id": "a", "set": "${item}"}), "/steps/0/set", "undefined_name", "'item'", "map"),
    ("bad CEL", workflow({"id": "a", "set": "${1 +}"}), "/steps/0/set", "expression", "Syntax error", "CEL"),
    (
        "type error in CEL",
        workflow({"id": "a", "set": "${1 + 'a'}"}),
        "/steps/0/set",
        "expression",
        "overload",
        "convert",
    ),
    (
        "unknown function",
        workflow({"id": "a", "set": "${sise(input)}"}),
        "/steps/0/set",
        "expression",
        "'sise'",
        "'size'",
    ),
    ("never closed", workflow({"id": "a", "set": "x ${input.y"}), "/steps/0/set", "expression", "never closed", "$${"),
    (
        "long expression",
        workflow({"id": "a", "set": "${'" + "x" * 5000 + "'}"}),
        "/steps/0/set",
        "limit",
        "4 KiB",
        "code",
    ),
    (
        "deep macros",
        workflow({"id": "a", "set": "${[1].map(x,[1].map(y,[1].map(z,z)))}"}),
        "/steps/0/set",
        "limit",
        "2 deep",
        "map step",
    ),
    ("condition of text", workflow({**A, "when": "yes"}), "/steps/0/when", "schema", "condition", "${…}"),
    (
        "condition of a number",
        workflow({**A, "when": "${1 + 1}"}),
        "/steps/0/when",
        "schema",
        "condition",
        "true or false",
    ),
    (
        "over a number",
        workflow({"id": "m", "map": {"over": "${1}"}, "do": [A]}),
        "/steps/0/map/over",
        "schema",
        "list",
        "list",
    ),
    ("map without do", workflow({"id": "m", "map": {"over": []}}), "/steps/0", "schema", "'do'", "add"),
    ("negative cpu", workflow(code(resources={"cpu": -1})), "/steps/0/resources/cpu", "schema", "greater", ""),
    ("impossible cpu", workflow(code(resources={"cpu": 5000})), "/steps/0/resources/cpu", "schema", "1024", ""),
    (
        "impossible memory",
        workflow(code(resources={"memory": "65Ti"})),
        "/steps/0/resources/memory",
        "schema",
        "64Ti",
        "",
    ),
    (
        "memory below the sandbox",
        workflow(code(resources={"memory": "1Mi"})),
        "/steps/0/resources/memory",
        "resources",
        "less memory",
        "raise",
    ),
    ("bad size", workflow(code(sandbox={"memory": "lots"})), "/steps/0/sandbox/memory", "schema", "size", "512Mi"),
    ("zero timeout", workflow(code(timeout=0)), "/steps/0/timeout", "schema", "zero", "30s"),
    ("bad secret name", workflow(code(secrets=["A B"])), "/steps/0/secrets/0", "schema", "pattern", "match"),
    ("secret on set", workflow({**A, "secrets": ["x"]}), "/steps/0/secrets", "schema", "'set'", "only"),
    (
        "retry on map",
        workflow({"id": "m", "map": {"over": []}, "do": [A], "retry": {}}),
        "/steps/0/retry",
        "schema",
        "'map'",
        "`do`",
    ),
    (
        "host path",
        workflow({"id": "c", "code": {**CODE, "inputs": {"x": "file:///etc/passwd"}}}),
        "/steps/0/code/inputs/x",
        "address",
        "file://",
        "data://NAME/REL",
    ),
    (
        "model without a name",
        workflow(code(near="model:")),
        "/steps/0/near",
        "address",
        "name of a model",
        "model:NAME",
    ),
    ("later step", workflow(code(near="z"), {**code(), "id": "z"}), "/steps/0/near", "address", "'z'", "earlier step"),
    ("climbing address", workflow(code(near="data://logs/../x")), "/steps/0/near", "address", "'..'", "data://"),
    (
        "two languages",
        workflow({"id": "c", "code": {"python": "1", "shell": "1"}}),
        "/steps/0/code",
        "schema",
        "python and shell",
        "write",
    ),
    (
        "shell in wasm",
        workflow({"id": "c", "code": {"shell": "ls"}, "sandbox": {"tier": "wasm"}}),
        "/steps/0/sandbox/tier",
        "schema",
        "no shell",
        "jail",
    ),
    ("bad tool name", workflow({"id": "a", "tool": "nodots"}), "/steps/0/tool", "schema", "pattern", "match"),
    (
        "gate before",
        workflow(A, {"id": "ok", "approve": {"ask": "?", "gates": ["a"]}}),
        "/steps/1/approve/gates/0",
        "order",
        "does not wait",
        "after",
    ),
    (
        "gate unknown",
        workflow({"id": "ok", "approve": {"ask": "?", "gates": ["zz"]}}),
        "/steps/0/approve/gates/0",
        "undefined_name",
        "'zz'",
        "siblings",
    ),
    (
        "gate not waiting",
        workflow({"id": "p", "parallel": {}, "do": [{"id": "ok", "approve": {"ask": "?"}}, A]}),
        "/steps/0/do/0/approve",
        "order",
        "does not wait",
        "needs",
    ),
    ("bad wait", workflow({"id": "w", "wait": "soon"}), "/steps/0/wait/duration", "schema", "duration", "30s"),
    (
        "bad instant",
        workflow({"id": "w", "wait": {"until": "tomorrow"}}),
        "/steps/0/wait/until",
        "schema",
        "instant",
        "2027",
    ),
    ("bad input schema", workflow(A, input={"type": "objekt"}), "/input/type", "schema", "not valid", "JSON Schema"),
    ("outside reference", workflow(A, input={"$ref": "http://127.0.0.1/x"}), "/input/$ref", "schema", "leave", "$defs"),
    ("nested steps", nested(16), "", "limit", "16", "split"),
    ("many steps", workflow(*({"id": f"s{i}", "set": 1} for i in range(1001))), "/steps", "limit", "1001", "map"),
    ("null verb", workflow({"id": "p", "parallel": None, "do": [A]}), "/steps/0/parallel", "schema", "null", "say"),
    ("infinite number", workflow({"id": "a", "set": float("inf")}), "/steps/0/set", "json", "finite", "smaller"),
    ("NUL", workflow({"id": "a", "set": "x\x00"}), "/steps/0/set", "json", "NUL", "remove"),
]


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
