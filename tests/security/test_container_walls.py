"""What only containers promise: the profile, hidden paths, images without privileges, and what a killed node leaves."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from dataplane.gpus import find_gpus
from sandboxes.conformance.check import Outcome, collect
from sandboxes.container import building
from sandboxes.container.driver import ContainerDriver
from sandboxes.container.engine import Engine
from sandboxes.container.images import listed, reference
from sandboxes.errors import DriverFailed, TierUnavailable
from sandboxes.execution import Command, ExitReason
from sandboxes.identity import FIRST_UID
from sandboxes.spec import Limits, Mount, SandboxSpec, Tier
from tests import container_engine

pytestmark = pytest.mark.anyio
SPEC = SandboxSpec(tier=Tier.CONTAINER, limits=Limits(wall_seconds=30))
FILTERED = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
seen = {}
for name, args in {
    "unshare": (0x10000000,), "mount": (None, None, None, 0, None), "ptrace": (0, 0, 0, 0), "setns": (0, 0),
    "setuid": (0,), "keyctl": (0, 0), "syscall": (425, 1, 0),
}.items():
    ctypes.set_errno(0)
    call = getattr(libc, name, None)
    if call is not None: seen[name] = [call(*args), ctypes.get_errno()]
import socket
for family in (2, 10, 16, 17, 38, 40, 44):
    try:
        socket.socket(family, socket.SOCK_RAW if family == 17 else socket.SOCK_STREAM)
        seen[f"family {family}"] = "open"
    except OSError as error:
        seen[f"family {family}"] = "refused"
socket.socketpair()
seen
"""
HIDDEN = """
import os
def held(place):
    if os.path.isdir(place): return len(os.listdir(place))
    return len(open(place, "rb").read(100)) if os.path.exists(place) else 0
{place: held(place) for place in ("/sys", "/proc/kcore", "/proc/keys", "/proc/cmdline", "/proc/modules", "/proc/bus")}
"""
PLACES = """
import os, subprocess, shutil
shutil.copy("/bin/true", "/tmp/true")
os.chmod("/tmp/true", 0o755)
try: ran = subprocess.run(["/tmp/true"]).returncode
except PermissionError: ran = "refused"
[ran, os.getuid(), sorted(os.listdir("/dev")), os.path.exists("/var/run/docker.sock")]
"""
CAPABILITY = "\x01\0\0\x02\0\x20\0\0" + "\0" * 12
"""``cap_net_raw+ep``, as a file has it."""
CRASH = """
import anyio, sys
from pathlib import Path
from sandboxes.container.driver import ContainerDriver
from sandboxes.execution import Command
from sandboxes.spec import SandboxSpec, Tier
async def main():
    driver = ContainerDriver(Path(sys.argv[1]), runtime="runc")
    async with driver.open(SandboxSpec(tier=Tier.CONTAINER), "crashed") as box:
        async for event in box.execute(Command(language="shell", source="sleep 1000 & echo up; sleep 1000")):
            print(event, flush=True)
            if len(sys.argv) > 2: await box.freeze(); print("frozen", flush=True)
anyio.run(main)
"""


@pytest.fixture(scope="module")
def state_dir() -> Iterator[Path]:
    container_engine.require()
    with tempfile.TemporaryDirectory(prefix="stockade-test-") as folder:
        yield Path(folder)


@pytest.fixture
async def driver(state_dir: Path) -> AsyncIterator[ContainerDriver]:
    made = ContainerDriver(state_dir, runtime="runc")
    yield made
    await made.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    container_engine.require()
    made = Engine()
    yield made
    made.close()


async def python(driver: ContainerDriver, source: str, spec: SandboxSpec = SPEC) -> Outcome:
    async with driver.open(spec, f"walls-{os.urandom(4).hex()}") as sandbox:
        return await collect(sandbox.execute(Command(language="python", source=source)))


async def test_calls_that_open_the_kernel_are_refused(driver: ContainerDriver) -> None:
    seen = (await python(driver, FILTERED)).end.result
    refused = {name for name, said in seen.items() if isinstance(said, list) and said[0] == -1 and said[1] in (1, 38)}
    assert {"unshare", "mount", "ptrace", "setns", "setuid", "syscall"} <= refused, seen
    assert {said for name, said in seen.items() if name.startswith("family")} == {"refused"}


async def test_what_the_host_says_of_itself_is_hidden(driver: ContainerDriver) -> None:
    outcome = await python(driver, HIDDEN)
    assert set(outcome.end.result.values()) == {0}, outcome


