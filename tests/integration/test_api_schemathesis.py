"""Whatever a client sends, the API never fails itself, and refuses with a problem document.

A whole control plane in this process, engine and policy included, and no node: what needs one waits. First every
operation of the OpenAPI as schemathesis sees it; then what a schema cannot know: workflows that are nearly right, and
the operations on a run that is really there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from controlplane.app import create_app
from controlplane.config import Settings
from tests.acceptance.cluster import wait_for

AUTHORIZING = frozenset({"authorization", "x-api-key"})
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi())
bounded = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
APPROVAL = {"id": "ok", "approve": {"ask": "May it?", "gates": ["after"]}}
PARKED = {
    "stockade": "1",
    "name": "parked",
    "steps": [APPROVAL, {"id": "after", "code": {"python": "1"}, "sandbox": {"tier": "wasm"}}],
}
SOURCE = "def f(x):\n    return x"
NEARLY: list[dict[str, Any]] = [
    PARKED,
    {
        "stockade": "1",
        "name": "all",
        "input": {"type": "object", "properties": {"n": {"type": "integer"}}},
        "steps": [
            {"id": "a", "set": {"n": "${1 + 1}"}},
            {"id": "m", "map": {"over": [1, 2], "as": "one", "tolerate": 0.5}, "do": [{"id": "b", "set": "${one}"}]},
            {"id": "i", "if": "${steps.a.output.n > 1}", "do": [{"id": "c", "wait": "1s"}]},
            {"id": "p", "parallel": {}, "do": [{"id": "d", "tool": "builtin.noop", "args": {"n": 1}, "timeout": "5s"}]},
        ],
        "output": "${steps.m.output}",
    },
    {
        "stockade": "1",
        "name": "code",
        "steps": [
            {
                "id": "c",
                "code": {
                    "python": SOURCE,
                    "call": "f",
                    "args": [1],
                    "inputs": {"i": "data://logs/a"},
                    "tools": ["a.*"],
                },
                "retry": {"max": 2, "backoff": "1s..3s", "on": ["timeout"]},
                "resources": {"cpu": 1, "memory": "1Gi", "labels": {"a": "b"}},
                "sandbox": {"tier": "auto", "memory": "64Mi", "wall": "5s"},
                "needs": [],
                "when": "${true}",
                "on_error": "continue",
            }
        ],
    },
]
ODD = st.sampled_from(
    [
        "",
        "${",
        "${input.x}",
        "${steps.a.output}",
        "${[1].map(x, x)}",
        "$${",
        "\x00",
        "-1s",
        "1e999s",
        "9" * 40,
        "data://../x",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | ODD
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=5)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each member of each container below: the container and the key or index."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, member in members for place in ((value, key), *places(member))]


@st.composite
def nearly_right(draw: st.DrawFn) -> dict[str, Any]:
    """A good workflow after up to two changes somewhere in it."""
    document = copy.deepcopy(draw(st.sampled_from(NEARLY)))
    for _ in range(draw(st.integers(0, 2))):
        if found := places(document):
            container, key = draw(st.sampled_from(found))
            if draw(st.booleans()):
                container[key] = draw(VALUES)
            elif isinstance(container, dict):
                del container[key]
            else:
                container.append(container[key])
    return document


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    # A loaded machine must not make policy late: that would be an honest 503, and hide others.
    configured = Settings(state_dir=tmp_path_factory.mktemp("fuzzed"), policy_deadline_seconds=10)
    with TestClient(create_app(configured), raise_server_exceptions=False) as client:
        client.headers["X-API-Key"] = configured.admin_key.read_text().strip()
        yield client


def send(client: TestClient, case: schemathesis.Case) -> Any:
    sent = case.as_transport_kwargs(base_url="http://testserver")
    sent.pop("cookies", None)
    if "data" in sent:
        sent["content"] = sent.pop("data")
    sent["headers"] = {name: value for name, value in sent["headers"].items() if name.lower() not in AUTHORIZING}
    return client.request(**sent)


def check(response: Any) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json", response.text


def post(client: TestClient, path: str, body: Any) -> Any:
    return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


def parked(client: TestClient) -> str:
    """A run that waits for an approval."""
    made = post(client, "/v1/runs", {"workflow": PARKED})
    assert made.status_code == 201, made.text
    run = str(made.json()["id"])
    wait_for(lambda: client.get(f"/v1/runs/{run}/steps/ok").json()["status"] == "waiting", "the approval being asked")
    return run


@schema.parametrize()
@bounded
def test_no_request_is_the_servers_fault(case: schemathesis.Case, client: TestClient) -> None:
    check(send(client, case))


@schema.include(path_regex="{run_id}").parametrize()
@settings(bounded, max_examples=5)
def test_nor_is_one_about_a_run_that_is_there(case: schemathesis.Case, client: TestClient) -> None:
    case.path_parameters["run_id"] = parked(client)
    if "path" in case.path_parameters:
        case.path_parameters["path"] = "ok"
    if "path" in case.query:
        case.query["path"] = "ok"
    response = send(client, case)
    check(response)
    assert response.status_code != 404, response.text


@pytest.mark.parametrize("document", NEARLY, ids=lambda one: one["name"])
def test_the_workflows_that_are_changed_are_right(document: dict[str, Any], client: TestClient) -> None:
    response = post(client, "/v1/runs", {"workflow": document, "input": {}})
    assert response.status_code == 201, response.text


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs:validate"])
def test_nor_is_a_workflow_that_is_nearly_right(path: str, client: TestClient) -> None:
    @settings(bounded, max_examples=100)
    @given(document=nearly_right(), given_input=st.just({}) | VALUES)
    def fuzzed(document: dict[str, Any], given_input: Any) -> None:
        check(post(client, path, {"workflow": document, "input": given_input}))

    fuzzed()
    # What was taken runs by now, as far as it can without a node, and the server still answers.
    check(client.get("/readyz"))
    check(client.get("/v1/runs", params={"limit": 200}))


def test_a_parked_run_is_approved_and_then_cancelled(client: TestClient) -> None:
    run = parked(client)
    assert post(client, f"/v1/runs/{run}/steps/ok:approve", {}).status_code == 200
    assert post(client, f"/v1/runs/{run}:cancel", {"reason": "enough"}).status_code == 202
