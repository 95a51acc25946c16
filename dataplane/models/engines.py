"""The engines that a node knows, whether this machine has them or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dataplane.model_wire import NodeEngine
from dataplane.models.llamacpp import LlamaCpp
from dataplane.models.server import ModelServer
from dataplane.models.sglang import SgLang


def engines(components: Path | None, kept: Path) -> Mapping[NodeEngine, ModelServer]:
    """By name. ``components`` is what ``make components`` fills; ``kept`` caches what engines say of themselves."""
    return {"sglang": SgLang(components, kept), "llamacpp": LlamaCpp(components, kept)}