async def test_nothing_written_can_be_run_and_no_device_or_engine_is_there(driver: ContainerDriver) -> None:
    ran, uid, devices, engine = (await python(driver, PLACES)).end.result
    assert ran == "refused" and not engine
    assert uid >= FIRST_UID if os.geteuid() == 0 else uid == os.geteuid()
    ours = {"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom"}
    assert set(devices) <= {*ours, "mqueue", "zero"}


async def test_an_input_only_root_may_read_is_copied_and_stays_as_it_was(
    driver: ContainerDriver, tmp_path: Path
) -> None:
    secret = tmp_path / "only-mine"
    secret.write_bytes(b"precious")
    secret.chmod(0o600)
    spec = SandboxSpec(tier=Tier.CONTAINER, mounts=(Mount(name="a b", source=secret),))
    outcome = await python(driver, "open('/inputs/a b').read()", spec)
    assert outcome.end.result == "precious" and secret.stat().st_mode & 0o777 == 0o600


async def test_a_flood_that_nobody_reads_does_not_delay_the_end(driver: ContainerDriver) -> None:
    async with driver.open(SPEC, "flood") as sandbox:
        events = sandbox.execute(Command(language="shell", source="echo up; exec cat /dev/zero"))
        await anext(events)
        await anyio.sleep(1.0)  # while it fills every pipe there is
        started = time.monotonic()
        await sandbox.cancel()
        took = time.monotonic() - started
        outcome = await collect(events)
    assert outcome.end.reason is ExitReason.CANCELLED and outcome.end.output_truncated
    assert took < 2.0


async def test_a_program_that_is_not_there_is_the_guests_failure(driver: ContainerDriver) -> None:
    async with driver.open(SPEC, "absent") as sandbox:
        outcome = await collect(sandbox.execute(Command(language="argv", argv=("/no/such/program",))))
    assert (outcome.end.code, outcome.end.reason) == (127, ExitReason.EXITED) and b"/no/such/program" in outcome.stderr


async def test_a_digest_is_insisted_on(driver: ContainerDriver, engine: Engine) -> None:
    digest = next(image.digest for image in listed(engine) if image.name == "python")
    await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, image=f"python@{digest}"))
    with pytest.raises(TierUnavailable, match="import that one"):
        await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, image=f"python@sha256:{'0' * 64}"))
    with pytest.raises(TierUnavailable, match="stockade image build nowhere"):
        await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, image="nowhere"))


async def test_a_runtime_the_engine_has_not_is_told(state_dir: Path) -> None:
    made = ContainerDriver(state_dir, runtime="kata")  # type: ignore[arg-type]
    reason = await made.probe()
    await made.close()
    assert reason is not None and "no runtime kata" in reason and "daemon.json" in reason


async def test_no_engine_is_a_reason_with_a_fix(state_dir: Path) -> None:
    made = ContainerDriver(state_dir, address=f"unix://{state_dir}/nothing.sock")
    reason = await made.probe()
    with pytest.raises(DriverFailed, match="no Docker Engine"):
        await python(made, "1")
    await made.close()
    assert reason is not None and "apt-get install docker.io" in reason


