"""How images come to be: a Dockerfile, an archive, or a list of Debian packages where no image registry is reachable.

Every way ends in ``_settle``: what lets an image grow past its walls (set-uid bits, file capabilities, declared
volumes) is taken out before the image gets its name. All functions block, and tell ``say`` how far they are.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sandboxes.container.archives import as_docker_archive
from sandboxes.container.engine import Engine
from sandboxes.container.images import Image, listed, reference
from sandboxes.errors import DriverFailed

Say = Callable[[str], None]
SUITE = "bookworm"
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_SUITE = re.compile(r"[a-z][a-z0-9-]*")
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDLESS = ("boot", "home", "media", "mnt", "srv", "usr/share/doc", "usr/share/man", "var/cache/apt", "var/log")
_SET_ID = 0o6000
_CAPABILITIES = "SCHILY.xattr.security.capability"


@dataclass(frozen=True, kw_only=True)
class Dockerfile:
    """A build context. ``file`` is relative to it; ``network`` is the engine's name for one, of the build only."""

    context: Path
    file: str = "Dockerfile"
    arguments: Mapping[str, str]
    network: str | None = None


def from_dockerfile(engine: Engine, name: str, source: Dockerfile, say: Say) -> Image:
    """Build with the engine, pulling nothing that is there. Raises ``DriverFailed`` with the build's own words."""
    reference(name)
    if not (source.context / source.file).is_file():
        raise DriverFailed(f"there is no {source.file} in {source.context}; name one with --file")
    lines = engine.build(
        str(source.context), dockerfile=source.file, arguments=source.arguments, network=source.network
    )
    return _settle(engine, name, _followed(lines, say, "build"), say)


def from_archive(engine: Engine, name: str, archive: Path, say: Say) -> Image:
    """Load a docker or OCI archive (``docker save``, ``skopeo copy … oci-archive:``) of one image."""
    reference(name)
    with tempfile.TemporaryDirectory(prefix="stockade-image-") as folder:
        try:
            loadable = as_docker_archive(archive, Path(folder))
        except (OSError, ValueError, KeyError, tarfile.TarError) as error:
            raise DriverFailed(f"{archive} is no docker or OCI archive: {error}") from error
        digest = _followed(engine.load(loadable), say, "load")
    return _settle(engine, name, digest, say)


def from_packages(
    engine: Engine, name: str, packages: Sequence[str], say: Say, *, suite: str = SUITE, mirror: str | None = None
) -> Image:
    """A Debian root of these packages and what they need, by debootstrap; half a minute. Needs root."""
    reference(name)
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            raise DriverFailed(f"{package!r} is no name of a Debian package")
    if not _SUITE.fullmatch(suite):
        raise DriverFailed(f"{suite!r} is no name of a Debian release, such as {SUITE}")
    if os.geteuid() != 0:
        raise DriverFailed("debootstrap needs root; run this as root, or import an archive made elsewhere")
    if shutil.which("debootstrap") is None:
        raise DriverFailed("the program debootstrap is missing; apt-get install debootstrap")
    with tempfile.TemporaryDirectory(prefix="stockade-image-", dir="/var/tmp") as folder:
        root, archive = Path(folder, "root"), Path(folder, "root.tar")
        words = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, str(root)]
        _debootstrap([*words, mirror] if mirror else words, say)
        say("packing")
        for needless in _NEEDLESS:
            shutil.rmtree(root / needless, ignore_errors=True)
        _strip(root)
        subprocess.run(
            ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-cf", str(archive), "."], check=True
        )
        shutil.rmtree(root)
        digest = engine.import_root(archive, f"stockade-unsettled:{name}", [f"ENV {_PATH}"])
    return _settle(engine, name, digest, say)


def remove(engine: Engine, name: str) -> None:
    """Forget ``name``; its layers go unless something else needs them. Raises ``DriverFailed``."""
    if engine.image_id(reference(name)) is None:
        have = ", ".join(image.name for image in listed(engine)) or "none"
        raise DriverFailed(f"there is no image {name!r}, only: {have}")
    engine.untag(reference(name))


def _strip(root: Path) -> None:
    """Take set-uid bits away while the root is still files."""
    for folder, _, names in os.walk(root):
        for place in (Path(folder, name) for name in names):
            mode = place.lstat().st_mode
            if stat.S_ISREG(mode) and mode & _SET_ID:
                place.chmod(stat.S_IMODE(mode) & ~_SET_ID)


def _debootstrap(words: Sequence[str], say: Say) -> None:
    last = ""
    environ = {name: value for name, value in os.environ.items() if name in ("PATH", "http_proxy", "https_proxy")}
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ
    ) as running:
        for line in running.stdout or ():
            last = line.strip()
            if last.startswith("I: ") and not last.startswith(("I: Validating", "I: Retrieving")):
                say(last.removeprefix("I: "))
    if running.returncode != 0:
        raise DriverFailed(f"debootstrap failed: {last}; check the packages' names, and the mirror (--mirror)")


def _followed(lines: Iterable[Mapping[str, Any]], say: Say, what: str) -> str:
    """The digest or name that the engine's report ends in."""
    digest = ""
    for line in lines:
        if "error" in line:
            raise DriverFailed(f"the engine's {what} failed: {line['error']}")
        if "ID" in line.get("aux", {}):
            digest = str(line["aux"]["ID"])
        text = str(line.get("stream", "")).strip()
        if text.startswith("Loaded image"):
            if digest:
                raise DriverFailed("the archive holds several images; save them one by one")
            digest = text.partition(": ")[2]
        if text:
            say(text)
    if not digest:
        raise DriverFailed(f"the engine's {what} named no image")
    return digest


def _settle(engine: Engine, name: str, made: str, say: Say) -> Image:
    """Take out what does not belong in a sandbox, and give the name."""
    config = engine.image_config(made)
    say("looking for set-uid files")
    if config.get("Volumes") or _has_privileged(engine, made):
        say("taking out set-uid bits, file capabilities and volumes: the image becomes one layer")
        with tempfile.TemporaryDirectory(prefix="stockade-image-", dir="/var/tmp") as folder:
            archive = Path(folder, "root.tar")
            with engine.exported(made) as stream, archive.open("wb") as target:
                _flatten(stream, target)
            changes = [f"ENV {key}={json.dumps(value)}" for key, value in _variables(config)]
            engine.import_root(archive, reference(name), changes)
    else:
        engine.tag(made, reference(name))
    engine.untag(f"stockade-unsettled:{name}")
    return next(image for image in listed(engine) if image.name == name)


def _variables(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for entry in config.get("Env") or ():
        key, _, value = str(entry).partition("=")
        yield key, value


def _has_privileged(engine: Engine, image: str) -> bool:
    with engine.exported(image) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        return any(_is_privileged(member) for member in tar)


def _is_privileged(member: tarfile.TarInfo) -> bool:
    return bool(member.isreg() and member.mode & _SET_ID) or _CAPABILITIES in member.pax_headers


def _flatten(stream: IO[bytes], target: IO[bytes]) -> None:
    with (
        tarfile.open(fileobj=stream, mode="r|") as tar,
        tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as flat,
    ):
        for member in tar:
            if member.isreg():
                member.mode &= ~_SET_ID
            member.pax_headers = {key: value for key, value in member.pax_headers.items() if key != _CAPABILITIES}
            flat.addfile(member, tar.extractfile(member) if member.isreg() else None)
