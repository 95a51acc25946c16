"""How long a policy decision takes, and what it costs others when a rule runs away.

single      one question at a time, enforcement point to worker process and back
batch       64 and 256 questions a call, with one worker and with two; the loop is what the control plane itself pays
large       the same with 100,000 entries of policy data
bare        the same questions to regorus in this process: no worker, no schema, no log, no limit of time
rule        each shipped rule alone in regorus, and as a ratio to a trivial rule (the machine cancels out)
opa         single and batch through a real OPA server, and 500 a second with every decision stored (policy_opa.py)
runaway     others' latency beside runaway rules, five at a time: none, always the same, always a new one
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvloop
from regorus import Engine

from benchmarks import policy_opa
from benchmarks.report import summary
from controlplane.authorization.bundle import Bundle, bundle_of, load_bundle
from controlplane.authorization.embedded import EmbeddedEngine
from controlplane.authorization.enforcement import Enforcer
from controlplane.authorization.testing import question
from controlplane.authorization.values import Decision, EntryPoint, Question

BATCHES = (64, 256)
LARGE_TENANTS, LARGE_TOOLS = 1000, 100
RUNAWAYS = 5
_TRIVIAL = 'package trivial\nimport rego.v1\ndecision := {"allow": true, "reasons": [], "obligations": []}\n'
_RUNAWAY = """package tenant.tool
import rego.v1
deny contains {"code": "runaway", "message": "never"} if {
	startswith(input.step, "runaway")
	some a in numbers.range(1, 900)
	some b in numbers.range(1, 900)
	some c in numbers.range(1, 900)
	a + b + c < 0
}
"""


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Measure and return numbers; each name says its unit."""
    parser = argparse.ArgumentParser(prog="policy")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each part measures")
    seconds: float = parser.parse_args(argv).seconds
    return uvloop.run(_measure(seconds))  # the loop that the control plane runs on


async def _measure(seconds: float) -> dict[str, Any]:
    bundle, large = load_bundle(), _large()
    return {
        "shipped": {**await _engine(bundle, seconds), "bare": _bare(bundle, seconds)},
        "large": {**await _engine(large, seconds), "bare": _bare(large, seconds)},
        "two_workers": await _engine(bundle, seconds, workers=2),
        "opa": await policy_opa.measure(
            bundle, seconds, _asked, {"single": _single, **{f"batch_of_{size}": _batch(size) for size in BATCHES}}
        ),
        "rule_us": {entry.value: _rule(bundle, question(entry)) for entry in EntryPoint},
        "runaway": await _runaway(bundle, seconds),
    }


def _batch(size: int) -> Callable[[Enforcer, float], Awaitable[Any]]:
    return lambda enforcer, seconds: _batches(enforcer, size, seconds)


def _large() -> Bundle:
    bundle = load_bundle()
    tools = {f"server.tool{index}": True for index in range(LARGE_TOOLS)}
    tenants = {f"tenant{index}": {"tools": tools} for index in range(LARGE_TENANTS)}
    return bundle_of(bundle.files, {**bundle.data, "tenants": {**bundle.data["tenants"], **tenants}})


def _asked(now_ns: int) -> Question:
    return question(now_ns=now_ns, args={"n": {"value": 1, "labels": {"integrity": "user"}}})


async def _engine(bundle: Bundle, seconds: float, workers: int = 1) -> dict[str, Any]:
    engine = EmbeddedEngine(bundle, workers)
    begun = time.perf_counter()
    await engine.start()
    start_ms = (time.perf_counter() - begun) * 1000
    enforcer = Enforcer(engine, {})
    found: dict[str, Any] = {"start_ms": round(start_ms, 1), "single": await _single(enforcer, seconds)}
    for size in BATCHES:
        found[f"batch_of_{size}"] = await _batches(enforcer, size, seconds)
    await engine.close()
    return found


