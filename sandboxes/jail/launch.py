"""Starts bubblewrap for one command and wires its pipes.

    (join control groups) -> [setpriv nobody] -> bwrap -> [setpriv uid] -> prlimit -> the guest's program
                                                                        -> python, which lowers its own limits

With a network grant the guest's program comes after one that listens for it and hands the socket to the node.
The arguments travel in an anonymous file (``--args``), so that host paths show in no process list.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sandboxes.command_rules import refuse_unlaunchable
from sandboxes.execution import Command
from sandboxes.jail import python, rootfs, seccomp
from sandboxes.jail.box import Box, open_file
from sandboxes.spec import Limits, Strength

_BEGIN = """
umask 022
n=$1; shift
while [ "$n" -gt 0 ]; do
  echo 0 >"$1" || exit 125
  shift; n=$((n-1))
done
exec "$@"
"""
_PROGRAM = "program.sh"
_ADDRESS_SPACE_FLOOR = 512 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Launched:
    """bubblewrap and the host's ends. ``status`` carries bubblewrap's JSON lines; ``channel`` the guest's frames.

    ``network`` brings the socket at which the guest's proxy listens, where one was granted.
    """

    process: asyncio.subprocess.Process
    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    status: asyncio.StreamReader
    channel: socket.socket
    network: socket.socket | None
    status_pipe: asyncio.ReadTransport

    def close(self) -> None:
        """Let go of the host's ends. The process has ended."""
        self.channel.close()
        if self.network is not None:
            self.network.close()
        self.status_pipe.close()
        self.stdin.close()


async def launch(box: Box, command: Command) -> Launched:
    """Start ``command`` in ``box``. Raises ``OSError`` if a program is missing."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    status_read, status_write = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(theirs.close)
        stack.callback(os.close, status_write)
        our_network, their_network = socket.socketpair() if box.network else (None, None)
        for each in (our_network, their_network):
            if each is not None:
                each.setblocking(each is their_network)
        if their_network is not None:
            stack.callback(their_network.close)
        stack.enter_context(_closed_on_error(ours, our_network, status_read))
        words = rootfs.arguments(box.strength, box.folders(), box.limits)
        filter_fd = _anonymous(stack, "filter", seccomp.program(network=box.network))
        words += ["--seccomp", str(filter_fd)]
        words += ["--json-status-fd", str(status_write)]
        given = _anonymous(stack, "arguments", b"".join(word.encode() + b"\0" for word in words))
        passed = [given, filter_fd, status_write]
        if command.language == "python":
            passed.append(theirs.fileno())
        program = _program(box, command, theirs.fileno())
        if their_network is not None:
            passed.append(their_network.fileno())
            program = python.with_network(their_network.fileno(), program)
        process = await asyncio.create_subprocess_exec(
            *_outside(box),
            *("bwrap", "--args", str(given), "--"),
            *_own_uid(box),
            *program,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=passed,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
            cwd="/",
        )
    status = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(status), os.fdopen(status_read, "rb", buffering=0)
    )
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise OSError("bubblewrap was started without its pipes")
    return Launched(
        process=process,
        stdin=process.stdin,
        stdout=process.stdout,
        stderr=process.stderr,
        status=status,
        channel=ours,
        network=our_network,
        status_pipe=pipe,
    )


@contextlib.contextmanager
def _closed_on_error(ours: socket.socket, network: socket.socket | None, status_read: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        ours.close()
        if network is not None:
            network.close()
        os.close(status_read)
        raise


def _anonymous(stack: contextlib.ExitStack, name: str, data: bytes) -> int:
    fd = os.memfd_create(f"stockade-{name}")
    stack.callback(os.close, fd)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _outside(box: Box) -> list[str]:
    """Join the control groups, and give the guest the usual umask, not the node's closed one."""
    joins = [] if box.group is None else [str(each) for each in box.group.joins]
    begin = ["/bin/sh", "-c", _BEGIN, "sh", str(len(joins)), *joins]
    if box.group is None and os.geteuid() == 0:
        return [*begin, "setpriv", f"--reuid={box.uid}", f"--regid={box.uid}", "--clear-groups", "--"]
    return begin


def _own_uid(box: Box) -> list[str]:
    if box.strength is Strength.USER:
        return []
    return [
        *("/usr/bin/setpriv", f"--reuid={box.uid}", f"--regid={box.uid}", "--clear-groups"),
        *("--bounding-set=-all", "--inh-caps=-all", "--"),
    ]


def resource_limits(strength: Strength, limits: Limits) -> dict[str, int]:
    """Names without ``RLIMIT_``. They are set inside the namespaces, so processes outside do not count."""
    values = {"NOFILE": limits.open_files, "FSIZE": limits.file_bytes, "NPROC": limits.pids, "CORE": 0}
    if strength is Strength.USER:
        # Reserved, not used, memory: interpreters reserve much more than they touch. The watchdog bounds the rest.
        values["AS"] = max(2 * limits.memory_bytes, _ADDRESS_SPACE_FLOOR)
    return values


def _program(box: Box, command: Command, channel_fd: int) -> Sequence[str]:
    limits = resource_limits(box.strength, box.limits)
    if command.language == "python":
        return python.words(channel_fd, limits)
    bounds = [f"--{name.lower()}={value}:{value}" for name, value in limits.items()]
    words = ["/usr/bin/prlimit", *bounds, "--"]
    if command.language == "shell":
        return [*words, "/bin/sh", f"{rootfs.GUEST_FOLDER}/{_PROGRAM}"]
    if command.env:
        words += ["/bin/sh", f"{rootfs.GUEST_FOLDER}/{_PROGRAM}"]
    return [*words, *command.argv]


def write_program(box: Box, command: Command) -> None:
    """Put shell text, and the environment of what is not Python, where the guest reads it. Blocking.

    The environment is set here, by the guest's own uid, and not by bubblewrap: before ``setpriv`` a variable such as
    LD_PRELOAD would load a guest's file into a process that is still root. Raises ``DriverFailed``.
    """
    refuse_unlaunchable(command)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in command.env.items())
    body = command.source if command.language == "shell" else 'exec "$@"\n'
    if command.language != "python":
        open_file(box.files / "guest" / _PROGRAM, (exports + body).encode())
