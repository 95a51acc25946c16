"""A shipped rule is cheap: as a ratio to a trivial rule over the same input, so that the machine cancels out."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

import pytest
from regorus import Engine

from controlplane.authorization.bundle import load_bundle
from controlplane.authorization.testing import question
from controlplane.authorization.values import EntryPoint, Question

TRIVIAL = 'package trivial\nimport rego.v1\ndecision := {"allow": true, "reasons": [], "obligations": []}\n'
ROUNDS, EACH = 25, 40
# Seen: 3.5 to 5.6 for an allow (27 to 44 µs), 4.9 to 6.9 for a denial, which is written out.
ALLOW_MOST, DENY_MOST = 8.0, 10.0

HTTP = {"name": "a.b", "server": "a", "kind": "http", "digest": "d", "effect": "write", "critical_args": ["url"]}
DEFINITION = {
    "verbs": ["code", "tool"],
    "tools": ["a.b"],
    "secrets": [],
    "tiers": ["auto"],
    "data": ["data://logs/a"],
    "steps": 3,
    "resources": {"cpu": 1},
}
METADATA_SERVICE = {"scheme": "http", "host": "169.254.1.1", "port": 80, "method": "GET", "path": "/"}

ELSEWHERE = {
    "name": "big",
    "kind": "external",
    "destination": {"scheme": "https", "host": "api.example.com", "port": 443},
}


def _args(integrity: str) -> dict[str, Any]:
    return {"url": {"value": "x", "labels": {"integrity": integrity}}}


ALLOWED = {
    "tool of a step": question(),
    "tool of a guest": question(via="guest", granted=["builtin.*"]),
    "tool over http": question(tool=HTTP, args=_args("user")),
    "data": question(EntryPoint.DATA),
    "workflow": question(EntryPoint.WORKFLOW, definition=DEFINITION),
    "secret": question(EntryPoint.SECRET),
    "egress": question(EntryPoint.EGRESS),
    "model": question(EntryPoint.MODEL),
    "model elsewhere": question(EntryPoint.MODEL, models=[ELSEWHERE]),
}
DENIED = {
    "tool": question(via="guest", tool=HTTP, args=_args("untrusted")),
    "data": question(EntryPoint.DATA, tenant="stranger"),
    "workflow": question(EntryPoint.WORKFLOW, tenant="stranger", definition=DEFINITION),
    "secret": question(EntryPoint.SECRET, tenant="stranger"),
    "egress": question(EntryPoint.EGRESS, tenant="stranger", destination=METADATA_SERVICE),
    "model": question(EntryPoint.MODEL, tenant="stranger", models=[ELSEWHERE]),
}


@cache
def _engine() -> Engine:
    bundle = load_bundle()
    engine = Engine()
    for path, text in (*bundle.files.items(), ("trivial.rego", TRIVIAL)):
        engine.add_policy(path, text)
    tenant = {
        **bundle.data["tenants"]["default"],
        "secrets": {"key": {"a.b": ["api.example.com"]}},
        "egress": {"api.example.com": [443]},
    }
    engine.add_data_json(json.dumps({**bundle.data, "tenants": {"default": tenant}}))
    return engine


def _seconds(encoded: str, rule: str) -> float:
    begun = time.process_time()
    for _ in range(EACH):
        _engine().set_input_json(encoded)
        _engine().eval_rule_as_json(rule)
    return time.process_time() - begun


def _ratio(asked: Question) -> float:
    encoded = asked.encoded().decode()
    # Turn by turn, and the quickest of many: both meet the same machine.
    both = [
        (_seconds(encoded, f"data.{asked.entry.value}.decision"), _seconds(encoded, "data.trivial.decision"))
        for _ in range(ROUNDS)
    ]
    return min(rule for rule, _ in both) / min(trivial for _, trivial in both)


def _allows(asked: Question) -> bool:
    _engine().set_input_json(asked.encoded().decode())
    allow: bool = json.loads(_engine().eval_rule_as_json(f"data.{asked.entry.value}.decision"))["allow"]
    return allow


@pytest.mark.parametrize("name", ALLOWED)
def test_allowing_costs_a_few_trivial_rules(name: str) -> None:
    assert _allows(ALLOWED[name])
    assert _ratio(ALLOWED[name]) < ALLOW_MOST


@pytest.mark.parametrize("name", DENIED)
def test_denying_with_reasons_costs_little_more(name: str) -> None:
    assert not _allows(DENIED[name])
    assert _ratio(DENIED[name]) < DENY_MOST


def test_every_entry_point_is_measured() -> None:
    for measured in (ALLOWED, DENIED):
        assert {asked.entry for asked in measured.values()} == set(EntryPoint)
