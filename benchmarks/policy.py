"""How long a policy decision takes, and what it costs others when a rule runs away.

single      one question at a time, enforcement point to worker process and back
batch       64 questions a call
rule        each shipped rule alone in regorus, and as a ratio to a trivial rule (the machine cancels out)
runaway     others' latency while a runaway rule sits in a worker, against the same without one
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

from regorus import Engine

from controlplane.authorization.bundle import Bundle, bundle_of, load_bundle
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.testing import question
from controlplane.authorization.values import EntryPoint, Question

BATCH = 64
_TRIVIAL = 'package trivial\nimport rego.v1\ndecision := {"allow": true, "reasons": [], "obligations": []}\n'
_RUNAWAY = """package tenant.tool
import rego.v1
deny contains {"code": "runaway", "message": "never"} if {
	input.step == "runaway"
	some a in numbers.range(1, 900)
	some b in numbers.range(1, 900)
	some c in numbers.range(1, 900)
	a + b + c < 0
}
"""


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Measure and return numbers: microseconds unless the name says otherwise."""
    parser = argparse.ArgumentParser(prog="policy")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each part measures")
    seconds: float = parser.parse_args(argv).seconds
    return asyncio.run(_measure(seconds))


async def _measure(seconds: float) -> dict[str, Any]:
    bundle = load_bundle()
    engine = EmbeddedEngine(bundle)
    begun = time.perf_counter()
    await engine.start()
    start_ms = (time.perf_counter() - begun) * 1000
    enforcer = Enforcer(engine, {})
    single = await _single(enforcer, seconds)
    rate = await _batches(enforcer, seconds)
    await engine.close()
    return {
        "start_ms": round(start_ms, 1),
        "single_us": single,
        "batch_of_64_per_second": round(rate),
        "rule_us": {entry.value: _rule(bundle, question(entry)) for entry in EntryPoint},
        "runaway": await _runaway(bundle, seconds),
    }


async def _single(enforcer: Enforcer, seconds: float) -> dict[str, float]:
    taken = []
    until = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < until:
        assert (await enforcer.ask(question(granted=["builtin.*"], via="guest"))).allow
        taken.append(time.perf_counter() - begun)
    return _percentiles(taken)


async def _batches(enforcer: Enforcer, seconds: float) -> float:
    asked = [question(granted=["builtin.*"], via="guest", now_ns=index) for index in range(BATCH)]
    answered = 0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        answered += len(await enforcer.ask_many(asked))
    return answered / (time.perf_counter() - begun)


def _rule(bundle: Bundle, asked: Question) -> dict[str, float]:
    engine = Engine()
    for path, text in (*bundle.files.items(), ("trivial.rego", _TRIVIAL)):
        engine.add_policy(path, text)
    engine.add_data_json(bundle.data_json)
    encoded = asked.encoded().decode()
    # Turn by turn, and the quickest of many: both see the same machine.
    rule, trivial = [], []
    for _ in range(20):
        rule.append(_alone(engine, encoded, f"data.{asked.entry.value}.decision"))
        trivial.append(_alone(engine, encoded, "data.trivial.decision"))
    return {"alone": round(min(rule), 1), "to_trivial": round(min(rule) / min(trivial), 2)}


def _alone(engine: Engine, encoded: str, rule: str) -> float:
    begun = time.perf_counter()
    for _ in range(100):
        engine.set_input_json(encoded)
        engine.eval_rule_as_json(rule)
    return (time.perf_counter() - begun) * 1e4


async def _runaway(bundle: Bundle, seconds: float) -> dict[str, Any]:
    files = {**bundle.files, "overlay/tool.rego": _RUNAWAY}
    engine = EmbeddedEngine(bundle_of(files, bundle.data))
    await engine.start()
    enforcer = Enforcer(engine, {})
    without = await _single(enforcer, seconds)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_run_away(enforcer, stop))
        beside = await _single(enforcer, seconds)
        stop.set()
    await engine.close()
    return {"others_without_us": without, "others_beside_us": beside}


async def _run_away(enforcer: Enforcer, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await enforcer.ask_many([question(step="runaway")])
        # A parked step asks again after a backoff, not at once.
        await asyncio.sleep(0.3)


def _percentiles(taken: list[float]) -> dict[str, float]:
    taken.sort()
    at = {f"p{share}": round(taken[int(len(taken) * share / 100)] * 1e6, 1) for share in (50, 95, 99)}
    return {**at, "max": round(taken[-1] * 1e6, 1)}
