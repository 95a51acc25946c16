"""The published description of the API: FastAPI's own, with keys and problem answers said once for all operations."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from controlplane.openapi_examples import EXAMPLES, LISTS, OBJECTS, page_schema, schema_of

_PUBLIC = frozenset({"/healthz", "/readyz", "/schema/workflow.json", "/problems/{slug}"})
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "errors", "retryable"],
    "properties": {
        "type": {"type": "string", "description": "An address with a page that explains it."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "retryable": {"type": "boolean"},
        "decision_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "message", "hint"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901, into the body."},
                    "message": {"type": "string"},
                    "hint": {"type": "string"},
                    "line": {"type": "integer"},
                    "column": {"type": "integer"},
                    "excerpt": {"type": "string"},
                },
            },
        },
    },
    "examples": [
        {
            "type": "/problems/not-found",
            "title": "Not found",
            "status": 404,
            "detail": "There is no run 'run_1k0sa8r3xf6f2ye1sebmpn2kfd' here. GET /v1/runs lists them.",
            "instance": "/v1/runs/run_1k0sa8r3xf6f2ye1sebmpn2kfd",
            "errors": [],
            "retryable": False,
        }
    ],
}
_IDEMPOTENCY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "A POST sent again with the same key and body gets the first one's answer.",
}


def as_text(schema: dict[str, Any]) -> str:
    """The description as ``docs/openapi.json`` holds it."""
    return json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def describe(app: FastAPI) -> None:
    """Make ``/openapi.json`` of ``app`` the description that ``openapi`` gives."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = schema.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = _PROBLEM
    schemas.update({name: schema_of(example) for name, example in EXAMPLES.items()})
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {
                "description": "A problem (RFC 9457)",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
            if path not in _PUBLIC:
                operation["security"] = [{"bearer": []}, {"key": []}]
            _answer(method, path, operation["responses"])
            if method == "post" and "application/octet-stream" not in operation.get("requestBody", {}).get(
                "content", {}
            ):
                operation.setdefault("parameters", []).append(_IDEMPOTENCY)
    return schema


def _answer(method: str, path: str, responses: dict[str, Any]) -> None:
    shape: dict[str, Any] | None = None
    if method == "get" and path in LISTS:
        shape = page_schema(LISTS[path])
    elif (method, path) in OBJECTS:
        shape = {"$ref": f"#/components/schemas/{OBJECTS[method, path]}"}
    if shape is not None:
        success = next(response for status, response in responses.items() if status.startswith("2"))
        success["content"]["application/json"] = {"schema": shape}
