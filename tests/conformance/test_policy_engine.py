"""What every policy engine does: each check runs on the embedded engine, on an OPA server, and on their double.

A check is played by a pair: rules in Rego for a real engine, and a function that answers likewise for the double.
The behaviour is chosen by the name of the step, so that good and bad questions meet in one engine.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from controlplane.authorization.bundle import bundle_of
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.engine import PolicyEngine
from controlplane.authorization.testing import Never, StaticEngine, question
from controlplane.authorization.values import Decision, EntryPoint, PolicyUnavailable
from tests.opa_server import OpaServer, opa_server, ready

pytestmark = pytest.mark.anyio

RULES = """package runtime.tool
import rego.v1

default decision := {"allow": false, "reasons": [], "obligations": []}
decision := {"allow": true, "reasons": [], "obligations": []} if input.step == "allow"
decision := {"allow": false, "reasons": [{"code": "no", "message": "because", "remedy": "ask"}]} if input.step == "deny"
decision := {"allow": "true"} if input.step == "text"
decision := {"allow": 1} if input.step == "number"
decision := {"reasons": []} if input.step == "missing"
decision := {"allow": true, "alow": false} if input.step == "extra"
decision := ["allow"] if input.step == "list"
decision := null if input.step == "null"
decision := {"allow": true, "reasons": ["fine"]} if input.step == "reason"
decision := {"allow": true, "obligations": [{"ttl": 1}]} if input.step == "kindless"
decision := {"allow": true, "obligations": [{"kind": "ttl", "seconds": 5}]} if input.step == "ttl"
decision := {"allow": true, "obligations": [{"kind": "dance"}]} if input.step == "dance"
decision := {"allow": true, "obligations": [{"kind": "require_approval"}]} if input.step == "approval"
decision := {"allow": false, "obligations": [{"kind": "ttl"}]} if input.step == "denied-ttl"
decision := {"allow": true} if input.step == "conflict"
decision := {"allow": false} if input.step == "conflict"
decision := {"allow": true} if {
	input.step == "builtin"
	not to_number(input.run) == 1
}
decision := {"allow": true} if {
	input.step == "runaway"
	some a in numbers.range(1, 900)
	some b in numbers.range(1, 900)
	some c in numbers.range(1, 900)
	a + b + c < 0
}
"""
UNDEFINED = 'package runtime.egress\nimport rego.v1\ndecision := {"allow": true} if input.step == "never"\n'
ANSWERS: dict[str, Any] = {
    "allow": {"allow": True, "reasons": [], "obligations": []},
    "deny": {"allow": False, "reasons": [{"code": "no", "message": "because", "remedy": "ask"}]},
    "text": {"allow": "true"},
    "number": {"allow": 1},
    "missing": {"reasons": []},
    "extra": {"allow": True, "alow": False},
    "list": ["allow"],
    "null": None,
    "reason": {"allow": True, "reasons": ["fine"]},
    "kindless": {"allow": True, "obligations": [{"ttl": 1}]},
    "ttl": {"allow": True, "obligations": [{"kind": "ttl", "seconds": 5}]},
    "dance": {"allow": True, "obligations": [{"kind": "dance"}]},
    "approval": {"allow": True, "obligations": [{"kind": "require_approval"}]},
    "denied-ttl": {"allow": False, "obligations": [{"kind": "ttl"}]},
    "runaway": Never(),
}
# The rule failed: no value at all, and the double cannot fail so.
FAILING = ("conflict", "builtin")
MALFORMED = ("text", "number", "missing", "extra", "list", "null", "reason", "kindless")


def _static() -> PolicyEngine:
    def answer(asked: Any) -> Any:
        if asked.entry is EntryPoint.EGRESS:
            return "<undefined>"
        return ANSWERS.get(asked.input["step"], {"allow": False})

    return StaticEngine(answer)


BUNDLE = bundle_of({"runtime/tool.rego": RULES, "runtime/egress.rego": UNDEFINED}, {})


@pytest.fixture(scope="module")
def opa() -> Iterator[OpaServer]:
    """One server for all checks; each has an engine of its own."""
    with opa_server(BUNDLE) as server:
        yield server


@pytest.fixture(params=["static", "embedded", "opa"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[PolicyEngine]:
    one: PolicyEngine
    if request.param == "opa":
        server: OpaServer = request.getfixturevalue("opa")
        one = server.engine()
        await ready(one)
    else:
        one = _static() if request.param == "static" else EmbeddedEngine(BUNDLE)
        await one.start()
    yield one
    await one.close()


@pytest.fixture
def enforcer(engine: PolicyEngine) -> Enforcer:
    return Enforcer(engine, {EntryPoint.TOOL: frozenset({"ttl"})})


async def test_an_allow_allows(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(step="allow"))
    assert decision.allow is True
    assert decision.failure == ""


async def test_nothing_matching_denies_with_a_reason_and_a_remedy(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(step="unheard of"))
    assert decision.allow is False
    assert decision.reasons[0].code == "default_deny"
    assert decision.reasons[0].remedy


async def test_a_denial_keeps_its_reason(enforcer: Enforcer) -> None:
    (reason,) = (await enforcer.ask(question(step="deny"))).reasons
    assert (reason.code, reason.message, reason.remedy) == ("no", "because", "ask")


async def test_an_undefined_answer_is_malformed(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(EntryPoint.EGRESS))
    assert (decision.allow, decision.failure) == (False, "malformed_answer")
    assert "undefined" in decision.reasons[0].message


async def test_an_entry_point_without_rules_denies(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(EntryPoint.SECRET))
    assert decision.allow is False


@pytest.mark.parametrize("step", MALFORMED)
async def test_what_is_not_exactly_a_decision_denies(enforcer: Enforcer, step: str) -> None:
    decision = await enforcer.ask(question(step=step))
    assert (decision.allow, decision.failure, decision.obligations) == (False, "malformed_answer", ())


@pytest.mark.parametrize("step", FAILING)
@pytest.mark.parametrize("engine", ["embedded", "opa"], indirect=True)
async def test_a_rule_that_fails_denies_and_names_the_place(enforcer: Enforcer, step: str) -> None:
    decision = await enforcer.ask(question(step=step))
    assert (decision.allow, decision.failure) == (False, "malformed_answer")
    assert "runtime/tool.rego:" in decision.reasons[0].message


async def test_an_engine_that_answers_is_ready(engine: PolicyEngine) -> None:
    assert engine.is_ready
    assert engine.name
    await engine.close()
    assert not engine.is_ready


async def test_an_implemented_obligation_rides_on_the_allow(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(step="ttl"))
    assert decision.allow is True
    assert [(one.kind, one.args) for one in decision.obligations] == [("ttl", {"seconds": 5})]


async def test_an_obligation_on_a_denial_is_dropped(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(step="denied-ttl"))
    assert (decision.allow, decision.obligations) == (False, ())


async def test_an_unknown_obligation_denies(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(step="dance"))
    assert (decision.allow, decision.failure) == (False, "unknown_obligation")
    assert decision.reasons[0].code == "unknown_obligation"


async def test_require_approval_denies_as_not_implemented_yet(enforcer: Enforcer) -> None:
    decision = await enforcer.ask(question(step="approval"))
    assert (decision.allow, decision.failure) == (False, "unknown_obligation")
    assert decision.reasons[0].code == "obligation_not_implemented"


async def test_answers_come_in_the_order_of_their_questions(enforcer: Enforcer) -> None:
    steps = [("allow", "deny", "text")[index % 3] for index in range(200)]
    answers = await enforcer.ask_many([question(step=step, now_ns=index) for index, step in enumerate(steps)])
    assert [isinstance(one, Decision) and one.allow for one in answers] == [step == "allow" for step in steps]
    assert [one.input["now_ns"] for one in answers if isinstance(one, Decision)] == list(range(200))


async def test_no_questions_no_answers(engine: PolicyEngine) -> None:
    assert await engine.decide([]) == []


async def test_a_decision_says_which_policy_and_which_input(engine: PolicyEngine) -> None:
    asked = question(step="allow")
    (decision,) = await engine.decide([asked])
    assert isinstance(decision, Decision)
    assert decision.revision == engine.revision != ""
    assert decision.input_digest == asked.digest()
    assert decision.engine


async def test_the_same_question_has_the_same_answer(engine: PolicyEngine) -> None:
    first, second = await engine.decide([question(step="deny"), question(step="deny")])
    assert isinstance(first, Decision)
    assert isinstance(second, Decision)
    assert (first.allow, first.reasons, first.input_digest) == (second.allow, second.reasons, second.input_digest)
    assert first.id != second.id


async def test_a_runaway_rule_is_unavailable_within_250_ms(enforcer: Enforcer) -> None:
    begun = time.perf_counter()
    with pytest.raises(PolicyUnavailable) as caught:
        await enforcer.ask(question(step="runaway"))
    assert time.perf_counter() - begun < 0.25
    assert caught.value.decision is not None
    assert (caught.value.decision.allow, caught.value.decision.failure) == (False, "policy_unavailable")


async def test_a_runaway_rule_costs_its_batch_nothing_but_itself(enforcer: Enforcer) -> None:
    steps = ["allow"] * 10 + ["runaway"] + ["allow"] * 10
    answers = await enforcer.ask_many([question(step=step) for step in steps])
    assert [isinstance(one, Decision) and one.allow for one in answers] == [step == "allow" for step in steps]
    assert isinstance(answers[10], PolicyUnavailable)


async def test_it_answers_again_after_a_runaway_rule(enforcer: Enforcer) -> None:
    for _ in range(3):
        await enforcer.ask_many([question(step="runaway")])
        assert (await enforcer.ask(question(step="allow"))).allow


async def test_a_closed_engine_is_unavailable(engine: PolicyEngine) -> None:
    await engine.close()
    (answer,) = await engine.decide([question(step="allow")])
    assert isinstance(answer, PolicyUnavailable)
