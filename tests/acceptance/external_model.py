"""Makes a control plane of a test call model servers and tools on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import httpx2

from tests.acceptance.cluster import Cluster


def settings(folder: Path, authorities: Iterable[str]) -> dict[str, str]:
    """Variables of a control plane that may reach these ``host:port``; ``folder`` is made for the policy's data."""
    folder.mkdir()
    listed = sorted(authorities)
    egress: dict[str, list[int]] = {}
    for authority in listed:
        host, _, port = authority.rpartition(":")
        egress.setdefault(host, []).append(int(port))
    (folder / "data.json").write_text(json.dumps({"tenants": {"default": {"egress": egress}}}))
    return {"STOCKADE_POLICY_DIR": str(folder), "STOCKADE_PRIVATE_HOSTS": json.dumps(listed)}


def declare(cluster: Cluster, name: str, url: str, model: str) -> None:
    """Deploy ``name``: the server at ``url`` (with ``/v1``), which calls it ``model``."""
    answer = httpx2.put(
        f"{cluster.url}/v1/model-deployments/{name}",
        json={"engine": "external", "external": {"url": url, "model": model}},
        headers={"Authorization": f"Bearer {cluster.api_key}"},
        trust_env=False,
    )
    assert answer.status_code in (200, 201), answer.text
