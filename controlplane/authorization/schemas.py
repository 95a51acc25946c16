"""What a question may contain: the closed JSON Schemas in ``policies/schemas``, compiled once.

Checked before an engine sees the question, so that a rule never meets a field that it does not know, and a field
that a caller forgot is the caller's error instead of a rule that silently does not match.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from controlplane.authorization.bundle import SHIPPED
from controlplane.authorization.values import EntryPoint


@cache
def validators(directory: Path = SHIPPED / "schemas") -> Mapping[EntryPoint, jsonschema_rs.Draft202012Validator]:
    """The validator of each entry point. Raises: OSError, ValueError if the package is damaged."""
    asker = json.loads((directory / "asker.json").read_text("utf-8"))
    registry = jsonschema_rs.Registry([(asker["$id"], asker)])
    return {
        entry: jsonschema_rs.Draft202012Validator(
            json.loads((directory / f"{entry.value.removeprefix('runtime.')}.json").read_text("utf-8")),
            registry=registry,
            mask="…",
        )
        for entry in EntryPoint
    }


def problem_with(entry: EntryPoint, question_input: Any) -> str:
    """ "" for a good input; else the pointer and what is wrong there, without quoting any value."""
    validator = validators()[entry]
    try:
        if validator.is_valid(question_input):
            return ""
        first = next(iter(validator.iter_errors(question_input)))
    except (ValueError, TypeError, StopIteration, RecursionError) as problem:
        return f"/ is not JSON ({type(problem).__name__})"
    pointer = "/" + "/".join(str(part) for part in first.instance_path)
    return f"{pointer} {first.message}"
