"""The filter's decisions, judged by an interpreter of classic BPF: no kernel, both architectures."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path

import pytest

from sandboxes.jail import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
TABLE = json.loads((Path(seccomp.__file__).parent / "seccomp.json").read_text())


def decide(
    machine: str,
    number: int,
    *args: int,
    arch: int | None = None,
    program: bytes | None = None,
    network: bool = False,
) -> int:
    """Run the program (the jail's, unless told) on one system call and return its verdict."""
    padded = (*args, *(0 for _ in range(6 - len(args))))
    data = struct.pack("=IIQ6Q", number, ARCHES[machine] if arch is None else arch, 0, *padded)
    code = list(struct.iter_unpack("=HBBI", program or seccomp.program(machine, network=network)))
    accumulator, at = 0, 0
    while True:
        op, yes, no, value = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif op == 0x06:
            return int(value)
        elif op == 0x54:
            accumulator &= value
        else:
            taken = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[op]
            at += yes if taken else no


def number(machine: str, name: str) -> int:
    numbers = TABLE["numbers"][machine]
    return int({**numbers["allow"], **numbers["conditional"]}[name])


def refused(code: int) -> int:
    return 0x00050000 | code


@pytest.mark.parametrize("machine", ARCHES)
def test_everyday_calls_are_allowed(machine: str) -> None:
    for name in ("read", "write", "openat", "execve", "mmap", "futex", "wait4", "getrandom", "exit_group"):
        assert decide(machine, number(machine, name)) == ALLOW, name


@pytest.mark.parametrize("machine", ARCHES)
def test_foreign_architectures_die(machine: str) -> None:
    assert decide(machine, number(machine, "read"), arch=0x40000003) == KILL  # i386


def test_x32_numbers_die() -> None:
    assert decide("x86_64", 0x40000000) == KILL
    assert decide("x86_64", 0x40000000 | 520) == KILL


@pytest.mark.parametrize("machine", ARCHES)
def test_only_unix_sockets(machine: str) -> None:
    for name in ("socket", "socketpair"):
        assert decide(machine, number(machine, name), 1) == ALLOW
        for family in (2, 10, 16, 17, 38, 40, 44):  # INET, INET6, NETLINK, PACKET, ALG, VSOCK, XDP
            assert decide(machine, number(machine, name), family) == refused(errno.EAFNOSUPPORT), family


@pytest.mark.parametrize("machine", ARCHES)
def test_a_network_grant_adds_tcp_sockets_and_nothing_else(machine: str) -> None:
    def decided(*arguments: int) -> int:
        return decide(machine, number(machine, "socket"), *arguments, network=True)

    flags = seccomp.SOCKET_FLAGS
    for kind, protocol in ((1, 0), (1, 6), (1 | flags, 0)):  # SOCK_STREAM
        assert decided(2, kind, protocol) == ALLOW
    for arguments in (
        (2, 2, 0),
        (2, 3, 6),
        (2, 2 | flags, 17),
        (2, 1, 262),
        (2, 5, 132),
        (10, 1, 0),
        (16, 3, 0),
        (40, 1, 0),
    ):
        assert decided(*arguments) == refused(errno.EAFNOSUPPORT), arguments
    assert decided(1, 2, 0) == ALLOW
    assert decide(machine, number(machine, "socketpair"), 2, network=True) == refused(errno.EAFNOSUPPORT)


@pytest.mark.parametrize("machine", ARCHES)
@pytest.mark.parametrize("flag", [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_new_namespaces(machine: str, flag: int) -> None:
    assert decide(machine, number(machine, "clone"), flag | 17) == refused(errno.EPERM)
    assert decide(machine, number(machine, "clone"), 0x003D0F00) == ALLOW  # a thread
    assert decide(machine, number(machine, "clone3")) == refused(errno.ENOSYS)


@pytest.mark.parametrize("machine", ARCHES)
def test_no_typing_into_a_terminal(machine: str) -> None:
    assert decide(machine, number(machine, "ioctl"), 0, 0x5412) == refused(errno.EPERM)
    assert decide(machine, number(machine, "ioctl"), 0, 0x541C) == refused(errno.EPERM)
    assert decide(machine, number(machine, "ioctl"), 0, (7 << 32) | 0x5412) == refused(errno.EPERM)
    assert decide(machine, number(machine, "ioctl"), 0, 0x5401) == ALLOW


@pytest.mark.parametrize(
    ("machine", "numbers"),
    [
        # mount, umount2, ptrace, bpf, keyctl, unshare, setns, io_uring_setup, userfaultfd, perf_event_open,
        # memfd_create, kexec_load, init_module, process_vm_readv, shmget
        ("x86_64", (165, 166, 101, 321, 250, 272, 308, 425, 323, 298, 319, 246, 175, 310, 29)),
        ("aarch64", (40, 39, 117, 280, 219, 97, 268, 425, 282, 241, 279, 104, 105, 270, 194)),
    ],
)
def test_dangerous_calls_are_refused(machine: str, numbers: tuple[int, ...]) -> None:
    for each in numbers:
        assert decide(machine, each) == refused(errno.EPERM), each


@pytest.mark.parametrize("machine", ARCHES)
def test_calls_of_newer_kernels_look_absent(machine: str) -> None:
    assert decide(machine, 5000) == refused(errno.ENOSYS)


@pytest.mark.parametrize("machine", ARCHES)
def test_the_program_fits_the_kernel(machine: str) -> None:
    assert len(seccomp.program(machine)) // 8 <= 4096


@pytest.mark.parametrize("machine", ARCHES)
def test_a_stricter_filter_refuses_more_and_nothing_else_changes(machine: str) -> None:
    no = seccomp.refuse(errno.EPERM)
    threads_only = seccomp.unless(0, seccomp.NEW_NAMESPACE_FLAGS, seccomp.unless(0, 0x10000, no, seccomp.ALLOW), no)
    changes = {"execve": no, "fork": no, "clone": threads_only, "mprotect": seccomp.unless(2, 4, seccomp.ALLOW, no)}
    program = seccomp.stricter(changes, machine)

    def verdict(name: str, *args: int) -> int:
        return decide(machine, number(machine, name), *args, program=program)

    assert verdict("execve") == refused(errno.EPERM)
    assert verdict("clone", 0x003D0F00) == ALLOW
    assert verdict("clone", 17) == refused(errno.EPERM)
    assert verdict("clone", 0x003D0F00 | 0x40000000) == refused(errno.EPERM)
    assert verdict("mprotect", 0, 4096, 3) == ALLOW
    assert verdict("mprotect", 0, 4096, 5) == refused(errno.EPERM)
    for other in range(TABLE["newest"] + 2):
        if other not in {number(machine, name) for name in changes if name != "fork" or machine == "x86_64"}:
            assert decide(machine, other, program=program) == decide(machine, other), other
