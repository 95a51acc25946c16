"""``make demo``: starts Stockade on a free port with its own state, triages this machine's own logs, stops again.

python examples/incident-triage/demo.py STATE_DIR SETUP_LOGS [--keep]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shards import shards

from stockade.client import Client, ServerUnreachable

HERE = Path(__file__).resolve().parent
QUESTION = "What failed on this machine while it was set up?"
READY_SECONDS = 75.0


def main() -> int:
    """Run the demonstration; the exit code of ``stockade run``."""
    state, setup, keep = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), "--keep" in sys.argv
    began = time.monotonic()
    roots = {"setup": setup, "system": Path("/var/log")}
    roots = {name: path for name, path in roots.items() if path.is_dir() and os.access(path, os.R_OK | os.X_OK)}
    state.mkdir(parents=True, exist_ok=True)
    data = [part for name, path in roots.items() for part in ("--data", f"{name}={path}")]
    stockade = [sys.executable, "-m", "stockade.cli.main"]
    banner = (state / "banner.txt").open("wb+")
    command = [*stockade, "up", "--port", "0", "--no-context", "--state-dir", str(state), *data]
    up = subprocess.Popen(command, stdout=banner, start_new_session=True)
    try:
        url = _url(up, state / "banner.txt")
        key = (state / "control" / "admin.key").read_text().strip()
        with Client(url, api_key=key) as client:
            _await_python(client, up)
            given = {"question": QUESTION, "logs": shards(roots)}
            print(
                f"{len(given['logs'])} log files of {len(roots)} data roots: {', '.join(given['logs'])}\n", flush=True
            )
            environment = {**os.environ, "STOCKADE_URL": url, "STOCKADE_API_KEY": key}
            run = [*stockade, "run", str(HERE / "workflow.json"), "--watch", "-o", "json", "--input", "-"]
            answer = subprocess.run(
                run, input=json.dumps(given).encode(), stdout=subprocess.PIPE, env=environment, check=False
            )
            if answer.returncode == 0:
                ended = json.loads(answer.stdout)
                print(f"\n{ended['output']['report']}")
                artifacts = ", ".join(f"{one.name} ({one.id})" for one in client.artifacts(ended["id"]))
                counts = ended["decisions"]
                print(f"run        {ended['id']} {ended['status']}")
                print(f"artifacts  {artifacts}")
                print(f"decisions  {counts['total']} made, {counts['denied']} denied")
        print(f"API        {url}/v1")
        print(f"took       {time.monotonic() - began:.1f} s from start to report")
        if keep and answer.returncode == 0:
            print(f"running    key in {state}/control/admin.key; stop with: kill {up.pid}")
        return answer.returncode
    finally:
        if not keep:
            up.send_signal(signal.SIGTERM)
            up.wait(40)


def _url(up: subprocess.Popen[bytes], banner: Path) -> str:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and up.poll() is None:
        for line in banner.read_text().splitlines():
            if line.startswith("API "):
                return line.split()[1].removesuffix("/v1")
        time.sleep(0.05)
    raise SystemExit("stockade up did not come up; see the lines above")


def _await_python(client: Client, up: subprocess.Popen[bytes]) -> None:
    """Wait until the node can run Python; its first start compiles it, and says how far it is."""
    deadline = time.monotonic() + READY_SECONDS
    told = ""
    while time.monotonic() < deadline and up.poll() is None:
        try:
            nodes = client.nodes()
        except ServerUnreachable:
            nodes = []
        if any("wasm" in node.ready_images("python") for node in nodes):
            return
        now = "; ".join(
            f"{tier} {image.image}: {image.detail}"
            for node in nodes
            for tier, state in node.tiers.items()
            for image in state.images
            if image.image == "python" and not image.ready
        )
        if now and now != told:
            print(f"preparing  {now}", flush=True)
            told = now
        time.sleep(0.1)
    raise SystemExit("no node became ready; run `stockade doctor`")


if __name__ == "__main__":
    sys.exit(main())
