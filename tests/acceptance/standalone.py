"""``stockade up`` as a person starts it: one process of ours with children of its own, on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import psutil

from tests.acceptance.cluster import REPOSITORY, STOP_SECONDS, wait_for

CHECKOUT = (sys.executable, "-m", "stockade.cli.main")


class Standalone:
    """Started on entry and ready then; ended on exit with all its descendants, whatever became of it meanwhile.

    ``program`` is the command line of ``stockade``; it runs in ``folder``, which is also its home and holds its state.
    ``arguments`` are more of ``up``'s. With ``checkout`` false nothing of this repository is on its path.
    """

    def __init__(
        self,
        folder: Path,
        image_cache: Path,
        program: Sequence[str] = CHECKOUT,
        *,
        arguments: Sequence[str] = (),
        checkout: bool = True,
    ) -> None:
        self.folder = folder
        self.arguments = list(arguments)
        self.program = list(program)
        self.url = ""
        images = folder / "cache" / "stockade" / "images"
        images.parent.mkdir(parents=True, exist_ok=True)
        if not images.is_symlink():
            images.symlink_to(image_cache)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("STOCKADE_", "PYTHON", "XDG_"))}
        self.environment = {
            **kept,
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "NO_COLOR": "1",
            **({"PYTHONPATH": str(REPOSITORY)} if checkout else {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}

    @property
    def pid(self) -> int:
        """Of ``stockade up`` itself."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def log(self, name: str) -> str:
        """What ``up``, ``control`` or ``node`` wrote so far."""
        path = self.folder / "up.log" if name == "up" else self.folder / "state" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def descendants(self) -> list[psutil.Process]:
        """Every process below ``stockade up`` now; remembered, so that the exit ends it even if it was orphaned."""
        found = psutil.Process(self.pid).children(recursive=True)
        self._seen.update({one.pid: one for one in found})
        return found

    def command_lines(self) -> list[str]:
        """Of the descendants that are there now; some come and go while one looks."""
        lines = []
        for one in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                lines.append(" ".join(one.cmdline()))
        return lines

    def command(self, *arguments: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run one ``stockade`` command against it; the context file says where it is."""
        return subprocess.run(
            [*self.program, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip

    def signal(self, number: int) -> None:
        """Send it to ``stockade up`` alone."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def returncode(self) -> int | None:
        """Its exit status, ``None`` while it runs."""
        assert self._process is not None, "it does not run"
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL of ``stockade up`` alone."""
        assert self._process is not None, "it does not run"
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        arguments = ["up", "--port", "0", "--state-dir", str(self.folder / "state"), *self.arguments]
        with (self.folder / "up.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self.program, *arguments], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_for(self._ready, "the banner of stockade up")
            lines = [line.split() for line in self.log("up").splitlines()]
            self.url = next(words[1] for words in lines if words[:1] == ["API"]).removesuffix("/v1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        if process.poll() is None:
            self.descendants()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        left = [one for one in self._seen.values() if one.is_running()]
        for one in left:
            one.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)

    def _ready(self) -> bool:
        process = self._process
        if process is not None and process.poll() is not None:
            raise AssertionError(f"stockade up ended with {process.returncode}:\n{self.log('up')[-4000:]}")
        return "Ctrl-C" in self.log("up")
