"""Whatever a client sends, the API never fails itself, and refuses with a problem document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from starlette.testclient import TestClient

from controlplane.app import create_app
from controlplane.config import Settings
from controlplane.services import open_services

AUTHORIZING = frozenset({"authorization", "x-api-key"})
_app = create_app(Settings())
schema = schemathesis.openapi.from_dict(_app.openapi())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root: Path = tmp_path_factory.mktemp("fuzzed")
    configured = Settings(state_dir=root)
    with TestClient(create_app(configured, open_services), raise_server_exceptions=False) as client:
        client.headers["X-API-Key"] = configured.admin_key.read_text().strip()
        yield client


# Without an engine, being ready and running things is refused with 501 or 503, which says nothing about the endpoint.
fuzzed = schema.exclude(path="/readyz")


@fuzzed.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_no_request_is_the_servers_fault(case: schemathesis.Case, client: TestClient) -> None:
    sent = case.as_transport_kwargs(base_url="http://testserver")
    sent.pop("cookies", None)
    if "data" in sent:
        sent["content"] = sent.pop("data")
    sent["headers"] = {name: value for name, value in sent["headers"].items() if name.lower() not in AUTHORIZING}
    response = client.request(**sent)
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json", response.text
        assert response.json()["type"] != "/problems/internal", response.text
    assert response.status_code < 500 or response.json()["type"] == "/problems/not-yet", response.text
