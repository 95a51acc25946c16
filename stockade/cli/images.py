"""Images of the tier ``container``, on this machine's Docker Engine. Needs no server; each node has its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockade.cli.exits import Exit, Refusal, install
from stockade.cli.output import Format, say, show_table, show_value, size

if TYPE_CHECKING:
    from sandboxes.container.engine import Engine
    from sandboxes.container.images import Image


def build(
    name: str,
    context: Path | None,
    file: str,
    arguments: Sequence[str],
    network: str | None,
    packages: Sequence[str],
    suite: str | None,
    mirror: str | None,
) -> int:
    """From a Dockerfile, or from Debian packages."""
    if bool(packages) == (context is not None):
        fix = "stockade image build NAME CONTEXT      or: stockade image build NAME --packages python3,git"
        raise Refusal(Exit.USAGE, "name a build context or packages, one of the two", where=name, fix=fix)
    from stockade.cli import inputs

    given = inputs.pairs(arguments, "value")

    def make(engine: Engine) -> Image:
        from sandboxes.container import building

        if context is None:
            split = [word for each in packages for word in each.split(",") if word]
            return building.from_packages(engine, name, split, say, suite=suite or building.SUITE, mirror=mirror)
        source = building.Dockerfile(context=context, file=file, arguments=given, network=network)
        return building.from_dockerfile(engine, name, source, say)

    return _made(make)


def load(name: str, archive: Path) -> int:
    """From a docker or OCI archive."""
    from stockade.cli.app import existing_file

    existing_file(archive)

    def make(engine: Engine) -> Image:
        from sandboxes.container import building

        return building.from_archive(engine, name, archive, say)

    return _made(make)


def ls(form: Format) -> None:
    """What there is."""

    def read(engine: Engine) -> tuple[Image, ...]:
        from sandboxes.container.images import listed

        return listed(engine)

    found = _with_engine(read)
    values = [{"name": one.name, "digest": one.digest, "size_bytes": one.size_bytes} for one in found]
    if form is Format.NAME:
        print("\n".join(one.name for one in found))
    elif form is Format.JSONL:
        print("\n".join(json.dumps(value) for value in values))
    elif form in (Format.JSON, Format.YAML):
        show_value(values, form)
    else:
        show_table(["IMAGE", "DIGEST", "SIZE"], [[one.name, one.digest, size(one.size_bytes)] for one in found])


def rm(name: str) -> None:
    """Forget one."""

    def forget(engine: Engine) -> None:
        from sandboxes.container.building import remove

        remove(engine, name)

    _with_engine(forget)
    say(f"{name} is gone; nodes of this machine notice by themselves")


def _made(make: Callable[[Engine], Image]) -> int:
    image = _with_engine(make)
    say(f"{image.name} is ready, {size(image.size_bytes)}; nodes of this machine offer it from now on")
    print(f"{image.name}@{image.digest}")
    return int(Exit.OK)


def _with_engine(work: Callable[[Engine], Any]) -> Any:
    try:
        from sandboxes.container.engine import Engine
        from sandboxes.errors import DriverFailed
    except ImportError as error:
        why = f"the node's parts are missing: {error}"
        raise Refusal(Exit.USAGE, "this installation has no images", why=why, fix=install("node")) from None
    engine = Engine()
    try:
        return work(engine)
    except DriverFailed as error:
        raise Refusal(Exit.FAILED, "the image command failed", where=engine.address, why=str(error)) from None
    finally:
        engine.close()
