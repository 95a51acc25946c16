"""SGLang: a folder of Hugging Face files, on the GPUs it is given, or without any on the CPU."""

from __future__ import annotations

import json
import re
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
from dataplane.models.server import share as share_of

LOAD_SECONDS = 10.0
# What it is where there is no GPU: grammars by xgrammar would kill it there, and two threads are slower than one.
_ON_A_CPU: list[flags.Wish] = [
    ("device", "cpu"), ("attention-backend", "torch_native"), ("sampling-backend", "pytorch"),
    ("grammar-backend", "llguidance"), ("disable-overlap-schedule", True), ("max-total-tokens", 16384),
    ("max-running-requests", 8), ("mem-fraction-static", 0.3),
]  # fmt: skip
_CPU_SETTINGS = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
_SCRIPT_BYTES = 4096
_INTERPRETER = re.compile(rb"""^(?:#!|exec\s+["']?)(/[^"'\s]+/python[0-9.]*)""", re.MULTILINE)


class SgLang:
    """``components`` has ``bin/sglang``, a script that names the Python it is installed for; else the one on PATH."""

    name: NodeEngine = "sglang"
    ready_path = "/health_generate"

    def __init__(self, components: Path | None, kept: Path) -> None:
        self._components = components
        self._kept = kept

    def state(self) -> EngineState:
        found = program("sglang", self._components)
        if found is None:
            return EngineState(name=self.name, absent="no sglang program: make components-sglang")
        python = interpreter(found)
        version = "" if python is None else _version(python)
        if not version:
            return EngineState(
                name=self.name, absent=f"{found} names no Python that has sglang: make components-sglang"
            )
        return EngineState(name=self.name, version=version)

    def launch(self, replica: ModelReplica, source: Path, port: int) -> Launch:
        found, state = program("sglang", self._components), self.state()
        python = interpreter(found) if found else None
        if python is None or state.absent:
            raise LaunchRefused(state.absent)
        if not (source / "config.json").is_file():
            raise LaunchRefused(f"{replica.source} is not a folder of Hugging Face files in the models folder")
        devices = devices_of(replica)
        on_a_cpu = not devices
        surroundings = environment(replica, _CPU_SETTINGS if on_a_cpu else {})
        command = [str(python), "-m", "sglang.launch_server"]
        known = flags.flags_of(command, state.version, surroundings, self._kept)
        usual: list[flags.Wish] = [("enable-cache-report", True), ("log-level-http", "warning")]
        usual += _ON_A_CPU if on_a_cpu else [("tp-size", len(devices))]
        if replica.context_tokens is not None:
            usual.append(("context-length", replica.context_tokens))
        if "embeddings" in replica.modalities:
            usual.append(("is-embedding", True))
        needed: list[flags.Wish] = [
            ("model-path", str(source)), ("served-model-name", replica.served_name), ("host", LOOPBACK),
            ("port", port), ("enable-metrics", True),
        ]  # fmt: skip
        line = flags.arguments(self.name, state.version, known, needed=needed, usual=usual, asked=replica.args)
        return Launch(command=(*command, *line), environment=surroundings)

    async def load(self, ask: Ask) -> Load:
        # The scheduler answers this, not the HTTP process alone: one that hangs is found out.
        body = await ask("/v1/loads?include=core", LOAD_SECONDS)
        try:
            ranks = json.loads(body)["loads"]
            return Load(
                slots=sum(amount(one.get("max_running_requests")) for one in ranks),
                running=sum(amount(one.get("num_running_reqs")) for one in ranks),
                waiting=sum(amount(one.get("num_waiting_reqs")) for one in ranks),
                token_usage=max((share_of(one.get("token_usage")) or 0.0 for one in ranks), default=None),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ServerSilent("its load is not what SGLang says") from None


def interpreter(script: Path) -> Path | None:
    """The Python that a script starts, by its first line or by ``exec``."""
    try:
        with script.open("rb") as file:
            found = _INTERPRETER.search(file.read(_SCRIPT_BYTES))
    except OSError:
        return None
    # Not resolved: a virtual environment is known by the link it is started through.
    return Path(found[1].decode()) if found and Path(found[1].decode()).exists() else None


def _version(python: Path) -> str:
    """Of the package beside a Python, without starting it; "" if there is none."""
    found = sorted(python.parent.parent.glob("lib/python*/site-packages/sglang-*.dist-info"))
    return found[-1].name.removeprefix("sglang-").removesuffix(".dist-info") if found else ""
