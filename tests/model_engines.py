"""Real model servers for tests: skipped with the reason where an engine is not here, failed where it is required."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from dataplane.model_wire import NodeEngine
from dataplane.models.engines import engines
from stockade.cli import places
from tests import required

MODELS: dict[NodeEngine, str] = {"llamacpp": "smollm2-135m.gguf", "sglang": "smollm2-135m"}
"""The small model that comes with each engine's component."""


@cache
def absent(engine: NodeEngine) -> str:
    """Why nothing is served by it here; "" where it is."""
    components = places.components()
    with tempfile.TemporaryDirectory() as kept:
        state = engines(components, Path(kept))[engine].state()
    if state.absent:
        return state.absent
    model = components / "models" / MODELS[engine]
    return "" if model.exists() else f"there is no {model} (make components-{engine})"


def require(engine: NodeEngine) -> str:
    """The name of its small model. Skips or fails the test where the engine is absent."""
    if reason := absent(engine):
        required.absent(engine, reason)
    return MODELS[engine]
