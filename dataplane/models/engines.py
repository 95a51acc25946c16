"""The engines that a node knows, whether this machine has them or not, and what keeps their servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dataplane.config import NodeConfig
from dataplane.model_wire import NodeEngine
from dataplane.models.llamacpp import LlamaCpp
from dataplane.models.server import ModelServer
from dataplane.models.sglang import SgLang
from dataplane.models.supervisor import ModelSupervisor


def engines(components: Path | None, kept: Path) -> Mapping[NodeEngine, ModelServer]:
    """By name. ``components`` is what ``make components`` fills; ``kept`` caches what engines say of themselves."""
    return {"sglang": SgLang(components, kept), "llamacpp": LlamaCpp(components, kept)}


def model_servers(config: NodeConfig, told: Callable[[], None]) -> ModelSupervisor:
    """Those of one node; ``told`` is called when there is news of them."""
    state, models = config.state_dir / "models", config.models
    if models is None and config.components is not None:
        models = config.components / "models"
    made = ModelSupervisor(state, models, engines(config.components, state / "help"), config.lifeline)
    made.told = told
    return made
