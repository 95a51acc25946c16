"""How fast ``scheduler.plan`` decides, and what replaying a real cluster trace allocates.

The first half of the nodes is full. For each cluster size:
- ``tool_single``, ``tool_batch``: 1 or 64 plain tool calls, with a new snapshot for each call of ``plan`` and the text
  of each explanation, as the control plane pays for them;
- the others on a snapshot whose columns are built (``columns_ms`` says what building them took):
  - ``single``: one sandboxed step a call;
  - ``identical``: one call of 256 equal steps, as a map over shards makes them;
  - ``mixed``: one call of 256 steps of 256 shapes, the worst case for batching;
  - ``explain``: one step that fits nowhere, with its reasons, and its printing as JSON;
- ``naive_first_fit``, ``naive_best_fit``: ``identical`` in plain Python (``benchmarks.naive_placement``), 16 steps a
  call, without explanations. ``same_answers`` says whether best fit chose what ``plan`` chose.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.naive_placement import best_fit, first_fit
from benchmarks.report import summary
from scheduler.cluster import GpuView, NodeView, Snapshot
from scheduler.demand import Demand
from scheduler.planner import plan

MIB = 1024 * 1024
BATCH, TOOLS, NAIVE = 256, 64, 16


def run(argv: list[str]) -> dict[str, object]:
    """``--nodes`` and ``--trace`` are openb CSV files: the replay packs its pods in order until they are used up."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks placement", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 100, 1000, 10_000])
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    parser.add_argument("--trace", type=Path, help="pod list: name, cpu_milli, memory_mib, num_gpu")
    parser.add_argument("--nodes", type=Path, help="node list: sn, cpu_milli, memory_mib, gpu, model")
    options = parser.parse_args(argv)
    if (options.trace is None) != (options.nodes is None):
        parser.error("--trace and --nodes go together")
    result: dict[str, object] = {str(size): measure(size, options.seconds) for size in options.sizes}
    report: dict[str, object] = {"nodes": result}
    if options.trace is not None:
        report["trace"] = replay(options.nodes, options.trace)
    return report


def measure(size: int, seconds: float) -> dict[str, object]:
    """All measurements at one cluster size."""
    nodes = cluster(size)
    snapshot = Snapshot(nodes)
    start = time.perf_counter()
    plan(snapshot, [step(0, cpu=100)])
    columns = time.perf_counter() - start
    tools = [Demand(id=f"run/step-{i}") for i in range(TOOLS)]
    identical = [step(i, cpu=100) for i in range(BATCH)]
    mixed = [step(i, cpu=100 + i) for i in range(BATCH)]
    nowhere = [step(0, cpu=10**6)]
    few = identical[:NAIVE]
    return {
        "columns_ms": round(columns * 1000, 3),
        "tool_single": timed(lambda: _explained(nodes, tools[:1]), 1, seconds),
        "tool_batch": timed(lambda: _explained(nodes, tools), TOOLS, seconds),
        "single": timed(lambda: plan(snapshot, identical[:1]), 1, seconds),
        "identical": timed(lambda: plan(snapshot, identical), BATCH, seconds),
        "mixed": timed(lambda: plan(snapshot, mixed), BATCH, seconds),
        "explain": timed(lambda: _refused(snapshot, nowhere), 1, seconds),
        "naive_first_fit": timed(lambda: first_fit(nodes, few), NAIVE, seconds),
        "naive_best_fit": timed(lambda: best_fit(nodes, few), NAIVE, seconds),
        "same_answers": best_fit(nodes, few) == [one.node for one in plan(snapshot, few).placements],
    }


def _explained(nodes: tuple[NodeView, ...], demands: list[Demand]) -> list[str]:
    return [placement.explanation.text for placement in plan(Snapshot(nodes), demands).placements]


def _refused(snapshot: Snapshot, demands: list[Demand]) -> None:
    (waiting,) = plan(snapshot, demands).waiting
    assert waiting.explanation.text and [reason.to_json() for reason in waiting.reasons]


def timed(call: Callable[[], object], decisions: int, seconds: float) -> dict[str, float]:
    """Per call percentiles of wall time; per decision the mean of wall time and of this process's CPU time.

    On a busy machine only the latter says what the work costs.
    """
    samples: list[float] = []
    end, cpu = time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end or len(samples) < 3:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    made = len(samples) * decisions
    each, cpu_each = sum(samples) / made, (time.process_time() - cpu) / made
    return {
        "decisions_per_second": round(1 / each),
        "us_per_decision": round(each * 1e6, 2),
        "cpu_us_per_decision": round(cpu_each * 1e6, 2),
        **summary(samples),
    }


def cluster(size: int) -> tuple[NodeView, ...]:
    """Nodes of three sizes, seeded; one in ten has GPUs; the first half is full."""
    chance = np.random.default_rng(7)
    return tuple(_node(f"node-{i}", chance, full=i < size // 2) for i in range(size))


def _node(name: str, chance: np.random.Generator, *, full: bool) -> NodeView:
    cpu = int(chance.choice((64_000, 96_000, 128_000)))
    gpus = tuple(GpuView(f"{name}/{index}", 80 * 1024 * MIB) for index in range(8)) if chance.random() < 0.1 else ()
    return NodeView(
        id=name,
        name=name,
        tiers={"wasm": {"python": True}, "jail": {"python": True}},
        cpu_milli_free=0 if full else cpu,
        cpu_milli_total=cpu,
        memory_free=4 * cpu * MIB,
        memory_total=4 * cpu * MIB,
        slots_free=0 if full else 512,
        slots_total=512,
        gpus=gpus,
    )


def step(index: int, *, cpu: int) -> Demand:
    """A small sandboxed step."""
    return Demand(id=f"step-{index}", tier="wasm", image="python", cpu_milli=cpu, memory_bytes=64 * MIB)


def replay(node_list: Path, pod_list: Path) -> dict[str, object]:
    """Pods arrive in file order and never leave; shared GPUs count whole, so this is stricter than the trace."""
    with node_list.open() as rows:
        nodes = tuple(
            NodeView(
                id=row["sn"],
                name=row["sn"],
                cpu_milli_free=int(row["cpu_milli"]),
                cpu_milli_total=int(row["cpu_milli"]),
                memory_free=int(row["memory_mib"]) * MIB,
                memory_total=int(row["memory_mib"]) * MIB,
                slots_free=10_000,
                slots_total=10_000,
                gpus=tuple(GpuView(f"{row['sn']}/{index}", 0) for index in range(int(row["gpu"]))),
            )
            for row in csv.DictReader(rows)
        )
    with pod_list.open() as rows:
        pods = [
            Demand(
                id=row["name"],
                cpu_milli=int(row["cpu_milli"]),
                memory_bytes=int(row["memory_mib"]) * MIB,
                gpu=int(row["num_gpu"]),
            )
            for row in csv.DictReader(rows)
        ]
    start = time.perf_counter()
    result = plan(Snapshot(nodes), pods)
    seconds = time.perf_counter() - start
    wanted = {pod.id: pod.gpu for pod in pods}
    return {
        "nodes": len(nodes),
        "pods": len(pods),
        "placed": len(result.placements),
        "waiting": len(result.waiting),
        "gpus": sum(len(node.gpus) for node in nodes),
        "gpus_wanted": sum(wanted.values()),
        "gpus_allocated": sum(wanted[placement.demand] for placement in result.placements),
        "seconds": round(seconds, 3),
        "decisions_per_second": round(len(pods) / seconds),
    }
