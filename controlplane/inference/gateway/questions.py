"""The question ``runtime.model``, and what the obligations of its answer make of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from controlplane.authorization.values import Decision, EntryPoint, Question
from controlplane.inference.gateway.requests import ModelRequest
from controlplane.inference.values import Replica

IMPLEMENTED = frozenset({"max_tokens", "downgrade"})
"""The obligations that the gateway carries out."""


def question(
    asker: Mapping[str, Any],
    request: ModelRequest,
    candidates: Sequence[tuple[str, Sequence[Replica]]],
    *,
    labels: Mapping[str, Any],
    via: Literal["api", "step"],
) -> Question:
    """May these deployments, each with its replicas, be called? ``asker`` has tenant, subject, now_ns, run, workflow
    and step."""
    models = [model for name, replicas in candidates for model in _described(name, replicas)]
    return Question(
        entry=EntryPoint.MODEL,
        input={
            **asker,
            "models": models,
            "operation": request.operation.value,
            "labels": dict(labels),
            "tools": list(request.tools),
            "max_tokens": request.max_tokens,
            "via": via,
        },
    )


def _described(name: str, replicas: Sequence[Replica]) -> list[dict[str, Any]]:
    """One entry for each place that a deployment runs in; one without replicas has its name only."""
    if not replicas:
        return [{"name": name, "kind": "llamacpp", "destination": None}]
    found: list[dict[str, Any]] = []
    for one in replicas:
        entry = {"name": name, "kind": one.kind, "destination": _destination(one)}
        if entry not in found:
            found.append(entry)
    return found


def _destination(replica: Replica) -> dict[str, Any] | None:
    if replica.url is None:
        return None
    parts = urlsplit(replica.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"scheme": parts.scheme, "host": parts.hostname or "", "port": port}


def tokens_limit(decision: Decision) -> int | None:
    """The most tokens of one answer, if policy sets any."""
    limits = [one.args.get("limit") for one in decision.obligations if one.kind == "max_tokens"]
    return min((one for one in limits if type(one) is int and one > 0), default=None)


def downgraded_to(decision: Decision) -> str | None:
    """The model that policy wants called instead."""
    return next((str(one.args.get("model")) for one in decision.obligations if one.kind == "downgrade"), None)


def limited(body: Mapping[str, Any], limit: int | None, field: str) -> dict[str, Any]:
    """``body`` with at most ``limit`` tokens for the answer; ``field`` says so where the caller did not."""
    capped = dict(body)
    if limit is None:
        return capped
    fields: list[str] = ["max_tokens", "max_completion_tokens"]
    for name in [one for one in fields if one in capped] or [field]:
        capped[name] = min(capped.get(name, limit), limit)
    return capped
