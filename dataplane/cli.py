"""Starting a node: drivers found, logs set up, signals obeyed. ``stockade node`` and ``python -m dataplane.cli``."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from dataplane.config import ConfigError, Listen, NodeConfig
from dataplane.daemon import NodeDaemon
from dataplane.state_lock import ALREADY_RUNNING, AlreadyRunning, hold_state
from sandboxes.mounts import own_mounts, unmount_below
from sandboxes.spec import Tier

SANDBOXES = "sandboxes"


def run_node(config: NodeConfig) -> None:
    """Serve until SIGTERM or SIGINT (drain; a second one ends at once). Blocks.

    Raises ``ConfigError``, and ``AlreadyRunning`` where another daemon has the state folder. Call it before this
    process has a second thread.
    """
    with hold_state(config.state_dir, config.url):
        # What an older daemon mounted and could not take away, while that is still to be seen from here.
        unmount_below(config.state_dir / SANDBOXES)
        own_mounts()
        options = {"use_uvloop": importlib.util.find_spec("uvloop") is not None}
        anyio.run(_run_node, config, backend_options=options)


async def _run_node(config: NodeConfig) -> None:
    from sandboxes import registry  # loads the drivers found here; a double's tests need none

    drivers, absent = await anyio.to_thread.run_sync(
        registry.discover,
        config.cache_dir or config.state_dir / "images",
        config.state_dir / SANDBOXES,
        config.pool_size,
        config.container_runtime,
    )
    # wasm is not probed: its first guest needs an image, which is prepared after the node has registered
    for tier in (Tier.JAIL, Tier.CONTAINER):
        driver = drivers.get(tier)
        if driver is not None and (reason := await driver.probe()) is not None:
            await driver.close()
            del drivers[tier]
            absent[tier] = reason
    await serve(NodeDaemon(config, drivers, absent))


async def serve(daemon: NodeDaemon) -> None:
    """Run ``daemon`` with this process's signals."""
    refused: ConfigError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, daemon, tasks)
        try:
            await daemon.run()
        except ConfigError as error:  # raised below, outside the group that would wrap it
            refused = error
        tasks.cancel_scope.cancel()
    if refused is not None:
        raise refused


async def _obey_signals(daemon: NodeDaemon, tasks: anyio.abc.TaskGroup) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        seen = False
        async for _ in received:
            if seen:
                daemon.stop()
            else:
                tasks.start_soon(daemon.drain)
            seen = True


def configure_logs() -> None:
    """One JSON object a line on standard error."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def start(config: NodeConfig) -> int:
    """Run a node in this process until it ends; the exit code."""
    os.umask(0o077)  # what is kept here is nobody else's to read
    configure_logs()
    try:
        run_node(config)
    except ConfigError as error:
        print(f"stockade node: {error}", file=sys.stderr)
        return 2
    except AlreadyRunning as running:
        print(f"stockade node: a node is {running}", file=sys.stderr)
        return ALREADY_RUNNING
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m dataplane.cli --url URL --state-dir DIR [--join-token-file FILE] …``."""
    parser = argparse.ArgumentParser(prog="stockade node", description="Run sandboxes for a control plane.")
    parser.add_argument("--url", required=True, help="https://HOST[:PORT]; http:// on loopback only")
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--join-token-file", type=Path, help="kept after the first start")
    parser.add_argument("--name")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--slots", type=int)
    parser.add_argument("--pool-size", type=int, default=2)
    parser.add_argument("--fake-gpus", metavar="COUNTxMEMORY", help="GPUs that do not exist, for tests: 4x80Gi")
    parser.add_argument("--ca-file", type=Path)
    parser.add_argument("--drain-seconds", type=float, default=30.0)
    parser.add_argument("--container-runtime", choices=("runc", "runsc"), help="default: runsc where the engine has it")
    parser.add_argument("--components", type=Path, help="what make components filled")
    parser.add_argument("--models", type=Path, help="models to serve; default: those of the components")
    parser.add_argument("--listen", metavar="IP:PORT", help="take connections here, beside the tunnel that is dialled")
    parser.add_argument("--tls-certificate", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--client-ca", type=Path, help="whose certificates those who connect must show")
    given = parser.parse_args(argv)
    named = {} if given.name is None else {"name": given.name}
    try:
        config = NodeConfig(
            url=given.url,
            state_dir=given.state_dir,
            join_token_file=given.join_token_file,
            data={name: Path(path) for name, path in _pairs(given.data)},
            labels=dict(_pairs(given.label)),
            slots=given.slots,
            pool_size=given.pool_size,
            listen=given.listen and Listen.parse(given.listen, given.tls_certificate, given.tls_key, given.client_ca),
            fake_gpus=given.fake_gpus,
            ca_file=given.ca_file,
            drain_seconds=given.drain_seconds,
            container_runtime=given.container_runtime,
            components=given.components,
            models=given.models,
            **named,
        )
    except ConfigError as error:
        print(f"stockade node: {error}", file=sys.stderr)
        return 2
    return start(config)


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{text!r} is not NAME=VALUE")
        pairs.append((name, value))
    return pairs


if __name__ == "__main__":
    sys.exit(main())
