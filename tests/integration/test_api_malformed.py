"""Malformed workflows as a person meets them: through the API, whose answers say where, what and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.app import create_app
from controlplane.config import Settings
from tests.unit.test_workflow_malformed import CASES, NOT_YET, workflow

DOCUMENTS = [(name, document) for name, document, *_ in CASES]
DOCUMENTS += [(f"not yet: {pointer}-{i}", workflow(step)) for i, (pointer, step) in enumerate(NOT_YET)]
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("one step", workflow({"id": "a", "set": None})),
    ("an id as long as it may be", workflow({"id": "a" * 64, "set": 1})),
    ("text that looks like an expression", workflow({"id": "a", "set": "$${not one}"})),
    ("every plane of Unicode", workflow({"id": "a", "set": {"ключ 🗝": "\U0010ffff\u200b\u202e"}})),
    ("an empty map", workflow({"id": "m", "map": {"over": []}, "do": [{"id": "b", "set": 1}]})),
    ("a thousand steps", workflow(*({"id": f"s{i}", "set": i} for i in range(1000)))),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A whole control plane, with its engine and no node."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("malformed"))
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["X-API-Key"] = settings.admin_key.read_text().strip()
        yield client


def sent(client: TestClient, path: str, document: Any) -> Any:
    # Not json=: that refuses infinities, which are among the cases.
    return client.post(path, content=json.dumps({"workflow": document}), headers={"Content-Type": "application/json"})


def explained(errors: list[dict[str, Any]]) -> bool:
    return bool(errors) and all(
        one["message"] and one["hint"] and (one["pointer"] == "" or one["pointer"].startswith("/")) for one in errors
    )


@pytest.mark.parametrize("document", [one for _, one in DOCUMENTS], ids=[name for name, _ in DOCUMENTS])
def test_submit_refuses_with_pointer_cause_and_fix(client: TestClient, document: dict[str, Any]) -> None:
    answer = sent(client, "/v1/runs", document)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] in ("/problems/invalid-workflow", "/problems/invalid-request")
    assert explained(body["errors"]), body


@pytest.mark.parametrize("document", [one for _, one in DOCUMENTS], ids=[name for name, _ in DOCUMENTS])
def test_validate_says_the_same(client: TestClient, document: dict[str, Any]) -> None:
    answer = sent(client, "/v1/runs:validate", document)
    assert answer.status_code in (200, 422), answer.text
    body = answer.json()
    if answer.status_code == 200:
        assert body["valid"] is False
    else:
        assert answer.headers["content-type"] == "application/problem+json"
    assert explained(body["problems"] if answer.status_code == 200 else body["errors"]), body


@pytest.mark.parametrize("document", [one for _, one in ACCEPTED], ids=[name for name, _ in ACCEPTED])
def test_what_only_looks_malformed_is_taken(client: TestClient, document: dict[str, Any]) -> None:
    shown = sent(client, "/v1/runs:validate", document)
    assert (shown.status_code, shown.json()["valid"]) == (200, True), shown.text
    assert sent(client, "/v1/runs", document).status_code == 201


def test_nothing_refused_has_left_a_run(client: TestClient) -> None:
    before = client.get("/v1/runs").json()["data"]
    for _, document in DOCUMENTS[:5]:
        sent(client, "/v1/runs", document)
    assert client.get("/v1/runs").json()["data"] == before
