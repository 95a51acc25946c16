"""The internal routes of the control plane: for the gateway process alone, and no more than it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from controlplane.app import create_app
from controlplane.config import Settings
from controlplane.inference.gateway import wire
from tests.acceptance.cluster import REPOSITORY

PATHS = ("/admit", "/models", "/key", "/usage", "/nodes/node_1/models/rep_1/v1/chat/completions")
ADMIT = {"key": None, "operation": "chat", "models": ["small"]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", private_hosts=("127.0.0.1:9",))


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


def post(client: TestClient, path: str, body: Any, token: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return client.post(wire.PREFIX + path, json=body, headers=headers)


@pytest.mark.parametrize("path", PATHS)
def test_nobody_else_is_answered(client: TestClient, settings: Settings, path: str) -> None:
    for token in ("", "sg_wrong", settings.admin_key.read_text().strip()):
        assert post(client, path, ADMIT, token).status_code == 401


def test_the_token_is_made_once_and_is_nobody_elses_to_read(client: TestClient, settings: Settings) -> None:
    token = settings.gateway_token.read_text().strip()
    assert token.startswith("sg_")
    assert settings.gateway_token.stat().st_mode & 0o077 == 0


def test_the_gateways_token_is_no_callers_key(client: TestClient, settings: Settings) -> None:
    token = settings.gateway_token.read_text().strip()
    answer = post(client, "/admit", ADMIT | {"key": token}, token)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")
    assert client.get("/v1/runs", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_a_key_is_given_for_a_replica_that_has_it_and_by_no_other_name(client: TestClient, settings: Settings) -> None:
    admin = {"Authorization": f"Bearer {settings.admin_key.read_text().strip()}"}
    for name in ("models-key", "other"):
        client.put(f"/v1/secrets/{name}", json={"value": f"value of {name}"}, headers=admin).raise_for_status()
    external = {"url": "http://127.0.0.1:9/v1", "model": "m", "secret": "models-key"}
    body = {"engine": "external", "external": external}
    client.put("/v1/model-deployments/far", json=body, headers=admin).raise_for_status()
    token = settings.gateway_token.read_text().strip()
    replica = {"tenant": "default", "deployment": "far", "replica": "external-far"}
    assert post(client, "/key", replica, token).json() == {"key": "value of models-key"}
    for wrong in ({"tenant": "other"}, {"deployment": "near"}, {"replica": "external-near"}):
        assert post(client, "/key", replica | wrong | {"secret": "other"}, token).json() == {"why": "it is no more"}


def test_a_node_that_is_not_there_is_no_answer(client: TestClient, settings: Settings) -> None:
    token = settings.gateway_token.read_text().strip()
    answer = post(client, PATHS[-1], {}, token)
    assert (answer.status_code, answer.json()) == (502, {"why": "its node has no tunnel"})
    assert wire.NOT_RELAYED in answer.headers


def test_usage_without_an_id_or_in_too_large_a_batch_is_refused(client: TestClient, settings: Settings) -> None:
    token = settings.gateway_token.read_text().strip()
    used = dict(tenant="default", principal="p", run="", model="m", prompt_tokens=1, completion_tokens=1, seconds=1)
    assert post(client, "/usage", {"id": "a", "used": [used] * wire.BATCH_MOST}, token).status_code == 204
    for wrong in ([used], {"id": "", "used": [used]}, {"id": "b", "used": [used] * (wire.BATCH_MOST + 1)}):
        assert post(client, "/usage", wrong, token).status_code == 422


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000])
def test_what_is_no_message_is_refused(client: TestClient, settings: Settings, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {settings.gateway_token.read_text().strip()}"}
    assert client.post(f"{wire.PREFIX}/admit", content=body, headers=headers).status_code == 422


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "STOCKADE_CONTROL_PLANE_URL"),
        ("http://control.example:7373", "http:// on loopback"),
        ("https://control.example", "STOCKADE_GATEWAY_TOKEN_FILE"),
    ],
)
def test_a_gateway_says_what_it_lacks(tmp_path: Path, url: str, said: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STOCKADE_")}
    variables = {"STOCKADE_STATE_DIR": str(tmp_path), "STOCKADE_CONTROL_PLANE_URL": url, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-m", "controlplane", "gateway"], env=kept | variables, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert said in ended.stderr
