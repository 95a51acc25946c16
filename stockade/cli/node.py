"""``stockade node``: a node daemon in this process."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stockade.cli import contexts, inputs, places
from stockade.cli.exits import Exit, Refusal, install
from stockade.cli.output import say

SHOW_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What was typed; None and empty mean "find out"."""

    url: str | None
    join: str | None
    join_token_file: Path | None
    name: str | None
    data: tuple[str, ...]
    labels: tuple[str, ...]
    slots: int | None
    fake_gpus: str | None
    drain_seconds: float
    state_dir: Path | None
    cache_dir: Path | None
    ca_file: Path | None
    container_runtime: Literal["runc", "runsc"] | None
    models: Path | None
    lifeline: int
    listen: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None


def serve(options: Options) -> int:
    """Run the node until it is told to end; the exit code."""
    try:
        from dataplane.cli import configure_logs, run_node
        from dataplane.config import ConfigError, Listen, NodeConfig
        from dataplane.state_lock import AlreadyRunning
    except ImportError as error:
        raise Refusal(Exit.USAGE, "this installation cannot run a node", why=str(error), fix=install("node")) from None
    url = options.url or contexts.resolve(None, None).url
    token = sys.stdin.readline().strip() if options.join == "-" else options.join
    configure_logs()
    # An attempt to keep: nothing a guest's host process inherits may hold a key.
    os.environ.pop("STOCKADE_API_KEY", None)
    try:
        config = NodeConfig(
            url=url,
            name=options.name or socket.gethostname(),
            state_dir=places.state_dir(options.state_dir) / ("" if options.state_dir else "node"),
            cache_dir=places.image_cache(options.cache_dir),
            join_token=token,
            join_token_file=options.join_token_file,
            data={name: Path(path) for name, path in inputs.pairs(options.data, "path").items()},
            labels=inputs.pairs(options.labels, "value"),
            slots=options.slots,
            fake_gpus=options.fake_gpus,
            drain_seconds=options.drain_seconds,
            ca_file=options.ca_file,
            container_runtime=options.container_runtime,
            components=places.components(),
            models=None if options.models is None else options.models.absolute(),
            lifeline=options.lifeline,
            listen=None
            if options.listen is None
            else Listen.parse(options.listen, options.tls_certificate, options.tls_key, options.client_ca),
        )
        run_node(config)
    except ConfigError as error:
        raise Refusal(Exit.USAGE, "the node cannot start", where=url, why=str(error)) from None
    except AlreadyRunning as running:
        raise Refusal(
            Exit.ALREADY_RUNNING,
            "a node runs here already",
            where=str(running.folder),
            why=str(running),
            fix="give a second node a folder of its own with --state-dir, or end the first",
        ) from None
    return int(Exit.OK)


def prepare(image: str, cache_dir: Path | None) -> int:
    """Compile an image into the cache, showing how far it is; nodes that share the cache offer it from then on."""
    import tempfile

    import anyio
    import anyio.to_thread

    from sandboxes.driver import Driver
    from sandboxes.errors import DriverFailed
    from sandboxes.registry import discover

    async def show(driver: Driver) -> None:
        while True:
            await anyio.sleep(SHOW_SECONDS)
            for one in driver.images():
                if one.image == image:
                    say(f"{image} {one.fraction:.0%} {one.detail}")

    async def work() -> None:
        with tempfile.TemporaryDirectory(prefix="stockade-prepare-") as scratch:
            cache = places.image_cache(cache_dir)
            drivers, absent = await anyio.to_thread.run_sync(discover, cache, Path(scratch), 0)
            try:
                offering = [one for one in drivers.values() if any(image == have.image for have in one.images())]
                if not offering:
                    why = "; ".join(absent.values()) or "no tier of this host has it; its package may be missing"
                    fix = install("science")  # the package of python-data
                    raise Refusal(Exit.NOT_FOUND, "no such image", where=image, why=why, fix=fix)
                for driver in offering:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(show, driver)
                        await driver.prepare(image)
                        tasks.cancel_scope.cancel()
            finally:
                for driver in drivers.values():
                    await driver.close()

    failed: list[str] = []
    try:
        anyio.run(work)
    except* Refusal as group:
        raise group.exceptions[0] from None
    except* DriverFailed as group:
        failed = [str(error) for error in group.exceptions]
    if failed:
        raise Refusal(Exit.FAILED, "the image could not be prepared", where=image, why=failed[0], fix="stockade doctor")
    say(f"{image} is ready")
    return int(Exit.OK)
