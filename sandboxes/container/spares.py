"""A sandbox before anybody asked for it: its box, and a container whose Python waits for a job."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from anyio import CapacityLimiter, to_thread

from sandboxes.container import box as boxes
from sandboxes.container.engine import Engine
from sandboxes.container.host_threads import HostThreads
from sandboxes.container.launch import Live, Setting, launch
from sandboxes.container.options import Runtime
from sandboxes.container.remains import Remains
from sandboxes.errors import DriverFailed
from sandboxes.execution import Command
from sandboxes.identity import guest_uid
from sandboxes.spec import Limits, SandboxSpec, Strength, Tier

_CONNECT_SECONDS = 10.0
_STANDARD = Limits()


@dataclass(frozen=True, kw_only=True)
class SpareKey:
    """What the engine must know beforehand. ``limits`` are without those that the host alone enforces."""

    image: str
    limits: Limits

    @classmethod
    def of(cls, image: str, limits: Limits) -> SpareKey:
        """The key of a sandbox of this image with these limits."""
        own = {name: getattr(_STANDARD, name) for name in ("wall_seconds", "output_bytes", "fuel")}
        return cls(image=image, limits=replace(limits, **own))


@dataclass(frozen=True, kw_only=True)
class SpareSandbox:
    """``hold`` leases its uid."""

    setting: Setting
    live: Live
    hold: contextlib.ExitStack

    def is_alive(self) -> bool:
        """Whether its runner still waits: a channel that says anything, or its end, is no good any more."""
        channel = self.live.channel
        try:
            return channel is not None and channel.recv(1, socket.MSG_PEEK) is None
        except BlockingIOError:
            return True
        except OSError:
            return False


class SpareMaker:
    """Makes and drops spares of one driver."""

    def __init__(
        self,
        state_dir: Path,
        strength: Strength,
        engine: Engine,
        *,
        waits: CapacityLimiter,
        remains: Remains,
        files: HostThreads,
    ) -> None:
        self._state_dir, self._strength, self._engine = state_dir, strength, engine
        self._waits, self._remains, self._files = waits, remains, files

    async def make(self, key: SpareKey, runtime: Runtime, owner: str) -> SpareSandbox:
        """A spare that waits. Raises ``DriverFailed``."""
        spec = SandboxSpec(tier=Tier.CONTAINER, image=key.image, limits=key.limits)
        label = f"spare-{os.getpid()}-{os.urandom(8).hex()}"
        with contextlib.ExitStack() as stack:
            uid = stack.enter_context(guest_uid(self._strength))
            box = await self._files.run(
                lambda: boxes.create(self._state_dir, spec, label, strength=self._strength, uid=uid)
            )
            live: Live | None = None
            setting = Setting(
                engine=self._engine,
                box=box,
                image=key.image,
                runtime=runtime,
                owner=owner,
                waits=self._waits,
                remains=self._remains,
                files=self._files,
            )
            try:
                words = await self._files.run(boxes.write_program, box, Command(language="python"))
                live = await launch(setting, words, env={}, stdin=True, channel=True, created=lambda _: None)
                with anyio.move_on_after(_CONNECT_SECONDS):
                    await live.connected()
                if live.channel is None:
                    raise DriverFailed("the image's Python did not ask for work")
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._destroy(box.root, live)
                raise
            return SpareSandbox(setting=setting, live=live, hold=stack.pop_all())

    async def drop(self, spare: SpareSandbox) -> None:
        """Destroy one that nobody took."""
        with spare.hold:
            await self._destroy(spare.setting.box.root, spare.live)

    async def _destroy(self, root: Path, live: Live | None) -> None:
        if live is not None:
            live.close()
            with contextlib.suppress(DriverFailed):  # an engine that is gone; what it left is reaped
                await to_thread.run_sync(self._engine.remove, live.container)
        await self._files.run(boxes.destroy, root)
