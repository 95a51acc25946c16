"""The jail's system-call filter, compiled to classic BPF without a library.

Default deny. The table (``seccomp.json``) lists what is allowed per architecture; a few calls depend on their
arguments and are written here. Order of the program::

    foreign architecture, x32 numbers  -> kill the process
    conditional calls                  -> their own tests
    allowed numbers                    -> allow
    numbers newer than the table       -> ENOSYS, so that libc falls back
    the rest                           -> EPERM
"""

from __future__ import annotations

import errno
import json
import platform
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

# Offsets in struct seccomp_data. Arguments are 64 bits wide; the low half is first on both architectures.
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_FIRST = 0x40000000
_NEW_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET,NS}; NEWTIME cannot be given to clone()
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # typing into a terminal as its owner
_PERSONALITY_QUERY = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One BPF instruction; ``yes`` and ``no`` are relative jumps."""

    code: int
    value: int
    yes: int = 0
    no: int = 0

    def packed(self) -> bytes:
        return struct.pack("=HBBI", self.code, self.yes, self.no, self.value)


def _give(action: int) -> Rule:
    return Rule(code=_RETURN, value=action)


def _refuse(number: int) -> Rule:
    return _give(_ERRNO | number)


def _conditional(name: str) -> list[Rule]:
    """What follows once the number matched: ends in a return on every path."""
    if name in ("socket", "socketpair"):
        return [
            Rule(code=_LOAD, value=_ARG0),
            Rule(code=_JUMP_EQUAL, value=socket.AF_UNIX, no=1),
            _give(_ALLOW),
            _refuse(errno.EAFNOSUPPORT),
        ]
    if name == "clone":
        return [
            Rule(code=_LOAD, value=_ARG0),
            Rule(code=_JUMP_ANY_BIT, value=_NEW_NAMESPACE_FLAGS, no=1),
            _refuse(errno.EPERM),
            _give(_ALLOW),
        ]
    if name == "clone3":  # its flags are in memory, out of the filter's reach; libc falls back to clone
        return [_refuse(errno.ENOSYS)]
    if name == "ioctl":
        return [
            Rule(code=_LOAD, value=_ARG1),
            Rule(code=_JUMP_EQUAL, value=_TIOCSTI, yes=1),
            Rule(code=_JUMP_EQUAL, value=_TIOCLINUX, no=1),
            _refuse(errno.EPERM),
            _give(_ALLOW),
        ]
    if name == "personality":
        return [
            Rule(code=_LOAD, value=_ARG0),
            Rule(code=_JUMP_EQUAL, value=_PERSONALITY_QUERY, no=1),
            _give(_ALLOW),
            _refuse(errno.EPERM),
        ]
    raise ValueError(f"no condition is written for the system call {name!r}")


def _rules(machine: str) -> Iterator[Rule]:
    table = json.loads((Path(__file__).parent / "seccomp.json").read_text())
    numbers = table["numbers"][machine]
    yield Rule(code=_LOAD, value=_ARCH)
    yield Rule(code=_JUMP_EQUAL, value=_AUDIT_ARCH[machine], yes=1)
    yield _give(_KILL_PROCESS)
    yield Rule(code=_LOAD, value=_NUMBER)
    if machine == "x86_64":
        yield Rule(code=_JUMP_GREATER, value=_X32_FIRST - 1, no=1)
        yield _give(_KILL_PROCESS)
    for name, number in numbers["conditional"].items():
        body = _conditional(name)
        yield Rule(code=_JUMP_EQUAL, value=number, no=len(body))
        yield from body
    for number in numbers["allow"].values():
        yield Rule(code=_JUMP_EQUAL, value=number, no=1)
        yield _give(_ALLOW)
    yield Rule(code=_JUMP_GREATER, value=table["newest"], no=1)
    yield _refuse(errno.ENOSYS)
    yield _refuse(errno.EPERM)


@cache
def program(machine: str = platform.machine()) -> bytes:
    """The filter as an array of ``struct sock_filter``, ready for ``bwrap --seccomp``.

    Raises ``KeyError`` for a machine that is not in the table.
    """
    return b"".join(rule.packed() for rule in _rules(machine))
