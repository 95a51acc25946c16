"""A shipped rule never allows more because a field is missing or of another type."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from regorus import Engine

from controlplane.authorization.bundle import load_bundle
from controlplane.authorization.testing import question
from controlplane.authorization.values import EntryPoint


@cache
def engine() -> Engine:
    bundle = load_bundle()
    one = Engine()
    for path, text in bundle.files.items():
        one.add_policy(path, text)
    one.add_data_json(bundle.data_json)
    return one


def allows(entry: EntryPoint, given_input: Any) -> bool:
    engine().set_input_json(json.dumps(given_input))
    try:
        answer = json.loads(engine().eval_rule_as_json(f"data.{entry.value}.decision"))
    except RuntimeError:  # a wrong type in a builtin: the enforcement point denies it as malformed
        return False
    return answer["allow"] is True


# Questions that are denied as they stand: by grant, by binding, by listing, by tenant.
DENIED = [
    question(EntryPoint.TOOL, via="guest"),
    question(EntryPoint.TOOL, tenant="stranger"),
    question(EntryPoint.SECRET),
    question(EntryPoint.EGRESS),
    question(EntryPoint.DATA, tenant="stranger"),
    question(EntryPoint.WORKFLOW, tenant="stranger"),
    question(EntryPoint.MODEL, tenant="stranger"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict):
        return []
    return [one for key, inner in value.items() for one in ((*path, key), *places(inner, (*path, key)))]


@settings(deadline=None)
@given(st.sampled_from(DENIED), st.data())
def test_a_denial_stays_one_when_fields_go_missing_or_change_type(asked: Any, data: st.DataObject) -> None:
    assert not allows(asked.entry, asked.input)
    changed = copy.deepcopy(dict(asked.input))
    path = data.draw(st.sampled_from(places(changed)))
    inside = changed
    for key in path[:-1]:
        inside = inside[key]
    if data.draw(st.booleans()):
        del inside[path[-1]]
    else:
        inside[path[-1]] = data.draw(st.sampled_from([None, 0, "", [], {}, False]))
    assert not allows(asked.entry, changed)
