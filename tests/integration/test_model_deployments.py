"""Model deployments over the API of a real control plane: declared, changed, refused, read after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.app import create_app
from controlplane.config import Settings
from controlplane.inference.deployments import Deployments
from controlplane.openapi_examples import EXAMPLES

EXTERNAL: dict[str, Any] = {
    "engine": "external",
    "external": {"url": "https://models.example/v1", "model": "large-2"},
    "aliases": ["gpt-4o", "org/large"],
}


def opened(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {settings.admin_key.read_text().strip()}"
        yield client


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", private_hosts=("127.0.0.1:9100",))


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    yield from opened(settings)


def deployments(client: TestClient) -> Deployments:
    found = client.app.state.services.engine.deployments  # type: ignore[attr-defined]
    assert isinstance(found, Deployments)
    return found


def put(client: TestClient, name: str, body: dict[str, Any], **headers: str) -> Any:
    return client.put(f"/v1/model-deployments/{name}", json=body, headers=headers)


def pointers(response: Any) -> dict[str, str]:
    assert response.status_code == 422, response.text
    return {one["pointer"]: f"{one['message']} → {one['hint']}" for one in response.json()["errors"]}


def test_one_is_made_read_changed_and_forgotten(client: TestClient) -> None:
    made = put(client, "large", EXTERNAL)
    assert made.status_code == 201
    body = made.json()
    assert set(body) == set(EXAMPLES["ModelDeployment"])
    assert (body["generation"], body["observed_generation"], body["status"]["ready"]) == (1, 1, 1)
    read = client.get("/v1/model-deployments/large")
    assert (read.json(), read.headers["etag"]) == (body, made.headers["etag"])
    again = put(client, "large", EXTERNAL)
    assert (again.status_code, again.json()["generation"]) == (200, 1)
    changed = put(client, "large", EXTERNAL | {"context_tokens": 8192}, **{"If-Match": made.headers["etag"]})
    assert (changed.status_code, changed.json()["generation"]) == (200, 2)
    assert client.get("/v1/model-deployments").json()["data"] == [changed.json()]
    assert client.delete("/v1/model-deployments/large").status_code == 204
    assert client.get("/v1/model-deployments/large").status_code == 404
    assert client.delete("/v1/model-deployments/large").status_code == 404


def test_a_state_that_is_not_the_one_seen_is_refused(client: TestClient) -> None:
    tag = put(client, "large", EXTERNAL).headers["etag"]
    put(client, "large", EXTERNAL | {"aliases": []})
    for refused in (
        put(client, "large", EXTERNAL, **{"If-Match": tag}),
        client.delete("/v1/model-deployments/large", headers={"If-Match": tag}),
        put(client, "other", EXTERNAL, **{"If-Match": "*"}),
    ):
        assert refused.status_code == 412, refused.text
        assert refused.json()["type"] == "/problems/precondition-failed"
    assert put(client, "large", EXTERNAL, **{"If-Match": "*"}).status_code == 200


def test_a_list_goes_on_at_its_cursor(client: TestClient) -> None:
    for name in ("c", "a", "b"):
        put(client, name, EXTERNAL | {"aliases": []})
    first = client.get("/v1/model-deployments?limit=2").json()
    rest = client.get(f"/v1/model-deployments?limit=2&cursor={first['next_cursor']}").json()
    assert [one["name"] for one in first["data"] + rest["data"]] == ["a", "b", "c"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("external", "pointer", "said"),
    [
        ({"url": "http://models.example/v1"}, "/external/url", "clear text"),
        ({"url": "https://10.0.0.1/v1"}, "/external/url", "--private-host 10.0.0.1:443"),
        ({"url": "http://127.0.0.1:9101/v1"}, "/external/url", "--private-host 127.0.0.1:9101"),
        ({"url": "https://me:key@models.example/v1"}, "/external", "must not hold credentials"),
        ({"url": "https://models.example/v1?key=1"}, "/external", "must end with its path"),
        ({"secret": "models-key"}, "/external/secret", "stockade secret set models-key"),
        ({"key": "sk-1"}, "/external/key", "remove it"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_said(
    client: TestClient, external: dict[str, Any], pointer: str, said: str
) -> None:
    found = pointers(put(client, "large", EXTERNAL | {"external": EXTERNAL["external"] | external}))
    assert said in found[pointer], found


def test_names_and_aliases_belong_to_one_deployment(client: TestClient) -> None:
    put(client, "large", EXTERNAL)
    assert "'large'" in pointers(put(client, "other", EXTERNAL))["/aliases/0"]
    assert "'large'" in pointers(put(client, "other", EXTERNAL | {"aliases": ["large"]}))["/aliases/0"]
    put(client, "other", EXTERNAL | {"aliases": ["small"]})
    assert "'small' is an alias" in pointers(put(client, "small", EXTERNAL | {"aliases": []}))[""]


def test_a_key_without_the_scope_reads_only(client: TestClient) -> None:
    made = client.post("/v1/keys", json={"name": "k", "kind": "service", "scopes": ["read", "run"]}).json()
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert put(client, "large", EXTERNAL, **headers).status_code == 403
    assert client.get("/v1/model-deployments", headers=headers).status_code == 200


def test_replicas_are_what_the_gateway_calls_and_survive_a_restart(settings: Settings) -> None:
    body = EXTERNAL | {
        "external": {"url": "http://127.0.0.1:9100/v1/", "model": "large-2", "secret": "models-key", "slots": 3},
        "modalities": ["text", "image"],
        "context_tokens": 4096,
    }
    for client in opened(settings):
        client.put("/v1/secrets/models-key", json={"value": "sk-canary"})
        made = put(client, "large", body)
        assert made.status_code == 201, made.text
        assert "sk-canary" not in made.text
    for client in opened(settings):
        view = deployments(client)
        assert (view.deployments("default"), view.deployments("another")) == (["large"], [])
        assert [view.resolve("default", name) for name in ("large", "gpt-4o", "gpt")] == ["large", "large", None]
        (replica,) = view.of("default", "large")
        assert (replica.url, replica.served_name, replica.secret) == (
            "http://127.0.0.1:9100/v1",
            "large-2",
            "models-key",
        )
        assert (replica.ready, replica.slots, replica.context_tokens) == (True, 3, 4096)
        assert replica.modalities == {"text", "image"}
        assert view.of("another", "large") == []


NODE: dict[str, Any] = {"engine": "sglang", "source": "smollm2-135m"}


@pytest.mark.parametrize(
    ("change", "pointer", "said"),
    [
        ({"source": "../secret"}, "/source", "pattern"),
        ({"source": "/etc/passwd"}, "/source", "pattern"),
        ({"source": None}, "/source", '"source": "NAME"'),
        ({"external": EXTERNAL["external"]}, "/external", "remove it"),
        ({"args": {"host": "10.0.0.1"}}, "/args/host", "does not set 'host'"),
        ({"args": {"trust-remote-code": True}}, "/args/trust-remote-code", "does not set"),
        ({"args": {"max-running-request": 4}}, "/args/max-running-request", "did you mean 'max-running-requests'"),
        ({"args": {"dtype": "--api-key"}}, "/args/dtype", "one word"),
        ({"args": {"dtype": "/etc/passwd"}}, "/args/dtype", "one word"),
        ({"args": {"Host": "x"}}, "/args/Host", ""),
        ({"replicas": -1}, "/replicas", "greater"),
        ({"engine": "vllm"}, "/engine", "sglang"),
        ({"engine": "external"}, "/external", "https://"),
        ({"engine": "external"}, "/source", "remove it"),
    ],
)
def test_what_no_node_could_start_is_refused_where_it_is_said(
    client: TestClient, change: dict[str, Any], pointer: str, said: str
) -> None:
    found = pointers(put(client, "small", NODE | change))
    hit = next((text for where, text in found.items() if where.startswith(pointer)), None)
    assert hit is not None, found
    assert said in hit


def test_without_a_node_it_waits_and_says_why(client: TestClient) -> None:
    made = put(client, "small", NODE | {"replicas": 2})
    assert made.status_code == 201
    for _ in range(200):
        shown = client.get("/v1/model-deployments/small").json()
        if shown["observed_generation"] == 1:
            break
    conditions = {one["type"]: one for one in shown["conditions"]}
    assert (conditions["Placed"]["status"], conditions["Placed"]["reason"]) == (False, "NoNode")
    assert "2 of 2 replicas wait: no node has joined" in conditions["Placed"]["message"]
    assert conditions["Placed"]["fix"] == "stockade node join-token"
    assert (conditions["Available"]["status"], shown["status"]["ready"]) == (False, 0)
    no_log = client.get("/v1/model-deployments/small/logs")
    assert (no_log.status_code, "no replica now" in no_log.json()["detail"]) == (409, True)


@pytest.mark.parametrize("body", [EXTERNAL, NODE])
def test_what_is_shown_can_be_sent_back(client: TestClient, body: dict[str, Any]) -> None:
    shown = put(client, "it", body).json()
    again = put(client, "it", shown["spec"])
    assert (again.status_code, again.json()["spec"], again.json()["generation"]) == (200, shown["spec"], 1)
