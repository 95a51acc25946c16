"""The published JSON Schema of the format, generated from the models: ``python -m controlplane.workflows.schema``."""

from __future__ import annotations

import json
import sys
from typing import Any

from controlplane.workflows.spec import DURATION_SCHEMA, Verb, Workflow


def workflow_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a workflow. A step has exactly one verb, code one language, llm one kind of question."""
    schema = Workflow.model_json_schema(by_alias=True, mode="validation")
    definitions = schema["$defs"]
    definitions["Step"]["oneOf"] = [{"required": [verb.value]} for verb in Verb]
    definitions["Code"]["oneOf"] = [{"required": ["python"]}, {"required": ["shell"]}]
    definitions["Llm"]["oneOf"] = [{"required": ["prompt"]}, {"required": ["messages"]}]
    spelled = [*DURATION_SCHEMA["anyOf"], {"type": "string", "pattern": r"^\$\{"}, {"$ref": "#/$defs/Wait"}]
    definitions["Step"]["properties"]["wait"] = {"anyOf": spelled}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Stockade workflow"}
    return head | {key: value for key, value in schema.items() if key != "title"}


def schema_text() -> str:
    """The text of ``docs/workflow.schema.json``."""
    return json.dumps(workflow_schema(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
