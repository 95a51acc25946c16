"""A program built from a Go module at a pinned version: OPA, gVisor's runsc, Compose v2."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import store
from component import State


class GoProgram:
    """``asks`` are arguments whose output names the ``expects``-ed version.

    ``after`` runs once it is in place.
    ``builds`` is what the module calls the program, if not ``name``.
    """

    def __init__(
        self, name: str, module: str, version: str, *, asks: str, expects: str, builds: str = "",
        after: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self._module = module
        self._version = version
        self._asks = asks
        self._expects = expects
        self._builds = builds or name
        self._after = after
        self._program = store.home(name, version) / "bin" / name

    def state(self) -> State:
        """Here if the built program runs and says the pinned version."""
        if not self._program.is_file():
            return State(version=self._version, why=f"it was not built into {self._program.parent}")
        said = store.answer([str(self._program), self._asks])
        if not re.search(self._expects, said):
            return State(version=self._version, why=f"{self._program} does not run here, or is another version")
        return State(version=self._version, path=str(store.root() / "bin" / self.name))

    def install(self) -> None:
        """Build it, without C so that it is static. Raises: ComponentFailed."""
        if not self.state().path:
            self._build()
        store.link(f"bin/{self.name}", self._program)
        if self._after is not None:
            self._after()

    def _build(self) -> None:
        go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
        if go is None:
            raise store.ComponentFailed("building it needs Go 1.24 or newer", "install Go and put it on PATH")
        with store.staged(self.name, self._version) as folder:
            settings = {"CGO_ENABLED": "0", "GOBIN": str(folder / "bin"), "GOFLAGS": "-buildvcs=false"}
            store.run(self.name, [go, "install", f"{self._module}@{self._version}"], settings)
            if self._builds != self.name:
                (folder / "bin" / self._builds).rename(folder / "bin" / self.name)
