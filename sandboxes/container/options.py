"""What a container is made with. Values in, values out: the hardening is all here, and a test can read it."""

from __future__ import annotations

import json
import platform
import socket
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sandboxes.container.box import GUEST_FOLDER, Box
from sandboxes.spec import FAKE_GPU, MIB, Limits

Runtime = Literal["runc", "runsc"]
OWNER_LABEL, SANDBOX_LABEL = "stockade.owner", "stockade.sandbox"
RUNSC_NEEDS = ("--host-uds=open", "--oci-seccomp")
"""How the engine must start runsc: the guest's channel is a socket of the host, and our profile is to count."""

_LEAST_MEMORY_BYTES = 6 * MIB  # the engine refuses less
_SHARED_MEMORY_BYTES = 64 * MIB
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - the guest's own
_PERIOD_MICROSECONDS = 100_000
_ENGINE_PIDS = 1  # the engine's init
_RUNSC_PIDS = 512  # threads of the kernel in user space count too; inside, RLIMIT_NPROC bounds the guest
_OOM_SCORE = 500  # if the host runs out, a guest goes before the node
_SOCK_CLOEXEC, _SOCK_NONBLOCK = 0x80000, 0x800
_ARCHITECTURES = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64", "arm64": "SCMP_ARCH_AARCH64"}
_ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - likewise
    "TMPDIR": "/tmp",  # noqa: S108 - likewise
    "LANG": "C.UTF-8",
    "USER": "guest",
}
_TCP = tuple(
    {
        "names": ["socket"],
        "action": "SCMP_ACT_ALLOW",
        "args": [
            {"index": 0, "value": socket.AF_INET, "op": "SCMP_CMP_EQ"},
            {
                "index": 1,
                "value": 0xFFFFFFFF & ~(_SOCK_CLOEXEC | _SOCK_NONBLOCK),
                "valueTwo": socket.SOCK_STREAM,
                "op": "SCMP_CMP_MASKED_EQ",
            },
            {"index": 2, "value": protocol, "op": "SCMP_CMP_EQ"},
        ],
    }
    for protocol in (0, socket.IPPROTO_TCP)
)
_MASKED = (
    "/sys",
    *(
        f"/proc/{name}"
        for name in (
            *("acpi", "asound", "bus", "cmdline", "config.gz", "diskstats", "fs", "interrupts", "iomem", "ioports"),
            *("irq", "kallsyms", "kcore", "keys", "key-users", "latency_stats", "modules", "partitions", "sched_debug"),
            *("scsi", "softirqs", "swaps", "timer_list", "timer_stats", "vmallocinfo"),
        )
    ),
)
_NOTHING = "ro,size=4k,nr_inodes=2,mode=0555,noexec,nosuid,nodev"
_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger")


@cache
def seccomp(machine: str = platform.machine(), *, network: bool = False) -> str:
    """The profile as the engine takes it, for this machine only: no 32-bit and no x32 calls. ``KeyError`` elsewhere.

    ``network``: TCP sockets too, which a guest needs to reach its proxy on its own loopback.
    """
    profile = json.loads((Path(__file__).parent / "seccomp.json").read_text())
    calls = [*profile["syscalls"], *(_TCP if network else ())]
    return json.dumps({**profile, "syscalls": calls, "architectures": [_ARCHITECTURES[machine]]})


def body(
    box: Box,
    *,
    image: str,
    runtime: Runtime,
    words: Sequence[str],
    env: Mapping[str, str],
    stdin: bool,
    owner: str,
) -> dict[str, Any]:
    """The engine's ``POST /containers/create``. ``image`` is a digest, ``words`` the guest's command line."""
    variables = {**_ENVIRONMENT, **gpu_variables(box.gpus), **env}
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": list(words),
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "User": f"{box.uid}:{box.uid}",
        "WorkingDir": "/tmp",  # noqa: S108 - likewise
        "Hostname": "sandbox",
        "Labels": {OWNER_LABEL: owner, SANDBOX_LABEL: box.id},
        # Either way there is a loopback device only; the engine must bring it up for runsc, which takes it as it is.
        "NetworkDisabled": not (box.network and runtime == "runsc"),
        "Tty": False,
        "OpenStdin": stdin,
        "StdinOnce": stdin,
        "AttachStdin": stdin,
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host(box, runtime),
    }


def _host(box: Box, runtime: Runtime) -> dict[str, Any]:
    limits = box.limits
    memory = max(limits.memory_bytes, _LEAST_MEMORY_BYTES)
    return {
        "Runtime": runtime,
        "Init": True,  # else the guest is process 1, which no signal of its own ends
        "NetworkMode": "none",
        "IpcMode": "none",
        "CgroupnsMode": "private",
        "UsernsMode": "host",  # the uid below is the host's: leased, and nobody else's
        "Privileged": False,
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp(network=box.network)}"],
        "MaskedPaths": list(_MASKED),
        "ReadonlyPaths": list(_READ_ONLY),
        "LogConfig": {"Type": "none"},
        "Memory": memory,
        "MemorySwap": memory,  # no swap
        "OomScoreAdj": _OOM_SCORE,
        "PidsLimit": limits.pids + (_RUNSC_PIDS if runtime == "runsc" else _ENGINE_PIDS),
        "CpuPeriod": _PERIOD_MICROSECONDS,
        "CpuQuota": max(1000, int(limits.cpu * _PERIOD_MICROSECONDS)),
        "Ulimits": _ulimits(limits, runtime),
        "Tmpfs": {
            _SHARED_MEMORY: _tmpfs(min(_SHARED_MEMORY_BYTES, limits.memory_bytes), limits.inodes),
            **({"/sys": _NOTHING} if runtime == "runsc" else {}),  # which masks no path; what it shows is its own
        },
        "DeviceRequests": _device_requests(box.gpus),
        "Mounts": [
            _bind(box.files / "guest", GUEST_FOLDER),
            *(_bind(box.files / "etc" / name, f"/etc/{name}") for name in box.etc),
            _bind(box.files / "inputs", "/inputs"),
            *(_bind(path, f"/inputs/{name}") for name, path in box.inputs.items()),
            _bind(box.files / "tmp", "/tmp", writable=True),  # noqa: S108 - likewise
            _bind(box.outputs, "/outputs", writable=True),
        ],
    }


def _device_requests(gpus: Sequence[str]) -> list[dict[str, Any]]:
    """Exactly these devices; none for those that are declared only."""
    real = [each for each in gpus if not each.startswith(FAKE_GPU)]
    return [{"Driver": "nvidia", "DeviceIDs": real, "Capabilities": [["gpu"]]}] if real else []


def gpu_variables(gpus: Sequence[str]) -> dict[str, str]:
    """What the guest is told of its devices."""
    if not gpus:
        return {}
    fake = {"STOCKADE_GPUS_FAKE": "1"} if gpus[0].startswith(FAKE_GPU) else {}
    return {"STOCKADE_GPUS": ",".join(gpus), **fake}


def _ulimits(limits: Limits, runtime: Runtime) -> list[dict[str, Any]]:
    values = {"nofile": limits.open_files, "fsize": limits.file_bytes, "core": 0, "msgqueue": 0}
    if runtime == "runsc":
        values["nproc"] = limits.pids
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in values.items()]


def _tmpfs(size: int, inodes: int) -> str:
    return f"size={size},nr_inodes={inodes},mode=1777,noexec,nosuid,nodev"


def _bind(source: Path, target: str, *, writable: bool = False) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": not writable,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }
