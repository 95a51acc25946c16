"""What a rule or a test says about its question is held against the schemas when a bundle is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.authorization.bundle import Bundle, bundle_of, load_bundle
from controlplane.authorization.profile import PolicyInvalid
from controlplane.authorization.schemas import validators
from controlplane.authorization.shapes import ENTRIES
from controlplane.authorization.values import EntryPoint

HEAD = "import rego.v1\n"
REASON = '{"code": "a", "message": "m", "remedy": "r"}'


def loaded(body: str, package: str = "tenant.tool") -> Bundle:
    """A rule with this condition on line 4."""
    text = f"package {package}\n{HEAD}deny contains {REASON} if {{\n{body}\n}}\n"
    return bundle_of({"own/x.rego": text}, {}, platform=frozenset())


def findings(body: str, package: str = "tenant.tool") -> list[str]:
    with pytest.raises(PolicyInvalid) as caught:
        loaded(body, package)
    return caught.value.findings


def in_test(given: str, more: str = "") -> list[str]:
    """What is found where a test on line 4 gives ``given``."""
    text = f"package tenant.tool_test\n{HEAD}import data.tenant.tool\ntest_a if count(tool.deny) == 0 with {given}\n"
    try:
        bundle_of({"own/x_test.rego": text + more}, {}, platform=frozenset())
    except PolicyInvalid as problem:
        return problem.findings
    return []


@pytest.mark.parametrize(
    ("body", "wrong", "instead"),
    [
        # What a newcomer guessed, and what was allowed because of it.
        ('input.args.city == "Oslo"', "input.args.city", "did you mean input.args.city.value?"),
        ('"Oslo" == input.args.city', "input.args.city", "did you mean input.args.city.value?"),
        ('not input.args.city == "Oslo"', "input.args.city", "did you mean input.args.city.value?"),
        ('input.args["city"] == "Oslo"', "input.args.city", "did you mean input.args.city.value?"),
        ('input.args.city in {"Oslo", "Rome"}', "input.args.city", "did you mean input.args.city.value?"),
        ('startswith(input.args.city, "O")', "input.args.city", "did you mean input.args.city.value?"),
        ("lower(input.args.city) == lower(input.step)", "input.args.city", "did you mean input.args.city.value?"),
        ('args := input.args\nargs.city == "O"', "input.args.city", "did you mean input.args.city.value?"),
        ("input.args.city.vlue == 1", "input.args.city.vlue", "did you mean input.args.city.value?"),
        ("input.tol.name", "input.tol", "did you mean input.tool?"),
        ("input.Tool.name", "input.Tool", "did you mean input.tool?"),
        ("input.city", "input.city is not in a question", "among input.args it is input.args.city.value."),
        ("input.tool.city", "input.tool.city", "input.tool has name, server, kind, digest, effect, critical_args."),
        ("input.kind", "input.kind", "did you mean input.subject.kind or input.tool.kind?"),
        ("some one in input.granted\none.name", "input.granted[_].name", "input.granted[_] is a string."),
        ("input.granted.mail", "input.granted.mail", 'write `"mail" in input.granted`'),
        ("input.args[name].label.integrity", "input.args[_].label", "did you mean input.args[_].labels?"),
        ("input.tool.name.first", "input.tool.name.first", "input.tool.name is a string"),
        ('input.subject.kind == "user"', 'input.subject.kind is never "user"', 'one of "person", "service"'),
        ('input.subject.kind in {"people"}', 'input.subject.kind is never "people"', ""),
        ('input.via == "guests"', 'input.via is never "guests"', 'did you mean "guest"?'),
        ('"x" in input.tool.name', "input.tool.name is searched", "it is a string"),
        ("3 in input.granted", "input.granted[_] is compared with a number", "it is a string"),
        ("some x in input.via", "input.via is searched", ""),
        ("every x in input.via { x }", "input.via is searched", ""),
        ('input.granted == {"a"}', "input.granted is compared with a set", "it is a list"),
        ('object.get(input, ["tool", "nme"], "")', "input.tool.nme", "did you mean input.tool.name?"),
        ('object.get(input.tool, "nme", "")', "input.tool.nme", "did you mean input.tool.name?"),
        ("input.definition.verbs", "input.definition", "runtime.tool"),
        ("t := data.tenants[input.tenant]\nt.tool", "data.tenants[_].tool", "did you mean data.tenants[_].tools?"),
    ],
)
def test_what_no_question_has_is_found_with_its_line_and_what_there_is_instead(
    body: str, wrong: str, instead: str
) -> None:
    (finding,) = findings(body)
    assert finding.startswith(f"own/x.rego:{4 + body.count(chr(10))}: {wrong}")
    assert instead in finding


@pytest.mark.parametrize(
    "body",
    [
        'input.args.city.value == "Oslo"',
        'input.args.city.value.deep["er"][0] == 1',
        'input.args[name].labels.integrity == "untrusted"',
        'some name, arg in input.args\narg.value == "x"\nname == "y"',
        'input.subject.kind in {"person", "robot"}',
        'input.sandbox.tier == "wasm"',
        "input.sandbox == null",
        "input.run == null",
        'object.get(input, ["args", "city", "value"], "") == "x"',
        'object.get(input.args, "city", {"value": 1}).value == 1',
        '"mail.*" in input.granted',
        "count(input.args) == 0",
        'glob.match("mail.*", ["."], input.tool.name)',
        "data.tenants[input.tenant].caps.cpu == 1",
        "input.granted[0] == input.tool.name",
        # What is not followed is not found either: a function's parameter, a name bound twice.
        "guessed(input)",
        "some x\nx = input.granted[_]\nx.foo",
        "ys := {x | x := input.tool}\nxs := {x | x := input.args; x.anything.value}\ncount(xs) == count(ys)",
    ],
)
def test_what_a_question_may_have_is_let_through(body: str) -> None:
    assert loaded(body + "\n}\nguessed(x) if {\n\tx.foo.bar == 1").files


def test_each_package_is_held_against_its_own_question() -> None:
    bodies = {
        "workflow": 'input.definition.steps == 3\n"code" in input.definition.verbs',
        "data": 'input.data_name == "logs"',
        "tool": 'input.tool.name == "a"',
        "secret": 'input.destination.host == "a"\ninput.secret == "k"',
        "egress": "input.destination.port == 443",
        "model": 'input.models[0].name == "small"',
    }
    assert tuple(bodies) == ENTRIES
    for entry, body in bodies.items():
        assert loaded(body, f"tenant.{entry}").files
    assert "question of runtime.egress" in findings("input.args.x", "tenant.egress")[0]
    assert "question of runtime.secret" in findings("input.definition.verbs", "tenant.secret")[0]


def test_the_entries_are_those_that_questions_are_checked_for() -> None:
    assert {f"runtime.{one}" for one in ENTRIES} == set(EntryPoint) == set(validators())


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ('input as {"args": {"city": "Oslo"}}', "given as a string, but in a question of runtime.tool it is an object"),
        ('input as {"args": {"city": "Oslo"}}', 'write {"value": "Oslo"}.'),
        ('input as {"arg": {}}', "input.arg is not in a question of runtime.tool; did you mean input.args?"),
        ('input as {"subject": {"kind": "user"}}', 'input.subject.kind is never "user"'),
        ('input as {"granted": "mail.*"}', "input.granted is given as a string"),
        ('input as {"granted": [1]}', "input.granted[_] is given as a number"),
        ('input.args.city as "Oslo"', 'write {"value": "Oslo"}.'),
        ("input.arg as {}", "input.arg is not in"),
        ('data.tenants.default.tools as {"*": "false"}', "is given as a string, but in the data of a tenant"),
        ("data.tenants.default.tool as {}", "did you mean data.tenants.default.tools?"),
        ('input as object.union({"via": "step"}, {"stp": "s"})', "did you mean input.step?"),
    ],
)
def test_an_object_that_no_question_could_be_is_found_in_a_test(given: str, wrong: str) -> None:
    found = in_test(given)
    assert [one for one in found if one.startswith("own/x_test.rego:4: ") and wrong in one], found


def test_a_constant_given_to_a_test_is_found_where_it_is_written() -> None:
    found = in_test("input as asked", 'asked := {\n\t"tool": {\n\t\t"nam": "x",\n\t},\n}\n')
    assert found == [
        "own/x_test.rego:7: input.tool.nam is not in a question of runtime.tool; did you mean input.tool.name?"
    ]


@pytest.mark.parametrize(
    "given",
    [
        "input as {}",
        'input as {"tool": {"name": "x"}}',
        'input as {"args": {"city": {"value": {"any": ["thing"]}}}, "sandbox": null}',
        'input as object.union(made("x"), {"via": "step"})',
        'input.args.city.value as "Oslo"',
        'data.tenants.default.egress as {"a": true, "b": [443]}',
        "data.tenant.tool.deny as {1}",
    ],
)
def test_a_test_may_give_a_part_of_a_question(given: str) -> None:
    assert in_test(given, 'made(x) := {"whatever": x}\n') == []


def test_a_test_that_asks_two_packages_may_give_either_question() -> None:
    also = "test_b if count(data.tenant.egress.deny) == 0\n"
    assert in_test('input as {"destination": {"port": 1}}') != []
    assert in_test('input as {"destination": {"port": 1}}', also) == []


def test_a_name_that_stands_for_itself_ends() -> None:
    assert in_test("input as a", "a := b\nb := a\n") == []
    assert in_test("input as a", "a := object.union(a, a)\n") == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ('deny contains "no" if input.via == "step"', "not a string"),
        ('deny contains sprintf("no %s", [input.step])', "not a string"),
        ('deny contains why if {\n\twhy := "no"\n}', "not a string"),
        ("deny contains 1", "not a number"),
        ('deny contains ["a", "b"]', "not a list"),
        ('deny contains {"a", "b"}', "not a set"),
        ('deny contains {"cod": "a", "message": "m"}', 'did you mean "code"?'),
        ('deny contains {"code": "a"}', 'needs "message"'),
        ('deny contains {"code": "a", "message": ["m"]}', '"message" of a reason is a string'),
    ],
)
def test_what_is_no_reason_is_refused_at_load(rule: str, said: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        bundle_of({"own/x.rego": f"package tenant.tool\n{HEAD}{rule}\n"}, {}, platform=frozenset())
    assert said in str(caught.value)
    assert all(one.startswith("own/x.rego:3: ") for one in caught.value.findings)


@pytest.mark.parametrize(
    "rule",
    [
        'deny contains {"code": "a", "message": sprintf("%s", [input.step])}',
        f"deny contains reason if some reason in [{REASON}]",
        "deny contains made(input.step)\nmade(x) := x",
    ],
)
def test_a_reason_may_be_made_in_other_ways(rule: str) -> None:
    assert bundle_of({"own/x.rego": f"package tenant.tool\n{HEAD}{rule}\n"}, {}, platform=frozenset()).files


def test_an_overlay_is_refused_whole(tmp_path: Path) -> None:
    """Its good file denies nothing either: half a policy is another policy."""
    (tmp_path / "good.rego").write_text(f'package tenant.egress\n{HEAD}deny contains {REASON} if input.tool == "a"\n')
    (tmp_path / "bad.rego").write_text(f"package tenant.tool\n{HEAD}deny contains {REASON} if input.city\n")
    with pytest.raises(PolicyInvalid, match=rf"{tmp_path.name}/bad\.rego:3: input\.city is not in"):
        load_bundle([tmp_path])
