"""Digests, masking and explanations of decisions."""

from __future__ import annotations

import json

import pytest

from controlplane.authorization.explanation import explain
from controlplane.authorization.masking import masked
from controlplane.authorization.testing import StaticEngine, question
from controlplane.authorization.values import Decision, EntryPoint, Question


async def decided(asked: Question, answer: object) -> Decision:
    engine = StaticEngine(lambda _: answer)
    await engine.start()
    (decision,) = await engine.decide([asked])
    assert isinstance(decision, Decision)
    return decision


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = Question(entry=EntryPoint.TOOL, input={"a": 1, "b": {"c": 1, "d": 2}})
    other = Question(entry=EntryPoint.TOOL, input={"b": {"d": 2, "c": 1}, "a": 1})
    assert one.digest() == other.digest() == "sha256:" + one.digest()[7:]
    assert one.digest() != Question(entry=EntryPoint.TOOL, input={"a": 2}).digest()


@pytest.mark.parametrize("name", ["password", "api_key", "apiKey", "X-Auth-Token", "client_secret", "secret", "Cookie"])
def test_arguments_that_sound_secret_are_masked_at_any_depth(name: str) -> None:
    args = {name: {"value": "hunter2"}, "body": {"value": {"deep": [{name: "hunter2"}]}}}
    assert "hunter2" not in json.dumps(masked({"args": args}))


def test_long_text_is_cut_and_names_of_secrets_stay() -> None:
    stored = masked({"secret": "weather-key", "args": {"body": {"value": "é" * 1000}}})
    assert stored["secret"] == "weather-key"
    assert stored["args"]["body"]["value"].startswith("é" * 128 + "… (2000 bytes)")


def test_a_query_string_is_not_stored() -> None:
    asked = question(EntryPoint.EGRESS, destination={"scheme": "https", "host": "a", "path": "/x?key=hunter2"})
    assert masked(asked.input)["destination"]["path"] == "/x"


@pytest.mark.anyio
async def test_a_decision_is_plain_json_with_the_digest_of_the_full_input() -> None:
    asked = question(args={"token": {"value": "hunter2"}})
    decision = await decided(asked, {"allow": True})
    stored = json.loads(json.dumps(decision.to_json()))
    assert "hunter2" not in json.dumps(stored)
    assert stored["input_digest"] == asked.digest()
    assert stored["entry"] == "runtime.tool"


@pytest.mark.anyio
async def test_an_explanation_says_what_why_and_what_to_do() -> None:
    reason = {"code": "tool_not_granted", "message": "This step does not grant it.", "remedy": "Add it."}
    decision = await decided(question(via="guest"), {"allow": False, "reasons": [reason]})
    text = "\n".join(explain(decision.to_json()))
    for part in (decision.id, "DENIED", "builtin.noop", "tool_not_granted", "Add it.", "revision static", "run_1"):
        assert part in text


@pytest.mark.anyio
async def test_an_explanation_of_an_allow_names_its_obligations() -> None:
    decision = await decided(question(), {"allow": True, "obligations": [{"kind": "ttl", "seconds": 5}]})
    text = "\n".join(explain(decision.to_json()))
    assert "ALLOWED" in text
    assert "ttl(seconds=5)" in text


@pytest.mark.anyio
@pytest.mark.parametrize("entry", list(EntryPoint))
async def test_every_entry_point_is_explained_and_hostile_text_stays_text(entry: EntryPoint) -> None:
    decision = await decided(question(entry, step="\x1b[2J{tool}\n"), {"allow": False})
    for line in explain(decision.to_json()):
        assert line.isprintable()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "args", [{}, {"token": {"value": "hunter2"}}, {"n": {"value": 2**70}}, {"t": {"value": "x" * 999}}]
)
async def test_the_row_of_the_log_is_the_decision(args: dict[str, object]) -> None:
    reason = {"code": "no", "message": "because", "remedy": "ask"}
    decision = await decided(question(args=args), {"allow": False, "reasons": [reason]})
    row, shown = decision.log_row(), decision.to_json()
    for column in ("reasons", "obligations", "input"):
        assert json.loads(str(row.pop(column))) == shown.pop(column)
    assert row == shown


@pytest.mark.anyio
async def test_obligations_are_in_the_row_of_the_log() -> None:
    decision = await decided(question(), {"allow": True, "obligations": [{"kind": "ttl", "seconds": 5}]})
    assert json.loads(str(decision.log_row()["obligations"])) == [{"kind": "ttl", "args": {"seconds": 5}}]


def test_what_needs_no_mask_is_stored_as_it_is() -> None:
    asked = question(args={"n": {"value": 1, "labels": {"integrity": "user"}}})
    assert masked(asked.input) is asked.input
