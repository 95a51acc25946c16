"""``data.json`` is held against its closed schema: a key that nothing reads is an error, not a silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from regorus import Engine

from controlplane.authorization.bundle import SHIPPED, load_bundle
from controlplane.authorization.profile import PolicyInvalid
from controlplane.authorization.shapes import document
from controlplane.authorization.testing import question
from controlplane.authorization.values import EntryPoint
from controlplane.tools.builtin import BUILTIN
from controlplane.workflows.spec import Verb
from sandboxes.spec import Tier


def findings(directory: Path, text: str) -> list[str]:
    (directory / "data.json").write_text(text)
    with pytest.raises(PolicyInvalid) as caught:
        load_bundle([directory])
    return [one.removeprefix(f"{directory.name}/data.json:") for one in caught.value.findings]


def of_tenant(directory: Path, tables: dict[str, Any]) -> list[str]:
    return findings(directory, json.dumps({"tenants": {"default": tables}}))


def test_what_a_newcomer_wrote_is_refused_line_by_line(tmp_path: Path) -> None:
    text = '{"tenants": {"default": {\n"tool": {"*": false},\n"data": {"*": "false"},\n"Egress": {}}}}'
    assert findings(tmp_path, text) == [
        '2: /tenants/default/tool is nothing that policy reads; did you mean "tools"?',
        '3: /tenants/default/data/* must be true or false, not "false".',
        '4: /tenants/default/Egress is nothing that policy reads; did you mean "egress"?',
    ]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"egres": {}}, 'did you mean "egress"?'),
        (
            {"zzz": {}},
            "there is verbs, tiers, caps, models, downgrade, builtins, data, tools, secrets, egress, network.",
        ),
        ({"egress": {"x": "443"}}, "/tenants/default/egress/x must be true, false or a list of ports"),
        ({"egress": {"x": ["443"]}}, "a list of ports"),
        ({"egress": {"x": [0]}}, "from 1 to 65535"),
        ({"tools": ["a.*"]}, "must be an object"),
        ({"tools": {"a/b": 1}}, "/tenants/default/tools/a~1b must be true or false, not 1."),
        ({"verbs": {"cod": False}}, 'did you mean "code"?'),
        ({"tiers": {"jial": False}}, 'did you mean "jail"?'),
        ({"builtins": {"builtin.nop": False}}, 'did you mean "builtin.noop"?'),
        ({"caps": {"memory": 1}}, 'did you mean "memory_bytes"?'),
        ({"caps": {"cpu": -1}}, "a number of at least 0"),
        ({"caps": {"steps": 1.5}}, "without a fraction"),
        ({"secrets": {"key": ["h"]}}, "lists of hosts"),
        ({"secrets": {"key": {"a.b": "h"}}}, 'must be a list of hosts, such as ["api.example.com"], not "h"'),
    ],
)
def test_a_table_that_would_grant_or_forbid_nothing_is_refused(
    tmp_path: Path, tables: dict[str, Any], said: str
) -> None:
    (finding,) = of_tenant(tmp_path, tables)
    assert said in finding


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"tenants": {"default": {"tools": {"*": false}}}, "tenants": {}}', '1: the key "tenants" is written twice'),
        ('{"tenants": {"default": {"caps": {"cpu": NaN}}}}', "NaN is not JSON"),
        ('{"tenants": {"default": {"caps": {"cpu": 1e999}}}}', "1: "),
        ('{"tenants": {"default": {"tools": {"\\ud800": true}}}}', "1: "),
        ('{"tenants": ' + "[" * 5000 + "]" * 5000 + "}", "1: "),
        ('{"tenants": {"a": ' + '{"a":' * 900 + "1" + "}" * 900 + "}}", "1: "),
        ('{"tenants": {\n"Default": {}}}', "2: /tenants/Default names no tenant"),
        ('{"tenants": {}, "egress": {}}', "/egress is nothing that policy reads; there is tenants."),
    ],
)
def test_a_document_that_two_readers_could_read_differently_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in findings(tmp_path, text)[0]


def test_lines_are_those_of_the_file_whatever_stands_before(tmp_path: Path) -> None:
    text = '{"tenants": {"default": {\n  "egress": {\n    "a": [1, 2],\n    "}]:,\\"": [\n      443,\n      "x"]}}}}'
    assert findings(tmp_path, text)[0].startswith("4: ")


def test_every_documented_form_is_accepted(tmp_path: Path) -> None:
    tables = {
        "egress": {"api.example.com": [443], "*.internal.example": True, "b": False},
        "secrets": {"weather-key": {"weather.now": ["api.example.com"]}},
        "tools": {"*": False, "weather.*": True},
        "data": {"*": False, "logs": True},
        "caps": {"steps": 500, "cpu": 0.5},
    }
    (tmp_path / "data.json").write_text(json.dumps({"tenants": {"default": tables, "team-2": {}}}))
    assert load_bundle([tmp_path]).data["tenants"]["default"]["caps"]["steps"] == 500


def _egress(table: dict[str, Any]) -> Any:
    """What the shipped rule says to api.example.com with this table."""
    engine = Engine()
    for path, text in load_bundle().files.items():
        engine.add_policy(path, text)
    engine.add_data_json(json.dumps({"tenants": {"default": {"egress": table}}}))
    engine.set_input_json(question(EntryPoint.EGRESS).encoded().decode())
    return json.loads(engine.eval_rule_as_json("data.runtime.egress.decision"))


@pytest.mark.parametrize(
    ("tables", "still"),
    [
        ({"tools": {"mail.send": False}}, '"*"'),
        ({"tools": {"mail.*": False}}, '"*"'),
        ({"data": {"logs": False}}, '"*"'),
        ({"tools": {"*": False, "mail.*": True, "mail.send": False}}, '"mail.*"'),
        ({"egress": {"**": True, "a.b": False}}, '"**"'),
        ({"egress": {"*.b": [443], "a.b": False}}, '"*.b"'),
    ],
)
def test_a_false_that_forbids_nothing_is_refused(tmp_path: Path, tables: dict[str, Any], still: str) -> None:
    """What an engine makes of it: another key of the merged table still grants the name."""
    (finding,) = of_tenant(tmp_path, tables)
    assert f"forbids nothing while {still} grants it" in finding


@pytest.mark.parametrize(
    "tables",
    [
        {"tools": {"*": False, "mail.send": False, "weather.*": True}},
        {"egress": {"*": True, "a.b": False}},
        {"egress": {"a.b": False, "a.b.c": True}},
        {"verbs": {"code": False}, "tiers": {"jail": False}},
    ],
)
def test_a_false_that_takes_back_is_accepted(tmp_path: Path, tables: dict[str, Any]) -> None:
    (tmp_path / "data.json").write_text(json.dumps({"tenants": {"default": tables}}))
    assert load_bundle([tmp_path]).data["tenants"]["default"]


@pytest.mark.parametrize(("table", "is_allowed"), [({"*": True}, False), ({"**": True}, True)])
def test_every_host_is_two_asterisks(table: dict[str, bool], is_allowed: bool) -> None:
    answer = _egress(table)
    assert ("egress_not_listed" not in [one["code"] for one in answer["reasons"]]) is is_allowed


def test_egress_that_is_false_reaches_nothing() -> None:
    answer = _egress({"api.example.com": False})
    assert [one["code"] for one in answer["reasons"]] == ["egress_not_listed"]


def test_the_schema_names_what_exists() -> None:
    """Closed tables would otherwise refuse the next verb, tier or tool."""
    tables = document("tenants.json")["properties"]["tenants"]["additionalProperties"]["properties"]
    assert set(tables["verbs"]["properties"]) == {one.value for one in Verb}
    assert set(tables["tiers"]["properties"]) == {"auto", *(one.value for one in Tier)}
    assert set(tables["builtins"]["properties"]) == set(BUILTIN)
    assert set(tables) == set(json.loads((SHIPPED / "data.json").read_text())["tenants"]["default"])
