"""What only the jail promises: its filter, its hidden paths, its inner order, and what a killed node leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from sandboxes.conformance.check import Outcome, collect
from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, ExitReason
from sandboxes.jail import processes, python, rootfs
from sandboxes.jail.driver import JailDriver
from sandboxes.spec import Limits, SandboxSpec, Strength, Tier
from tests import required

pytestmark = [pytest.mark.needs_bubblewrap, pytest.mark.anyio]
SPEC = SandboxSpec(tier=Tier.JAIL, limits=Limits(wall_seconds=30))
FILTERED = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
seen = {}
for name, args in {
    "unshare": (0x10000000,), "mount": (None, None, None, 0, None), "ptrace": (0, 0, 0, 0), "setns": (0, 0),
}.items():
    ctypes.set_errno(0)
    seen[name] = [getattr(libc, name)(*args), ctypes.get_errno()]
import socket
for family in (2, 10, 16, 17, 38, 40, 44):
    try:
        socket.socket(family, socket.SOCK_RAW if family == 17 else socket.SOCK_STREAM)
        seen[f"family {family}"] = "open"
    except OSError as error:
        seen[f"family {family}"] = error.errno
socket.socketpair()
seen
"""
CRASH = """
import anyio, sys
from pathlib import Path
from sandboxes.execution import Command
from sandboxes.jail.driver import JailDriver
from sandboxes.spec import SandboxSpec, Strength, Tier
async def main():
    driver = JailDriver(Path(sys.argv[1]), Strength(sys.argv[2]))
    async with driver.open(SandboxSpec(tier=Tier.JAIL), "crashed") as box:
        async for event in box.execute(Command(language="shell", source="sleep 1000 & echo up; sleep 1000")):
            print(event, flush=True)
anyio.run(main)
"""


@pytest.fixture(params=list(Strength))
async def driver(request: pytest.FixtureRequest, state_dir: Path) -> AsyncIterator[JailDriver]:
    made = JailDriver(state_dir / "jail", request.param)
    if reason := await made.probe():
        if request.param is Strength.FULL and os.geteuid() != 0:
            pytest.skip(f"needs root: {reason}")
        required.absent("jail", reason)
    yield made
    await made.close()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stockade-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def all_end(started: dict[int, int | None]) -> bool:
    """Whether these processes are gone within two seconds."""
    until = time.monotonic() + 2
    while any(processes.start_time(pid) == when for pid, when in started.items()):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


async def run(driver: JailDriver, command: Command) -> Outcome:
    async with driver.open(SPEC, "one") as box:
        return await collect(box.execute(command))


async def test_the_filter_refuses_what_jails_are_broken_with(driver: JailDriver) -> None:
    outcome = await run(driver, Command(language="python", source=FILTERED))
    assert outcome.end.result == {
        **{name: [-1, 1] for name in ("unshare", "mount", "ptrace", "setns")},
        **{f"family {family}": 97 for family in (2, 10, 16, 17, 38, 40, 44)},
    }, outcome


async def test_no_process_line_names_a_host_path(driver: JailDriver, state_dir: Path) -> None:
    outcome = await run(driver, Command(language="shell", source="cat /proc/*/cmdline /proc/*/environ /proc/mounts"))
    assert state_dir.name.encode() not in outcome.stdout
    assert os.fsencode(Path.cwd()) not in outcome.stdout


async def test_only_the_standard_descriptors_are_open(driver: JailDriver) -> None:
    outcome = await run(driver, Command(language="shell", source="ls /proc/self/fd"))
    assert outcome.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is ls reading the folder


async def test_a_variable_cannot_load_code_before_the_uid_is_dropped(driver: JailDriver) -> None:
    async with driver.open(SPEC, "one") as box:
        command = Command(language="shell", source="id -u", env={"LD_PRELOAD": "/outputs/evil.so"})
        outcome = await collect(box.execute(command))
    assert outcome.end.code == 0
    assert int(outcome.stdout) not in (0,)
    # The loader complains once for each program that starts with the variable: only `id` does.
    assert outcome.stderr.count(b"evil.so") == 1


@pytest.mark.parametrize("name", ["A B", "", "1A", "A=B", "A\nB"])
async def test_odd_variable_names_are_the_callers_mistake(driver: JailDriver, name: str) -> None:
    with pytest.raises(DriverFailed, match="environment variable"):
        await run(driver, Command(language="shell", source="true", env={name: "x"}))


async def test_a_guest_cannot_spoil_the_next_command(driver: JailDriver) -> None:
    async with driver.open(SPEC, "one") as box:
        first = Command(language="shell", source="echo 1 >/outputs/output.json; chmod 0 /tmp /outputs")
        assert (await collect(box.execute(first))).end.result == 1
        second = await collect(box.execute(Command(language="shell", source="echo ok >/tmp/x && cat /tmp/x")))
    assert (second.stdout, second.end.code, second.end.has_result) == (b"ok\n", 0, False)


