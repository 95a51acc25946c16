"""A container from its request to its first instruction, and the host's ends of it."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
from anyio import CapacityLimiter, to_thread

from sandboxes.container import options
from sandboxes.container.box import CHANNEL, EGRESS, Box, listen, with_network
from sandboxes.container.engine import Engine
from sandboxes.container.host_threads import HostThreads
from sandboxes.container.remains import Remains


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the commands of one sandbox share. ``waits`` bounds the threads that wait for containers to end."""

    engine: Engine
    box: Box
    image: str
    runtime: options.Runtime
    owner: str
    waits: CapacityLimiter
    remains: Remains
    files: HostThreads


@dataclass(kw_only=True)
class Live:
    """A container that runs. ``listener`` until the guest's runner has connected, then ``channel``.

    ``network``, where one was granted: the unix socket at which the guest hands its own over, or to which it relays.
    """

    container: str
    attached: socket.socket
    listener: socket.socket | None
    network: socket.socket | None = None
    channel: socket.socket | None = None

    async def connected(self) -> socket.socket | None:
        """The channel: the first to connect is the runner, before anything of the guest's own has run.

        ``None`` where there is no channel, or the listener was closed meanwhile.
        """
        if self.channel is None and self.listener is not None:
            try:
                self.channel, _ = await asyncio.get_running_loop().sock_accept(self.listener)
            except OSError:
                return None
            self.channel.setblocking(False)
            self.listener.close()
        return self.channel

    def close(self) -> None:
        """Let go of the host's ends."""
        for ours in (self.attached, self.listener, self.channel, self.network):
            if ours is not None:
                ours.close()


async def launch(
    setting: Setting,
    words: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: bool,
    channel: bool,
    created: Callable[[str], object],
) -> Live:
    """Create, attach, start. ``created`` hears the id before the start. Leaves nothing behind if it fails."""
    engine, box = setting.engine, setting.box
    listener = await setting.files.run(listen, box, CHANNEL) if channel else None
    network: socket.socket | None = None
    container, attached = "", None
    try:
        if box.network:
            network = await setting.files.run(listen, box, EGRESS)
            words = with_network(words, relayed=setting.runtime == "runsc")
        body = options.body(
            box, image=setting.image, runtime=setting.runtime, words=words, env=env, stdin=stdin, owner=setting.owner
        )
        container = await to_thread.run_sync(engine.create, body, f"stockade-{box.id}-{secrets.token_hex(4)}")
        attached = await to_thread.run_sync(partial(engine.attach, container, stdin=stdin))
        created(container)
        await to_thread.run_sync(engine.start, container)
    except BaseException:
        for ours in (listener, network, attached):
            if ours is not None:
                ours.close()
        if container:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(engine.remove, container)
        raise
    return Live(container=container, attached=attached, listener=listener, network=network)
