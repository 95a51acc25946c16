"""Text of a model that is read as JSON: strictly, wherever it is read."""

from __future__ import annotations

import pytest

from controlplane.runs.agent_tools import calls_of
from controlplane.runs.model_calls import json_of
from controlplane.workflows.spec import Agent


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is not JSON$"):
        json_of(f'{{"a": {name}}}')
    agent = Agent.model_validate({"model": "small", "prompt": "p", "code": True})
    message = {"tool_calls": [{"function": {"name": "run_python", "arguments": f'{{"code": {name}}}'}}]}
    (call,) = calls_of(message, agent, [])
    assert call["error"] == f"the arguments are not a JSON object: {name} is not JSON"
    assert "code" not in call
