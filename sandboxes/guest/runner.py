"""First program of every Python guest: take one job from the channel, run it, send its result.

    python -I -X utf8 runner.py (fd|socket) NUMBER [LIMITS SITE]
    python -I -X utf8 runner.py unix PATH

``NUMBER`` is the channel's file descriptor, ``PATH`` a unix socket to connect to. ``LIMITS`` (``NOFILE=256,CORE=0``)
are resource limits to lower first; ``SITE`` are package folders joined by colons, for an interpreter started with
``-S``. The host sends one frame ``{"source", "call", "args", "inputs", "env", "cwd"}``; at the end this sends
``{"result": value}`` or ``{"schema_error": text}`` or neither, and exits: 0, the guest's own ``SystemExit`` code, or 1
after an exception, whose traceback is on stderr. Standard library only: it runs on whatever Python is inside.
"""

# Imports are few and late: a cold start pays for each.
from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, __file__.rpartition("/")[0])
tools = __import__("stockade_tools")  # by name: isolated mode leaves this folder off the path until here

MAX_RESULT_BYTES = 16 * 1024 * 1024
OUTPUT_JSON = "/outputs/output.json"
NAME = "step.py"
_ONLY_AST = 0x400  # ast.PyCF_ONLY_AST
_ABSENT = object()


class _NotJson(Exception):
    pass


def main(kind: str, where: str, limits: str = "", site: str = "") -> int:
    """Run the job; returns the exit code."""
    if limits:
        _lower(limits)
    if sys.flags.no_site:
        _stand_in_for_site(site)
    tools._open(kind, where)
    job = tools._receive()
    tools.inputs.update(job.get("inputs", {}))
    os.environ.update(job.get("env", {}))
    os.chdir(job.get("cwd", "/tmp"))  # noqa: S108  (the guest's own)
    sys.argv = [NAME]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    try:
        value = _run(job["source"], job.get("call"), job.get("args", []))
    except SystemExit as end:
        code = _exit_code(end)
        if code == 0:
            _report(_ABSENT)
        return code
    except BaseException as error:
        _show(error, job["source"])
        return 1
    _report(value)
    return 0


def _lower(limits: str) -> None:
    import resource

    for bound in limits.split(","):
        name, _, value = bound.partition("=")
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (int(value), int(value)))


def _stand_in_for_site(folders: str) -> None:
    """What guests miss without ``site``: the package folders and three builtins."""
    import _sitebuiltins
    import builtins

    sys.path += [folder for folder in folders.split(os.pathsep) if folder]
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.help = _sitebuiltins._Helper()


def _run(source: str, call: str | None, args: list[Any]) -> Any:
    module = type(sys)("__main__")
    module.__file__ = NAME
    sys.modules["__main__"] = module
    if call is not None:
        exec(compile(source, NAME, "exec"), module.__dict__)  # noqa: S102  (running it is the job)
        if call not in module.__dict__:
            raise NameError(f"the source defines no function {call!r}")
        return _Returned(module.__dict__[call](*args))
    import _ast

    tree = compile(source, NAME, "exec", _ONLY_AST)
    last = None
    if tree.body and isinstance(tree.body[-1], _ast.Expr):
        last = _ast.Expression(tree.body.pop().value)
    exec(compile(tree, NAME, "exec"), module.__dict__)  # noqa: S102  (as above)
    if last is not None:
        value = eval(compile(last, NAME, "eval"), module.__dict__)  # noqa: S307  (as above)
        if value is not None:
            return value
    return _ABSENT


class _Returned:
    """A function's return counts before ``output.json``, also when it is None."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _report(value: Any) -> None:
    """Send the result: the function's return, else ``output.json``, else the last expression, else nothing."""
    try:
        if isinstance(value, _Returned):
            value = value.value
        elif (text := _output_json()) is not None:
            import json

            value = json.loads(text)
        if value is _ABSENT:
            return
        _check(value, "$")
        if len(tools._dumps(value)) > MAX_RESULT_BYTES:
            raise _NotJson(f"the result is above {MAX_RESULT_BYTES} bytes; write a file to /outputs instead")
    except RecursionError:
        tools._send({"schema_error": "the result is nested too deeply"})
    except (_NotJson, ValueError, TypeError, OSError) as error:
        tools._send({"schema_error": str(error)[:2000]})
    else:
        tools._send({"result": value})


def _output_json() -> bytes | None:
    try:
        fd = os.open(OUTPUT_JSON, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        text = file.read(MAX_RESULT_BYTES + 1)
    if len(text) > MAX_RESULT_BYTES:
        raise _NotJson(f"{OUTPUT_JSON} is above {MAX_RESULT_BYTES} bytes")
    return text


def _check(value: Any, where: str) -> None:
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise _NotJson(f"{where} is {value}, which JSON cannot say")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _NotJson(f"{where} has the key {key!r:.80} of type {type(key).__name__}; JSON keys are strings")
            _check_text(key, where)
            _check(item, f"{where}.{key:.80}")
    else:
        raise _NotJson(f"{where} is a {type(value).__name__}, which is not JSON")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _NotJson(f"{where} has a lone surrogate, which is not Unicode text") from None


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _show(error: BaseException, source: str) -> None:
    """The traceback from the guest's own source on."""
    import linecache
    import traceback

    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != NAME:
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
