"""Inside a policy worker: one regorus engine, fed through the socket that is its standard input.

regorus keeps the interpreter lock while it evaluates, has no timeout and can panic. So it lives in a process that
its parent may kill at any moment, and this file imports nothing of ours: it starts in a few tens of milliseconds.

Both directions carry frames, a 4-byte length and msgpack:

    first frame   {"files": {path: text}, "data": json text, "rules": [rule path]}   →  "" or what is wrong
    then          [[index of the rule, input as JSON], …]                            →  [[ok, answer or error], …]

Before each question the worker counts it in the shared page given as argument, so that the parent knows which
question a silent worker is stuck in without a message per question.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec
from regorus import Engine

_LENGTH = struct.Struct("<I")
_COUNTER = struct.Struct("=Q")
# What a rule may map beyond what the loaded engine has; the engine's allocator reserves far more than it uses.
_GROWTH_BYTES = 1 << 30
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until the parent hangs up."""
    parent, page = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    counter = mmap.mmap(page, mmap.PAGESIZE)
    first = _receive()
    if first is None:
        return 0
    rules: list[str] = first["rules"]
    engine = Engine()
    try:
        for path, text in first["files"].items():
            engine.add_policy(path, text)
        engine.add_data_json(first["data"])
        # The first evaluation compiles everything; a rule of ours does it, so that no stranger's rule runs yet.
        engine.add_policy("warm.rego", "package stockade_warm\nready := true")
        engine.set_input_json("{}")
        engine.eval_rule_as_json("data.stockade_warm.ready")
    except BaseException as problem:  # a panic of the engine is a BaseException
        _send(_words(problem))
        return 1
    _limit_memory()
    _send("")
    return _serve(engine, rules, counter)


def _serve(engine: Engine, rules: list[str], counter: mmap.mmap) -> int:
    asked = 0
    while (questions := _receive()) is not None:
        answers: list[tuple[bool, Any]] = []
        for rule, encoded in questions:
            asked += 1
            _COUNTER.pack_into(counter, 0, asked)
            try:
                engine.set_input_json(encoded.decode())
                answers.append((True, engine.eval_rule_as_json(rules[rule])))
            except Exception as problem:
                answers.append((False, _words(problem)))
        _send(answers)
    return 0


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


def _receive() -> Any:
    head = _exactly(_LENGTH.size)
    if head is None:
        return None
    body = _exactly(_LENGTH.unpack(head)[0])
    return None if body is None else msgspec.msgpack.decode(body)


def _exactly(size: int) -> bytes | None:
    got = bytearray()
    while len(got) < size:
        chunk = os.read(0, size - len(got))
        if not chunk:
            return None
        got += chunk
    return bytes(got)


def _send(value: Any) -> None:
    body = msgspec.msgpack.encode(value)
    waiting = memoryview(_LENGTH.pack(len(body)) + body)
    while waiting:
        waiting = waiting[os.write(0, waiting) :]


if __name__ == "__main__":
    sys.exit(main())
