"""The processes that ``stockade up`` keeps alive: started, watched, started again, and why one ended.

Standard library only, as the supervisor that uses it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stockade.cli.exits import Exit, Refusal
from stockade.cli.output import say

STOP_SECONDS = 20.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
STEADY_SECONDS = 60.0
_TAIL_BYTES = 16 * 1024
_PR_SET_PDEATHSIG = 1
# One heap for all threads, whom Python's lock serialises anyway, and what is free goes back to the system: 14 MB less.
_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Child:
    """One supervised process; started again after a pause that doubles while it keeps dying.

    What it says goes to ``log``. ``settings`` are put over this process's environment, or with ``bare`` are all of it.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, settings: Mapping[str, str], *, bare: bool = False
    ) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._settings = dict(settings)
        self._bare = bare
        self._said_from = 0
        self._backoff = FIRST_BACKOFF_SECONDS
        self._again_at = 0.0
        self._started_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        """Start it if it is due; notice if it died. Raises ``Refusal`` if another one of its kind holds its state."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._again_at:
                self._start()
                self._started_at = now
            return
        code = self.process.poll()
        if code is None:
            return
        self.check_alone()
        if now - self._started_at > STEADY_SECONDS:
            self._backoff = FIRST_BACKOFF_SECONDS
        say(f"the {self.name} {ending(code)}; starting it again in {self._backoff:g} s (log: {self.log})")
        if why := self.reason():
            say(f"  why: {why}")
        self.process, self._again_at = None, now + self._backoff
        self._backoff = min(self._backoff * 2, LONGEST_BACKOFF_SECONDS)

    def ended(self) -> bool:
        """Whether it was started and is gone."""
        return self.process is not None and self.process.poll() is not None

    def check_alone(self) -> None:
        """Raises ``Refusal`` if it ended because another one of its kind holds its state."""
        if self.process is not None and self.process.poll() == Exit.ALREADY_RUNNING:
            raise Refusal(
                Exit.ALREADY_RUNNING,
                f"the {self.name} is already running",
                where=str(self.log.parent),
                why=self.reason(),
                fix="end that one, or start with another --state-dir",
            )

    def reason(self) -> str:
        """The last thing it said since it was started: of a log line the event, of a traceback the error."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._said_from, end - _TAIL_BYTES))
            said = file.read().decode(errors="replace").splitlines()
        lines = [line.strip(" |+-\t") for line in said]
        lines = [line for line in lines if line]
        # An error of ours is up to four lines, and the last of them is not the reason.
        whys = [line for line in lines if line.startswith("why:")]
        last = whys[-1] if whys else lines[-1] if lines else ""
        return _event(last.removeprefix("why:").removeprefix("error:").strip())[:500]

    def stop(self) -> None:
        """Ask it to end, then make it."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Make it end."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _start(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "STOCKADE_API_KEY" and not self._bare}
        with self.log.open("ab") as stream:
            self._said_from = stream.seek(0, os.SEEK_END)
            # A session of its own: Ctrl-C reaches this process only, which then ends the children in order.
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
                env={**_MEMORY, **environment, **self._settings}, preexec_fn=_dies_with(os.getpid()),
            )  # fmt: skip


def ending(code: int) -> str:
    """What a return code says."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _event(line: str) -> str:
    try:
        told = json.loads(line)
    except ValueError:
        return line
    if not isinstance(told, dict):
        return line
    parts = [str(told[key]).strip().splitlines()[-1] for key in ("event", "error", "exception") if told.get(key)]
    return ": ".join(parts) or line


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What a child does first: have the kernel kill it when ``parent`` is gone, however that ended."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        # The wish outlives the exec. It is tied to the parent's thread, and `up` has one.
        if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return ask
