"""Which uid a guest runs as.

Strength ``full`` gives every sandbox a uid of its own from a range nobody else uses. A lease is a bound abstract unix
socket: host-wide, and given back by the kernel even if this process is killed.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from sandboxes.errors import DriverFailed
from sandboxes.spec import Strength

FIRST_UID, UIDS = 200_000, 65_536
NOBODY_UID = 65_534
_TRIES = 1000


@contextmanager
def guest_uid(strength: Strength) -> Iterator[int]:
    """The uid (and gid) for one sandbox, leased until the end of the block.

    ``user``: our own, or nobody's when we are root, since a guest never runs as root. Raises ``DriverFailed`` when
    the range is used up.
    """
    if strength is Strength.USER:
        yield NOBODY_UID if os.geteuid() == 0 else os.geteuid()
        return
    lease = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        yield _bind_free(lease)
    finally:
        lease.close()


def _bind_free(lease: socket.socket) -> int:
    start = secrets.randbelow(UIDS)  # two drivers rarely meet
    for step in range(_TRIES):
        uid = FIRST_UID + (start + step) % UIDS
        try:
            lease.bind(f"\0stockade-jail-uid-{uid}")
        except OSError:
            continue
        return uid
    raise DriverFailed(f"no free uid from {FIRST_UID} on; end some sandboxes")
