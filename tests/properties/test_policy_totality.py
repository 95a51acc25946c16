"""Whatever a policy answers, whatever a question holds: only an exact allow allows, and nothing raises."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlplane.authorization.answers import AnswerReader
from controlplane.authorization.masking import masked
from controlplane.authorization.schemas import problem_with
from controlplane.authorization.testing import question
from controlplane.authorization.values import Decision, EntryPoint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "allow": st.sampled_from([True, False, None, 1, "true", []]),
        "reasons": st.lists(st.fixed_dictionaries({"code": st.text(), "message": st.text()}), max_size=2) | JSON,
        "obligations": st.lists(st.fixed_dictionaries({"kind": st.text()}), max_size=2) | JSON,
    },
)


def read(answer: str) -> Decision:
    reader = AnswerReader(rules={}, revision="r", engine="e")
    first, again = reader.read(question(), answer), reader.read(question(), answer)
    assert (first.allow, first.reasons, first.obligations) == (again.allow, again.reasons, again.obligations)
    return again


@given(NEARLY | JSON)
def test_only_an_exact_allow_allows(answer: Any) -> None:
    decision = read(json.dumps(answer))
    said = isinstance(answer, dict) and answer.get("allow")
    if decision.allow:
        assert said is True
    else:
        assert decision.reasons
        assert decision.obligations == ()


@given(st.text(max_size=200))
def test_text_that_is_no_answer_denies(answer: str) -> None:
    assert read(answer).allow is False


@given(st.sampled_from(list(EntryPoint)), st.dictionaries(st.text(max_size=10), JSON, max_size=5))
def test_an_unknown_field_never_passes_a_schema(entry: EntryPoint, extra: dict[str, Any]) -> None:
    good = question(entry).input
    assert problem_with(entry, good) == ""
    unknown = {f"x-{key}": value for key, value in extra.items()}
    assert bool(problem_with(entry, {**good, **unknown})) is bool(unknown)


@given(st.sampled_from(list(EntryPoint)), st.data())
def test_no_field_may_be_missing(entry: EntryPoint, data: st.DataObject) -> None:
    good = dict(question(entry).input)
    del good[data.draw(st.sampled_from(sorted(good)))]
    assert problem_with(entry, good)


@given(JSON)
def test_a_value_under_a_secret_name_is_never_stored(value: Any) -> None:
    stored = masked({"args": {"a": {"value": {"password": ["MARK", value], "list": [{"auth_token": "MARK"}]}}}})
    assert "MARK" not in json.dumps(stored)
