"""System-call filters, compiled to classic BPF without a library: the jail's own, and stricter ones made from it.

Default deny. The table (``seccomp.json``) lists what is allowed per architecture; a few calls depend on their
arguments and are written here. What the program decides::

    foreign architecture, x32 numbers  -> kill the process
    conditional calls                  -> their own tests
    allowed numbers                    -> allow
    numbers newer than the table       -> ENOSYS, so that libc falls back
    the rest                           -> EPERM

Numbers are found by bisection: a chain of 250 tests made loading the filter a millisecond slower, since the kernel
runs it once for every number to learn which calls it need not ask about.
"""

from __future__ import annotations

import errno
import json
import platform
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GREATER = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

# Offsets in struct seccomp_data. Arguments are 64 bits wide; the low half is first on both architectures.
_NUMBER, _ARCH, _ARG0, _ARG1, _ARG2 = 0, 4, 16, 24, 32

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_FIRST = 0x40000000
NEW_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET,NS}; NEWTIME cannot be given to clone()
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # typing into a terminal as its owner
_PERSONALITY_QUERY = 0xFFFFFFFF
SOCKET_FLAGS = 0x80800  # SOCK_CLOEXEC | SOCK_NONBLOCK: no part of the type


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
    """What follows once the number is known."""
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
            Rule(code=_JUMP_ANY_BIT, value=NEW_NAMESPACE_FLAGS, no=1),
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


Body = tuple[Rule, ...]
"""What follows once the number is known: ends in a return on every path, and may load arguments."""
ALLOW: Body = (_give(_ALLOW),)


_TCP_OR_UNIX: Body = (
    Rule(code=_LOAD, value=_ARG0),
    Rule(code=_JUMP_EQUAL, value=socket.AF_UNIX, yes=7),
    Rule(code=_JUMP_EQUAL, value=socket.AF_INET, no=7),
    Rule(code=_LOAD, value=_ARG1),
    Rule(code=_AND, value=0xFFFFFFFF & ~SOCKET_FLAGS),
    Rule(code=_JUMP_EQUAL, value=socket.SOCK_STREAM, no=4),
    Rule(code=_LOAD, value=_ARG2),
    Rule(code=_JUMP_EQUAL, value=0, yes=1),
    Rule(code=_JUMP_EQUAL, value=socket.IPPROTO_TCP, no=1),
    _give(_ALLOW),
    _refuse(errno.EAFNOSUPPORT),
)


def refuse(number: int) -> Body:
    """Fail the call with this ``errno``."""
    return (_refuse(number),)


def unless(argument: int, any_of: int, then: Body, otherwise: Body) -> Body:
    """``then`` if none of these bits of the (low half of the) argument's value is set, ``otherwise`` if one is."""
    load = Rule(code=_LOAD, value=_ARG0 + 8 * argument)
    return (load, Rule(code=_JUMP_ANY_BIT, value=any_of, yes=len(then)), *then, *otherwise)


def _rules(machine: str, changes: Mapping[str, Body]) -> Iterator[Rule]:
    table = json.loads((Path(__file__).parent / "seccomp.json").read_text())
    numbers = table["numbers"][machine]
    bodies: dict[int, Body] = {number: ALLOW for number in numbers["allow"].values()}
    bodies |= {number: tuple(_conditional(name)) for name, number in numbers["conditional"].items()}
    known = {**numbers["allow"], **numbers["conditional"]}
    bodies |= {known[name]: body for name, body in changes.items() if name in known}
    yield Rule(code=_LOAD, value=_ARCH)
    yield Rule(code=_JUMP_EQUAL, value=_AUDIT_ARCH[machine], yes=1)
    yield _give(_KILL_PROCESS)
    yield Rule(code=_LOAD, value=_NUMBER)
    newest = table["newest"]
    spans = [(number, bodies.get(number, refuse(errno.EPERM))) for number in range(newest + 1)]
    spans.append((newest + 1, refuse(errno.ENOSYS)))
    if machine == "x86_64":
        spans.append((_X32_FIRST, (_give(_KILL_PROCESS),)))
    yield from _bisect([next(same) for _, same in groupby(spans, key=lambda span: span[1])])


def _bisect(spans: Sequence[tuple[int, Body]]) -> Sequence[Rule]:
    """Each span reaches from its number to the next one's."""
    if len(spans) == 1:
        return spans[0][1]
    half = len(spans) // 2
    left, right = _bisect(spans[:half]), _bisect(spans[half:])
    return (Rule(code=_JUMP_GREATER, value=spans[half][0] - 1, yes=len(left)), *left, *right)


@cache
def program(machine: str = platform.machine(), *, network: bool = False) -> bytes:
    """The jail's filter as an array of ``struct sock_filter``, ready for ``bwrap --seccomp``.

    ``network``: TCP sockets too, which a guest needs to reach its proxy on its own loopback; no UDP, no IPv6, nothing
    raw. Raises ``KeyError`` for a machine that is not in the table.
    """
    return stricter({"socket": _TCP_OR_UNIX} if network else {}, machine)


def stricter(changes: Mapping[str, Body], machine: str = platform.machine()) -> bytes:
    """The jail's filter with other answers for these calls. A name that the machine has not is passed over: calls
    that are not in the table are refused already. Raises ``KeyError`` likewise.
    """
    return b"".join(rule.packed() for rule in _rules(machine, changes))
