"""A real model server for tests: llama.cpp's with its small model, as ``make components-llamacpp`` installed them.

A host without it skips these tests with the reason; with ``llamacpp`` in STOCKADE_REQUIRE they fail.
"""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Self

from stockade.cli import places
from tests import required
from tests.acceptance.cluster import free_port, wait_for

MODEL = "smollm2-135m.gguf"


def program_and_model() -> tuple[Path, Path]:
    """Both; skips or fails the test where one of them is missing."""
    program = places.component("llama-server")
    model = None if program is None else program.parent.parent / "models" / MODEL
    if program is None or model is None or not model.is_file():
        why = "no llama-server with its model (make components-llamacpp)"
        required.absent("llamacpp", why)
    return program, model


class LlamaServer:
    """One server on a loopback port; ended with the context, whatever became of it."""

    def __init__(self, folder: Path, *arguments: str, slots: int = 4) -> None:
        program, model = program_and_model()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = folder / f"llama-{self.port}.log"
        self._command = [
            *(str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(self.port), "--device", "none"),
            *("-c", str(2048 * slots), "-np", str(slots), "-t", "1", "--jinja", "--metrics", *arguments),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._is_healthy, "llama-server answering /health")

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def busy_slots(self) -> int:
        """Answers it is working on."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        line = next(one for one in text.splitlines() if one.startswith("llamacpp:requests_processing"))
        return int(float(line.split()[-1]))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def _is_healthy(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"llama-server ended:\n{self._log.read_text(errors='replace')[-3000:]}")
        address = f"http://127.0.0.1:{self.port}/health"
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
        return False
