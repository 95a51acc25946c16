"""How long a sandbox takes, beside what it is made of: bubblewrap and wasmtime without Stockade.

For each tier and strength, one sandbox after the other unless said otherwise:
- ``claim``: ``open`` alone; ``first_result``: open, a Python one-liner (or ``/bin/true``), and the guest's end;
- ``warm`` takes from a full pool, ``cold`` has none: wasm loads the module compiled ahead of time, a container is made;
- ``turn``: one more command in a sandbox that is open, its pool full;
- ``tool_call``: a guest's call, there and back, to a handler that does nothing; clocked inside the guest;
- ``per_second``: sandboxes opened, run to ``/bin/true``'s (or the one-liner's) end and destroyed, four at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import summary
from benchmarks.sandbox_peers import peers
from sandboxes.container.driver import ContainerDriver
from sandboxes.container.options import Runtime
from sandboxes.driver import Driver, Sandbox
from sandboxes.errors import DriverFailed
from sandboxes.execution import Command, Exited, ToolAnswer
from sandboxes.jail.driver import JailDriver
from sandboxes.spec import SandboxSpec, Strength, Tier
from sandboxes.wasm.driver import WasmDriver

ONE_LINER = "1 + 1"
PYTHON = Command(language="python", source=ONE_LINER)
TRUE = Command(language="argv", argv=("/bin/true",))
CALLS = Command(
    language="python",
    source="""
import time
import stockade_tools as tools
took = []
for _ in range(200):
    began = time.perf_counter()
    tools.bench.echo(text="x")
    took.append(time.perf_counter() - began)
took
""",
)
RUNTIMES: tuple[Runtime, ...] = ("runc", "runsc")
AT_ONCE = 4
WARM_UP = 2


def run(argv: list[str]) -> dict[str, Any]:
    """``--count`` sandboxes of each kind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sandboxes", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="sandboxes of each kind")
    parser.add_argument(
        "--cache", type=Path, default=Path("~/.cache/stockade/images"), help="where prepared images are"
    )
    parser.add_argument("--images", nargs="+", default=["python"], help="images of tier wasm; python-data is prepared")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as folder:
        state = Path(folder)
        state.chmod(0o755)  # the sandboxes' own users pass through it
        return asyncio.run(_measure(options.cache.expanduser(), state, options.images, options.count))


async def _measure(cache: Path, state: Path, images: list[str], count: int) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for image in images:
        report[f"wasm {image}"] = await _wasm(cache, state, image, count)
    for strength in Strength:
        report[f"jail {strength}"] = await _jail(state, strength, count)
    for runtime in RUNTIMES:
        report[f"container {runtime}"] = await _container(state, runtime, count)
    report["peers"] = await asyncio.to_thread(peers, cache, images, ONE_LINER, count)
    return report


async def _wasm(cache: Path, state: Path, image: str, count: int) -> dict[str, Any]:
    spec = SandboxSpec(tier=Tier.WASM, image=image)
    try:
        warm = WasmDriver(cache_dir=cache, state_dir=state / "warm", pool_size=AT_ONCE)
        cold = WasmDriver(cache_dir=cache, state_dir=state / "cold", pool_size=0)
        await warm.prepare(image)
    except DriverFailed as error:
        return {"absent": str(error)}
    try:
        measured: dict[str, Any] = {"strength": warm.strength.value}
        measured["warm"] = await _starts(warm, spec, PYTHON, count, refill=partial(warm.prepare, image))
        measured["cold"] = await _starts(cold, spec, PYTHON, count)
        measured["turn"] = summary(await _turns(warm, spec, count))
        measured["tool_call"] = summary(await _tool_calls(warm, spec))
        measured["per_second"] = await _rate(cold, spec, PYTHON, count)
        return measured
    finally:
        await warm.close()
        await cold.close()


