"""Inside the policy processes: a template that has loaded the bundle, and the workers forked from it.

regorus keeps the interpreter lock while it evaluates, has no timeout and can panic. So it lives in processes that
the control plane may kill at any moment; a fork of a loaded engine replaces one in about a millisecond. This file
imports nothing of ours: it starts in a few tens of milliseconds.

    control plane ──bundle──▶ template                      "" or what is wrong ──▶
                  ──fork, slot, socket──▶ template ──fork──▶ worker     its pid ──▶
                  ──questions──▶ worker                                 answers ──▶
                  ──end, slot──▶ template: kills and reaps that worker

The bundle, the questions and all answers are frames, a 4-byte length and msgpack; a command is five bytes and, for
a fork, the worker's socket. Before each question a worker counts it in its slot of the shared page, so that the
control plane knows which question a silent worker is stuck in without a message per question. Beside the count is a
word that the control plane sets when the rest of the frame went elsewhere: answer what is answered, and no more.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from regorus import Engine

_LENGTH = struct.Struct("<I")
_WORD = struct.Struct("=Q")
_SLOT_BYTES = 2 * _WORD.size
_COMMAND = struct.Struct("<cI")
_QUESTIONS = msgspec.msgpack.Decoder(list[tuple[int, str]])
_CHUNK_BYTES = 1 << 16
_REAP_SECONDS = 0.02
# What a rule may map beyond what the loaded engine has; the engine's allocator reserves far more than it uses.
_GROWTH_BYTES = 1 << 30
_PR_SET_PDEATHSIG = 1
_AWAKE_NS = 100_000


def main() -> int:
    """Load the bundle, then fork workers until the control plane hangs up."""
    parent, page = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    counters = mmap.mmap(page, mmap.PAGESIZE)
    first = next(_frames(0), None)
    if first is None:
        return 0
    load = msgspec.msgpack.decode(first)
    engine = Engine()
    try:
        for path, text in load["files"].items():
            engine.add_policy(path, text)
        engine.add_data_json(load["data"])
        # The first evaluation compiles everything; a rule of ours does it, so that no stranger's rule runs yet.
        engine.add_policy("warm.rego", "package stockade_warm\nready := true")
        engine.set_input_json("{}")
        engine.eval_rule_as_json("data.stockade_warm.ready")
    except BaseException as problem:  # a panic of the engine is a BaseException
        _send(0, _words(problem))
        return 1
    rules: list[str] = load["rules"]
    del load, first
    # What is here stays; a collection in a worker would copy the pages that it shares with this process.
    gc.collect()
    gc.freeze()
    _send(0, "")
    with socket.socket(fileno=0) as commands:
        _fork_on_demand(commands, engine, rules, counters)
    return 0


def _fork_on_demand(commands: socket.socket, engine: Engine, rules: list[str], counters: mmap.mmap) -> None:
    children: dict[int, int] = {}
    ended: list[int] = []
    while True:
        if ended:
            ended = [pid for pid in ended if os.waitpid(pid, os.WNOHANG)[0] == 0]
        if not select.select([commands], [], [], _REAP_SECONDS if ended else None)[0]:
            continue
        message, sockets, _, _ = socket.recv_fds(commands, _COMMAND.size, 1)
        if len(message) < _COMMAND.size:
            break
        kind, slot = _COMMAND.unpack(message)
        if kind == b"f":
            pid = _fork(commands, sockets[0], engine, rules, counters, slot)
            if pid:
                children[slot] = pid
        elif (pid := children.pop(slot, 0)) > 0:
            os.kill(pid, signal.SIGKILL)
            ended.append(pid)
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
    for pid in (*children.values(), *ended):
        os.waitpid(pid, 0)


def _fork(commands: socket.socket, fd: int, engine: Engine, rules: list[str], counters: mmap.mmap, slot: int) -> int:
    """The worker's pid; 0 if the system gives no process, which the control plane sees as a hang-up."""
    template = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        pid = 0
    else:
        if pid == 0:
            try:
                commands.close()
                _die_with(template)
                _limit_memory()
                _send(fd, os.getpid())
                _serve(fd, engine, rules, counters, slot)
            finally:
                os._exit(0)
    os.close(fd)
    return pid


def _serve(fd: int, engine: Engine, rules: list[str], counters: mmap.mmap, slot: int) -> None:
    asked, at = 0, slot * _SLOT_BYTES
    for frame in _frames(fd):
        answers: list[tuple[bool, str]] = []
        for rule, encoded in _QUESTIONS.decode(frame):
            asked += 1
            _WORD.pack_into(counters, at, asked)
            try:
                engine.set_input_json(encoded)
                answers.append((True, engine.eval_rule_as_json(rules[rule])))
            except Exception as problem:
                answers.append((False, _words(problem)))
            if counters[at + _WORD.size]:
                break
        _send(fd, answers)


def _die_with(parent: int) -> None:
    # A hang-up ends an idle worker; one that is stuck in a rule reads nothing, so the kernel has to end it.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def _limit_memory() -> None:
    # Best effort, where the kernel tells sizes: the 200 ms are what bounds a rule that eats memory elsewhere.
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + _GROWTH_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _words(problem: BaseException) -> str:
    return str(problem).split("Stack backtrace", 1)[0].strip()[:2000] or type(problem).__name__


def _frames(fd: int) -> Iterator[bytes]:
    got = bytearray()
    room = memoryview(bytearray(_CHUNK_BYTES))
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    while True:
        # The next question often follows at once, and to be woken for it takes longer than to look for it.
        awake = time.perf_counter_ns() + _AWAKE_NS
        while not waiting.poll(0) and time.perf_counter_ns() < awake:
            os.sched_yield()
        size = os.readv(fd, [room])
        if not size:
            return
        got += room[:size]
        while len(got) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(got)[0]
            if len(got) < end:
                break
            frame = bytes(got[_LENGTH.size : end])
            del got[:end]
            yield frame


def _send(fd: int, value: Any) -> None:
    body = msgspec.msgpack.encode(value)
    waiting = memoryview(_LENGTH.pack(len(body)) + body)
    while waiting:
        waiting = waiting[os.write(fd, waiting) :]


if __name__ == "__main__":
    sys.exit(main())
