"""What a guest must not see, reach or do."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

import anyio

from sandboxes.conformance.check import Bench, Check, after, ended, expect, python
from sandboxes.driver import Feature
from sandboxes.testing import Play

_HERE = Path(__file__).parent
_READ_ANY = """
def read_any(paths):
    import os
    seen = []
    for path in paths:
        try:
            if os.path.isdir(path): os.listdir(path)
            else: open(path, "rb").read(1)
            seen.append(path)
        except OSError:
            pass
    return seen
"""
_CONNECT = """
def connect(port):
    try:
        import socket
        socket.create_connection(("127.0.0.1", port), timeout=2).sendall(b"hello")
        return "connected"
    except Exception as error:
        return "refused"
"""
_RESOLVE = """
try:
    import socket
    socket.getaddrinfo("example.com", 80)
    answer = "resolved"
except Exception:
    answer = "refused"
answer
"""
_WRITE_ANY = """
import os
wrote = []
for place in ("/", "/usr", "/usr/bin", "/etc", "/inputs", "/home", "/root", "/var", "/run", "/run/stockade", "/dev",
              "/proc", "/proc/sys/kernel", "/sys", "/opt", "/lib", "/bin"):
    try:
        with open(os.path.join(place, "written"), "w") as file: file.write("x")
        wrote.append(place)
    except OSError:
        pass
for place in ("/tmp", "/outputs"):
    with open(os.path.join(place, "written"), "w") as file: file.write("x")
wrote
"""
_STATUS = """
lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
if not {"NoNewPrivs", "CapAmb"} <= set(lines):  # gVisor's kernel answers only when asked
    import ctypes
    ask = ctypes.CDLL(None).prctl
    ambient = [bit for bit in range(41) if ask(47, 1, bit, 0, 0) == 1]
    lines = {"NoNewPrivs": str(ask(39, 0, 0, 0, 0)), "CapAmb": f"{sum(1 << bit for bit in ambient):016x}", **lines}
[[lines[name].strip() for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")],
 0 in [int(word) for word in lines["Uid"].split()]]
"""
_PROCESSES = """
import os
found = []
for name in os.listdir("/proc"):
    if name.isdigit():
        try: found.append(open(f"/proc/{name}/cmdline", "rb").read().decode(errors="replace"))
        except OSError: pass
found
"""


async def _host_environment(bench: Bench) -> None:
    name, value = "STOCKADE_CONFORMANCE_CANARY", secrets.token_hex(16)
    os.environ[name] = value
    try:
        outcome = await bench.once()
    finally:
        del os.environ[name]
    expect(ended(outcome) and value not in outcome.stdout.decode() and name not in outcome.stdout.decode(), outcome)


async def _host_files(bench: Bench) -> None:
    canary = str(bench.input_path("canary"))
    paths = ["/etc/shadow", "/root", "/home", "/var/log", "/sys/class", canary, str(_HERE)]
    outcome = await bench.once(args=[paths])
    expect(ended(outcome) and outcome.end.result == [], outcome)


async def _host_processes(bench: Bench) -> None:
    outcome = await bench.once()
    own = await anyio.Path("/proc/self/cmdline").read_text()
    expect(ended(outcome) and own not in outcome.end.result and len(outcome.end.result) <= 5, outcome)


async def _no_loopback(bench: Bench) -> None:
    met: list[bytes] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(await reader.read(5))
        writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    async with server:
        outcome = await bench.once(args=[server.sockets[0].getsockname()[1]])
    expect(outcome.end.result == "refused" and met == [], (outcome, met))


async def _own_files_only(bench: Bench) -> None:
    async with bench.open() as one, bench.open() as other:
        wrote = await bench.run(one, 0)
        looked = await bench.run(other, 1)
        expect(ended(wrote) and len(await one.outputs()) == 1, wrote)
        expect(looked.end.result == [[], []] and await other.outputs() == (), looked)


async def _fresh_seed(bench: Bench) -> None:
    seen = {(await bench.once()).stdout for _ in range(4)}
    if bench.driver.__class__.__name__ != "FakeDriver":
        expect(len(seen) > 1, seen)


async def _nothing_left(bench: Bench) -> None:
    label = f"conformance-{secrets.token_hex(6)}"
    async with bench.open(label) as sandbox:
        expect(ended(await bench.run(sandbox, 0)), "write")
    async with bench.open(label) as sandbox:
        looked = await bench.run(sandbox, 1)
        expect(looked.end.result == [[], []] and await sandbox.outputs() == (), looked)


_WRITE = "for p in ('/outputs/mine', '/tmp/mine'): open(p, 'w').write('x')"
_LOOK = "import os; [sorted(os.listdir('/outputs')), sorted(os.listdir('/tmp'))]"
_WRITE_AND_LOOK = (
    *python(_WRITE, Play(files={"mine": b"x"})),
    *python(_LOOK, Play(result=[[], []], has_result=True)),
)

CHECKS = (
    Check(
        name="host_environment_is_invisible",
        programs=python("import os; print(dict(os.environ))", Play(stdout=b"{}\n")),
        verify=_host_environment,
    ),
    Check(
        name="host_files_are_invisible",
        inputs={"canary": b"on the host"},
        programs=python(_READ_ANY, Play(result=[], has_result=True), call="read_any"),
        verify=_host_files,
    ),
    Check(
        name="host_processes_are_invisible",
        needs=frozenset({Feature.PYTHON, Feature.PROC}),
        programs=python(_PROCESSES, Play(result=["init"], has_result=True)),
        verify=_host_processes,
    ),
    Check(
        name="no_way_to_the_hosts_loopback",
        programs=python(_CONNECT, Play(result="refused", has_result=True), call="connect"),
        verify=_no_loopback,
    ),
    Check(
        name="no_name_resolution",
        programs=python(_RESOLVE, Play(result="refused", has_result=True)),
        verify=after(lambda o: ended(o) and o.end.result == "refused"),
    ),
    Check(
        name="nothing_is_writable_but_outputs_and_tmp",
        programs=python(_WRITE_ANY, Play(result=[], has_result=True, files={"written": b"x"})),
        verify=after(lambda o: ended(o) and o.end.result == []),
    ),
    Check(
        name="no_capabilities_no_root_a_filter_on",
        needs=frozenset({Feature.PYTHON, Feature.PROC}),
        programs=python(_STATUS, Play(result=[["0" * 16] * 5 + ["1", "2"], False], has_result=True)),
        verify=after(lambda o: ended(o) and o.end.result == [["0" * 16] * 5 + ["1", "2"], False]),
    ),
    Check(name="two_sandboxes_do_not_see_each_other", programs=_WRITE_AND_LOOK, verify=_own_files_only),
    Check(name="nothing_is_left_for_the_next", programs=_WRITE_AND_LOOK, verify=_nothing_left),
    Check(
        name="hash_seed_is_fresh",
        programs=python("print(hash('stockade'))", Play(stdout=b"1\n")),
        verify=_fresh_seed,
    ),
)
