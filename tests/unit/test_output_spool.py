"""What the output spool does when the control plane does not take a chunk: the rest of the stream still arrives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from controlplane.artifacts.output_log import OutputLog
from dataplane.client import RequestRefused
from dataplane.output_spool import OutputSpool
from dataplane.protocol import Ack, OutputChunk

pytestmark = pytest.mark.anyio


class Plane:
    """Stores as the control plane does; a request with a chunk for which ``refuses`` holds is refused whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = OutputLog(folder, 1 << 20)
        self.refuses: Callable[[OutputChunk], bool] = lambda chunk: False
        self.answered = anyio.Event()

    async def output(self, chunks: list[OutputChunk]) -> list[Ack]:
        if any(self.refuses(chunk) for chunk in chunks):
            raise RequestRefused("no")
        acks = []
        for chunk in chunks:
            assert chunk.stream != "progress"
            stored = await self.log.append(chunk.attempt, chunk.stream, chunk.offset, chunk.data)
            acks.append(
                Ack(ok=True) if stored else Ack(ok=False, stored_bytes=await self.log.size(chunk.attempt, chunk.stream))
            )
        self.answered.set()
        return acks

    def stored(self, stream: str = "stdout") -> bytes:
        return (self.folder / f"att_1.{stream}").read_bytes()


class Guest:
    """Writes to its streams through a spool."""

    def __init__(self, spool: OutputSpool) -> None:
        self.spool = spool
        self.offsets: dict[str, int] = {}

    def write(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        offset = self.offsets.get(stream, 0)
        self.offsets[stream] = offset + len(data)
        self.spool.put(OutputChunk(attempt="att_1", fence=1, stream=stream, offset=offset, data=data))


async def test_a_refused_chunk_costs_itself_only(tmp_path: Path) -> None:
    plane: Any = Plane(tmp_path)
    plane.refuses = lambda chunk: chunk.data == b"poison"
    spool = OutputSpool(plane, tmp_path / "spool")
    guest = Guest(spool)
    for stdout, stderr in ((b"one ", b"e1 "), (b"poison", b"e2 "), (b"three ", b"e3"), (b"four", b"")):
        guest.write("stdout", stdout)
        guest.write("stderr", stderr)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spool.serve)
        assert await spool.flushed("att_1", 1, 10)
        tasks.cancel_scope.cancel()
    spool.close()
    assert plane.stored() == b"one \n[stockade: 6 bytes of output were lost here]\nthree four"
    assert plane.stored("stderr") == b"e1 e2 e3"


async def test_output_goes_on_where_the_control_plane_lost_what_it_had(tmp_path: Path) -> None:
    plane: Any = Plane(tmp_path)
    spool = OutputSpool(plane, tmp_path / "spool")
    guest = Guest(spool)
    guest.write("stdout", b"one ")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(spool.serve)
        with anyio.fail_after(10):
            await plane.answered.wait()
        (tmp_path / "att_1.stdout").write_bytes(b"on")
        # The second is not joined to the first: another stream's chunk is between them.
        guest.write("stdout", b"two ")
        guest.write("stderr", b"e")
        guest.write("stdout", b"three")
        assert await spool.flushed("att_1", 1, 10)
        tasks.cancel_scope.cancel()
    spool.close()
    assert plane.stored() == b"on\n[stockade: 2 bytes of output were lost here]\ntwo three"
    assert plane.stored("stderr") == b"e"


async def test_a_flood_of_progress_keeps_its_newest_and_delays_no_output(tmp_path: Path) -> None:
    sent: list[OutputChunk] = []

    class Recorder:
        async def output(self, chunks: list[OutputChunk]) -> list[Ack]:
            sent.extend(chunks)
            return [Ack(ok=True) for _ in chunks]

    plane: Any = Recorder()
    spool = OutputSpool(plane, tmp_path / "spool", memory_bytes=4096)
    for number in range(10_000):
        text = f"{number} {'x' * 900}"
        spool.put(OutputChunk(attempt="flood", fence=1, stream="progress", offset=0, fraction=0.5, text=text))
    spool.put(OutputChunk(attempt="other", fence=1, stream="stdout", offset=0, data=b"hello"))
    assert spool.spilled_bytes == 0
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(spool.serve)
            assert await spool.flushed("other", 1, 5)
            tasks.cancel_scope.cancel()
    spool.close()
    assert [(chunk.attempt, chunk.text.split()[:1]) for chunk in sent] == [("flood", ["9999"]), ("other", [])]
