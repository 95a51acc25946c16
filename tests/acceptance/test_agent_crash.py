"""Agents with tools and in code mode, their control plane and node killed at random: each goes on where it was.

The model is a scripted server and the tool an HTTP service, both of which write down every request: a turn or a call
that was made again is seen from outside. In flight at a kill it may come again; once it was recorded it may not.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stockade.client import Client
from stockade.client.models import Event
from tests.acceptance.cluster import Cluster, wait_for
from tests.acceptance.counted_calls import CallService
from tests.acceptance.external_model import declare, settings
from tests.scripted_model import NAME, Asked, Say, ScriptedModel

LEASE_SECONDS = 3.0
TURNS = 5
TRIALS, KILLS = 2, 3
LONG_TRIALS, LONG_KILLS = 50, 1
ANSWER_SECONDS = 0.03
"""How long the scripted model takes: a kill can come while it answers."""
_MARKER = re.compile(r"marker (\S+)")
Span = tuple[float, float]


def script(asked: Asked) -> Say:
    """Five turns that call the tool, then an answer made of all results."""
    time.sleep(ANSWER_SECONDS)
    name = _name(asked)
    if asked.turn < TURNS:
        id = f"{name}-t{asked.turn + 1}"
        if name.endswith("code"):
            source = f"import stockade_tools as tools\ntools.count.ok(id={id!r})['id']"
            return Say(calls=(("run_python", {"code": source}),))
        return Say(calls=(("count__ok", {"id": id}),))
    results = [json.loads(message["content"]) for message in asked.messages if message["role"] == "tool"]
    return Say(text=json.dumps([one["id"] if isinstance(one, dict) else one for one in results]))


def _name(asked: Asked) -> str:
    found = _MARKER.search(" ".join(str(one["content"]) for one in asked.messages[:2]))
    assert found is not None
    return found[1]


def workflow(name: str) -> dict[str, Any]:
    """Two agents at once, one that calls the tool and one that writes programs that do."""
    both = [
        {
            "id": kind,
            "agent": {
                "prompt": f"marker {name}-{kind}",
                "tools": ["count.ok"],
                "code": kind == "code",
                "output": {"type": "array", "items": {"type": "string"}},
            },
            "retry": {"max": 3, "backoff": "100ms", "on": ["model"]},
        }
        for kind in ("calls", "code")
    ]
    steps = [{"id": "both", "parallel": {}, "do": both}]
    return {"stockade": "1", "name": "agents", "defaults": {"model": "small"}, "steps": steps}


@dataclass(kw_only=True)
class Trial:
    """One run that is killed at. ``again`` counts what came again in flight: turns, and calls."""

    name: str
    run: str
    outages: list[Span] = field(default_factory=list)
    seconds: float = 0.0
    again: Counter[str] = field(default_factory=Counter)

    def check(self, client: Client, service: CallService, server: ScriptedModel) -> None:
        """It completed with every result, and nothing that had been recorded was done again."""
        run, events = client.run(self.run), list(client.events(self.run))
        assert (run.status, run.error) == ("completed", None)
        for kind in ("calls", "code"):
            name = f"{self.name}-{kind}"
            assert run.output["both"][kind] == [f"{name}-t{turn}" for turn in range(1, TURNS + 1)]
            asked = [one for one in server.asked() if _name(one) == name]
            for turn in range(TURNS + 1):
                path = f"both/{kind}#{turn + 1}/model"
                self._once("turns", path, [one.at for one in asked if one.turn == turn], events, "step.answered")
            calls = service.calls(name)
            for turn in range(1, TURNS + 1):
                made = calls[f"{name}-t{turn}"]
                assert len({one.key for one in made}) == 1, "one key, however often it was tried"
                inner = kind == "code"
                path = f"both/{kind}#{turn}/{'code0' if inner else 'call0'}"
                recorded = "call.recorded" if inner else "step.completed"
                self._once("calls", path, [one.at for one in made], events, recorded)
            assert len(calls) == TURNS

    def _once(self, what: str, path: str, moments: list[float], events: list[Event], recorded: str) -> None:
        ended = [event for event in events if event.path == path and event.type == recorded]
        assert len(ended) == 1, f"{path} was recorded {len(ended)} times"
        assert moments, f"{path} was recorded without having been done"
        assert ended[0].at is not None
        assert max(moments) <= ended[0].at.timestamp(), f"{path} was done again after it was recorded"
        self.again[what] += len(moments) - 1
        for one, two in pairwise(moments):
            assert any(one <= span[1] and two >= span[0] for span in self.outages), f"{path}: again without a kill"


def trial(cluster: Cluster, service: CallService, server: ScriptedModel, seed: int, kills: int) -> Trial:
    """One run, killed at seeded moments: control plane and node in turns, or both at once."""
    chance = random.Random(seed)  # noqa: S311 - a seed, not a secret
    with cluster.client() as client:
        name = f"t{seed}"
        one = Trial(name=name, run=client.submit(workflow(name)).id)
    for _ in range(kills):
        time.sleep(chance.uniform(0.1, 2.5 / kills))
        down = time.time()
        victim = chance.choice(["control", "node", "both"])
        if victim != "control":
            cluster.kill_node()
        if victim != "node":
            cluster.kill_control_plane()
            cluster.start_control_plane()
        if victim != "control":
            cluster.start_node(wait=False)
        one.outages.append((down, time.time()))
    restarted = time.monotonic()
    with cluster.client() as client:
        wait_for(lambda: client.run(one.run).ended, "the run ending", 60)
        one.seconds = time.monotonic() - restarted
        # A call begun just before a node's kill may still arrive just after it came back.
        one.outages = [(begin - 0.5, end + 0.5) for begin, end in one.outages]
        one.check(client, service, server)
    return one


def trials(tmp_path: Path, image_cache: Path, count: int, kills: int) -> None:
    """So many, against one cluster."""
    with CallService() as service, ScriptedModel(script) as server:
        variables = settings(tmp_path / "policy", [service.authority, server.authority])
        with Cluster(
            tmp_path, settings=variables, cache_dir=image_cache, lease_seconds=LEASE_SECONDS, heartbeat_seconds=0.3
        ) as cluster:
            cluster.start_control_plane()
            declare(cluster, "small", server.url, NAME)
            cluster.start_node()
            with cluster.client() as client:
                # It has an effect: what was recorded is answered from the journal also when its program runs again.
                tool = {**service.tool(), "effect": "immediate", "critical_args": []}
                client.put_tool("count.ok", tool)
            done = [trial(cluster, service, server, seed, kills) for seed in range(count)]
    seen = {
        "trials": len(done),
        "agents": 2 * len(done),
        "kills": kills * len(done),
        "recorded_turns_repeated": 0,
        "recorded_calls_repeated": 0,
        "repeated_in_flight": dict(sum((one.again for one in done), Counter())),
        "seconds_from_last_restart_to_end": [round(one.seconds, 2) for one in done],
    }
    print(f"\n{json.dumps(seen)}")
    if folder := os.environ.get("STOCKADE_RESULTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"agent-crash-{count}.json").write_text(json.dumps(seen, indent=2) + "\n")


def test_killed_agents_go_on_in_mid_conversation(tmp_path: Path, image_cache: Path) -> None:
    trials(tmp_path, image_cache, TRIALS, KILLS)


@pytest.mark.long
def test_agents_killed_in_fifty_runs(tmp_path: Path, image_cache: Path) -> None:
    trials(tmp_path, image_cache, LONG_TRIALS, LONG_KILLS)
