"""JSON Schemas of tools and of models' answers, compiled once.

Never fetches a reference; patterns match in linear time; what one value may cost is bounded (``schema_cost``).
"""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from controlplane.tools.schema_cost import check_cost
from controlplane.workflows.problem_values import Problem, child

_MAX_PROBLEMS = 20


class SchemaInvalid(ValueError):
    """Not a usable JSON Schema; the message says why and is fit for the caller."""


class Schema:
    """One compiled schema. ``label`` leads the messages: "arguments", "output"."""

    def __init__(self, schema: dict[str, Any]) -> None:
        """Raises: SchemaInvalid."""
        try:
            jsonschema_rs.meta.validate(schema)
            check_cost(schema)
            self._validator = jsonschema_rs.validator_for(
                schema, offline=True, pattern_options=jsonschema_rs.RegexOptions(size_limit=1024 * 1024)
            )
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, RecursionError) as error:
            raise SchemaInvalid(str(error).splitlines()[0][:500]) from None

    def check(self, value: Any) -> list[Problem]:
        """What is wrong with ``value``, at most 20 problems."""
        if self._validator.is_valid(value):
            return []
        problems: list[Problem] = []
        for error in self._validator.iter_errors(value):
            problems.append(
                Problem(
                    pointer=child("", *error.instance_path),
                    message=error.message[:500],
                    hint=f"the schema asks for it at {child('', *error.schema_path)}",
                    type="schema",
                )
            )
            if len(problems) == _MAX_PROBLEMS:
                break
        return problems