async def _jail(state: Path, strength: Strength, count: int) -> dict[str, Any]:
    driver = JailDriver(state / f"jail-{strength}", strength)
    spec = SandboxSpec(tier=Tier.JAIL)
    if reason := await driver.probe():
        return {"absent": reason}
    try:
        return {
            "python": {"cold": await _starts(driver, spec, PYTHON, count)},
            "true": {"cold": await _starts(driver, spec, TRUE, count)},
            "turn": summary(await _turns(driver, spec, count)),
            "tool_call": summary(await _tool_calls(driver, spec)),
            "per_second": await _rate(driver, spec, TRUE, count),
        }
    finally:
        await driver.close()


async def _container(state: Path, runtime: Runtime, count: int) -> dict[str, Any]:
    cold = ContainerDriver(state / f"container-{runtime}", runtime=runtime)
    warm = ContainerDriver(state / f"container-{runtime}-warm", runtime=runtime, pool_size=1)
    spec = SandboxSpec(tier=Tier.CONTAINER)
    try:
        if reason := await cold.probe():
            return {"absent": reason}
        await warm.prepare(spec.image)
        return {
            "python": {
                "warm": await _starts(warm, spec, PYTHON, count, refill=partial(warm.warm, spec)),
                "cold": await _starts(cold, spec, PYTHON, count),
            },
            "true": {"cold": await _starts(cold, spec, TRUE, count)},
            "tool_call": summary(await _tool_calls(cold, spec)),
            "per_second": await _rate(cold, spec, TRUE, count),
        }
    except DriverFailed as error:
        return {"absent": str(error)}
    finally:
        await cold.close()
        await warm.close()


async def _starts(
    driver: Driver,
    spec: SandboxSpec,
    command: Command,
    count: int,
    *,
    refill: Callable[[], Awaitable[object]] | None = None,
) -> dict[str, Any]:
    """``refill`` fills the pool before each claim; back to back it would be measured empty."""
    claims, results = [], []
    for number in range(WARM_UP + count):
        if refill is not None:
            await refill()
        began = time.perf_counter()
        async with driver.open(spec, f"bench-{number}") as sandbox:
            claims.append(time.perf_counter() - began)
            await _to_end(sandbox, command)
            results.append(time.perf_counter() - began)
    return {"claim": summary(claims[WARM_UP:]), "first_result": summary(results[WARM_UP:])}


async def _turns(driver: Driver, spec: SandboxSpec, count: int) -> list[float]:
    took: list[float] = []
    async with driver.open(spec, "bench-turns") as sandbox:
        await _to_end(sandbox, PYTHON)
        for _ in range(count):
            await driver.prepare(spec.image)
            with _clocked(took):
                await _to_end(sandbox, PYTHON)
    return took


async def _tool_calls(driver: Driver, spec: SandboxSpec) -> list[float]:
    async with driver.open(spec, "bench-calls") as sandbox:
        end = await _to_end(sandbox, CALLS)
    took: list[float] = end.result
    return took


async def _rate(driver: Driver, spec: SandboxSpec, command: Command, count: int) -> float:
    async def lane(number: int) -> None:
        for turn in range(-(-count // AT_ONCE)):
            async with driver.open(spec, f"bench-{number}-{turn}") as sandbox:
                await _to_end(sandbox, command)

    took: list[float] = []
    with _clocked(took):
        async with asyncio.TaskGroup() as lanes:
            for number in range(AT_ONCE):
                lanes.create_task(lane(number))
    return round(-(-count // AT_ONCE) * AT_ONCE / took[0], 2)


async def _to_end(sandbox: Sandbox, command: Command) -> Exited:
    async def echo(_tool: str, args: Any) -> ToolAnswer:
        return ToolAnswer(value=args)

    async for event in sandbox.execute(command, echo):
        if isinstance(event, Exited):
            if event.code != 0:
                raise DriverFailed(f"a benchmark's guest failed: {event}")
            return event
    raise DriverFailed("a benchmark's guest had no end")


@contextmanager
def _clocked(into: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    into.append(time.perf_counter() - began)
