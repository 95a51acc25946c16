"""The embedded engine and a real OPA server decide alike: 10,000 random questions that fit their schemas.

The questions come from the schemas themselves, with words that the rules know, that they almost know, and that are
awkward to quote; the policy is the shipped one with grants and a tenant's rule over it. One difference is known and
left out: a whole number of a million or more that is written as a fraction (``1e12``) reads differently in a message.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from controlplane.authorization.bundle import SHIPPED, Bundle, load_bundle
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.engine import PolicyEngine
from controlplane.authorization.schemas import problem_with
from controlplane.authorization.values import Decision, EntryPoint, Question
from tests.opa_server import opa_server, ready

pytestmark = pytest.mark.anyio

QUESTIONS = 10_000
BATCH = 100
SEED = 20260
PATIENCE_SECONDS = 60.0
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (SHIPPED / "schemas").glob("*.json")}
WORDS: dict[str, Sequence[Any]] = {
    "tenant": ["default", "default", "default", "acme", "stranger", ""],
    "name": ["builtin.noop", "builtin.artifact.read", "mail.send", "weather.now", "mail", "builtin.shell", "*"],
    "tool": ["mail.send", "weather.now", "a.b", "mail.*"],
    "tools": ["mail.send", "mail.*", "*", "weather.now", "builtin.noop", "**"],
    "granted": ["mail.send", "mail.*", "*", "builtin.*", "weather.now", "a.**"],
    "host": [
        "api.example.com",
        "a.internal.example",
        "127.0.0.1",
        "localhost",
        "::1",
        "example.com",
        "API.example.com",
    ],
    "declared_hosts": ["api.example.com", "*.internal.example", "127.0.0.1", "localhost", "*", "::1"],
    "scheme": ["https", "http"],
    "secret": ["weather-key", "key", "key", "other"],
    "secrets": ["weather-key", "key"],
    "step_secrets": ["weather-key", "key", "key"],
    "uri": [
        "data://logs/a.log",
        "data://logs/../etc",
        "data://logs/",
        "data://x",
        "file:///etc",
        "data://logs/a/%2e%2e",
    ],
    "data": ["data://logs/a.log", "data://logs/../etc", "data://x/y"],
    "data_name": ["logs", "x", "*"],
    "effect": ["none", "read", "write", "Read"],
    "critical_args": ["to", "body", "missing"],
    "verbs": ["code", "tool", "agent", "wait"],
    "tiers": ["auto", "wasm", "jail", "container"],
    "tier": ["wasm", "jail"],
    "readers": ["api.example.com", "*", "ward-3"],
    "integrity": ["user", "trusted", "untrusted"],
}
AWKWARD = [
    "",
    " ",
    'a"b',
    "back\\slash",
    "né",
    "日本",
    "😀",
    "tab\there",
    "line\nbreak",
    "null",
    "%d",
    "a.b.c",
    "\u2028",
]
KEYS = ["to", "body", "é", "x y", ""]
PORTS = [443, 80, 8080, 0, 65535]
SECRET_USERS = {"mail.send": ["*"], "weather.now": ["*"], "a.b": ["*"]}
OVERLAY = {
    "tenants": {
        "default": {
            "egress": {"api.example.com": [443, 8080], "*.internal.example": True, "localhost": True},
            "secrets": {"weather-key": {"weather.*": ["api.example.com"], "mail.send": ["*"]}, "key": SECRET_USERS},
            "caps": {"steps": 500, "cpu": 4.5},
        },
        "acme": {"tools": {"*": False, "mail.**": True}, "data": {"logs": True}, "builtins": {"builtin.noop": True}},
    }
}
RULE = """package tenant.tool

import rego.v1

