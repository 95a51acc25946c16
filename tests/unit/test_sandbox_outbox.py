"""Output is bounded, in order, and never stops the drain."""

from __future__ import annotations

import pytest

from sandboxes.errors import DriverFailed
from sandboxes.execution import Exited, ExitReason, Progress, Stderr, Stdout
from sandboxes.outbox import Outbox

END = Exited(code=0, reason=ExitReason.EXITED)


@pytest.mark.anyio
async def test_neighbouring_chunks_are_merged_and_order_is_kept() -> None:
    box = Outbox(100)
    box.put_output(Stdout, b"a")
    box.put_output(Stdout, b"b")
    box.put_output(Stderr, b"c")
    box.put_output(Stdout, b"d")
    box.end(END)
    said = [await box.get() for _ in range(4)]
    assert said == [Stdout(data=b"ab"), Stderr(data=b"c"), Stdout(data=b"d"), END]
    assert not box.truncated


@pytest.mark.anyio
async def test_both_streams_share_the_cap() -> None:
    box = Outbox(5)
    box.put_output(Stdout, b"abc")
    box.put_output(Stderr, b"defg")
    box.put_output(Stdout, b"more")
    box.end(END)
    assert [await box.get() for _ in range(3)] == [Stdout(data=b"abc"), Stderr(data=b"de"), END]
    assert box.truncated


@pytest.mark.anyio
async def test_a_flood_of_progress_is_bounded_and_the_newest_is_kept() -> None:
    box = Outbox(5)
    for step in range(5000):
        box.put_progress(Progress(fraction=1.0, text=str(step)))
    box.end(END)
    said: list[object] = []
    while (event := await box.get()) != END:
        said.append(event)
    assert len(said) == 1000
    assert said[-1] == Progress(fraction=1.0, text="4999")


@pytest.mark.anyio
async def test_a_failure_comes_after_what_was_said() -> None:
    box = Outbox(5)
    box.put_output(Stderr, b"x")
    box.end(DriverFailed("no bubblewrap"))
    assert await box.get() == Stderr(data=b"x")
    with pytest.raises(DriverFailed, match="no bubblewrap"):
        await box.get()
