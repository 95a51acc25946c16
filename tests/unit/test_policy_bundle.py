"""Bundles: what is loaded, merged, refused, and how reason codes find their rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.authorization.bundle import SHIPPED, bundle_of, load_bundle
from controlplane.authorization.profile import PolicyInvalid
from controlplane.authorization.rule_tests import run_rule_tests

TENANT = "package tenant.tool\n\nimport rego.v1\n\n"


def refused(text: str) -> str:
    with pytest.raises(PolicyInvalid) as caught:
        bundle_of({"own/tool.rego": text}, {}, platform=frozenset())
    return "\n".join(caught.value.findings)


def test_the_shipped_rules_pass_their_tests_and_every_line_is_covered() -> None:
    results = run_rule_tests(load_bundle())
    assert [one for one in results.tests if not one.passed] == []
    assert len(results.tests) > 50
    assert results.not_covered == ()


def test_every_reason_code_of_the_shipped_bundle_has_its_rule() -> None:
    bundle = load_bundle()
    for code, where in bundle.rules.items():
        path, line = where.rsplit(":", 1)
        rule = bundle.files[path].splitlines()[int(line) - 1 :]
        assert rule[0].startswith("refusals contains")
        assert f'"code": "{code}"' in rule[1]


def test_the_revision_depends_on_rules_and_data_only(tmp_path: Path) -> None:
    plain = load_bundle()
    assert load_bundle().revision == plain.revision
    (tmp_path / "tool_test.rego").write_text("package tenant.tool_test\nimport rego.v1\ntest_a if true\n")
    assert load_bundle([tmp_path]).revision == plain.revision
    (tmp_path / "data.json").write_text('{"tenants": {"default": {"egress": {"a.b": true}}}}')
    assert load_bundle([tmp_path]).revision != plain.revision


def test_overlay_data_is_merged_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"tenants": {"default": {"egress": {"a.b": true}}, "other": {"data": {}}}}')
    tenants = load_bundle([tmp_path]).data["tenants"]
    assert tenants["default"]["egress"] == {"a.b": True}
    assert tenants["default"]["verbs"]["code"] is True
    assert tenants["other"] == {"data": {}}


@pytest.mark.parametrize("text", ["[]", "{", '{"tenants": []}', '{"builtins": {}}'])
def test_overlay_data_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(PolicyInvalid, match=r"data\.json:1"):
        load_bundle([tmp_path])


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyInvalid, match="is no directory"):
        load_bundle([tmp_path / "nowhere"])


def test_an_overlay_named_like_the_shipped_one_is_still_no_platform(tmp_path: Path) -> None:
    impostor = tmp_path / SHIPPED.name
    impostor.mkdir()
    (impostor / "x.rego").write_text("package runtime.tool\nimport rego.v1\nstep_grants := true\n")
    with pytest.raises(PolicyInvalid, match=r"package runtime\.tool is not yours"):
        load_bundle([impostor])


def test_an_overlay_cannot_replace_a_shipped_file(tmp_path: Path) -> None:
    impostor = tmp_path / SHIPPED.name / "tenant"
    impostor.mkdir(parents=True)
    (impostor / "tool.rego").write_text(TENANT + 'deny contains {"code": "a", "message": "m"} if false\n')
    shipped = load_bundle()
    assert shipped.files.items() <= load_bundle([impostor.parent]).files.items()


@pytest.mark.parametrize(
    "body",
    [
        'http.send({"url": "http://a"}).x',
        'net.lookup_ip_addr("a")',
        "opa.runtime().env",
        "time.now_ns() > 1",
        'rand.intn("a", 2) == 1',
        'uuid.rfc4122("a")',
        'io.jwt.decode("a")',
        'crypto.sha256("a")',
        "trace(input.step)",
        "json.match_schema({}, {})",
        "numbers.range(1, input.now_ns)",
        "data.runtime.tool.decision.allow",
        'data["runtime"].tool.decision.allow',
        "some key; data[key]",
        "input.tenant == 1 with input as {}",
        'input.via != "step"',
    ],
)
def test_what_is_not_portable_is_refused_with_file_and_line(body: str) -> None:
    text = TENANT + 'deny contains {"code": "x", "message": "m"} if {\n\t' + body + "\n}\n"
    assert refused(text).startswith("own/tool.rego:")


@pytest.mark.parametrize(
    "rule", ["deny := set()", "deny := []", "default deny := false", "deny.a := 1", "deny(x) := x"]
)
def test_a_deny_that_is_no_set_is_refused(rule: str) -> None:
    assert "deny contains" in refused(TENANT + rule + "\n")


def test_what_is_no_rego_is_refused_without_a_backtrace() -> None:
    finding = refused("package tenant.tool\nthis is no rego\n")
    assert finding.startswith("own/tool.rego:2: ")
    assert "backtrace" not in finding


def test_another_package_is_refused() -> None:
    assert "tenant.tool" in refused("package lib.grants\nimport rego.v1\na := 1\n")


def test_a_file_that_only_denies_is_accepted() -> None:
    text = TENANT + 'deny contains {"code": "night", "message": "m"} if {\n\tnot input.tenant == "day"\n}\n'
    assert bundle_of({"own/tool.rego": text}, {}, platform=frozenset()).rules == {"night": "own/tool.rego:5"}


def test_a_failing_and_a_missing_test_do_not_pass(tmp_path: Path) -> None:
    files = {"t.rego": "package a\nimport rego.v1\nb := 1\nc := x if {\n\tx := input.never\n}\n"}
    assert not run_rule_tests(bundle_of(files, {})).passed
    files["t_test.rego"] = "package a_test\nimport rego.v1\nimport data.a\ntest_b if a.b == 2\ntest_c if a.b == 1\n"
    results = run_rule_tests(bundle_of(files, {}))
    assert [(one.name, one.passed, one.rule) for one in results.tests] == [
        ("a_test.test_b", False, "t_test.rego:4"),
        ("a_test.test_c", True, "t_test.rego:5"),
    ]
    assert not results.passed
    assert "t.rego:4" in results.not_covered


def test_the_manifest_claims_the_packages_and_the_data() -> None:
    roots = set(json.loads((SHIPPED / ".manifest").read_text())["roots"])
    assert roots == {"runtime", "tenant", "lib", "tenants"}


def test_an_overlay_is_tested_and_measured_alone(tmp_path: Path) -> None:
    """An overlay that narrows the data made the shipped tests fail, which were not its own."""
    (tmp_path / "data.json").write_text('{"tenants": {"default": {"tools": {"*": false}, "verbs": {"code": false}}}}')
    (tmp_path / "tool.rego").write_text(
        TENANT + 'deny contains {"code": "a", "message": "m"} if {\n\tinput.via == "step"\n}\n'
    )
    (tmp_path / "tool_test.rego").write_text(
        "package tenant.tool_test\nimport rego.v1\nimport data.tenant.tool\n"
        'test_a if count(tool.deny) == 1 with input as {"via": "step"}\n'
    )
    results = run_rule_tests(load_bundle([tmp_path]))
    assert [one.name for one in results.tests] == ["tenant.tool_test.test_a"]
    assert (results.passed, results.coverage_percent) == (True, 100.0)
