"""Stands between the node and one model server: a program of its own, run by its path, standard library only.

    python -I -S keeper.py FOLDER LIFELINE PROGRAM ARGUMENT…        LIFELINE is a process id, or 0 for none

It outlives the daemon, so the server does too; with a lifeline both end when that process does. While it lives it
holds a lock on FOLDER/alive, where its process id is, so that a later daemon finds it without trusting a number. When
the server has ended, or must, it ends all that the server started, and writes the exit status to FOLDER/ended.

SIGTERM is passed on to the server; SIGUSR1 ends everything at once.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys
import time

LOOK_SECONDS = 0.5
END_SECONDS = 5.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(folder: str, lifeline: int, command: list[str]) -> int:
    """Keep one server; its exit status, negative for a signal."""
    lock = os.open(f"{folder}/alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock, os.pwrite(lock, str(os.getpid()).encode(), 0))
    began = started(lifeline) if lifeline else ""
    if lifeline and not began:
        return 1
    woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if hasattr(os, "pipe2") else os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, lambda number, _frame: asked.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    server = _start(command)
    code: int | None = None
    while code is None:
        select.select([woken], [], [], LOOK_SECONDS if lifeline else None)
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        wanted, asked[:] = set(asked), []
        if wanted & {signal.SIGTERM, signal.SIGINT}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGTERM)
        if signal.SIGUSR1 in wanted or (lifeline and started(lifeline) != began):
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGKILL)
        code = _reap(server)
    _end_descendants(server)
    _write(f"{folder}/ended", str(code))
    return code


def started(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" if there is none. A number used again began at another time."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs as much as all the rest
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _start(command: list[str]) -> int:
    keeper = os.getpid()
    server = os.fork()
    if server:
        return server
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _control(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() == keeper:
            os.execvp(command[0], command)  # noqa: S606 - what the daemon chose, and no shell
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _reap(server: int) -> int | None:
    """Look at every child that ended; the server's exit status if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == server:
            code = os.waitstatus_to_exitcode(status)


def _end_descendants(server: int) -> None:
    """Kill what is left, until nothing is: as a subreaper this process is the parent of whoever lost theirs."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        left = _descendants(os.getpid())
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server, signal.SIGKILL)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(server)
        if not left:
            return
        time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():  # noqa: PTH208, PTH112
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [root]
    for one in found:
        found += [pid for pid, parent in parents.items() if parent == one]
    return found[1:]


def _write(path: str, text: str) -> None:
    fresh = f"{path}.new"
    with open(fresh, "w") as file:  # noqa: PTH123
        file.write(text)
    os.replace(fresh, path)  # noqa: PTH105


def _control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]) & 0xFF)
