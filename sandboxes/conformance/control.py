"""Cancel, closing early, freeze, reap, destruction, orphans."""

from __future__ import annotations

import dataclasses
import secrets
import time

import anyio

from sandboxes.conformance.check import LIMITS, Bench, Check, Nonconforming, collect, ended, expect, python, until
from sandboxes.driver import Feature, Sandbox
from sandboxes.errors import DriverFailed
from sandboxes.execution import ExitReason, Stdout
from sandboxes.testing import Play

_CANCEL_SECONDS = 1.0
_LOOK_SECONDS = 0.3
_LONG = dataclasses.replace(LIMITS, wall_seconds=300.0)
_BUSY = "print('ready', flush=True)\nwhile True: pass"
_ASLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(1000)"
_TICKING = "import time\nwhile True:\n    print('tick', flush=True)\n    time.sleep(0.01)"
_ORPHAN = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            with open('/outputs/beat', 'a') as file: file.write('x')
            time.sleep(0.005)
    os._exit(0)
while not os.path.exists('/outputs/beat'): time.sleep(0.005)
print('parent ends')
"""
_READY = Play(stdout=b"ready\n", hangs=True)


async def _cancel(bench: Bench) -> None:
    async with bench.open() as sandbox:
        events = sandbox.execute(bench.command())
        await until(events, b"ready")
        started = time.monotonic()
        await sandbox.cancel()
        outcome = await collect(events)
        took = time.monotonic() - started
    expect(outcome.end.reason is ExitReason.CANCELLED and took < _CANCEL_SECONDS, (outcome, took))


async def _cancel_nothing(bench: Bench) -> None:
    async with bench.open() as sandbox:
        await sandbox.cancel()
        expect(ended(await bench.run(sandbox)), "the command after an idle cancel")


async def _close_early(bench: Bench) -> None:
    async with bench.open() as sandbox:
        events = sandbox.execute(bench.command())
        started = time.monotonic()
        await until(events, b"ready")
        close = getattr(events, "aclose", None)
        if close is None:
            raise Nonconforming("execute gave an iterator that cannot be closed")
        await close()
        outcome = await bench.run(sandbox, 1)
        took = time.monotonic() - started
    expect(ended(outcome) and outcome.stdout == b"next\n" and took < 10, (outcome, took))


async def _leave_early(bench: Bench) -> None:
    started = time.monotonic()
    async with bench.open() as sandbox:
        events = sandbox.execute(bench.command())
        await until(events, b"ready")
    took = time.monotonic() - started
    expect(took < 10, took)
    await _is_closed(bench, sandbox)


async def _is_closed(bench: Bench, sandbox: Sandbox) -> None:
    try:
        await bench.run(sandbox)
    except DriverFailed:
        return
    raise Nonconforming("a sandbox ran a command after its end")


async def _freeze(bench: Bench) -> None:
    ticks, ticked = 0, anyio.Event()

    async def count(sandbox: Sandbox) -> None:
        nonlocal ticks, ticked
        async for event in sandbox.execute(bench.command()):
            if isinstance(event, Stdout):
                ticks += event.data.count(b"\n")
                ticked.set()
                ticked = anyio.Event()

    async def more_than(least: int) -> None:
        with anyio.fail_after(10):
            while ticks <= least:
                await ticked.wait()

    async with bench.open() as sandbox, anyio.create_task_group() as tasks:
        tasks.start_soon(count, sandbox)
        await more_than(3)
        for _ in range(2):  # idempotent
            await sandbox.freeze()
        await anyio.sleep(_LOOK_SECONDS)  # what was on its way arrives
        frozen = ticks
        await anyio.sleep(_LOOK_SECONDS)
        expect(ticks == frozen, (frozen, ticks))
        for _ in range(2):
            await sandbox.thaw()
        await more_than(frozen + 3)
        await sandbox.cancel()


async def _cancel_frozen(bench: Bench) -> None:
    async with bench.open() as sandbox:
        events = sandbox.execute(bench.command())
        await until(events, b"ready")
        await sandbox.freeze()
        started = time.monotonic()
        await sandbox.cancel()
        outcome = await collect(events)
        took = time.monotonic() - started
    expect(outcome.end.reason is ExitReason.CANCELLED and took < _CANCEL_SECONDS, (outcome, took))


async def _orphans(bench: Bench) -> None:
    async with bench.open() as sandbox:
        outcome = await bench.run(sandbox)
        first = await sandbox.read_output("beat")
        await anyio.sleep(_LOOK_SECONDS)
        expect(ended(outcome) and await sandbox.read_output("beat") == first, outcome)


async def _reap(bench: Bench) -> None:
    kept, other = (f"conformance-{secrets.token_hex(6)}" for _ in range(2))
    async with bench.open(kept) as one, bench.open(other) as two:
        gone = await bench.driver.reap([kept])
        expect(other in gone and kept not in gone, gone)
        expect(ended(await bench.run(one)), "the kept one")
        await _is_closed(bench, two)


async def _same_label(bench: Bench) -> None:
    label = f"conformance-{secrets.token_hex(6)}"
    async with bench.open(label) as first:
        try:
            async with bench.open(label):
                pass
        except DriverFailed:
            expect(ended(await bench.run(first)), "the first one")
            return
    raise Nonconforming("two sandboxes with one label")


CHECKS = (
    Check(name="cancel_of_a_busy_loop", limits=_LONG, programs=python(_BUSY, _READY), verify=_cancel),
    Check(name="cancel_of_a_guest_asleep", limits=_LONG, programs=python(_ASLEEP, _READY), verify=_cancel),
    Check(name="cancel_of_nothing", programs=python("print('ran')", Play(stdout=b"ran\n")), verify=_cancel_nothing),
    Check(
        name="closing_the_iterator_kills_the_guest",
        limits=_LONG,
        programs=(*python(_BUSY, _READY), *python("print('next')", Play(stdout=b"next\n"))),
        verify=_close_early,
    ),
    Check(
        name="leaving_the_block_kills_the_guest", limits=_LONG, programs=python(_ASLEEP, _READY), verify=_leave_early
    ),
    Check(
        name="freeze_and_thaw",
        needs=frozenset({Feature.PYTHON, Feature.FREEZE}),
        limits=_LONG,
        programs=python(_TICKING, Play(ticks=True)),
        verify=_freeze,
    ),
    Check(
        name="cancel_of_a_frozen_guest",
        needs=frozenset({Feature.PYTHON, Feature.FREEZE}),
        limits=_LONG,
        programs=python(_BUSY, _READY),
        verify=_cancel_frozen,
    ),
    Check(
        name="orphans_are_gone",
        needs=frozenset({Feature.PYTHON, Feature.SUBPROCESSES}),
        programs=python(_ORPHAN, Play(files={"beat": b"x"})),
        verify=_orphans,
    ),
    Check(name="reap_keeps_the_kept", programs=python("print('kept')", Play(stdout=b"kept\n")), verify=_reap),
    Check(name="one_label_one_sandbox", programs=python("print('one')", Play(stdout=b"one\n")), verify=_same_label),
)
