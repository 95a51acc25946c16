"""What a guest that broke out of WebAssembly would find: a worker process that can do next to nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxes.execution import Command, Stdout
from sandboxes.hostfiles import remove_tree
from sandboxes.jail.processes import tree
from sandboxes.spec import SandboxSpec, Strength, Tier
from sandboxes.wasm.driver import WasmDriver
from sandboxes.wasm.filter import filter_program

ESCAPED = """
import ctypes, errno, json, mmap, os, platform, resource, signal, socket, sys, threading
from sandboxes.wasm.lockdown import install
libc = ctypes.CDLL(None, use_errno=True)
other = threading.Event()
seen = {}
def tried(name, call):
    ctypes.set_errno(0)
    try:
        value = call()
    except OSError as error:
        seen[name] = error.errno
    else:
        seen[name] = ctypes.get_errno() if value == -1 else "done"
def calls(prefix=""):
    newer = {"bpf": (321, 280), "keyctl": (250, 219), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
             "io_uring_setup": (425, 425), "memfd_create": (319, 279), "process_vm_readv": (310, 270),
             "open_by_handle_at": (304, 265), "add_key": (248, 217), "clone3": (435, 435)}
    for name, numbers in newer.items():
        number = numbers[platform.machine() == "aarch64"]
        tried(prefix + name, lambda: libc.syscall(number, 0, 0, 0, 0, 0))
    tried(prefix + "execve", lambda: os.execv("/bin/true", ["true"]))
    tried(prefix + "fork", os.fork)
    tried(prefix + "unshare", lambda: libc.unshare(0x10000000))
    tried(prefix + "setns", lambda: libc.setns(0, 0))
    tried(prefix + "mount", lambda: libc.mount(None, None, None, 0, None))
    tried(prefix + "ptrace", lambda: libc.ptrace(0, 0, 0, 0))
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_NETLINK, 38, 40):
        tried(f"{prefix}socket {int(family)}", lambda: socket.socket(family, socket.SOCK_STREAM))
    tried(prefix + "socketpair", socket.socketpair)
    tried(prefix + "kill", lambda: os.kill(os.getppid(), 0))
    tried(prefix + "setuid", lambda: os.setuid(os.getuid()))
    tried(prefix + "new code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
    tried(prefix + "chmod", lambda: os.chmod("/", 0o755))
def beside():
    other.wait()
    calls("beside: ")
thread = threading.Thread(target=beside)
thread.start()
install(bytes.fromhex(sys.argv[1]))
other.set()
thread.join()
calls()
fresh = threading.Thread(target=lambda: seen.update(thread="done"))
fresh.start()
fresh.join()
print(json.dumps(seen), flush=True)
os._exit(0)
"""


def test_an_escaped_guest_finds_every_way_out_shut() -> None:
    words = [sys.executable, "-c", ESCAPED, filter_program().hex()]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert seen.pop("thread") == "done"  # the runtime's own threads still start
    assert len(seen) >= 50
    # libc tries the older call when clone3 looks absent, and that one is judged by its flags.
    assert {seen.pop("clone3"), seen.pop("beside: clone3")} == {errno.ENOSYS}
    assert set(seen.values()) == {errno.EPERM}, seen


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="stockade-wasm-"))
    made.chmod(0o755)
    yield made
    remove_tree(made)


@pytest.mark.parametrize("strength", list(Strength))
@pytest.mark.anyio
async def test_every_thread_of_a_worker_is_filtered_while_the_guest_runs(folder: Path, strength: Strength) -> None:
    if strength is Strength.FULL and os.geteuid() != 0:
        pytest.skip("strength full needs root")
    driver = WasmDriver(cache_dir=folder / "cache", state_dir=folder, pool_size=0, strength=strength)
    states: list[str] = []
    source = "import time; open('/tmp/x', 'w').write('x'); print('up', flush=True); time.sleep(60)"
    async with driver.open(SandboxSpec(tier=Tier.WASM), "one") as sandbox:
        async for event in sandbox.execute(Command(language="python", source=source)):
            if isinstance(event, Stdout):
                states = filtered_threads()
                await sandbox.cancel()
    await driver.close()
    assert len(states) >= 2  # the guest's, the watch, the runtime's
    assert set(states) == {"Seccomp:\t2 NoNewPrivs:\t1"}


def filtered_threads() -> list[str]:
    """Of every process below this one that has WebAssembly's compiled module mapped."""
    states = []
    for pid in tree(os.getpid())[1:]:
        if ".cwasm" not in Path(f"/proc/{pid}/maps").read_text():
            continue
        for task in Path(f"/proc/{pid}/task").iterdir():
            lines = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            states.append(f"Seccomp:{lines['Seccomp']} NoNewPrivs:{lines['NoNewPrivs']}")
    return states
