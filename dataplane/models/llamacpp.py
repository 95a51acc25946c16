"""llama.cpp's server: one GGUF file, on a CPU or on the GPUs it is given."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from dataplane.model_wire import EngineState, ModelReplica, NodeEngine
from dataplane.models import flags
from dataplane.models.server import (
    LOOPBACK,
    Ask,
    Launch,
    LaunchRefused,
    Load,
    ServerSilent,
    amount,
    devices_of,
    environment,
    program,
)

PARALLEL = 4
CONTEXT_TOKENS = 4096
"""Of each slot, where the deployment says nothing."""
LOAD_SECONDS = 10.0
_SAMPLE = re.compile(rb"^llamacpp:(requests_processing|requests_deferred) ([0-9.eE+-]{1,32})$", re.MULTILINE)
_VERSION_SECONDS = 20.0


class LlamaCpp:
    """``components`` has ``bin/llama-server``; else the one on PATH."""

    name: NodeEngine = "llamacpp"
    ready_path = "/health"

    def __init__(self, components: Path | None, kept: Path) -> None:
        self._components = components
        self._kept = kept
        self._known: tuple[Path, float, str] | None = None

    def state(self) -> EngineState:
        found = program("llama-server", self._components)
        if found is None:
            return EngineState(name=self.name, absent="no llama-server program: make components-llamacpp")
        changed = found.stat().st_mtime
        if self._known is None or self._known[:2] != (found, changed):
            self._known = found, changed, _version(found)
        if not self._known[2]:
            return EngineState(name=self.name, absent=f"{found} does not run here: make components-llamacpp")
        return EngineState(name=self.name, version=self._known[2])

    def launch(self, replica: ModelReplica, source: Path, port: int) -> Launch:
        state = self.state()
        found = program("llama-server", self._components)
        if found is None or state.absent:
            raise LaunchRefused(state.absent)
        if not source.is_file():
            raise LaunchRefused(f"{replica.source} is not a GGUF file in the models folder")
        surroundings = environment(replica, {})
        known = flags.flags_of([str(found)], state.version, surroundings, self._kept)
        parallel = replica.args.get("parallel", PARALLEL)
        context = (replica.context_tokens or CONTEXT_TOKENS) * (parallel if isinstance(parallel, int) else PARALLEL)
        usual: list[flags.Wish] = [("parallel", PARALLEL), ("ctx-size", context), ("jinja", True), ("offline", True)]
        usual += (
            [("no-webui", True), ("gpu-layers", 999)]
            if devices_of(replica)
            else [("no-webui", True), ("device", "none")]
        )
        if "embeddings" in replica.modalities:
            usual += [("embeddings", True), ("pooling", "mean")]
        needed: list[flags.Wish] = [
            ("model", str(source)), ("alias", replica.served_name), ("host", LOOPBACK), ("port", port),
            ("metrics", True),
        ]  # fmt: skip
        line = flags.arguments(self.name, state.version, known, needed=needed, usual=usual, asked=replica.args)
        return Launch(command=(str(found), *line), environment=surroundings)

    async def load(self, ask: Ask) -> Load:
        metrics, props = await ask("/metrics", LOAD_SECONDS), await ask("/props", LOAD_SECONDS)
        try:
            samples = {name: float(value) for name, value in _SAMPLE.findall(metrics)}
            slots = json.loads(props).get("total_slots")
        except (ValueError, AttributeError, RecursionError):
            raise ServerSilent("its metrics or properties are not what llama.cpp says") from None
        if len(samples) != 2:
            raise ServerSilent("its metrics lack the number of requests")
        return Load(
            slots=amount(slots),
            running=amount(samples[b"requests_processing"]),
            waiting=amount(samples[b"requests_deferred"]),
        )


def _version(found: Path) -> str:
    """What it says of itself; "" if it does not run."""
    try:
        asked = subprocess.run(
            [found, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_VERSION_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = re.search(rb"^version: (.{1,100})$", asked.stdout + asked.stderr, re.MULTILINE)
    return said[1].decode(errors="replace").strip() if asked.returncode == 0 and said else ""
