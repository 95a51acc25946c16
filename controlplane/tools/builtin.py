"""The tools that are part of the platform; they are listed like others and cannot be replaced."""

from __future__ import annotations

from typing import Any

BUILTIN: dict[str, dict[str, Any]] = {
    "builtin.noop": {
        "kind": "builtin",
        "description": "Does nothing and returns its arguments; shows that calls, policy and the journal work.",
        "effect": "none",
        "input": {"type": "object"},
        "output": {"type": "object"},
    },
    "builtin.artifact.read": {
        "kind": "builtin",
        "description": "Returns the text of an artifact this run may read, at most max_bytes of it.",
        "effect": "none",
        "input": {
            "type": "object",
            "properties": {
                "artifact": {"type": "string", "pattern": "^(artifact://)?art_[0-9a-z]{26}$"},
                "max_bytes": {"type": "integer", "minimum": 1, "maximum": 1048576, "default": 65536},
            },
            "required": ["artifact"],
            "additionalProperties": False,
        },
        "output": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "truncated": {"type": "boolean"}},
            "required": ["text", "truncated"],
        },
    },
    "builtin.mcp.list": {
        "kind": "builtin",
        "description": "Asks a registered MCP server for its tools and keeps the answer for `stockade tool review`.",
        "effect": "none",
        "input": {
            "type": "object",
            "properties": {"server": {"type": "string", "pattern": "^[a-z][a-z0-9_-]{0,62}$"}},
            "required": ["server"],
            "additionalProperties": False,
        },
        "output": {"type": "object"},
    },
    # Stageable: nothing outside the platform sees a new artifact until something refers to it.
    "builtin.artifact.write": {
        "kind": "builtin",
        "description": "Stores text as a new artifact of this run and returns its reference.",
        "effect": "stageable",
        "input": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$"},
                "text": {"type": "string", "maxLength": 1048576},
                "media_type": {"type": "string", "pattern": "^[a-z]+/[A-Za-z0-9.+-]{1,100}$"},
            },
            "required": ["name", "text"],
            "additionalProperties": False,
        },
        "output": {
            "type": "object",
            "properties": {"id": {"type": "string"}, "digest": {"type": "string"}, "size_bytes": {"type": "integer"}},
            "required": ["id", "digest", "size_bytes"],
        },
    },
}
"""Name -> spec."""