async def test_folders_without_permissions_are_removed_too(driver: JailDriver, state_dir: Path) -> None:
    await run(driver, Command(language="shell", source="mkdir -p /outputs/a/b/c; chmod 0 /outputs/a/b/c /outputs/a/b"))
    assert names(state_dir / "jail") == []


async def test_a_label_cannot_name_a_path(driver: JailDriver, state_dir: Path) -> None:
    async with driver.open(SPEC, "../../escape/\0") as box:
        outcome = await collect(box.execute(Command(language="shell", source="echo in")))
        assert names(state_dir) == ["jail"]
    assert outcome.stdout == b"in\n"
    assert names(state_dir / "jail") == []


@pytest.fixture
def moved_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a host whose only Python is outside /usr."""
    moved = rootfs.Interpreter(
        path="/opt/python/bin/python3", on_host=Path("/usr/bin/python3"), binds=((Path("/usr"), "/opt/python"),)
    )
    if not moved.on_host.exists():
        pytest.skip("this host has no /usr/bin/python3 to move")
    caches = (rootfs._system, python.prepared)
    monkeypatch.setattr(rootfs, "interpreter", lambda: moved)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.mark.usefixtures("moved_interpreter")
async def test_an_interpreter_outside_usr_runs_from_opt(driver: JailDriver) -> None:
    source = "import sys, json\n[sys.executable, any(path.startswith('/opt/') for path in sys.path), callable(exit)]"
    outcome = await run(driver, Command(language="python", source=source))
    assert outcome.end.result == ["/opt/python/bin/python3", True, True], outcome


async def test_a_guests_limits_are_lowered_for_good(driver: JailDriver) -> None:
    source = """
import resource
names = ("NOFILE", "NPROC", "CORE", "FSIZE")
bounds = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names}
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
except ValueError:
    bounds["raised"] = False
bounds
"""
    limits = SPEC.limits
    bounds = {"NOFILE": limits.open_files, "NPROC": limits.pids, "CORE": 0, "FSIZE": limits.file_bytes}
    outcome = await run(driver, Command(language="python", source=source))
    assert outcome.end.result == {**{name: [value, value] for name, value in bounds.items()}, "raised": False}, outcome


async def test_setuid_programs_give_nothing(driver: JailDriver) -> None:
    source = "cp /usr/bin/id /tmp/id && chmod 6755 /tmp/id && /tmp/id -u; su -c id root </dev/null; true"
    outcome = await run(driver, Command(language="shell", source=source))
    assert b"uid=0" not in outcome.stdout
    assert outcome.stdout.split()[0] != b"0"


async def test_a_killed_node_leaves_no_process_and_reap_removes_the_rest(driver: JailDriver, state_dir: Path) -> None:
    words = [sys.executable, "-c", CRASH, str(state_dir / "jail"), driver.strength]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=env) as node:  # noqa: ASYNC220
        assert node.stdout is not None
        await anyio.to_thread.run_sync(node.stdout.readline)
        pids = await anyio.to_thread.run_sync(processes.tree, node.pid)
        started = {pid: processes.start_time(pid) for pid in pids[1:]}
        assert len(started) >= 3
        node.send_signal(signal.SIGKILL)
    assert await driver.reap(keep=["crashed"]) == ()
    assert await driver.reap(keep=[]) == ("crashed",)
    assert await anyio.to_thread.run_sync(all_end, started)
    assert names(state_dir / "jail") == []
    assert str(state_dir) not in await anyio.Path("/proc/mounts").read_text()


async def test_a_torn_record_is_reaped(driver: JailDriver, state_dir: Path) -> None:
    left = anyio.Path(state_dir / "jail" / "0123")
    await left.mkdir(parents=True)
    await (left / "record.json").write_text(json.dumps({"label": "x"})[:-3])
    assert await driver.reap(keep=[]) == ("0123",)
    assert not await left.exists()


async def test_the_uid_is_the_sandboxs_own_under_full(driver: JailDriver) -> None:
    if driver.strength is not Strength.FULL:
        pytest.skip("strength user has one uid for all")
    async with driver.open(SPEC, "one") as one, driver.open(SPEC, "two") as two:
        first = await collect(one.execute(Command(language="shell", source="id -u")))
        second = await collect(two.execute(Command(language="shell", source="id -u")))
    assert first.end.reason is ExitReason.EXITED
    assert int(first.stdout) >= 200_000
    assert first.stdout != second.stdout
