"""A file system per sandbox whose size and inodes the kernel bounds. Strength ``full`` only: mounting needs root."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from sandboxes.spec import Limits

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 2, 4, 8, 32
_FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_MNT_DETACH = 2
_OWN_INODES = 3  # its root, outputs, tmp
_libc = ctypes.CDLL(None, use_errno=True)


def mount_tmpfs(where: Path) -> None:
    """Mount a private file system. Raises ``OSError``."""
    _mount(where, _FLAGS, "mode=755")


def bound_tmpfs(where: Path, limits: Limits, own_inodes: int = _OWN_INODES) -> None:
    """Give it the bounds of a claim; ``own_inodes`` are the host's, beside the guest's. Raises ``OSError``."""
    _mount(where, _FLAGS | _MS_REMOUNT, f"size={limits.disk_bytes},nr_inodes={limits.inodes + own_inodes}")


def detach(where: Path) -> None:
    """Unmount, also when busy. What is not mounted is no error."""
    if os.path.ismount(where):
        _libc.umount2(os.fsencode(where), _MNT_DETACH)


def _mount(where: Path, flags: int, options: str) -> None:
    if _libc.mount(b"stockade", os.fsencode(where), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(where))