async def _single(enforcer: Enforcer, seconds: float) -> dict[str, float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        asked = _asked(len(taken))
        begun = time.perf_counter()
        assert (await enforcer.ask(asked)).allow
        taken.append(time.perf_counter() - begun)
    return summary(taken)


async def _batches(enforcer: Enforcer, size: int, seconds: float) -> dict[str, float]:
    answered, refused, loop, taken = 0, 0, 0.0, []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        asked = [_asked(index) for index in range(size)]
        begun, used = time.perf_counter(), time.process_time()
        answers = await enforcer.ask_many(asked)
        taken.append(time.perf_counter() - begun)
        loop += time.process_time() - used
        allowed = sum(isinstance(one, Decision) and one.allow for one in answers)
        answered += allowed
        refused += size - allowed
    return {
        "refused": refused,
        "per_second": round(answered / sum(taken)),
        "loop_cpu_us_per_decision": round(loop / answered * 1e6, 1),
        **summary(taken),
    }


def _bare(bundle: Bundle, seconds: float) -> dict[str, Any]:
    engine = _regorus(bundle)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        encoded = _asked(len(taken)).encoded().decode()
        begun = time.perf_counter()
        engine.set_input_json(encoded)
        answer = engine.eval_rule_as_json("data.runtime.tool.decision")
        taken.append(time.perf_counter() - begun)
        assert json.loads(answer)["allow"]
    return {"per_second": round(len(taken) / sum(taken)), **summary(taken)}


def _regorus(bundle: Bundle) -> Engine:
    engine = Engine()
    for path, text in (*bundle.files.items(), ("trivial.rego", _TRIVIAL)):
        engine.add_policy(path, text)
    engine.add_data_json(bundle.data_json)
    return engine


def _rule(bundle: Bundle, asked: Question) -> dict[str, float]:
    engine = _regorus(bundle)
    encoded = asked.encoded().decode()
    # Turn by turn, and the quickest of many: both see the same machine.
    rule, trivial = [], []
    for _ in range(50):
        rule.append(_alone(engine, encoded, f"data.{asked.entry.value}.decision"))
        trivial.append(_alone(engine, encoded, "data.trivial.decision"))
    return {"alone": round(min(rule), 1), "to_trivial": round(min(rule) / min(trivial), 2)}


def _alone(engine: Engine, encoded: str, rule: str) -> float:
    begun = time.process_time()
    for _ in range(40):
        engine.set_input_json(encoded)
        engine.eval_rule_as_json(rule)
    return (time.process_time() - begun) / 40 * 1e6


async def _runaway(bundle: Bundle, seconds: float) -> dict[str, Any]:
    engine = EmbeddedEngine(bundle_of({**bundle.files, "overlay/tool.rego": _RUNAWAY}, bundle.data))
    await engine.start()
    enforcer = Enforcer(engine, {})
    found: dict[str, Any] = {"others_without": await _paced(enforcer, seconds)}
    for name, is_new in (("same", False), ("new", True)):
        numbers, stop = itertools.count(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_run_away(enforcer, stop, numbers, is_new)) for _ in range(RUNAWAYS)]
            found[f"others_beside_{name}"] = await _paced(enforcer, seconds)
            stop.set()
        denied = sorted(one for task in tasks for one in task.result())
        found[f"runaways_{name}"] = summary(denied)
    await engine.close()
    return found


async def _paced(enforcer: Enforcer, seconds: float) -> dict[str, float]:
    """Like ``_single``, but a question each millisecond: what waits for the processor is then the engine's doing."""
    taken: list[float] = []
    refused = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        asked = _asked(len(taken))
        begun = time.perf_counter()
        (answer,) = await enforcer.ask_many([asked])
        taken.append(time.perf_counter() - begun)
        refused += not (isinstance(answer, Decision) and answer.allow)
        await asyncio.sleep(0.001)
    return {"refused": refused, **summary(taken)}


async def _run_away(
    enforcer: Enforcer, stop: asyncio.Event, numbers: itertools.count[int], is_new: bool
) -> list[float]:
    taken = []
    while not stop.is_set():
        asked = question(step=f"runaway-{next(numbers)}" if is_new else "runaway")
        begun = time.perf_counter()
        await enforcer.ask_many([asked])
        taken.append(time.perf_counter() - begun)
    return taken
