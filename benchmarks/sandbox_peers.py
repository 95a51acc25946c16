"""The same one-liners without Stockade: bare bubblewrap, bare wasmtime, ``docker run``, a plain process.

A peer that cannot run here is reported with the reason.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import summary
from sandboxes.container.images import reference
from sandboxes.wasm.images import IMAGES, ModuleCache

_BINDS = ("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64")
_BUBBLEWRAP = ("bwrap", "--unshare-all", "--die-with-parent", *_BINDS, "--proc", "/proc", "--dev", "/dev")
_DOCKER_SECONDS = 10
_BARE_WASM = """
import json, sys, time
import wasmtime
from sandboxes.wasm.engine import engine

module_path, library, source, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
own = engine(fuel=False)
module = wasmtime.Module.deserialize_file(own, module_path)
took = []
for _ in range(count):
    began = time.perf_counter()
    linker = wasmtime.Linker(own)
    linker.allow_shadowing = True
    linker.define_wasi()
    for item in module.imports:
        if item.module == "host" and isinstance(item.type, wasmtime.FuncType):
            linker.define_func("host", str(item.name), item.type, lambda *_: -1)
    store = wasmtime.Store(own)
    store.set_epoch_deadline(1)
    wasi = wasmtime.WasiConfig()
    wasi.argv = ["python" if not library else "/usr/local/bin/python.wasm", "-I", "-c", source]
    if library:
        wasi.preopen_dir(library, "/usr/local/lib", False)
    store.set_wasi(wasi)
    exports = linker.instantiate(store, module).exports(store)
    try:
        if library:
            exports["_initialize"](store)
        exports["run" if library else "_start"](store)
    except wasmtime.ExitTrap as end:
        if end.code:
            raise
    took.append(time.perf_counter() - began)
print(json.dumps(took))
"""


def peers(cache: Path, images: list[str], source: str, count: int) -> dict[str, Any]:
    """Blocks. ``cache`` is where ``WasmDriver`` keeps what it compiled; the peers load the same files."""
    found: dict[str, Any] = {"plain process, /usr/bin/true": _timed(["/usr/bin/true"], count)}
    found["plain process, python -I -c"] = _timed([sys.executable, "-I", "-c", source], count)
    if shutil.which("bwrap") is None:
        found["bubblewrap"] = {"absent": "the program bwrap is missing; install the package bubblewrap"}
    else:
        found["bubblewrap, /usr/bin/true"] = _timed([*_BUBBLEWRAP, "/usr/bin/true"], count)
        if Path("/usr/bin/python3").exists():
            found["bubblewrap, python3 -I -c"] = _timed([*_BUBBLEWRAP, "/usr/bin/python3", "-I", "-c", source], count)
    for image in images:
        found.update(_bare_wasm(cache, image, source, count))
    programs = {"/bin/true": ["/bin/true"], "python3 -I -c": ["python3", "-I", "-c", source]}
    for runtime in ("runc", "runsc"):
        for name, words in programs.items():
            found[f"docker run --runtime {runtime}, {name}"] = _docker(runtime, words, count)
    return found


def _timed(command: list[str], count: int) -> dict[str, float]:
    return summary([_clock(lambda: _run(command)) for _ in range(count)])


def _clock(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _run(command: list[str], seconds: float | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds).stdout


def _bare_wasm(cache: Path, image: str, source: str, count: int) -> dict[str, Any]:
    """Instances in one process that holds the module, and one process per run that loads it each time."""
    modules = ModuleCache(cache / "wasm")
    name = f"wasmtime, bare {IMAGES[image].package}" if image in IMAGES else image
    if image not in IMAGES or not modules.ready(image, fuel=False):
        return {name: {"absent": "the image is not prepared; see stockade node prepare"}}
    library = modules.library(image)
    path = str(modules.path(image, fuel=False))
    words = [sys.executable, "-c", _BARE_WASM, path, str(library) if library is not None else "", source]
    return {
        f"{name}, in one process": summary(json.loads(_run([*words, str(count)]))),
        f"{name}, a process each": _timed([*words, "1"], count),
    }


def _docker(runtime: str, words: list[str], count: int) -> dict[str, Any]:
    """With the engine's own defaults but the network, in the image that the tier's rows use."""
    if shutil.which("docker") is None:
        return {"absent": "the program docker is missing"}
    command = ["docker", "run", "--rm", "--network", "none", "--runtime", runtime, reference("python"), *words]
    try:
        _run(command, _DOCKER_SECONDS)
        return _timed(command, count)
    except subprocess.CalledProcessError as error:
        return {"absent": f"it fails: {error.stderr.strip().splitlines()[0]}"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"absent": f"no engine answers: {error}"}
