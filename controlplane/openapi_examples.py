"""One example of every object the API answers with; their members are what ``/openapi.json`` requires."""

from __future__ import annotations

from typing import Any

_AT = "2026-03-01T12:00:00.000123Z"
_RUN = "run_1k0sa8r3xf6f2ye1sebmpn2kfd"
_DECISION = "dec_1k0sa8r3xf6f2ye1sebmpn2kfd"
_DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

EXAMPLES: dict[str, dict[str, Any]] = {
    "Run": {
        "id": _RUN,
        "status": "completed",
        "workflow": {"name": "hello", "version": "1", "digest": _DIGEST.removeprefix("sha256:")},
        "principal": "key_1k0sa8r3xf6f2ye1sebmpn2kfd",
        "input": {"who": "world"},
        "output": "hello world",
        "error": None,
        "labels": {"team": "search"},
        "steps": {"total": 1, "by_status": {"completed": 1}},
        "decisions": {"total": 2, "denied": 0},
        "created_at": _AT,
        "updated_at": _AT,
        "finished_at": _AT,
    },
    "Step": {
        "path": "greet",
        "verb": "code",
        "status": "completed",
        "number": 1,
        "failures": 0,
        "attempt": "att_1k0sa8r3xf6f2ye1sebmpn2kfd",
        "node": "node_1k0sa8r3xf6f2ye1sebmpn2kfd",
        "tier": "wasm",
        "decision_id": _DECISION,
        "output": "hello world",
        "error": None,
        "waiting": [],
        "placement": {"candidates": 1, "filtered": {}, "top": []},
        "report": {"code": 0, "reason": "exited", "wall_seconds": 0.05},
        "detail": {},
        "labels": {},
        "started_at": _AT,
        "finished_at": _AT,
    },
    "Event": {"seq": 3, "type": "step.completed", "run": _RUN, "path": "greet", "at": _AT, "data": {"seconds": 0.05}},
    "Artifact": {
        "id": "art_1k0sa8r3xf6f2ye1sebmpn2kfd",
        "name": "report.txt",
        "digest": _DIGEST,
        "size_bytes": 1024,
        "media_type": "text/plain",
        "run": _RUN,
        "path": "greet",
        "labels": {},
        "created_at": _AT,
    },
    "Decision": {
        "id": _DECISION,
        "entry": "runtime.tool",
        "run": _RUN,
        "path": "greet",
        "allow": False,
        "reasons": [{"code": "not_granted", "message": "…", "rule": "tool.rego:12", "remedy": "…"}],
        "obligations": [],
        "revision": "sha256:9f86d081884c7d65",
        "engine": "regorus",
        "failure": "",
        "input_digest": _DIGEST,
        "input": {},
        "at": _AT,
    },
    "Tool": {
        "name": "tickets.create",
        "digest": _DIGEST,
        "kind": "http",
        "description": "Opens a ticket.",
        "effect": "immediate",
        "input": {"type": "object"},
        "created_at": _AT,
    },
    "McpServer": {
        "name": "time",
        "digest": _DIGEST,
        "kind": "mcp",
        "process": {"command": ["python3", "-m", "mcp_server_time"]},
        "created_at": _AT,
        "listed_at": _AT,
        "tools": [
            {
                "name": "time.get_current_time",
                "tool": "get_current_time",
                "state": "unreviewed",
                "digest": _DIGEST,
                "definition": {"name": "get_current_time", "inputSchema": {"type": "object"}},
                "reviewed": None,
                "difference": "",
            }
        ],
        "left_out": [],
    },
    "ModelDeployment": {
        "name": "small",
        "generation": 1,
        "spec": {"engine": "llamacpp", "source": "smollm2-135m.gguf", "replicas": 1},
        "status": {
            "replicas": [
                {
                    "id": "rep_1k0sa8r3xf6f2ye1sebmpn2kfd",
                    "node": "node_1k0sa8r3xf6f2ye1sebmpn2kfd",
                    "state": "ready",
                    "ready": True,
                    "slots": 4,
                    "running": 0,
                    "waiting": 0,
                    "restarts": 0,
                }
            ],
            "desired": 1,
            "ready": 1,
        },
        "conditions": [{"type": "Available", "status": True, "reason": "Ready", "message": "", "since": _AT}],
        "observed_generation": 1,
        "created_at": _AT,
        "updated_at": _AT,
    },
    "Workflow": {"name": "hello", "version": "1", "digest": "9f86d081…", "definition": {}, "created_at": _AT},
    "SecretName": {"name": "tickets-api", "created_at": _AT, "updated_at": _AT},
    "Key": {
        "id": "key_1k0sa8r3xf6f2ye1sebmpn2kfd",
        "name": "ci",
        "kind": "service",
        "prefix": "sk_NWoshOTh",
        "scopes": ["read", "run"],
        "groups": [],
        "created_at": _AT,
        "expires_at": None,
        "revoked_at": None,
    },
    "Principal": {
        "tenant": "default",
        "id": "key_1k0sa8r3xf6f2ye1sebmpn2kfd",
        "kind": "person",
        "name": "admin",
        "scopes": ["read", "run"],
        "groups": ["admins"],
    },
    "Status": {
        "version": "0.1.0",
        "runs": {"open": 2},
        "nodes": {"ready": 1},
        "policy": {"revision": "sha256:9f86d081884c7d65", "engine": "regorus", "healthy": True},
    },
    "JoinToken": {"token": "sj_…", "expires_at": _AT},
}
"""Name of the schema -> example."""