deny contains {"code": "odd", "message": sprintf("%v at %d by %s", [name, input.now_ns, input.subject.id])} if {
	some name, argument in input.args
	not count(object.keys(argument)) == 1
}
"""


class Writer:
    """Writes random values that fit a schema."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - tests repeat

    def question(self) -> Question:
        entry = self._random.choice(list(EntryPoint))
        while True:
            written = self._value(SCHEMAS[entry.value.removeprefix("runtime.")], "")
            if not problem_with(entry, written):
                return Question(entry=entry, input=written)

    def _value(self, schema: Any, key: str) -> Any:
        if schema is True:
            return self._anything(2)
        if "$ref" in schema:
            document, _, name = schema["$ref"].removeprefix("stockade:policy/").partition("#/$defs/")
            return self._value(SCHEMAS[document]["$defs"][name], key)
        if "oneOf" in schema:
            return self._value(self._random.choice(schema["oneOf"]), key)
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        kind = schema["type"]
        kind = self._random.choice(kind) if isinstance(kind, list) else kind
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return [self._value(schema["items"], key) for _ in range(self._random.randrange(4))]
        return self._scalar(kind, schema, key)

    def _object(self, schema: Any) -> dict[str, Any]:
        required, extra = schema.get("required", []), schema["additionalProperties"]
        properties = schema.get("properties", {})
        chosen = [key for key in properties if key in required or self._random.random() < 0.6]
        made = {key: self._value(properties[key], key) for key in chosen}
        if extra is not False:
            made |= {key: self._value(extra, key) for key in self._random.sample(KEYS, self._random.randrange(3))}
        return made

    def _scalar(self, kind: str, schema: Any, key: str) -> Any:
        if kind == "null":
            return None
        if kind == "boolean":
            return self._random.random() < 0.5
        if kind == "integer":
            choices = PORTS if key == "port" else [0, 1, 499, 501, 2**53, 2**63, 1_763_700_000_000_000_000]
            return self._random.choice(choices)
        if kind == "number":
            return self._random.choice([0, 0.5, 4.5, 4.500001, 8, 10**12, 3])
        known = WORDS.get(key, ())
        return self._random.choice(known if known and self._random.random() < 0.85 else AWKWARD)

    def _anything(self, depth: int) -> Any:
        pick = self._random.randrange(8 if depth else 6)
        if pick == 6:
            return [self._anything(depth - 1) for _ in range(self._random.randrange(3))]
        if pick == 7:
            return {self._random.choice(KEYS): self._anything(depth - 1)}
        return [None, True, self._random.choice(AWKWARD), 2**64, -0.25, "x"][pick]


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[tuple[PolicyEngine, PolicyEngine]]:
    (tmp_path / "data.json").write_text(json.dumps(OVERLAY))
    (tmp_path / "odd.rego").write_text(RULE)
    bundle: Bundle = load_bundle([tmp_path])
    with opa_server(bundle) as server:
        embedded, opa = EmbeddedEngine(bundle), server.engine()
        try:
            await embedded.start()
            await ready(opa)
            yield embedded, opa
        finally:
            await embedded.close()
            await opa.close()


async def decisions(engine: PolicyEngine, questions: Sequence[Question]) -> list[Decision]:
    """Every decision; what a crowded machine kept too long is asked again."""
    found: dict[int, Decision] = {}
    with anyio.fail_after(PATIENCE_SECONDS):
        while missing := [index for index in range(len(questions)) if index not in found]:
            answers = await engine.decide([questions[index] for index in missing])
            found |= {index: one for index, one in zip(missing, answers, strict=True) if isinstance(one, Decision)}
    return [found[index] for index in range(len(questions))]


def what(decision: Decision) -> tuple[Any, ...]:
    return decision.allow, decision.failure, decision.reasons, decision.obligations, decision.input_digest


async def test_they_agree_on_10000_random_questions(engines: tuple[PolicyEngine, PolicyEngine]) -> None:
    writer = Writer(SEED)
    seen: Counter[tuple[EntryPoint, bool]] = Counter()
    codes: set[str] = set()
    for _ in range(QUESTIONS // BATCH):
        asked = [writer.question() for _ in range(BATCH)]
        ours, theirs = [await decisions(engine, asked) for engine in engines]
        for question, our, their in zip(asked, ours, theirs, strict=True):
            assert what(our) == what(their), question.input
            seen[our.entry, our.allow] += 1
            codes |= {reason.code for reason in our.reasons}
    # Agreement on nothing but denials, or on few of the rules, would show little.
    assert all(seen[entry, allow] >= 20 for entry in EntryPoint for allow in (True, False)), seen
    assert len(codes) >= 15, codes
