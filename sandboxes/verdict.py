"""Why a guest ended, from what the host saw. Values in, values out."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from sandboxes.execution import ExitReason

_SIGNALS = 64
MESSAGES = {
    ExitReason.TIMEOUT: "the wall time is over; raise limits.wall_seconds or do less",
    ExitReason.OOM: "the memory limit is reached; raise limits.memory_bytes or use less",
    ExitReason.DISK: "the disk, inode or file-size limit is reached; raise it or write less",
    ExitReason.CANCELLED: "the host cancelled it",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judged part of ``Exited``."""

    code: int
    reason: ExitReason
    signal: int | None = None
    message: str = ""


def judge(*, code: int | None, cause: ExitReason | None, oom_kills: int) -> Verdict | None:
    """``cause`` is why the host killed it, if it did; ``code`` is bubblewrap's word, absent if it was killed too.

    bubblewrap reports a signal as 128 + its number, as shells do, so a guest that exits with such a code of its own
    accord counts as killed; the code is exact either way. ``None``: no guest ever ran, which is the platform's
    failure.
    """
    if cause is None and oom_kills:
        cause = ExitReason.OOM
    if cause is not None:
        killed = 128 + signal.SIGKILL
        return Verdict(code=killed, reason=cause, signal=signal.SIGKILL, message=MESSAGES[cause])
    if code is None:
        return None
    number = code - 128
    if number == signal.SIGXFSZ:
        return Verdict(code=code, reason=ExitReason.DISK, signal=number, message=MESSAGES[ExitReason.DISK])
    if 0 < number <= _SIGNALS:
        return Verdict(code=code, reason=ExitReason.KILLED, signal=number, message=f"ended by signal {number}")
    return Verdict(code=code, reason=ExitReason.EXITED)


def too_much_left(*, code: int, size_bytes: int, limit_bytes: int) -> Verdict:
    """It ended of its own accord, with more in /outputs than may be taken out."""
    message = f"the files left in /outputs would be {size_bytes} bytes; the limit is {limit_bytes}"
    return Verdict(code=code, reason=ExitReason.DISK, message=message)
