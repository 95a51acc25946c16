"""What ``/proc`` says of a guest, seen from the host. A process that vanishes meanwhile counts as gone."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """``pid`` and its descendants, parents first.

    Complete for a jail once it has settled: what loses its parent inside a PID namespace is adopted by the
    namespace's first process, never by anybody outside.
    """
    found, queue = [pid], [pid]
    while queue:
        for child in _children(queue.pop()):
            found.append(child)
            queue.append(child)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                text = (task / "children").read_text()
                children += [int(word) for word in text.split()]
    return children


def resident_bytes(pids: list[int]) -> int:
    """Sum of resident memory. Pages shared by two processes count twice: an upper bound."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    return total


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which ``pid`` started: with the pid, the process's identity. ``None`` if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def send(pids: list[int], number: signal.Signals) -> None:
    """Signal each; the dead are skipped."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def stop(pid: int) -> None:
    """SIGSTOP everything below ``pid`` (not ``pid`` itself, whose end the host waits for) until no new child shows."""
    stopped: set[int] = set()
    while True:
        fresh = [each for each in tree(pid)[1:] if each not in stopped]
        if not fresh:
            return
        send(fresh, signal.SIGSTOP)
        stopped.update(fresh)


def resume(pid: int) -> None:
    """SIGCONT everything below ``pid``."""
    send(tree(pid)[1:], signal.SIGCONT)
