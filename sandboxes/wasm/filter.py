"""The worker's own system-call filter, put on once its module is loaded and before any of the guest's code runs.

A guest that breaks out of WebAssembly then finds a process that can start no program or process, map no new code,
make no socket, become nobody else and signal nobody. It is the jail's filter with more refused. Which files may be
opened for writing is not its matter, since the guest's own files are opened by the same calls: the worker's mounts
are read-only but for them.
"""

from __future__ import annotations

import errno
import platform
import sys
from functools import cache

from sandboxes.errors import DriverFailed
from sandboxes.jail.seccomp import ALLOW, NEW_NAMESPACE_FLAGS, Body, refuse, stricter, unless

_CLONE_THREAD = 0x10000
_PROT_EXEC = 4
_REFUSED = (
    *("execve", "execveat", "fork", "vfork", "setsid", "setpgid", "wait4", "waitid"),
    *("socket", "socketpair", "bind", "connect", "listen", "accept", "accept4"),
    *("kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal"),
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups"),
    *("capset", "personality", "seccomp", "umask", "setpriority", "sched_setparam", "sched_setaffinity"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "fchownat", "lchown", "mknod", "mknodat"),
    # Paths of the host, where WASI always starts from a folder that is open.
    *("open", "creat", "truncate", "rename", "link", "symlink", "unlink", "mkdir", "rmdir", "chdir", "fchdir"),
    *("inotify_init", "inotify_init1", "mlock", "mlock2", "mlockall", "syncfs", "sync", "timer_create"),
)
_NO = refuse(errno.EPERM)
_CHANGES: dict[str, Body] = {
    **dict.fromkeys(_REFUSED, _NO),
    # Threads only: the runtime starts them for file operations.
    "clone": unless(0, NEW_NAMESPACE_FLAGS, unless(0, _CLONE_THREAD, _NO, ALLOW), _NO),
    **dict.fromkeys(("mmap", "mprotect", "pkey_mprotect"), unless(2, _PROT_EXEC, ALLOW, _NO)),
}


@cache
def filter_program() -> bytes:
    """The filter for this machine, to hand to a worker; empty where the system is not Linux and has no such thing.

    Raises ``DriverFailed`` if nobody wrote this machine's table.
    """
    if sys.platform != "linux":
        return b""
    try:
        return stricter(_CHANGES)
    except KeyError:
        raise DriverFailed(f"there is no system-call filter for the machine {platform.machine()}") from None
