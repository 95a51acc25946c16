"""Mounts of this process: none that outlives it, and none left below a folder that is to be removed.

Mounting needs root; for anybody else there is nothing to do here.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

_CLONE_NEWNS, _CLONE_FS = 0x20000, 0x200
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def own_mounts() -> bool:
    """Give this process mounts of its own, so that the kernel takes away with it, however it ends, what it mounts.

    What the host mounts later shows here too, where the host shares its mounts. False where this is not to be had: no
    root, not Linux, or a second thread, which would keep the old mounts.
    """
    if sys.platform != "linux" or os.geteuid() != 0 or len(list(Path("/proc/self/task").iterdir())) != 1:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    if libc.unshare(_CLONE_NEWNS) != 0:
        os.close(before)
        return False
    _Shared.mounts = before
    return bool(libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None) == 0)


class _Shared:
    """The mounts this process began with, once it has its own."""

    mounts: int | None = None


def left_the_hosts() -> bool:
    """Whether this process has mounts that others do not see."""
    return _Shared.mounts is not None


def rejoin_the_hosts() -> None:
    """Give the calling thread, for good, the mounts this process began with. Raises ``OSError``.

    For what another process, such as a container engine, must see; nobody takes that away if this process is killed.
    """
    if _Shared.mounts is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_FS) != 0 or libc.setns(_Shared.mounts, _CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot go back to the host's mounts: {os.strerror(number)}")


def unmount_below(folder: Path) -> None:
    """Detach every mount below ``folder``, busy or not, following no link. What may not be detached stays."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for place in _mounted(folder):
        libc.umount2(place, _MNT_DETACH | _UMOUNT_NOFOLLOW)


def _mounted(folder: Path) -> list[bytes]:
    """Mount points below ``folder``, the deepest and latest first. The folder itself may be somebody's volume."""
    top = os.fsencode(os.path.realpath(folder)) + b"/"
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        place = _ESCAPED.sub(lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4])
        if place.startswith(top):
            found.append(place)
    return sorted(reversed(found), key=len, reverse=True)