def crash(state_dir: Path, frozen: bool) -> None:
    """A node that is killed while a guest runs."""
    words = [sys.executable, "-c", CRASH, str(state_dir), *(["freeze"] if frozen else [])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as node:
        assert node.stdout is not None
        last = b"frozen" if frozen else b"up"
        assert any(last in line for line in node.stdout)
        node.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
async def test_what_a_killed_node_leaves_is_reaped(
    driver: ContainerDriver, engine: Engine, state_dir: Path, frozen: bool
) -> None:
    crash(state_dir, frozen)
    owner = await anyio.Path(state_dir / "owner").read_text()
    assert [paused for _, _, paused in engine.owned(owner)] == [frozen]
    with pytest.raises(DriverFailed, match="exists already"):
        async with driver.open(SPEC, "crashed"):
            pass
    assert await driver.reap(keep=["another"]) == ("crashed",)
    assert engine.owned(owner) == [] and [each.name async for each in anyio.Path(state_dir).iterdir()] == ["owner"]
    mounts = await anyio.Path("/proc/self/mounts").read_text()
    assert str(state_dir) not in mounts


async def test_two_state_folders_do_not_reap_each_other(driver: ContainerDriver, tmp_path: Path) -> None:
    other = ContainerDriver(tmp_path, runtime="runc")
    async with driver.open(SPEC, "mine") as sandbox:
        events = sandbox.execute(Command(language="shell", source="echo up; sleep 1000"))
        await anext(events)
        assert await other.reap(()) == ()
        await sandbox.cancel()
        assert (await collect(events)).end.reason is ExitReason.CANCELLED
    await other.close()


def root_archive(path: Path) -> Path:
    """A root with a set-uid file, a file capability, a link and a device, made by hand."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode, headers in (
            ("bin/su", 0o4755, {}),
            ("bin/ping", 0o755, {"SCHILY.xattr.security.capability": CAPABILITY}),
            ("data/kept", 0o644, {}),
        ):
            info = tarfile.TarInfo(name)
            info.mode, info.size, info.pax_headers = mode, 4, headers
            tar.addfile(info, io.BytesIO(b"body"))
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "su"
        tar.addfile(link)
    return path


@pytest.fixture
def cleaned(engine: Engine) -> Iterator[Callable[[str], str]]:
    """Names of images that go with the test."""
    names: list[str] = []

    def name(base: str) -> str:
        names.append(f"{base}-{os.urandom(4).hex()}")
        return names[-1]

    yield name
    for each in names:
        engine.untag(reference(each))


def test_set_uid_files_capabilities_and_volumes_are_taken_out(
    engine: Engine, cleaned: Callable[[str], str], tmp_path: Path
) -> None:
    name, said = cleaned("hostile"), list[str]()
    base = engine.import_root(root_archive(tmp_path / "root.tar"), f"stockade-test-base:{name}")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base}\nENV GREETING='hi there'\nVOLUME /data\nENTRYPOINT [\"/bin/su\"]\n"
    )
    image = building.from_dockerfile(engine, name, building.Dockerfile(context=tmp_path, arguments={}), said.append)
    engine.untag(f"stockade-test-base:{name}")
    assert any("taking out" in line for line in said)
    config = engine.image_config(image.digest)
    assert not config.get("Volumes") and not config.get("Entrypoint") and "GREETING=hi there" in config["Env"]
    with engine.exported(image.digest) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        found = {member.name: member for member in tar}
    assert found["bin/su"].mode & 0o6000 == 0 and found["bin/su"].size == 4 and found["bin/sh"].linkname == "su"
    assert not found["bin/ping"].pax_headers.get("SCHILY.xattr.security.capability")
    assert "data/kept" in found


async def test_an_image_with_volumes_that_came_another_way_is_refused(
    driver: ContainerDriver, engine: Engine, cleaned: Callable[[str], str], tmp_path: Path
) -> None:
    name = cleaned("volumes")
    engine.import_root(root_archive(tmp_path / "root.tar"), reference(name), ["VOLUME /data"])
    with pytest.raises(TierUnavailable, match="declares volumes"):
        await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, image=name))


async def test_an_image_comes_and_goes_while_a_driver_looks_on(
    driver: ContainerDriver, engine: Engine, cleaned: Callable[[str], str], tmp_path: Path
) -> None:
    await python(driver, "1")  # from here on it listens
    name = cleaned("late")

    async def offered(is_there: bool) -> None:
        with anyio.fail_after(10):
            while (name in {one.image for one in driver.images()}) is not is_there:  # noqa: ASYNC110 - another thread's
                await anyio.sleep(0.01)

    engine.import_root(root_archive(tmp_path / "root.tar"), reference(name))
    await offered(True)
    with pytest.raises(TierUnavailable, match="cannot run Python"):
        await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, image=name))
    async with driver.open(SandboxSpec(tier=Tier.CONTAINER, image=name), "late"):
        building.remove(engine, name)
        await offered(False)


def test_a_saved_archive_comes_back_with_the_same_digest(
    engine: Engine, cleaned: Callable[[str], str], tmp_path: Path
) -> None:
    digest = next(image.digest for image in listed(engine) if image.name == "python")
    saved = tmp_path / "saved.tar"
    with saved.open("wb") as file:
        for chunk in engine.client().get_image(digest):
            file.write(chunk)
    assert building.from_archive(engine, cleaned("again"), saved, lambda _: None).digest == digest


def test_what_is_no_archive_and_a_build_that_fails_are_told(
    engine: Engine, tmp_path: Path, cleaned: Callable[[str], str]
) -> None:
    (tmp_path / "x.tar").write_bytes(b"nonsense")
    with pytest.raises(DriverFailed, match="no docker or OCI archive"):
        building.from_archive(engine, cleaned("bad"), tmp_path / "x.tar", lambda _: None)
    source = building.Dockerfile(context=tmp_path, arguments={})
    with pytest.raises(DriverFailed, match="there is no Dockerfile"):
        building.from_dockerfile(engine, cleaned("bad"), source, lambda _: None)
    (tmp_path / "Dockerfile").write_text('FROM scratch\nRUN ["/nothing"]\n')
    with pytest.raises(DriverFailed, match="build failed"):
        building.from_dockerfile(engine, cleaned("bad"), source, lambda _: None)
    with pytest.raises(DriverFailed, match="no name of a Debian package"):
        building.from_packages(engine, "ok", ["-oProxyCommand"], lambda _: None)


async def test_the_memory_of_two_containers_is_told_apart(driver: ContainerDriver) -> None:
    """The engine's word on memory reaches the sandbox it is about, and only that."""
    small = SandboxSpec(tier=Tier.CONTAINER, limits=Limits(memory_bytes=64 * 1024 * 1024, wall_seconds=30))
    outcomes: dict[str, Outcome] = {}

    async def one(label: str, source: str) -> None:
        async with driver.open(small, label) as sandbox:
            outcomes[label] = await collect(sandbox.execute(Command(language="python", source=source)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, "greedy", "x = bytearray(b'x') * (1 << 28)")
        tasks.start_soon(one, "modest", "import time; time.sleep(1.5); 'fine'")
    assert outcomes["greedy"].end.reason is ExitReason.OOM
    assert outcomes["modest"].end.result == "fine"


async def test_the_most_memory_a_container_held_is_told(driver: ContainerDriver) -> None:
    outcome = await python(driver, "import time; held = bytearray(b'x') * (100 << 20); time.sleep(0.5)")
    assert (100 << 20) < (outcome.end.memory_peak_bytes or 0) < (250 << 20), outcome.end


_GPUS = """
import os
devices = [name for name in os.listdir("/dev") if "nvidia" in name]
[devices, os.environ["STOCKADE_GPUS"], os.environ["STOCKADE_GPUS_FAKE"]]
"""


async def test_a_declared_gpu_is_a_name_and_no_device(driver: ContainerDriver) -> None:
    spec = SandboxSpec(tier=Tier.CONTAINER, gpus=("fake-gpu-0", "fake-gpu-3"))
    outcome = await python(driver, _GPUS, spec)
    assert outcome.end.result == [[], "fake-gpu-0,fake-gpu-3", "1"]
    with pytest.raises(DriverFailed, match="declared and real"):
        await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, gpus=("fake-gpu-0", "GPU-1")))


