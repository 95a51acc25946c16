"""The guest's interpreter: how it is started, and what is made ready for it once so that no start pays for it.

A cold start would compile the guest module's two files, run ``site`` (which runs whatever ``.pth`` files the host has)
and start one more program to lower the resource limits. Instead the bytecode is made here by the same interpreter,
``site`` is left out and its folders are handed over, and the runner lowers its own limits before it takes a job.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sandboxes.errors import DriverFailed
from sandboxes.guest import GUEST_DIR
from sandboxes.jail import rootfs

_RUNNER, _TOOLS, _EGRESS = "runner.py", "stockade_tools.py", "stockade_egress.py"
_SECONDS = 30.0
_COMPILE = """
import importlib.util, json, os, py_compile, sys
source, target, inside = sys.argv[1:]
unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
made = {"runner.py": "runner.pyc", "stockade_tools.py": importlib.util.cache_from_source("stockade_tools.py")}
made["stockade_egress.py"] = "stockade_egress.pyc"
for name, place in made.items():
    py_compile.compile(f"{source}/{name}", f"{target}/{place}", f"{inside}/{name}", True, -1, unchecked)
print(json.dumps({"made": list(made.values()), "path": sys.path}))
"""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """``files`` go below the guest folder; ``site`` are the interpreter's package folders, as the guest sees them."""

    files: Mapping[str, bytes]
    site: tuple[str, ...]


@cache
def prepared() -> Prepared:
    """Made once per process, in some 50 ms. Blocks. Raises ``DriverFailed`` if the interpreter does not run."""
    interpreter = rootfs.interpreter()
    with tempfile.TemporaryDirectory(prefix="stockade-python-") as folder:
        words = [str(interpreter.on_host), "-I", "-X", "utf8", "-c", _COMPILE]
        words += [str(GUEST_DIR), folder, rootfs.GUEST_FOLDER]
        try:
            done = subprocess.run(words, env={}, cwd="/", capture_output=True, timeout=_SECONDS, check=True)
            said = json.loads(done.stdout)
            files = {name: Path(folder, name).read_bytes() for name in said["made"]}
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise DriverFailed(f"the guests' interpreter {interpreter.on_host} does not run: {error}") from error
    files[_TOOLS] = (GUEST_DIR / _TOOLS).read_bytes()  # shown in tracebacks, and what the bytecode is called after
    return Prepared(files=files, site=_site(interpreter, said["path"]))


def _site(interpreter: rootfs.Interpreter, path: Sequence[str]) -> tuple[str, ...]:
    """The folders that ``site`` added, with the host's prefix as the guest sees it."""
    added = [Path(entry) for entry in path if Path(entry).name in ("site-packages", "dist-packages")]
    for source, inside in interpreter.binds:
        added = [inside / each.relative_to(source) if each.is_relative_to(source) else each for each in added]
    return tuple(map(str, added))


def words(channel_fd: int, limits: Mapping[str, int]) -> list[str]:
    """The guest's command line. ``limits``: names of resource limits without ``RLIMIT_``, lowered to these values."""
    runner = f"{rootfs.GUEST_FOLDER}/{_RUNNER}c"
    bounds = ",".join(f"{name}={value}" for name, value in limits.items())
    site = os.pathsep.join(prepared().site)
    return [rootfs.interpreter().path, *("-I", "-S", "-X", "utf8"), runner, "fd", str(channel_fd), bounds, site]


def with_network(node_fd: int, words: Sequence[str]) -> list[str]:
    """The same command line behind the program that opens the guest's way to its proxy."""
    egress = f"{rootfs.GUEST_FOLDER}/{_EGRESS}c"
    return [rootfs.interpreter().path, *("-I", "-S", "-X", "utf8"), egress, "fd", str(node_fd), "--", *words]
