"""``kill -9`` of the control plane, and of a node, at random moments of a 200-step run: nothing lost, nothing twice.

Steps are calls of an HTTP service that writes down every call it gets, so that a second execution would be seen. A
call in flight at a kill may come again, with the same idempotency key; one whose step had completed may not.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest

from stockade.client import Client
from stockade.client.models import Event
from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.counted_calls import CallService, Performed

LEASE_SECONDS = 3.0
TRIALS = 10
LONG_TRIALS = 50
STEPS = 200
CHAIN = 100
BAD_EVERY = 10
"""Every so many items of the map fail in the trials with a failing map."""
KILLS = 2
Kind = Literal["plain", "failing-map", "cancelled"]
KINDS: tuple[Kind, ...] = ("plain", "failing-map", "cancelled")


def items(name: str, kind: Kind) -> list[str]:
    """What the map is over: an id for each call."""
    return [f"{name}-{'bad' if kind == 'failing-map' and i % BAD_EVERY == 0 else 'i'}{i}" for i in range(STEPS - CHAIN)]


def workflow(name: str, kind: Kind) -> dict[str, Any]:
    """200 calls: 100 one after the other, each with a number from the one before, then a map of 100; then a check."""

    def call(step: str, id: str, after: Any) -> dict[str, Any]:
        return {"id": step, "tool": "count.ok", "args": {"id": id, "after": after}}

    before = ["${0}", *(f"${{steps.s{i - 1}.output.after + 1}}" for i in range(1, CHAIN))]
    steps: list[dict[str, Any]] = [call(f"s{i}", f"{name}-s{i}", after) for i, after in enumerate(before)]
    over = {"over": items(name, kind), "concurrency": 8, "tolerate": 1 / BAD_EVERY}
    steps.append({"id": "fan", "map": over, "do": [call("one", "${item}", 0)]})
    steps.append({"id": "last", "set": f"${{steps.s{CHAIN - 1}.output.after}}"})
    return {"stockade": "1", "name": "crash", "steps": steps}


@dataclass(kw_only=True)
class Trial:
    """One run that is killed at, and what became of it. ``outages`` are wall-clock spans, from before each kill."""

    name: str
    kind: Kind
    run: str
    outages: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    again: int = 0

    def check(self, client: Client, service: CallService) -> None:
        """It ended as it should, with every output; nothing that had ended was performed again."""
        run, events = client.run(self.run), list(client.events(self.run))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        ids = {f"s{i}": f"{self.name}-s{i}" for i in range(CHAIN)}
        ids |= {f"fan[{i}]/one": id for i, id in enumerate(items(self.name, self.kind))}
        steps = {step.path: step for step in client.steps(self.run) if step.path in ids}
        if self.kind == "cancelled":
            assert run.status == "cancelled", run
        else:
            assert (run.status, run.error) == ("completed", None)
            assert run.output["last"] == CHAIN - 1
            assert set(steps) == set(ids)
        calls = service.calls(f"{self.name}-")
        ended = {event.path: event for event in events if event.type in ("step.completed", "step.failed")}
        assert sum(event.type in ("step.completed", "step.failed") for event in events) == len(ended)
        for path, id in ids.items():
            self._check_calls(calls.pop(id, []), ended.get(path), f"{path} of {self.run}")
            if path not in ended:
                assert self.kind == "cancelled", path
                continue
            assert steps[path].status == ("failed" if "-bad" in id else "completed")
            if "-bad" not in id:
                assert steps[path].output["id"] == id
                assert steps[path].output["after"] == (int(path[1:]) if path.startswith("s") else 0)
        assert not calls, "calls that no step made"
        if self.kind == "failing-map":
            failed = [i for i, one in enumerate(run.output["fan"]) if "error" in one]
            assert failed == list(range(0, STEPS - CHAIN, BAD_EVERY))

    def _check_calls(self, calls: list[Performed], ended: Event | None, what: str) -> None:
        assert len({one.key for one in calls}) <= 1, f"{what} was performed under two keys"
        self.again += max(0, len(calls) - 1)
        for one, two in pairwise(calls):
            around = [span for span in self.outages if one.at <= span[1] and two.at >= span[0]]
            assert around, f"{what} was performed again without a kill between"
        if ended is not None:
            assert ended.at is not None
            late = [one for one in calls if one.at > ended.at.timestamp()]
            assert calls, f"{what} ended without having been performed"
            assert not late, f"{what} was performed again after its end was recorded"


def trial(cluster: Cluster, service: CallService, victim: str, seed: int) -> Trial:
    """One run with kills at seeded moments, checked."""
    chance = random.Random(seed)  # noqa: S311 - a seed, not a secret
    kind = KINDS[seed % len(KINDS)]
    name = f"t{seed}"
    with cluster.client() as client:
        one = Trial(name=name, kind=kind, run=client.submit(workflow(name, kind)).id)
    for kill in range(KILLS):
        time.sleep(chance.uniform(0.0, 0.25))
        down = time.time()
        if victim == "control":
            cluster.kill_control_plane()
            cluster.start_control_plane()
        else:
            cluster.kill_node()
            cluster.start_node(wait=False)
        restarted = time.monotonic()
        one.outages.append((down, time.time()))
        if kind == "cancelled" and kill == KILLS - 2:
            with cluster.client() as client:
                client.cancel(one.run)
    with cluster.client() as client:
        wait_for(lambda: client.run(one.run).ended, "the run ending", 60)
        one.seconds = time.monotonic() - restarted
        one.check(client, service)
    return one


def test_a_submit_cut_off_by_kill_9_and_sent_again_makes_one_run(tmp_path: Path) -> None:
    document = {"stockade": "1", "name": "once", "steps": [{"id": "a", "set": 1}]}
    with Cluster(tmp_path, lease_seconds=LEASE_SECONDS) as cluster:
        cluster.start_control_plane()
        made: list[str] = []
        for seed in range(5):
            chance = random.Random(seed)  # noqa: S311 - a seed, not a secret
            headers = {"Authorization": f"Bearer {cluster.api_key}", "Idempotency-Key": f"key-{seed}"}
            body = {"workflow": document, "labels": {"trial": str(seed)}}
            send = partial(httpx2.post, f"{cluster.url}/v1/runs", json=body, headers=headers, trust_env=False)
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(send)
                time.sleep(chance.uniform(0.0, 0.04))
                cluster.kill_control_plane()
                first.exception(30)
            cluster.start_control_plane()
            answer = send()
            assert answer.status_code == 201, answer.text
            made.append(answer.json()["id"])
        with cluster.client() as client:
            assert sorted(run.id for run in client.runs().data) == sorted(made)


def _trials(tmp_path: Path, victim: str, count: int) -> None:
    with CallService() as service:
        settings = service.settings(tmp_path / "policy")
        with Cluster(tmp_path, settings=settings, lease_seconds=LEASE_SECONDS, heartbeat_seconds=0.3) as cluster:
            cluster.start_control_plane()
            cluster.start_node()
            with cluster.client() as client:
                client.put_tool("count.ok", service.tool())
            done = [trial(cluster, service, victim, seed) for seed in range(count)]
    _record(victim, done)
    assert max(one.seconds for one in done) <= 2 * LEASE_SECONDS


def _record(victim: str, done: list[Trial]) -> None:
    """Say what was seen, and keep it in the folder ``STOCKADE_RESULTS`` if there is one. All of it was checked."""
    seen = {
        "victim": victim,
        "trials": len(done),
        "kills": KILLS * len(done),
        "kinds": Counter(one.kind for one in done),
        "outputs_lost": 0,
        "performed_again_after_completion": 0,
        "performed_again_in_flight": sum(one.again for one in done),
        "lease_seconds": LEASE_SECONDS,
        "seconds_from_last_restart_to_end": [round(one.seconds, 2) for one in done],
    }
    print(f"\n{json.dumps(seen)}")
    if folder := os.environ.get("STOCKADE_RESULTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"crash-{victim}-{len(done)}.json").write_text(json.dumps(seen, indent=2) + "\n")


@pytest.mark.parametrize("victim", ["control", "node"])
def test_kill_9_loses_nothing_and_repeats_nothing(tmp_path: Path, victim: str) -> None:
    _trials(tmp_path, victim, TRIALS)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["control", "node"])
def test_kill_9_fifty_times(tmp_path: Path, victim: str) -> None:
    _trials(tmp_path, victim, LONG_TRIALS)
