"""Durable no-op steps a second through the whole engine, and latency at low load.

A step is ``tool: builtin.noop``: one ``runtime.tool`` decision, one assignment to a real node process, one report,
all durable. Control plane and node are processes of their own; rates are counted by the control plane's own journal
over a window of at least 15 s. The peer is a raw SKIP-LOCKED-style loop: claim a row, finish it, one commit each.
"""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import host, summary
from stockade.client import Client, ServerUnreachable

READY_SECONDS = 90.0


def run(argv: list[str]) -> dict[str, Any]:
    """Measure; options: ``--window`` seconds, ``--runs`` at once, ``--steps`` a run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks engine", description=__doc__)
    parser.add_argument("--window", type=float, default=15.0, help="seconds of each measurement")
    parser.add_argument("--runs", type=int, default=64, help="runs open at once")
    parser.add_argument("--steps", type=int, default=20_000, help="sequential steps of a run")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as folder:
        state = Path(folder)
        with (state / "banner.txt").open("wb+") as banner:
            command = [sys.executable, "-m", "stockade.cli.main", "up", "--port", "0", "--no-context"]
            up = subprocess.Popen([*command, "--state-dir", str(state)], stdout=banner)
            try:
                client = _client(up, state)
                with client:
                    low = _low_load(client)
                    database = state / "control" / "stockade.db"
                    rates = [_throughput(client, database, options, width) for width in (1, options.runs)]
            finally:
                up.terminate()
                up.wait(60)
        peer = _raw_loop(state / "peer.db", options.window)
    return {
        "host": host(),
        "low_load": low,
        "steps_per_second": {f"{one['runs']} runs": one for one in rates},
        "peer": {"raw claim-and-finish loop on SQLite, one commit each": peer},
    }


def _client(up: subprocess.Popen[bytes], state: Path) -> Client:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and up.poll() is None:
        for line in (state / "banner.txt").read_text().splitlines():
            if line.startswith("API "):
                url = line.split()[1].removesuffix("/v1")
                client = Client(url, api_key=(state / "control" / "admin.key").read_text().strip())
                try:
                    if any("wasm" in node.ready_images("python") for node in client.nodes()):
                        return client
                except ServerUnreachable:
                    client.close()
        time.sleep(0.1)
    raise SystemExit("stockade up did not get ready")


STEP: dict[str, Any] = {"stockade": "1", "name": "noop", "steps": [{"id": "s", "tool": "builtin.noop"}]}
# Sequential steps without a definition that grows with them: a map of width one, every item a step of its own.
CHAIN: dict[str, Any] = {
    "stockade": "1",
    "name": "noop-chain",
    "steps": [
        {
            "id": "chain",
            "map": {"over": "${input.items}", "as": "n", "concurrency": 1},
            "do": [{"id": "s", "tool": "builtin.noop", "args": {"n": "${n}"}}],
        }
    ],
}


def _low_load(client: Client, count: int = 100) -> dict[str, Any]:
    """One run at a time: how long a submit takes, and how long from ready to done of one step."""
    submits, steps = [], []
    for _ in range(count):
        began = time.perf_counter()
        run_id = client.submit(STEP).id
        submits.append(time.perf_counter() - began)
        client.wait(run_id)
        done = next(event for event in client.events(run_id) if event.type == "step.completed")
        steps.append(float(done.data["seconds"]))
    return {"submit_seconds": summary(submits), "step_ready_to_done_seconds": summary(steps)}


def _throughput(client: Client, database: Path, options: argparse.Namespace, width: int) -> dict[str, Any]:
    """``width`` runs of sequential steps, longer than the window; steps completed in it, by the journal."""
    runs = [client.submit(CHAIN, {"items": list(range(options.steps))}).id for _ in range(width)]
    time.sleep(2.0)
    before, began = _completed(database), time.monotonic()
    time.sleep(options.window)
    after, seconds = _completed(database), time.monotonic() - began
    unfinished = [run_id for run_id in runs if client.run(run_id).status == "running"]
    for run_id in unfinished:
        client.cancel(run_id)
    for run_id in unfinished:
        client.wait(run_id)
    return {
        "runs": width,
        "window_seconds": round(seconds, 2),
        "steps": after - before,
        "rate": (after - before) / seconds,
        "runs_busy_to_the_end": len(unfinished),
    }


def _completed(database: Path) -> int:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        found = connection.execute("SELECT count(*) FROM step WHERE status='completed'").fetchone()
        return int(found[0])
    finally:
        connection.close()


def _raw_loop(database: Path, seconds: float) -> dict[str, Any]:
    """What a queue table alone gives: claim and finish one row, each in a durable commit."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, state TEXT)")
    connection.executemany("INSERT INTO job (state) VALUES (?)", [("ready",)] * 200_000)
    took: list[float] = []
    deadline = time.monotonic() + min(seconds, 5.0)
    job = 0
    while time.monotonic() < deadline:
        began, job = time.perf_counter(), job + 1
        connection.execute("UPDATE job SET state='running' WHERE id=? AND state='ready'", (job,))
        connection.execute("UPDATE job SET state='done' WHERE id=? AND state='running'", (job,))
        took.append(time.perf_counter() - began)
    connection.close()
    return {"rate": job / sum(took), "step_seconds": summary(took)}
