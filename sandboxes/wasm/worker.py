"""The process around one wasm guest. Started by ``launch.py``, never imported by the driver's process.

It loads the precompiled module, gives up the system calls it needs no more, starts the interpreter, and when the guest
first asks for its job (``sock_recv``) says ``ready``. Then it waits for one line with the limits, lowers its own bounds
to them, and lets the guest read the job. One guest, then it exits; its last line on the control socket says how that
went. Killing it is always enough.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import wasmtime

from sandboxes.wasm import lockdown
from sandboxes.wasm.engine import engine

CHANNEL_FD = 1000
"""What the guest calls its channel. No such WASI descriptor exists, so closing it harms nothing."""
WASI = "wasi_snapshot_preview1"
ERRNO_SUCCESS, ERRNO_BADF, ERRNO_INVAL = 0, 8, 28
_MEMORY_POLL_SECONDS = 0.005
_FILES_POLL_SECONDS = 0.05
_NEVER = 1 << 40
_ASLEEP_SECONDS = 1.0
"""What a guest has to notice its epoch. One that is asleep in a WASI call does not, so its process ends instead:
``poll_oneoff`` is not shadowed, since the guest's monotonic clock starts at a moment only wasmtime knows, and
answering the clock from Python as well would slow every look at it."""


class _GuestExit(Exception):
    """``proc_exit``: wasmtime's own accepts only codes below 126."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Worker:
    """``setup``: paths, descriptors and ids as ``launch.py`` writes them."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._control = socket.socket(fileno=setup["control_fd"])
        self._channel = socket.socket(fileno=setup["channel_fd"])
        self._engine = engine(fuel=setup["fuel"])
        self._store = wasmtime.Store(self._engine)
        self._memory: wasmtime.Memory | None = None
        self._reporting = threading.Lock()
        self._limits: dict[str, Any] | None = None

    def run(self) -> None:
        """From loading to the last report; never returns."""
        module = wasmtime.Module.deserialize_file(self._engine, self._setup["module"])
        linker = wasmtime.Linker(self._engine)
        linker.allow_shadowing = True
        linker.define_wasi()
        types = {item.name: item.type for item in module.imports if item.module == WASI}
        for name, function in (
            ("sock_send", self._sock_send),
            ("sock_recv", self._sock_recv),
            ("proc_exit", self._proc_exit),
        ):
            kind = types[name]
            if isinstance(kind, wasmtime.FuncType):
                linker.define_func(WASI, name, kind, function)
        for item in module.imports:
            if item.module == "host" and isinstance(item.type, wasmtime.FuncType):
                linker.define_func("host", str(item.name), item.type, _no_host_call)
        ready_to_start = linker.instantiate_pre(module)
        _drop_privileges(self._setup["uid"])
        self._store.set_wasi(self._wasi())
        # Memory is bounded by the watch below, which also knows that a bound was hit; this one is wasm32's own.
        self._store.set_limits(memory_size=1 << 32, table_elements=100_000, instances=1, tables=4, memories=1)
        self._store.set_epoch_deadline(1)
        if self._setup["fuel"]:
            self._store.set_fuel(_NEVER)
        if code := bytes.fromhex(self._setup["filter"]):
            lockdown.install(code)
        exports = ready_to_start.instantiate(self._store).exports(self._store)
        reactor = self._setup["library"] is not None  # that build starts in two calls and returns its exit code
        memory, start = exports["memory"], exports["run" if reactor else "_start"]
        if not isinstance(memory, wasmtime.Memory) or not isinstance(start, wasmtime.Func):
            raise RuntimeError("the module is neither a WASI command nor the reactor we know")
        self._memory = memory
        try:
            if reactor and isinstance(initialize := exports["_initialize"], wasmtime.Func):
                initialize(self._store)
            code = start(self._store)
            self._report(exit=code if reactor else 0)
        except _GuestExit as end:
            self._report(exit=end.code)
        except wasmtime.Trap as trap:
            self._report(trap=_trap_name(trap), message=trap.message.splitlines()[-1][:500])
        except Exception as error:
            self._report(trap="other", message=(str(error).splitlines() or [type(error).__name__])[-1][:500])

    def _wasi(self) -> wasmtime.WasiConfig:
        root = self._setup["root"]
        wasi = wasmtime.WasiConfig()
        program = "python" if self._setup["library"] is None else "/usr/local/bin/python.wasm"
        wasi.argv = [program, "-I", "-X", "utf8", "/stockade/runner.py", "socket", str(CHANNEL_FD)]
        wasi.inherit_stdin()
        wasi.inherit_stdout()
        wasi.inherit_stderr()
        wasi.preopen_dir(f"{root}/inputs", "/inputs", False)
        wasi.preopen_dir(f"{root}/rw/outputs", "/outputs", True)
        wasi.preopen_dir(f"{root}/rw/tmp", "/tmp", True)  # noqa: S108  (the guest's own)
        if self._setup["library"] is not None:
            wasi.preopen_dir(self._setup["library"], "/usr/local/lib", False)
            data = Path(self._setup["library"]) / "mpl-data"
            if data.is_dir():  # matplotlib looks for its files beside its own code, which is inside the zip
                wasi.preopen_dir(str(data), "/usr/local/lib/python315.zip/matplotlib/mpl-data", False)
        wasi.preopen_dir(self._setup["guest"], "/stockade", False)
        return wasi

    def _sock_send(self, fd: int, vectors: int, count: int, _flags: int, sent: int) -> int:
        if fd != CHANNEL_FD:
            return ERRNO_BADF
        address, size = self._vector(vectors, count)
        memory, store = self._linear(), self._store
        done = self._channel.send(memory.read(store, address, address + size)) if size else 0
        memory.write(store, done.to_bytes(4, "little"), sent)
        return ERRNO_SUCCESS

    def _sock_recv(self, fd: int, vectors: int, count: int, _flags: int, received: int, out_flags: int) -> int:
        if fd != CHANNEL_FD:
            return ERRNO_BADF
        if self._limits is None:
            self._take_limits()
        address, size = self._vector(vectors, count)
        data = self._channel.recv(min(size, 1 << 20)) if size else b""
        memory, store = self._linear(), self._store
        memory.write(store, data, address)
        memory.write(store, len(data).to_bytes(4, "little"), received)
        memory.write(store, b"\0\0", out_flags)
        return ERRNO_SUCCESS

    def _proc_exit(self, code: int) -> None:
        raise _GuestExit(code & 0xFF)

    def _vector(self, vectors: int, count: int) -> tuple[int, int]:
        """Address and size of the first of the guest's buffers; taking one at a time is allowed by WASI."""
        if not count:
            return 0, 0
        raw = self._linear().read(self._store, vectors & 0xFFFFFFFF, (vectors & 0xFFFFFFFF) + 8)
        return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")

    def _linear(self) -> wasmtime.Memory:
        if self._memory is None:
            raise RuntimeError("the module called its host before it started")
        return self._memory

    def _take_limits(self) -> None:
        """The guest's interpreter is up: say so, then wait for a claim and lower every bound to its limits."""
        self._control.sendall(b"ready\n")
        line = b""
        while not line.endswith(b"\n"):
            piece = self._control.recv(4096)
            if not piece:
                os._exit(0)
            line += piece
        limits: dict[str, Any] = json.loads(line)
        os.dup2(os.open(f"{self._setup['root']}/stdin", os.O_RDONLY | os.O_CLOEXEC), 0)  # filled by now
        own_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64  # noqa: PTH112, PTH208
        _lower(resource.RLIMIT_FSIZE, limits["file_bytes"])
        _lower(resource.RLIMIT_NOFILE, limits["open_files"] + own_files - 2)
        if limits["fuel"] is not None:
            self._store.set_fuel(limits["fuel"])
        self._limits = limits
        threading.Thread(target=self._watch, args=(limits,), daemon=True).start()

    def _watch(self, limits: dict[str, Any]) -> None:
        """What must be seen from inside this process: linear memory, files deleted while open, a dead driver."""
        deadline = time.monotonic() + limits["wall_seconds"] + 1.0
        next_files = time.monotonic() + _FILES_POLL_SECONDS
        while True:
            if self._linear().data_len(self._store) > limits["memory_bytes"]:
                self._report(trap="memory")
            now = time.monotonic()
            if now >= next_files:
                next_files = now + _FILES_POLL_SECONDS
                if _deleted_bytes(limits["open_files"] + 128) > limits["disk_bytes"]:
                    self._report(trap="disk")
                # The driver kills long before; these are for a driver that hangs.
                if now >= deadline:
                    self._engine.increment_epoch()
                if now >= deadline + _ASLEEP_SECONDS:
                    self._report(trap="interrupt")
                if self._driver_is_gone():
                    os._exit(0)
            time.sleep(_MEMORY_POLL_SECONDS)

    def _driver_is_gone(self) -> bool:
        try:
            return self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def _report(self, **how: Any) -> None:
        """The last word, once; then the process is over, whatever the guest's thread is doing."""
        self._reporting.acquire()  # never released: a second report must not happen
        size = self._linear().data_len(self._store)
        if self._limits is not None and size > self._limits["memory_bytes"] and how.get("trap") != "disk":
            how = {"trap": "memory"}
        self._control.sendall(json.dumps({**how, "memory": size}).encode() + b"\n")
        os._exit(0)


def _no_host_call(*_: int) -> int:
    """The reactor's own way to call its host is not offered: guests use the channel."""
    return -1


def _deleted_bytes(highest_fd: int) -> int:
    """Disk held by files that are open and no longer have a name."""
    total = 0
    for fd in range(3, highest_fd):
        try:
            info = os.fstat(fd)
        except OSError:
            continue
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 0:
            total += info.st_blocks * 512
    return total


def _trap_name(trap: wasmtime.Trap) -> str:
    if trap.trap_code == wasmtime.TrapCode.OUT_OF_FUEL:
        return "fuel"
    if trap.trap_code == wasmtime.TrapCode.INTERRUPT:
        return "interrupt"
    return "other"


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


def _drop_privileges(uid: int | None) -> None:
    _lower(resource.RLIMIT_CORE, 0)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def main() -> None:
    """``argv[1]`` is the setup as JSON."""
    Worker(json.loads(sys.argv[1])).run()
