"""What a container is asked to be: every wall is in the request, and nothing of the host is."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandboxes.container import options, presence, selftest
from sandboxes.container.box import Box
from sandboxes.container.images import reference
from sandboxes.errors import DriverFailed
from sandboxes.jail import seccomp as jail_seccomp
from sandboxes.spec import MIB, Limits, Strength


def body(
    tmp_path: Path, runtime: options.Runtime = "runc", network: bool = False, gpus: tuple[str, ...] = (), **limits: Any
) -> dict[str, Any]:
    box = Box(
        id="0123", label="one", root=tmp_path, strength=Strength.FULL, limits=Limits(**limits), uid=200_123,
        inputs={"data.txt": Path("/srv/data.txt")}, network=network, gpus=gpus,
    )  # fmt: skip
    return options.body(
        box, image="sha256:ab", runtime=runtime, words=["/ready"], env={"A": "b"}, stdin=False, owner="me"
    )


def test_every_wall_is_asked_for(tmp_path: Path) -> None:
    made = body(tmp_path, memory_bytes=64 * MIB, pids=7, cpu=0.5, open_files=9, file_bytes=5)
    host = made["HostConfig"]
    assert made["User"] == "200123:200123" and made["NetworkDisabled"] and made["Image"] == "sha256:ab"
    assert host["NetworkMode"] == host["IpcMode"] == "none" and host["CgroupnsMode"] == "private"
    assert host["ReadonlyRootfs"] and host["Init"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"] and "no-new-privileges" in host["SecurityOpt"]
    assert host["LogConfig"] == {"Type": "none"} and {"/sys", "/proc/kcore", "/proc/keys"} <= set(host["MaskedPaths"])
    assert host["Memory"] == host["MemorySwap"] == 64 * MIB
    assert host["PidsLimit"] == 8 and host["CpuQuota"] / host["CpuPeriod"] == 0.5
    assert {one["Name"]: one["Hard"] for one in host["Ulimits"]} == {"nofile": 9, "fsize": 5, "core": 0, "msgqueue": 0}
    assert all("noexec,nosuid,nodev" in each and "size=" in each for each in host["Tmpfs"].values())


def test_only_tmp_and_outputs_are_writable_and_the_engines_socket_is_nowhere(tmp_path: Path) -> None:
    mounts = body(tmp_path)["HostConfig"]["Mounts"]
    assert {one["Target"] for one in mounts if not one["ReadOnly"]} == {"/tmp", "/outputs"}
    assert {one["Source"] for one in mounts if not one["Source"].startswith(str(tmp_path))} == {"/srv/data.txt"}
    assert "/inputs/data.txt" in {one["Target"] for one in mounts}


def test_runsc_has_room_for_its_own_threads_and_bounds_the_guests_inside(tmp_path: Path) -> None:
    host = body(tmp_path, "runsc", pids=7)["HostConfig"]
    assert host["Runtime"] == "runsc" and host["PidsLimit"] > 100
    assert {"Name": "nproc", "Soft": 7, "Hard": 7} in host["Ulimits"]


def test_no_variable_of_the_host_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "canary")
    made = body(tmp_path)["Env"]
    assert "A=b" in made and not any("canary" in one for one in made)


def test_the_profile_allows_what_the_jail_allows_and_no_more() -> None:
    profile = json.loads(options.seccomp())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO" and len(profile["architectures"]) == 1
    allowed = {name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    table = json.loads((Path(jail_seccomp.__file__).parent / "seccomp.json").read_text())["numbers"]
    jail = {name for one in table.values() for part in ("allow", "conditional") for name in one[part]}
    assert allowed <= jail
    for closed in ("io_uring_setup", "bpf", "keyctl", "mount", "unshare", "setns", "ptrace", "userfaultfd", "setuid"):
        assert closed not in allowed
    families = [rule["args"][0]["value"] for rule in profile["syscalls"] if rule["names"] == ["socket"]]
    assert families == [1], "sockets of this machine only"


@pytest.mark.parametrize("runtime", ["runc", "runsc"])
def test_a_network_grant_gives_no_network_and_tcp_sockets(tmp_path: Path, runtime: options.Runtime) -> None:
    with_it, without = body(tmp_path, runtime, network=True), body(tmp_path, runtime)
    assert with_it["HostConfig"]["NetworkMode"] == "none"
    changed = {name for name, value in with_it["HostConfig"].items() if value != without["HostConfig"][name]}
    assert changed == {"SecurityOpt"}
    profile = json.loads(options.seccomp(network=True))
    rules = [rule["args"] for rule in profile["syscalls"] if rule["names"] == ["socket"]]
    assert [[arg["value"] for arg in args] for args in rules] == [[1], [2, 0xFFF7F7FF, 0], [2, 0xFFF7F7FF, 6]]
    assert [args[1]["valueTwo"] for args in rules[1:]] == [1, 1], "streams"
    assert options.seccomp() != options.seccomp(network=True)


def test_exactly_the_assigned_gpus_are_asked_for(tmp_path: Path) -> None:
    made = body(tmp_path, gpus=("GPU-1a2b", "GPU-3c4d"))
    asked = [{"Driver": "nvidia", "DeviceIDs": ["GPU-1a2b", "GPU-3c4d"], "Capabilities": [["gpu"]]}]
    assert made["HostConfig"]["DeviceRequests"] == asked and "STOCKADE_GPUS=GPU-1a2b,GPU-3c4d" in made["Env"]
    assert body(tmp_path)["HostConfig"]["DeviceRequests"] == []


def test_a_declared_gpu_is_never_asked_of_the_engine(tmp_path: Path) -> None:
    made = body(tmp_path, gpus=("fake-gpu-0", "fake-gpu-1"))
    assert made["HostConfig"]["DeviceRequests"] == []
    assert {"STOCKADE_GPUS=fake-gpu-0,fake-gpu-1", "STOCKADE_GPUS_FAKE=1"} <= set(made["Env"])


@pytest.mark.parametrize("name", ["", "Python", "a/b", "a:b", "../a", "a--b_", "-a", "a" * 65, "stockade@sha256"])
def test_a_name_no_engine_takes_is_refused(name: str) -> None:
    with pytest.raises(DriverFailed, match="no name for an image"):
        reference(name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="runs the program made for this machine")
def test_the_self_tests_program_runs(tmp_path: Path) -> None:
    program = tmp_path / "ready"
    program.write_bytes(selftest.program())
    program.chmod(0o755)
    done = subprocess.run([str(program)], capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (0, selftest.SAYS)
    assert len(selftest.program("aarch64")) < 250


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("unix:///nonexistent/docker.sock", "apt-get install docker.io"),
        ("tcp://10.0.0.1:2375", "another machine"),
        ("unix:///etc/passwd", "is no socket"),
    ],
)
def test_an_absent_engine_is_told_with_the_fix(where: str, says: str) -> None:
    assert says in (presence.absent(where) or "")
