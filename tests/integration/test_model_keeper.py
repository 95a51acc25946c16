"""The process between node and model server, with real processes: nothing of a server is left, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dataplane.model_wire import ModelReplica
from dataplane.models import keeper
from dataplane.models.process import MARK, Record, ServerProcess, sweep
from dataplane.models.server import Launch

SECONDS = 10.0
# Children of every kind: one of its own, one in a session of its own, one that lost its parent.
FAMILY = "sleep 300 & setsid sleep 300 & (setsid sleep 300 &) ; trap '' HUP; sleep 300; true"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def marked(folder: Path) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.environ().get(MARK) == str(folder) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rep_1"
    yield path
    sweep([path])


def start(folder: Path, command: str = FAMILY, lifeline: int = 0) -> ServerProcess:
    wanted = ModelReplica(
        replica="rep_1", deployment="d", spec="s", engine="llamacpp", source="m", served_name="d"
    )  # fmt: skip
    record = Record(wanted=wanted, port=1, digest="d", lifeline=lifeline, scratch="")
    launch = Launch(command=("/bin/sh", "-c", command), environment={"PATH": os.environ["PATH"]})
    return ServerProcess.start(folder, record, launch)


def serving(folder: Path, processes: int = 6) -> bool:
    """Keeper, shell and four sleeps."""
    return len(marked(folder)) == processes


@pytest.mark.parametrize("how", ["asked", "killed", "the server is killed"])
def test_when_a_server_ends_all_it_started_ends(folder: Path, how: str) -> None:
    process = start(folder)
    until(lambda: serving(folder), "the server and its children")
    if how == "asked":
        process.ask_to_end()
    elif how == "killed":
        process.kill()
    else:
        shell = next(one for one in marked(folder) if one.ppid() == process.pid)
        shell.kill()
    until(lambda: process.ended() is not None, "the end")
    assert not marked(folder)
    expected = signal.SIGTERM if how == "asked" else signal.SIGKILL
    assert process.ended() == f"it was ended by {expected.name}"
    process.clear()
    assert not Path(process.record.scratch).exists()


def test_a_killed_keeper_takes_the_server_with_it_and_the_rest_is_found_by_its_mark(folder: Path) -> None:
    process = start(folder)
    until(lambda: serving(folder), "the server and its children")
    shell = next(one for one in marked(folder) if one.ppid() == process.pid)
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: process.ended() == "its keeper was killed", "the end being noticed")
    until(lambda: not shell.is_running() or shell.status() == psutil.STATUS_ZOMBIE, "the server ending with it")
    process.clear()
    until(lambda: not marked(folder), "what escaped being swept")


def test_with_a_lifeline_the_server_ends_when_that_process_does(folder: Path) -> None:
    lifeline = subprocess.Popen(["sleep", "300"])
    try:
        process = start(folder, lifeline=lifeline.pid)
        until(lambda: serving(folder), "the server and its children")
        lifeline.kill()
        # Not reaped yet: also a zombie is an end.
        until(lambda: process.ended() is not None, "the end")
        assert not marked(folder)
    finally:
        lifeline.kill()
        lifeline.wait()


def test_without_its_lifeline_nothing_starts(folder: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    process = start(folder, lifeline=gone.pid)
    until(lambda: process.ended() is not None, "the end")
    assert not marked(folder)


def test_a_later_daemon_finds_it_and_a_dead_one_is_not_found(folder: Path) -> None:
    assert ServerProcess.adopt(folder) is None
    process = start(folder)
    until(lambda: serving(folder), "the server")
    adopted = ServerProcess.adopt(folder)
    assert adopted is not None
    assert (adopted.pid, adopted.record, adopted.ended()) == (process.pid, process.record, None)
    adopted.ask_to_end()
    until(lambda: process.ended() is not None, "the end")
    assert adopted.ended() == "it was ended by SIGTERM"
    assert ServerProcess.adopt(folder) is None
    process.clear()


def test_a_number_that_is_used_again_is_not_taken_for_the_server(folder: Path) -> None:
    process = start(folder, "exit 3")
    until(lambda: process.ended() == "it ended with 3", "the end")
    (folder / "alive").write_text(str(os.getpid()))
    assert ServerProcess.adopt(folder) is None
    process.clear()


def test_a_program_that_is_not_there_is_said(folder: Path) -> None:
    wanted = ModelReplica(
        replica="rep_1", deployment="d", spec="s", engine="llamacpp", source="m", served_name="d"
    )  # fmt: skip
    record = Record(wanted=wanted, port=1, digest="d", lifeline=0, scratch="")
    process = ServerProcess.start(folder, record, Launch(command=("/nonexistent",), environment={}))
    until(lambda: process.ended() == "it ended with 127", "the end")
    assert "/nonexistent: No such file" in (folder / "output.log").read_text()
    process.clear()


def test_it_needs_nothing_but_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", keeper.__file__, "/nonexistent", "0", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "No such file" in done.stderr
    assert "asyncio" not in done.stderr
