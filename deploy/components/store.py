"""Where components live, and how one gets there whole or not at all.

$STOCKADE_COMPONENTS (default: $XDG_DATA_HOME/stockade/components, ~/.local/share/stockade/components)
    bin/NAME            link to the program of the version in use; what Stockade looks for
    models/NAME         link to a model that came with a component
    NAME-VERSION/       one installed version, renamed into place when it is complete
    .new-NAME-*/        an installation on its way; what an interrupted one left is removed by the next
    log/NAME.log        what the tools wrote
    lock/NAME           held while NAME is installed, so that two callers do it once
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TICK_SECONDS = 10.0


class ComponentFailed(Exception):
    """A component cannot be had. ``why`` and what to do about it, for people."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix


def root() -> Path:
    """The folder of all components. Raises: ComponentFailed if there is no home and none was given."""
    given = os.environ.get("STOCKADE_COMPONENTS")
    if given:
        return Path(given).absolute()
    data = os.environ.get("XDG_DATA_HOME")
    if data:
        return Path(data).absolute() / "stockade" / "components"
    try:
        return Path.home() / ".local" / "share" / "stockade" / "components"
    except RuntimeError:
        raise ComponentFailed("there is no home directory", "set STOCKADE_COMPONENTS to a folder") from None


def say(name: str, text: str) -> None:
    """One line of progress."""
    print(f"{name:<10} {text}", flush=True)


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold the component's lock; a second installer waits, and then finds it done."""
    folder = root() / "lock"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as lock:
        # A tool that outlives a killed installer holds it as well, so that the next one waits for its end.
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(name, "another installation is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def staged(name: str, version: str) -> Iterator[Path]:
    """A new folder that becomes ``NAME-VERSION`` when the body ends well, and vanishes when it does not."""
    for left in root().glob(f".new-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".new-{name}-", dir=root()))
    try:
        yield folder
        folder.chmod(0o755)
        place = home(name, version)
        if place.exists():
            shutil.rmtree(place)
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def home(name: str, version: str) -> Path:
    """Where one version is installed."""
    return root() / f"{name}-{version}"


def link(place: str, target: Path) -> None:
    """Make ``place``, such as ``bin/opa``, that file or folder, in one step."""
    fresh = _fresh(place)
    fresh.symlink_to(os.path.relpath(target, fresh.parent))
    fresh.replace(root() / place)


def write(place: str, script: str) -> None:
    """Make ``place`` that executable script, in one step."""
    fresh = _fresh(place)
    fresh.write_text(script)
    fresh.chmod(0o755)
    fresh.replace(root() / place)


def _fresh(place: str) -> Path:
    final = root() / place
    final.parent.mkdir(parents=True, exist_ok=True)
    fresh = final.with_name(f".{final.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    return fresh


def run(name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a tool into the log, saying every 10 s that it still runs. Raises: ComponentFailed with the log's end."""
    log = root() / "log" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with log.open("ab") as stream:
        stream.write(f"$ {' '.join(command)}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, close_fds=False,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        try:
            while True:
                try:
                    code = process.wait(TICK_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    say(name, f"… {Path(command[0]).name} {time.monotonic() - begun:.0f} s ({log})")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ComponentFailed(f"{' '.join(command[:3])} ended with {code}:\n{end}", f"read {log}")


def answer(command: Sequence[str], seconds: float = 20.0) -> str:
    """What a program prints; "" if it does not run or fails."""
    return (_try(command, seconds) or "").strip()


def runs(command: Sequence[str], seconds: float = 20.0) -> bool:
    """Whether it ends well, whatever it prints."""
    return _try(command, seconds) is not None


def _try(command: Sequence[str], seconds: float) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