async def test_a_gpu_is_refused_on_runsc(state_dir: Path) -> None:
    driver = ContainerDriver(state_dir / "gvisor", runtime="runsc")
    try:
        with pytest.raises(TierUnavailable, match="--container-runtime runc"):
            await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, gpus=("GPU-1",)))
    finally:
        await driver.close()


async def test_exactly_the_assigned_gpu_is_in_the_container(driver: ContainerDriver) -> None:
    found, absent = find_gpus()
    if not found:
        with pytest.raises(DriverFailed):
            await python(driver, "1", SandboxSpec(tier=Tier.CONTAINER, gpus=("GPU-not-there",)))
        pytest.skip(f"gpu: {absent}")
    spec = SandboxSpec(tier=Tier.CONTAINER, gpus=(found[0].uuid,))
    listed = (
        "import subprocess; subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout.split('UUID: ')"
    )
    outcome = await python(driver, listed, spec)
    assert [part.split(")")[0] for part in outcome.end.result[1:]] == [found[0].uuid], outcome


async def test_an_image_without_python_is_told_that_it_can_have_no_network(
    driver: ContainerDriver, engine: Engine, cleaned: Callable[[str], str], tmp_path: Path
) -> None:
    name = cleaned("bare")
    engine.import_root(root_archive(tmp_path / "root.tar"), reference(name))
    spec = SandboxSpec(tier=Tier.CONTAINER, image=name, network=True)
    async with driver.open(spec, f"bare-{os.urandom(4).hex()}") as sandbox:
        with pytest.raises(TierUnavailable, match="put python3 on its PATH"):
            await collect(sandbox.execute(Command(language="shell", source="echo here")))
