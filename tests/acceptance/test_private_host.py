"""A tool on a private address: refused with what to do, and what it says to do works, also with a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockade.client import Client
from stockade.client.models import Run
from tests.acceptance.cluster import wait_for
from tests.acceptance.counted_calls import HOST, CallService
from tests.acceptance.standalone import Standalone

REMEDY = re.compile(r"`stockade up (--private-host \S+)`")


@pytest.fixture
def service() -> Iterator[CallService]:
    with CallService() as started:
        yield started


def call(up: Standalone, service: CallService) -> Run:
    key = (up.folder / "state" / "control" / "admin.key").read_text().strip()
    with Client(up.url, api_key=key) as client:
        client.set_secret("count-key", "kept to ourselves")
        tool = {**service.tool(), "secrets": [{"name": "count-key", "header": "X-Key", "format": "{}"}]}
        client.put_tool("count.ok", tool)
        step = {"id": "ask", "tool": "count.ok", "args": {"id": "one"}, "secrets": ["count-key"]}
        run = client.submit({"stockade": "1", "name": "ask", "steps": [step]})
        return client.wait(run.id)


def test_the_remedy_of_the_refusal_works(tmp_path: Path, image_cache: Path, service: CallService) -> None:
    policy = tmp_path / "policy"
    service.settings(policy)
    granted = json.loads((policy / "data.json").read_text())
    granted["tenants"]["default"]["secrets"] = {"count-key": {"count.ok": [HOST]}}
    (policy / "data.json").write_text(json.dumps(granted))
    allowed = ["--policy", str(policy)]
    with Standalone(tmp_path, image_cache, arguments=allowed) as up:
        refused = call(up, service)
    assert refused.status == "failed" and refused.error is not None
    remedy = REMEDY.search(refused.error.message)
    assert remedy is not None, refused.error.message
    assert not service.calls()
    wait_for(lambda: up.returncode() is not None, "the end of the first")
    with Standalone(tmp_path, image_cache, arguments=[*allowed, *remedy[1].split()]) as up:
        assert call(up, service).status == "completed"
    assert len(service.calls()["one"]) == 1
