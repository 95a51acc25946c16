"""Values that a model might write where addresses and instants belong: they cost their own run, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from stockade.client import Client, StockadeError

READ: dict[str, Any] = {"id": "a", "code": {"python": "1", "inputs": {"f": "${input.v}"}}}
NEAR: dict[str, Any] = {"id": "a", "code": {"python": "1"}, "near": "${input.v}"}
WAIT: dict[str, Any] = {"id": "a", "wait": {"until": "${input.v}"}}


@pytest.mark.parametrize(
    ("step", "value"),
    [
        *[(READ, value) for value in ("data://[x/y", "data://a/../b", "data://nowhere", "file:///etc/passwd", "x", 7)],
        *[(NEAR, value) for value in ("data://[x/y", "//", 7)],
        *[(WAIT, value) for value in ("9999-12-31T00:00:00Z", "9999-12-31T23:59:59-01:00", "soon", 7)],
    ],
)
def test_a_hostile_value_fails_its_step_with_the_reason(client: Client, step: dict[str, Any], value: Any) -> None:
    run = client.submit({"stockade": "1", "name": "hostile", "steps": [step]}, {"v": value})
    ended = client.wait(run.id)
    assert ended.status == "failed", ended
    assert ended.error is not None
    assert ended.error.type == "schema"
    after = client.submit({"stockade": "1", "name": "after", "steps": [{"id": "a", "set": 1}]})
    assert client.wait(after.id).status == "completed"


def test_written_arguments_that_a_tool_does_not_take_are_refused_at_submit(client: Client) -> None:
    step = {"id": "a", "tool": "builtin.artifact.write", "args": {"nmae": "x"}}
    with pytest.raises(StockadeError) as refused:
        client.submit({"stockade": "1", "name": "args", "steps": [step]})
    assert refused.value.errors[0].pointer.startswith("/steps/0/args")


def test_a_failed_guest_names_the_line_of_its_source(client: Client) -> None:
    code = {"python": "x = 1\n\nraise ValueError('no')"}
    run = client.submit({"stockade": "1", "name": "line", "steps": [{"id": "a", "code": code}]})
    ended = client.wait(run.id)
    assert ended.error is not None
    assert ended.error.message.endswith("ValueError: no (line 3 of its source)")
