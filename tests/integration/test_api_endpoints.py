"""The API over HTTP, with a double in place of the engine."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.app import create_app
from controlplane.config import Settings
from controlplane.openapi import as_text
from controlplane.openapi_examples import EXAMPLES
from controlplane.services import Services, open_services
from tests.integration.recording_runs import RecordingRuns

WORKFLOW = {"stockade": "1", "name": "hello", "version": "1", "steps": [{"id": "a", "set": {"x": 1}}]}
TOOL = {
    "kind": "http",
    "description": "Opens a ticket.",
    "effect": "immediate",
    "input": {"type": "object", "properties": {"project": {"type": "string"}}},
    "http": {"method": "POST", "url": "https://tickets.test/p/{project}"},
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state")


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    @asynccontextmanager
    async def services(settings: Settings) -> AsyncIterator[Services]:
        async with open_services(settings) as built:
            built.run_commands = RecordingRuns(built.journal)
            yield built

    with TestClient(create_app(settings, services), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {settings.admin_key.read_text().strip()}"
        yield client


def problem(response: Any, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"/problems/{slug}"
    assert body["status"] == status
    return body


def submit(client: TestClient, **extra: Any) -> str:
    response = client.post("/v1/runs", json={"workflow": WORKFLOW, **extra})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def key_with(client: TestClient, kind: str, *scopes: str) -> dict[str, str]:
    made = client.post("/v1/keys", json={"name": "k", "kind": kind, "scopes": list(scopes)}).json()
    return {"Authorization": f"Bearer {made['key']}"}


def test_a_run_is_submitted_listed_and_read(client: TestClient) -> None:
    response = client.post("/v1/runs", json={"workflow": WORKFLOW, "input": {"q": 1}, "labels": {"team": "x"}})
    assert response.status_code == 201
    run = response.json()
    assert response.headers["location"] == f"/v1/runs/{run['id']}"
    assert run["steps"] == {"total": 2, "by_status": {"completed": 1, "waiting": 1}}
    assert (run["input"], run["labels"], run["created_at"]) == (
        {"q": 1},
        {"team": "x"},
        "1970-01-01T00:00:00.000001Z",
    )
    assert client.get(f"/v1/runs/{run['id']}").json() == run
    assert [step["path"] for step in client.get(f"/v1/runs/{run['id']}/steps").json()["data"]] == ["a", "m[0]/b#1"]
    assert client.get(f"/v1/runs/{run['id']}/steps/m%5B0%5D%2Fb%231").json()["verb"] == "approve"
    problem(client.get(f"/v1/runs/{run['id']}/steps/none"), 404, "not-found")


def test_pages_follow_each_other_without_gap_or_repeat(client: TestClient) -> None:
    made = {submit(client) for _ in range(5)}
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = client.get("/v1/runs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [run["id"] for run in page["data"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert len(seen) == 5
    assert set(seen) == made


def test_events_stream_resumes_and_ends_with_the_run(client: TestClient) -> None:
    run = submit(client)
    accept = {"Accept": "text/event-stream"}
    whole = client.get(f"/v1/runs/{run}/events", headers=accept)
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert [line for line in whole.text.splitlines() if line.startswith("id:")] == ["id: 1", "id: 2", "id: 3"]
    rest = client.get(f"/v1/runs/{run}/events", headers=accept | {"Last-Event-ID": "2"})
    assert rest.text.startswith("id: 3\nevent: run.completed\ndata: {")
    assert client.get(f"/v1/runs/{run}/events", headers=accept | {"Last-Event-ID": "3"}).text == ""
    page = client.get(f"/v1/runs/{run}/events", params={"after": 1, "limit": 1}).json()
    assert ([event["seq"] for event in page["data"]], page["next_cursor"]) == ([2], "2")
    problem(client.get(f"/v1/runs/{run}/events", headers=accept | {"Last-Event-ID": "x"}), 422, "invalid-request")


def test_an_invalid_workflow_and_an_unpublished_name_are_explained(client: TestClient) -> None:
    body = problem(client.post("/v1/runs", json={"workflow": {"stockade": "1"}}), 422, "invalid-workflow")
    assert body["errors"]
    problem(client.post("/v1/runs", json={"workflow": "none@1"}), 404, "not-found")
    problem(client.post("/v1/runs", json={"workflow": WORKFLOW, "extra": 1}), 422, "invalid-request")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b'{"workflow": "a\\u0000@1"}',
        b'{"workflow": "\\ud800"}',
        b'{"workflow": "a@1", "workflow": "b@1"}',
        b'{"workflow": "a@1", "input": NaN}',
        b'{"workflow": "a@1", "input": 1e999}',
        b'{"workflow": "a@1", "input": 123456789012345678901234567890}',
        b'{"workflow": "a@1", "input": ' + b"[" * 200 + b"]" * 200 + b"}",
    ],
)
def test_a_broken_body_is_refused_never_a_fault(client: TestClient, raw: bytes) -> None:
    problem(client.post("/v1/runs", content=raw, headers={"Content-Type": "application/json"}), 422, "invalid-request")


def test_a_large_body_is_refused_before_it_is_read(client: TestClient) -> None:
    problem(client.post("/v1/runs", content=b"x" * (10 * 1024 * 1024)), 413, "too-large")

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65_536

    problem(client.post("/v1/runs", content=chunks()), 413, "too-large")


@pytest.mark.parametrize(
    ("path", "status", "slug"),
    [
        ("/nothing", 404, "not-found"),
        ("/v1/runs/run_%00", 422, "invalid-request"),
        ("/v1/runs/%ff%fe", 422, "invalid-request"),
        ("/v1/runs/run_00000000000000000000000000", 404, "not-found"),
        ("/v1/runs?limit=99999999999999999999999999", 422, "invalid-request"),
        ("/v1/runs?limit=0", 422, "invalid-request"),
        ("/v1/runs?cursor=!!!", 422, "invalid-request"),
        ("/v1/runs?cursor=WzEsMl0", 422, "invalid-request"),
        ("/v1/runs?status=none", 422, "invalid-request"),
        ("/v1/runs?stauts=running", 422, "invalid-request"),
        ("/v1/decisions?entry=none", 422, "invalid-request"),
        ("/v1/nodes/none", 404, "not-found"),
        ("/v1/tools/builtin.none", 404, "not-found"),
        ("/v1/workflows/none@1", 404, "not-found"),
    ],
)
def test_strange_addresses_get_a_problem(client: TestClient, path: str, status: int, slug: str) -> None:
    problem(client.get(path), status, slug)


def test_a_wrong_method_is_405_with_allow(client: TestClient) -> None:
    response = client.put("/v1/runs")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"]


def test_keys_are_needed_scoped_and_revoked(client: TestClient) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer sk_wrong"}, {"Authorization": "Basic x"}):
        response = client.get("/v1/runs", headers=headers)
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    reader = key_with(client, "service", "read")
    assert client.get("/v1/runs", headers=reader).status_code == 200
    problem(client.post("/v1/runs", json={"workflow": WORKFLOW}, headers=reader), 403, "forbidden")
    problem(client.get("/v1/keys", headers=reader), 403, "forbidden")
    key = reader["Authorization"].removeprefix("Bearer ")
    who = client.get("/v1/whoami", headers={"X-API-Key": key, "Authorization": ""}).json()
    assert (who["kind"], who["scopes"], who["tenant"]) == ("service", ["read"], "default")
    assert client.delete(f"/v1/keys/{who['id']}").status_code == 204
    problem(client.get("/v1/runs", headers=reader), 401, "unauthorized")
    assert key not in client.get("/v1/keys").text


def test_only_a_person_approves(client: TestClient) -> None:
    run = submit(client)
    address = f"/v1/runs/{run}/steps/m%5B0%5D%2Fb%231:approve"
    problem(client.post(address, json={}, headers=key_with(client, "service", "approve")), 403, "forbidden")
    problem(client.post(address, json={}, headers=key_with(client, "person", "run")), 403, "forbidden")
    answer = client.post(address, json={"comment": "fine"}, headers=key_with(client, "person", "approve"))
    assert (answer.status_code, answer.json()["path"]) == (200, "m[0]/b#1")
    assert client.post(address.replace(":approve", ":reject")).status_code == 200
    assert client.app.state.services.run_commands.decided == [("m[0]/b#1", True, "fine"), ("m[0]/b#1", False, "")]  # type: ignore[attr-defined]


def test_the_same_post_with_the_same_key_happens_once(client: TestClient, settings: Settings) -> None:
    headers = {"Idempotency-Key": "abc"}
    first = client.post("/v1/runs", json={"workflow": WORKFLOW}, headers=headers)
    again = client.post("/v1/runs", json={"workflow": WORKFLOW}, headers=headers)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert len(client.get("/v1/runs").json()["data"]) == 1
    other = client.post("/v1/runs", json={"workflow": WORKFLOW, "input": 1}, headers=headers)
    problem(other, 422, "idempotency-mismatch")
    problem(client.post("/v1/runs", json={"workflow": "none@1"}, headers={"Idempotency-Key": "d"}), 404, "not-found")
    assert client.post("/v1/runs", json={"workflow": WORKFLOW}, headers={"Idempotency-Key": "d"}).status_code == 201


def test_secrets_go_in_and_never_come_out(client: TestClient, settings: Settings) -> None:
    value = "s3cr3t-value-of-the-test"
    assert client.put("/v1/secrets/tickets-api", json={"value": value}).status_code == 204
    listed = client.get("/v1/secrets")
    assert [one["name"] for one in listed.json()["data"]] == ["tickets-api"]
    assert value not in listed.text
    refused = client.put("/v1/secrets/x", json={"value": value, "extra": value})
    assert value not in refused.text
    made = client.post(
        "/v1/keys", json={"name": "k", "kind": "service", "scopes": ["read"]}, headers={"Idempotency-Key": "k"}
    ).json()
    again = client.post(
        "/v1/keys", json={"name": "k", "kind": "service", "scopes": ["read"]}, headers={"Idempotency-Key": "k"}
    ).json()
    assert again["key"] == made["key"]
    with sqlite3.connect(settings.database) as database:
        stored = "\n".join(database.iterdump())
    database.close()
    assert "tickets-api" in stored
    assert value not in stored
    assert value.encode().hex().upper() not in stored.upper()
    assert made["key"] not in stored
    assert client.delete("/v1/secrets/tickets-api").status_code == 204
    problem(client.delete("/v1/secrets/tickets-api"), 404, "not-found")


def test_private_files_are_private(client: TestClient, settings: Settings) -> None:
    for path in (settings.secrets_key, settings.admin_key):
        assert path.stat().st_mode & 0o777 == 0o600
    assert settings.root.stat().st_mode & 0o777 == 0o700


def test_artifacts_are_stored_once_and_downloaded_not_rendered(client: TestClient, settings: Settings) -> None:
    params = {"name": "päge.html", "media_type": "text/html"}
    first, second = (client.post("/v1/artifacts", params=params, content=b"<p>x") for _ in range(2))
    assert first.status_code == 201
    assert first.json()["digest"] == second.json()["digest"]
    assert first.json()["id"] != second.json()["id"]
    content = client.get(f"/v1/artifacts/{first.json()['id']}/content")
    assert content.content == b"<p>x"
    assert content.headers["content-disposition"].startswith("attachment")
    assert content.headers["x-content-type-options"] == "nosniff"
    files = [path for path in (settings.root / "artifacts").rglob("*") if path.is_file()]
    assert len(files) == 1
    assert len(client.get("/v1/artifacts").json()["data"]) == 2
    problem(client.post("/v1/artifacts", params={"name": "../x"}, content=b""), 422, "invalid-request")


def test_tools_are_pinned_by_digest(client: TestClient) -> None:
    first = client.put("/v1/tools/tickets.open", json=TOOL)
    assert first.status_code == 200, first.text
    second = client.put("/v1/tools/tickets.open", json=TOOL | {"description": "Other."}).json()
    assert first.json()["digest"] != second["digest"]
    names = [tool["name"] for tool in client.get("/v1/tools").json()["data"]]
    assert names == [
        "builtin.artifact.read",
        "builtin.artifact.write",
        "builtin.mcp.list",
        "builtin.noop",
        "tickets.open",
    ]
    problem(client.put("/v1/tools/builtin.noop", json=TOOL), 422, "invalid-tool")
    problem(client.put("/v1/tools/tickets.open", json=TOOL | {"input": {"type": "no"}}), 422, "invalid-tool")
    assert client.delete("/v1/tools/tickets.open").status_code == 204


def test_a_published_workflow_never_changes(client: TestClient) -> None:
    assert client.post("/v1/workflows", json={"definition": WORKFLOW}).status_code == 201
    assert client.post("/v1/workflows", json={"definition": WORKFLOW}).status_code == 201
    changed = WORKFLOW | {"description": "other"}
    problem(client.post("/v1/workflows", json={"definition": changed}), 409, "conflict")
    assert client.get("/v1/workflows/hello@1").json()["definition"] == WORKFLOW
    assert client.post("/v1/runs", json={"workflow": "hello@1"}).status_code == 201
    assert client.post("/v1/runs:validate", json={"workflow": "hello@1"}).json()["name"] == "hello"


def test_logs_are_the_attempts_output(client: TestClient) -> None:
    run = submit(client)
    portal = client.portal
    assert portal is not None
    portal.call(client.app.state.services.output.append, "att_1", "stdout", 0, b"line\n")  # type: ignore[attr-defined]
    assert client.get(f"/v1/runs/{run}/logs", params={"path": "a"}).content == b"line\n"
    assert client.get(f"/v1/runs/{run}/logs", params={"path": "a", "stream": "stderr"}).content == b""


def test_status_health_and_documents_answer(client: TestClient) -> None:
    assert client.get("/v1/status").json()["runs"] == {"open": 0}
    assert client.get("/healthz", headers={"Authorization": ""}).json() == {"ok": True}
    ready = client.get("/readyz", headers={"Authorization": ""})
    assert (ready.status_code, ready.json()["checks"]) == (503, {"policy": False, "journal": True})
    assert "steps" in client.get("/schema/workflow.json").json()["properties"]
    assert client.get("/problems/not-found").text.startswith("# Not found")
    problem(client.get("/problems/none"), 404, "not-found")
    token = client.post("/v1/nodes/join-tokens")
    assert (token.status_code, token.json()["token"][:3]) == (201, "sj_")


def test_answers_have_the_members_that_the_description_shows(client: TestClient) -> None:
    run = submit(client)
    step = client.get(f"/v1/runs/{run}/steps/a").json()
    event = client.get(f"/v1/runs/{run}/events").json()["data"][0]
    artifact = client.post("/v1/artifacts", params={"name": "n"}, content=b"").json()
    workflow = client.post("/v1/workflows", json={"definition": WORKFLOW}).json()
    client.put("/v1/secrets/x", json={"value": "v"})
    shown = {
        "Run": client.get(f"/v1/runs/{run}").json(),
        "Step": step,
        "Event": event,
        "Artifact": artifact,
        "Workflow": workflow,
        "SecretName": client.get("/v1/secrets").json()["data"][0],
        "Key": client.get("/v1/keys").json()["data"][0],
        "Principal": client.get("/v1/whoami").json(),
        "Status": client.get("/v1/status").json(),
        "JoinToken": client.post("/v1/nodes/join-tokens").json(),
    }
    assert {name: set(value) for name, value in shown.items()} == {name: set(EXAMPLES[name]) for name in shown}
    assert set(client.get("/v1/tools/builtin.noop").json()) >= set(EXAMPLES["Tool"])


def test_an_engineless_process_says_so(settings: Settings) -> None:
    with TestClient(create_app(settings, open_services)) as client:
        client.headers["X-API-Key"] = settings.admin_key.read_text().strip()
        problem(client.post("/v1/runs", json={"workflow": WORKFLOW}), 501, "not-yet")


def test_a_key_survives_a_restart(settings: Settings) -> None:
    for _ in range(2):
        with TestClient(create_app(settings, open_services)) as client:
            key = settings.admin_key.read_text().strip()
            assert len(client.get("/v1/keys", headers={"X-API-Key": key}).json()["data"]) == 1


def test_the_committed_description_is_current() -> None:
    path = Path(__file__).parents[2] / "docs" / "openapi.json"
    current = create_app(Settings()).openapi()
    assert path.read_text("utf-8") == as_text(current), (
        "write docs/openapi.json again: see as_text in controlplane/openapi.py"
    )