LISTS: dict[str, str] = {
    "/v1/runs": "Run",
    "/v1/runs/{run_id}/steps": "Step",
    "/v1/runs/{run_id}/events": "Event",
    "/v1/artifacts": "Artifact",
    "/v1/decisions": "Decision",
    "/v1/tools": "Tool",
    "/v1/mcp-servers": "McpServer",
    "/v1/model-deployments": "ModelDeployment",
    "/v1/workflows": "Workflow",
    "/v1/secrets": "SecretName",
    "/v1/keys": "Key",
}
"""Path whose GET answers a page -> what is in it."""

OBJECTS: dict[tuple[str, str], str] = {
    ("post", "/v1/runs"): "Run",
    ("get", "/v1/runs/{run_id}"): "Run",
    ("post", "/v1/runs/{run_id}:cancel"): "Run",
    ("get", "/v1/runs/{run_id}/steps/{path}"): "Step",
    ("post", "/v1/runs/{run_id}/steps/{path}:approve"): "Step",
    ("post", "/v1/runs/{run_id}/steps/{path}:reject"): "Step",
    ("post", "/v1/artifacts"): "Artifact",
    ("get", "/v1/artifacts/{artifact_id}"): "Artifact",
    ("get", "/v1/decisions/{decision_id}"): "Decision",
    ("get", "/v1/tools/{name}"): "Tool",
    ("put", "/v1/tools/{name}"): "Tool",
    ("get", "/v1/mcp-servers/{name}"): "McpServer",
    ("put", "/v1/mcp-servers/{name}"): "McpServer",
    ("post", "/v1/mcp-servers/{name}:review"): "McpServer",
    ("get", "/v1/model-deployments/{name}"): "ModelDeployment",
    ("put", "/v1/model-deployments/{name}"): "ModelDeployment",
    ("post", "/v1/workflows"): "Workflow",
    ("get", "/v1/workflows/{name}@{version}"): "Workflow",
    ("get", "/v1/whoami"): "Principal",
    ("post", "/v1/keys"): "Key",
    ("get", "/v1/status"): "Status",
    ("post", "/v1/nodes/join-tokens"): "JoinToken",
}
"""Operation -> the object it answers with."""


def schema_of(example: dict[str, Any]) -> dict[str, Any]:
    """A schema that requires the example's members; more may be added in later versions."""
    return {
        "type": "object",
        "required": sorted(example),
        "properties": {name: {} for name in sorted(example)},
        "examples": [example],
    }


def page_schema(name: str) -> dict[str, Any]:
    """A page of the named objects."""
    return {
        "type": "object",
        "required": ["data", "next_cursor"],
        "properties": {
            "data": {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}},
            "next_cursor": {"type": ["string", "null"]},
        },
    }
